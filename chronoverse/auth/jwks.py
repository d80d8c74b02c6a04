"""Public keys that an issuer publishes as a JSON Web Key Set (RFC 7517), fetched seldom and kept through an outage."""

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

#: Seconds that a fetch may take, and each wait in it. One request waits that long; the others go on with the keys that
#: there are.
FETCH_SECONDS: Final = 3.0
#: Bytes of a key set. A hundred RSA keys have 60 KB.
MAX_KEY_SET_BYTES: Final = 262_144
#: Seconds after which keys are fetched again: how long a withdrawn key may live on.
REFRESH_SECONDS: Final = 300.0
#: Seconds between fetches for a ``kid`` nobody knows, or after a failure: anybody can make such ids up.
MIN_REFETCH_SECONDS: Final = 30.0
#: Seconds for which keys are believed while the issuer does not answer.
MAX_STALE_SECONDS: Final = 3_600.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirection an error as any other: the operator has named where the keys are."""

    def redirect_request(self, *args: object) -> None:
        """Nothing is requested instead."""


def fetch_keys(url: str) -> Mapping[str, jwt.PyJWK]:
    """The signing keys at ``url`` by their ``kid``. Redirects are not followed.

    Each wait for the issuer is bounded, but an issuer that sends a byte now and then can keep this up for as long as it
    likes: whoever calls bounds the whole.

    Raises:
        jwt.PyJWTError, OSError, ValueError: when there is no set of keys there.
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

    ``fetch`` fetches them: it must come back within some :data:`FETCH_SECONDS`. ``clock`` is in seconds.
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
        """The key called ``kid``; a token that names none gets the only key there is.

        Raises :class:`Unauthorized` when there is no such key, :class:`SigningKeysUnavailable` when nobody can tell.
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
            pass  # the keys we have are believed for a while
        self._tried = now
