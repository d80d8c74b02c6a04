"""A user's sign-in at an issuer: device authorization (RFC 8628), and renewal of tokens."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from chronoverse.auth.local_secret import read_own_file
from chronoverse.auth.tls import tls_context
from chronoverse.backoff import RetryPolicy
from chronoverse.client.service_connection import CONNECTION_ERRORS, RequestFailed, failure, make_connection, target_of
from chronoverse.errors import SettingsError, StaleToken, Unauthorized, Unreachable
from chronoverse.files import draft_of
from chronoverse.settings.parse import bearer_token, jwks_url

_ANSWER_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A sign-in. Times are Unix times by this machine's clock, which can be wrong: only differences matter."""

    issuer: str
    client_id: str
    token_endpoint: str
    revocation_endpoint: str | None
    access_token: str
    refresh_token: str | None
    at: float
    until: float
    ended: str = ""

    def is_valid(self, now: float, early: float = 0) -> bool:
        return self.at <= now < self.until - early

    def is_due(self, now: float) -> bool:
        # Renews a minute before the token's end, or a quarter of its lifetime if that is shorter.
        return not self.is_valid(now, min(60.0, (self.until - self.at) / 4))


class IssuerClient:
    """The issuer at ``url``, and our public client ``client_id`` there. ``ca_file`` adds trusted authorities."""

    def __init__(self, url: str, client_id: str, ca_file: Path | None) -> None:
        self._url = url
        self._client_id = client_id
        self._tls = tls_context(ca_file)

    def sign_in(
        self,
        scopes: str,
        audience: str | None,
        show: Callable[[str, str, str | None], object],
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Login:
        """Signs the user in. ``show`` gets an address, a code to enter there, and an address that includes the code.

        Raises :class:`Unauthorized` if the issuer refuses or the time is up, :class:`Unreachable` (also for an invalid
        answer), and :class:`SettingsError` for an unsuitable issuer.
        """
        metadata = self._metadata()
        if "device_authorization_endpoint" not in metadata:
            raise SettingsError(
                f"the issuer {self._url} does not support device authorization (RFC 8628): set CHRONOVERSE_TOKEN"
            )
        form = {"scope": scopes, **({"audience": audience} if audience else {})}
        device = self._granted(self._post(metadata["device_authorization_endpoint"], form))
        with self._reading():
            interval, expires = max(1.0, float(device.get("interval", 5))), clock() + float(device["expires_in"])
            poll = {
                "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                "device_code": str(device["device_code"]),
            }
            show(str(device["verification_uri"]), str(device["user_code"]), device.get("verification_uri_complete"))
        failures = 0
        while clock() < expires:
            sleep(RetryPolicy(interval, longest=60.0, jitter=0).delay(failures + 1))
            at = clock()
            try:
                status, answer = self._post(metadata["token_endpoint"], poll)
            except RequestFailed:
                failures += 1
                continue
            failures = 0
            if answer.get("error") == "slow_down":
                interval += 5
            elif answer.get("error") == "expired_token":
                break
            elif answer.get("error") != "authorization_pending":
                return self._login(self._granted((status, answer)), metadata, None, at)
        raise Unauthorized("the sign-in timed out: run `chronoverse login` again")

    def renew(self, login: Login, now: float) -> Login:
        """Renews the token. Raises :class:`Unreachable`, or :class:`Unauthorized` if the sign-in has ended."""
        form = {"grant_type": "refresh_token", "refresh_token": login.refresh_token or ""}
        answer = self._granted(self._post(login.token_endpoint, form))
        return self._login(answer, asdict(login), login.refresh_token, now)

    def revoke(self, login: Login) -> None:
        """Ends the sign-in at the issuer, if supported. Raises :class:`Unreachable`."""
        if login.revocation_endpoint and login.refresh_token:
            form = {"token": login.refresh_token, "token_type_hint": "refresh_token"}
            self._post(login.revocation_endpoint, form)

    def _metadata(self) -> dict[str, Any]:
        url = f"{self._url.rstrip('/')}/.well-known/openid-configuration"
        status, found = self._send("GET", url, None)
        if status != 200:
            raise SettingsError(f"the issuer {self._url} returned {status} at {url}: is it the right address?")
        if found.get("issuer") != self._url:
            raise SettingsError(f"the issuer {self._url} identifies itself as {found.get('issuer')}")
        with self._reading():
            for name in ("token_endpoint", "device_authorization_endpoint", "revocation_endpoint"):
                if name in found or name == "token_endpoint":
                    jwks_url(found[name])
        return found

    def _login(self, answer: Mapping[str, Any], endpoints: Mapping[str, Any], refresh: str | None, at: float) -> Login:
        # https://www.rfc-editor.org/rfc/rfc6749#section-7.1
        if (kind := str(answer.get("token_type", "Bearer"))).lower() != "bearer":
            raise SettingsError(f"the issuer {self._url} issued a token of type {kind}: only Bearer can be used")
        with self._reading():
            return Login(
                issuer=self._url,
                client_id=self._client_id,
                token_endpoint=endpoints["token_endpoint"],
                revocation_endpoint=endpoints.get("revocation_endpoint"),
                access_token=bearer_token(answer["access_token"]),
                refresh_token=answer.get("refresh_token") or refresh,
                at=at,
                # A token's times are whole seconds. The issuer can omit the token's lifetime.
                until=at + float(answer.get("expires_in", 300)) - 1,
            )

    def _granted(self, answered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        status, answer = answered
        if status != 200:
            raise Unauthorized(str(answer.get("error_description") or answer.get("error") or f"it returned {status}"))
        return answer

    def _post(self, endpoint: str, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        return self._send("POST", endpoint, urlencode({**form, "client_id": self._client_id}))

    def _send(self, method: str, url: str, form: str | None) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        try:
            with contextlib.closing(make_connection(url, self._tls, _ANSWER_SECONDS)) as connection:
                connection.request(method, target_of(url), form, headers)
                response = connection.getresponse()
                body = response.read(_ANSWER_BYTES)
        except CONNECTION_ERRORS as error:
            raise failure(error, self._url, f"the issuer {self._url}") from error
        try:
            answer = orjson.loads(body) if body else {}
        except ValueError:
            answer = None
        if response.status >= 500 or response.status == 429 or not isinstance(answer, dict):
            kind = "" if isinstance(answer, dict) else ", and not with a JSON object"
            raise RequestFailed(f"the issuer {self._url} returned {response.status} at {url}{kind}; try again")
        return response.status, answer

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise RequestFailed(f"the issuer {self._url} sent an invalid answer") from error


class LoginFile:
    """The sign-in for the service at ``service_url``, in a file in ``data_dir`` that only its owner can read.

    One process at a time refreshes the token, because many issuers accept a refresh token only once.
    """

    def __init__(self, data_dir: Path, service_url: str, ca_file: Path | None = None) -> None:
        name = hashlib.sha256(service_url.encode()).hexdigest()[:16]
        self._path = data_dir / f"login-{name}.json"
        self._lock_path = data_dir / f"login-{name}.lock"
        self._ca_file = ca_file

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def read(self) -> Login | None:
        """The sign-in, or None. Raises :class:`SettingsError` if the file is unusable."""
        try:
            content = read_own_file(self._path, _ANSWER_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SettingsError(f"{self._path}: {error.strerror}") from error
        try:
            return Login(**orjson.loads(content))
        except (TypeError, ValueError):
            raise SettingsError(f"{self._path} has no sign-in: run `chronoverse login`") from None

    def write(self, login: Login) -> None:
        """Replaces the sign-in, after waiting for a renewal in progress. Raises :class:`SettingsError`."""
        with self._lock():
            self._write(login)

    def _write(self, login: Login) -> None:
        try:
            with draft_of(self._path, orjson.dumps(asdict(login))) as draft:
                draft.replace(self._path)
        except OSError as error:
            raise SettingsError(f"{self._path}: {error.strerror}") from error

    def remove(self) -> Login | None:
        """Removes the sign-in, and returns it in its last state. Raises :class:`SettingsError`."""
        with self._lock():
            removed = self.read()
            self._path.unlink(missing_ok=True)
        return removed

    def token(self, clock: Callable[[], float] = time.time) -> str:
        """The token for a request, renewed before it expires.

        Raises :class:`StaleToken` if the sign-in has ended, :class:`RequestFailed` if the token has expired and the
        issuer does not answer, and :class:`SettingsError`.
        """
        login = self._current()
        if not login.is_due(clock()):
            return login.access_token
        with self._lock():
            login = self._current()
            now = clock()
            if login.is_due(now):
                login = self._renewed(login, now)
        return login.access_token

    def _current(self) -> Login:
        login = self.read()
        if login is None:
            raise StaleToken("you are signed out: run `chronoverse login`")
        return login

    def _renewed(self, login: Login, now: float) -> Login:
        if login.refresh_token is None:
            if login.is_valid(now):
                return login
            reason = login.ended or "the issuer did not issue a refresh token"
            raise StaleToken(f"the sign-in at {login.issuer} has ended ({reason}): run `chronoverse login`")
        try:
            renewed = IssuerClient(login.issuer, login.client_id, self._ca_file).renew(login, now)
        except Unauthorized as error:
            # Forgets the refresh token, so that later requests do not ask the issuer again.
            login = replace(login, refresh_token=None, until=login.at, ended=str(error))
            self._write(login)
            return self._renewed(login, now)
        except Unreachable:
            if login.is_valid(now):
                return login
            raise
        self._write(renewed)
        return renewed

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SettingsError(f"{self._lock_path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
