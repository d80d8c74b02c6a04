"""The public keys that an issuer publishes (RFC 7517): fetched by each worker, shared in the store (ADRs 19 and 31)."""

import hashlib
import http.client
import logging
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, Self

import jwt
import orjson

from chronoverse.auth.tls import certificate_problem, tls_context
from chronoverse.errors import SigningKeysUnavailable, StoreError, Unauthorized

#: Timeout for the issuer in seconds. The request that fetches keys waits; others meanwhile use the cached keys.
FETCH_SECONDS: Final = 3.0
#: Maximum bytes of a key set. A hundred RSA keys take 60 KB.
MAX_KEY_SET_BYTES: Final = 262_144
#: Maximum bytes of a record as JSON: a key set with every character escaped.
MAX_RECORD_BYTES: Final = 2 * MAX_KEY_SET_BYTES + 1_024
#: Seconds after which keys are fetched again, and a withdrawn key is refused, if the issuer is reachable.
REFRESH_SECONDS: Final = 300.0
#: Seconds between checks by :func:`keep_fresh`, and between its fetches while there are no keys.
CHECK_SECONDS: Final = 5.0
#: Minimum seconds between fetches for unknown ``kid``s.
MIN_REFETCH_SECONDS: Final = 2.0
#: Seconds, in addition to :data:`REFRESH_SECONDS`, for which cached keys are used while the issuer is unreachable.
MAX_STALE_SECONDS: Final = 3_600.0
#: Seconds after which a waiting request with an unknown ``kid`` is refused, unless it is fetching keys itself.
WAIT_SECONDS: Final = 4.0
#: Maximum requests of a worker that wait because of an unknown ``kid``. Further ones are refused with a 503.
MAX_WAITING: Final = 100

log = logging.getLogger(__name__)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error: the operator has configured the keys' location."""

    def redirect_request(self, *args: object) -> None: ...


def fetch_key_set(url: str, ca_file: Path | None = None) -> bytes:
    """The document at ``url``. ``ca_file`` lists additional certificate authorities.

    The caller must limit the time, because an issuer can send one byte at a time. Raises OSError or ValueError if
    ``url`` cannot be read or its document is too large.
    """
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=tls_context(ca_file)))
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as response:
            document: bytes = response.read(MAX_KEY_SET_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    except http.client.HTTPException as error:
        raise ValueError("the issuer's response is not valid HTTP") from error
    if len(document) > MAX_KEY_SET_BYTES:
        raise ValueError(f"the issuer's key set has more than {MAX_KEY_SET_BYTES} bytes")
    return document


def parse_key_set(document: bytes) -> Mapping[str, jwt.PyJWK]:
    """The signing keys of a key set, by ``kid``, which is optional. Raises jwt.PyJWTError, ValueError or TypeError."""
    found = orjson.loads(document)
    if not isinstance(found, dict):
        raise ValueError("the issuer's key set is not a JSON object")
    listed = found["keys"] if isinstance(found.get("keys"), list) else []
    # Omits keys that cannot verify a token, as the library would fail for the algorithm ``none`` and empty secrets.
    usable = [
        each for each in listed if isinstance(each, dict) and each.get("kty") != "oct" and each.get("alg") != "none"
    ]
    keys = jwt.PyJWKSet(usable).keys
    found = enumerate(key for key in keys if key.public_key_use in ("sig", None))
    return {str(key.key_id or f"key {number}"): key for number, key in found}


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """When the last fetch and the last successful fetch began (Unix time; 0: never), and the last key set fetched."""

    tried_at: float = 0.0
    fetched_at: float = 0.0
    document: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether the last fetch failed to get keys."""
        return self.fetched_at < self.tried_at

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Decodes the result of :meth:`to_json`. Raises ValueError, TypeError, KeyError or AttributeError."""
        found = orjson.loads(text)
        return cls(float(found["tried_at"]), float(found["fetched_at"]), found["document"].encode())

    def to_json(self) -> bytes:
        times = {"tried_at": self.tried_at, "fetched_at": self.fetched_at}
        return orjson.dumps({**times, "document": self.document.decode()})


def key_set_name(url: str) -> str:
    """The name under which the keys at ``url`` are stored. Does not reveal the URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


class KeySetStore(Protocol):
    """Keeps key sets for other workers and nodes. Whoever can write to it can forge tokens."""

    def load_key_set(self, name: str) -> bytes | None: ...
    def save_key_set(self, name: str, record: bytes, seconds: float) -> None: ...


def keep_fresh(
    published: Callable[[], Iterable["PublishedKeys"]], sleep: Callable[[float], object] = time.sleep
) -> None:
    """Fetches keys periodically, even without requests. Runs in a thread of each worker."""
    while True:
        for keys in published():
            keys.prefetch()
        sleep(CHECK_SECONDS)


@dataclass(eq=False)
class PublishedKeys:
    """The keys at ``url``. If the issuer is down, uses keys that another worker or node has saved in ``store``.

    ``fetch`` can take several times :data:`FETCH_SECONDS`. ``clock`` is Unix time.
    """

    url: str
    _: KW_ONLY
    name: str = "CHRONOVERSE_JWT_JWKS_URL"
    store: KeySetStore | None = None
    fetch: Callable[[str], bytes] = fetch_key_set
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    waiting: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._record = FetchRecord()
        self._keys: Mapping[str, jwt.PyJWK] = {}

    def prefetch(self) -> None:
        with self._lock:
            if self._is_older(self._interval if self._usable() else CHECK_SECONDS):
                self._fetch_now()

    def age(self) -> float:
        """Seconds since the keys were fetched. Infinite if they never were."""
        return self.clock() - self._record.fetched_at if self._keys else math.inf

    def check(self) -> None:
        """Raises :class:`SigningKeysUnavailable` if no token can be checked, as there are no keys or only old ones."""
        if not self._usable():
            raise SigningKeysUnavailable("the issuer's keys cannot be fetched")

    def get(self, kid: object) -> jwt.PyJWK:
        """The key ``kid``, or the only key if None. Raises :class:`Unauthorized`, :class:`SigningKeysUnavailable`."""
        asked_at = self.clock()
        if self._record.tried_at > asked_at:
            # The clock was set back, so the record's times are useless.
            self._record, self._keys = FetchRecord(), {}
        if self._find(kid) is None:
            self._wait_for_fetch(kid, asked_at)
        elif self._is_older(self._interval) and self._lock.acquire(blocking=False):
            try:
                self._fetch_now()
            finally:
                self._lock.release()
        if (key := self._find(kid)) is not None:
            return key
        if self._record.failed:
            raise SigningKeysUnavailable("the issuer's keys cannot be fetched")
        if kid is None:
            raise Unauthorized("the token names no key (kid), and the issuer does not publish exactly one")
        raise Unauthorized("the token's key is not published by the issuer")

    @property
    def _interval(self) -> float:
        return 30.0 if self._record.failed else REFRESH_SECONDS

    def _usable(self) -> bool:
        return bool(self._keys) and self.clock() - self._record.fetched_at <= REFRESH_SECONDS + MAX_STALE_SECONDS

    def _find(self, kid: object) -> jwt.PyJWK | None:
        if not self._usable():
            return None
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _wait_for_fetch(self, kid: object, asked_at: float) -> None:
        """Waits for the key, or for a fetch begun after ``asked_at``. Raises :class:`SigningKeysUnavailable`."""
        if self.waiting >= MAX_WAITING:
            raise SigningKeysUnavailable("too many tokens with unknown keys wait for the issuer")
        self.waiting += 1
        try:
            if not self._lock.acquire(timeout=WAIT_SECONDS):
                raise SigningKeysUnavailable("the issuer's keys were not fetched in time")
            try:
                if self._record.tried_at < asked_at and self._find(kid) is None:
                    since = max(self.clock() - self._record.tried_at, 0.0)  # 0 after the clock was set back
                    self.sleep(max(MIN_REFETCH_SECONDS - since, 0.0))
                    self._fetch_now()
            finally:
                self._lock.release()
        finally:
            self.waiting -= 1

    def _is_older(self, seconds: float) -> bool:
        return self.clock() - self._record.tried_at >= seconds

    def _fetch_now(self) -> None:
        began_at = self.clock()
        try:
            document = self.fetch(self.url)
            self._keys = parse_key_set(document)
            self._record = FetchRecord(began_at, began_at, document)
            if self.store is not None:
                seconds = REFRESH_SECONDS + MAX_STALE_SECONDS
                self.store.save_key_set(key_set_name(self.url), self._record.to_json(), seconds)
        except StoreError as error:
            log.warning("the issuer's keys are not shared with other nodes: %s", error)
        except (jwt.PyJWTError, OSError, ValueError, TypeError) as error:
            log.warning("the keys at %s cannot be fetched: %s", self.name, certificate_problem(error) or error)
            self._record = replace(self._record, tried_at=began_at)
            self._take_shared()

    def _take_shared(self) -> None:
        if self.store is None:
            return
        try:
            text = self.store.load_key_set(key_set_name(self.url)) or b""
            found = FetchRecord.from_json(text) if 0 < len(text) <= MAX_RECORD_BYTES else FetchRecord()
            # Accepts times a few seconds ahead, as clocks differ. A later time would make keys last too long.
            if self._record.fetched_at < found.fetched_at <= self._record.tried_at + CHECK_SECONDS:
                self._keys = parse_key_set(found.document)
                # The last fetch failed, even if the other node's clock is ahead.
                fetched_at = min(found.fetched_at, self._record.tried_at - 0.001)
                self._record = FetchRecord(self._record.tried_at, fetched_at, found.document)
                log.warning("using the issuer's keys that another node fetched")
        except StoreError as error:
            log.warning("the keys of other nodes cannot be read: %s", error)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            log.warning("the stored key set is invalid")
