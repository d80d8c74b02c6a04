"""The public keys that an issuer publishes as a JSON Web Key Set (RFC 7517), cached for when it is down."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final

import jwt
import orjson

from chronoverse.errors import SigningKeysUnavailable, Unauthorized

#: Seconds of each wait for the issuer. One request waits for a fetch; the others use the cached keys meanwhile.
FETCH_SECONDS: Final = 3.0
#: Bytes of a key set, at most. A hundred RSA keys have 60 KB.
MAX_KEY_SET_BYTES: Final = 262_144
#: Seconds after which keys are fetched again. A withdrawn key is accepted for no longer than this.
REFRESH_SECONDS: Final = 300.0
#: Seconds between two fetches after a failure, or for an unknown ``kid``, since anybody can invent such ids.
MIN_REFETCH_SECONDS: Final = 30.0
#: Seconds beyond :data:`REFRESH_SECONDS` for which cached keys are used while the issuer does not answer.
MAX_STALE_SECONDS: Final = 3_600.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error, because the operator has said where the keys are."""

    def redirect_request(self, *args: object) -> None:
        """Returns no request, which makes urllib raise HTTPError."""


def fetch_keys(url: str) -> Mapping[str, jwt.PyJWK]:
    """The signing keys at ``url`` by their ``kid``. Redirects are not followed.

    Each wait for the issuer is bounded, but their sum is not, since an issuer may send one byte at a time. The caller
    must bound the time.

    Raises:
        jwt.PyJWTError, OSError, ValueError: when there is no key set at ``url``.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as response:
            document = response.read(MAX_KEY_SET_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    except http.client.HTTPException as error:
        raise ValueError("the issuer does not answer as HTTP has it") from error
    if len(document) > MAX_KEY_SET_BYTES:
        raise ValueError(f"the issuer's key set has more than {MAX_KEY_SET_BYTES} bytes")
    found = orjson.loads(document)
    if not isinstance(found, dict):
        raise ValueError("the issuer's key set is not a JSON object")
    keys = jwt.PyJWKSet.from_dict(found).keys
    return {str(key.key_id): key for key in keys if key.key_id and key.public_key_use in ("sig", None)}


class PublishedKeys:
    """The keys at ``url``, shared by all threads or greenlets of a process.

    ``fetch`` fetches them and must return within a few times :data:`FETCH_SECONDS`. ``clock`` is in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: Callable[[str], Mapping[str, jwt.PyJWK]] = fetch_keys,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched = self._tried = -MAX_STALE_SECONDS

    def get(self, kid: object) -> jwt.PyJWK:
        """The key with the id ``kid``, or the only key if ``kid`` is None.

        Raises :class:`Unauthorized` when there is no such key, and :class:`SigningKeysUnavailable` when no keys are
        cached, or only ones that are too old.
        """
        if self._is_due(kid) and self._lock.acquire(blocking=self._lookup(kid) is None):
            try:
                if self._is_due(kid):
                    self._refresh()
            finally:
                self._lock.release()
        if not self._keys or self._clock() - self._fetched > MAX_STALE_SECONDS + REFRESH_SECONDS:
            raise SigningKeysUnavailable("the keys that tokens are checked with cannot be fetched")
        key = self._lookup(kid)
        if key is None:
            raise Unauthorized("the token is not signed with a key that is published")
        return key

    def _lookup(self, kid: object) -> jwt.PyJWK | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _is_due(self, kid: object) -> bool:
        current = self._fetched == self._tried and self._lookup(kid) is not None
        return self._clock() - self._tried > (REFRESH_SECONDS if current else MIN_REFETCH_SECONDS)

    def _refresh(self) -> None:
        now = self._clock()
        try:
            self._keys = self._fetch(self._url)
            self._fetched = now
        except (jwt.PyJWTError, OSError, ValueError):
            pass  # the cached keys are used for a while
        self._tried = now
