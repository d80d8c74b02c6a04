"""Signing in from the command line, and token renewal by concurrent processes."""

import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse.client.login import IssuerClient, Login, LoginFile
from chronoverse.client.service_connection import RequestFailed
from chronoverse.errors import SettingsError, StaleToken, Unauthorized, Unreachable
from tests.support.scripted import ScriptedService, answer

SERVICE: Final = "https://logs.example.com"
PENDING: Final = {"error": "authorization_pending"}


def says(status: str, **document: Any) -> bytes:
    """An answer of the issuer."""
    return answer(status, orjson.dumps(document), Content_Type="application/json")


def tokens(number: int, **more: Any) -> bytes:
    """The issuer's answer with tokens of this number, valid for 300 s."""
    document = {"access_token": f"token-{number}", "refresh_token": f"refresh-{number}", "expires_in": 300}
    return says("200 OK", **{**document, **more})


def sign_in(issuer: ScriptedService, waited: list[float], issuer_says: str | None = None) -> Login:
    """Signs in with a clock that only waiting advances. The first answer is the issuer's metadata."""
    names = ("token_endpoint", "device_authorization_endpoint", "revocation_endpoint")
    metadata = says("200 OK", issuer=issuer_says or issuer.url, **{name: f"{issuer.url}/{name}" for name in names})
    device = {"device_code": "device", "user_code": "AB-CD", "verification_uri": "https://id", "expires_in": 100}
    issuer.answers = (metadata, says("200 OK", **device), *issuer.answers)
    shown: list[tuple[str, str, str | None]] = []
    with issuer:
        signed_in = IssuerClient(issuer.url, "cli", None).sign_in(
            "openid", None, lambda *given: shown.append(given), clock=lambda: 1000 + sum(waited), sleep=waited.append
        )
    assert shown == [("https://id", "AB-CD", None)]
    return signed_in


def test_a_sign_in_waits_as_the_issuer_wants_it() -> None:
    """Polls every five seconds; more slowly if the issuer asks for it, or until it answers again."""
    slow = says("400 Bad Request", error="slow_down")
    pending = says("400 Bad Request", **PENDING)
    issuer = ScriptedService(pending, slow, None, pending, tokens(1))
    waited: list[float] = []

    signed_in = sign_in(issuer, waited)

    assert waited == [5, 5, 10, 20, 10]
    assert (signed_in.access_token, signed_in.refresh_token) == ("token-1", "refresh-1")
    # Since the last poll began. Times in a token are whole seconds.
    assert (signed_in.at, signed_in.until) == (1050, 1349)
    assert signed_in.token_endpoint == f"{signed_in.issuer}/token_endpoint"


def test_a_sign_in_fails_with_the_issuers_reason() -> None:
    """Access denied, an expired code, no metadata or another issuer's, and invalid tokens."""
    refused = says("400 Bad Request", error="access_denied", error_description="the user said no")
    with pytest.raises(Unauthorized, match="the user said no"):
        sign_in(ScriptedService(refused), [])
    expired = says("400 Bad Request", error="expired_token")
    for answers in ([says("400 Bad Request", **PENDING)] * 20, [expired]):
        with pytest.raises(Unauthorized, match="the sign-in timed out: run `chronoverse login` again"):
            sign_in(ScriptedService(*answers), [])
    with pytest.raises(SettingsError, match="identifies itself as https://other"):
        sign_in(ScriptedService(), [], "https://other")
    for status, said, kind in (
        ("503 Service Unavailable", "; try again", Unreachable),
        ("404 Not Found", ": is it the right address[?]", SettingsError),
    ):
        issuer = ScriptedService(says(status))
        url, sentence = issuer.url, f"returned {status[:3]} at {issuer.url}/.well-known/openid-configuration{said}"
        with issuer, pytest.raises(kind, match=f"^the issuer {url} {sentence}$"):
            IssuerClient(url, "cli", None).sign_in("openid", None, lambda *given: None)
    with pytest.raises(SettingsError, match="issued a token of type DPoP"):
        sign_in(ScriptedService(tokens(1, token_type="DPoP")), [])
    with pytest.raises(Unreachable, match="sent an invalid answer"):
        sign_in(ScriptedService(tokens(1, access_token="two\nlines")), [])


@pytest.fixture
def file(tmp_path: Path) -> LoginFile:
    """The file before the first sign-in."""
    return LoginFile(tmp_path / "new", SERVICE)


def stored(file: LoginFile, issuer: str) -> None:
    """Stores a sign-in whose token is valid from 1000 to 1300."""
    endpoint = f"{issuer}/token"
    login = Login(
        issuer=issuer, client_id="cli", token_endpoint=endpoint, revocation_endpoint=None,
        access_token="token-0", refresh_token="refresh-0", at=1000, until=1300,
    )  # fmt: skip
    file.write(login)


def test_a_token_is_renewed_before_its_end(file: LoginFile, tmp_path: Path) -> None:
    """Also after the clock was set back. The file is private and bound to one service."""
    with ScriptedService(tokens(1), tokens(2, refresh_token=None)) as issuer:
        stored(file, issuer.url)
        assert file.token(lambda: 1239) == "token-0"
        assert file.token(lambda: 1240) == "token-1"
        assert file.token(lambda: 1239) == "token-2"  # the new token begins at 1240
        assert file.token(lambda: 1240) == "token-2"

    kept = file.read()
    assert kept is not None
    assert (kept.refresh_token, kept.until) == ("refresh-1", 1239 + 299)
    (path,) = (tmp_path / "new").glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert LoginFile(tmp_path / "new", "https://other.example.com").read() is None
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="must be a file that only you can read"):
        file.token(lambda: 1240)


def test_an_issuer_that_is_away_does_not_end_a_sign_in(file: LoginFile) -> None:
    """The token is used until it expires. After that, each request retries."""
    with ScriptedService(None, says("429 Too Many Requests"), answer("200 OK", b"<p>a proxy"), tokens(1)) as issuer:
        stored(file, issuer.url)
        assert file.token(lambda: 1290) == "token-0"
        assert file.token(lambda: 1299) == "token-0"
        with pytest.raises(RequestFailed, match=f"returned 200 at {issuer.url}/token, and not with a JSON object"):
            file.token(lambda: 1300)
        assert file.token(lambda: 1300) == "token-1"


def test_a_sign_in_that_was_revoked_is_over(file: LoginFile) -> None:
    """The issuer's reason is shown, and it is not asked again. A new sign-in applies immediately."""
    gone = says("400 Bad Request", error="invalid_grant", error_description="it was revoked")
    with ScriptedService(gone) as issuer:
        url = issuer.url
        stored(file, url)
        for _ in range(2):
            with pytest.raises(StaleToken, match=r"has ended \(it was revoked\): run `chronoverse login`"):
                file.token(lambda: 1300)
        stored(file, url)
        assert file.token(lambda: 1001) == "token-0"
    file.remove()
    with pytest.raises(StaleToken, match="you are signed out"):
        file.token(lambda: 1001)


def test_sign_in_and_sign_out_wait_for_a_renewal(file: LoginFile) -> None:
    """So a new sign-in is kept, and a sign-out revokes the newest refresh token."""
    issuer = ScriptedService()
    removed: list[Login | None] = []

    def renew_during(action: Callable[[], object], number: int) -> None:
        stored(file, issuer.url)
        threads = [threading.Thread(target=each) for each in (lambda: file.token(lambda: 1300), action)]
        threads[0].start()
        connection, _ = issuer.listener.accept()
        threads[1].start()
        threads[1].join(0.3)
        with connection:
            connection.sendall(tokens(number))
            for thread in threads:
                thread.join()

    with issuer.listener:
        renew_during(lambda: stored(file, "https://new"), 1)
        kept = file.read()
        assert kept is not None
        assert (kept.issuer, kept.access_token) == ("https://new", "token-0")
        renew_during(lambda: removed.append(file.remove()), 2)
    assert [each and each.refresh_token for each in removed] == ["refresh-2"]
    assert file.read() is None


def test_only_one_of_several_renews(tmp_path: Path) -> None:
    """A refresh token can be used once; the other processes use the result."""
    files = [LoginFile(tmp_path, SERVICE) for _ in range(4)]
    found: list[str] = []
    have_read = threading.Barrier(len(files))

    def take(file: LoginFile) -> None:
        # All read the old token before the first one renews it.
        calls = iter([lambda: have_read.wait(60)])
        found.append(file.token(lambda: 1300 + 0 * next(calls, int)()))

    with ScriptedService(tokens(1), tokens(2)) as issuer:
        stored(files[0], issuer.url)
        threads = [threading.Thread(target=take, args=(each,)) for each in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert found == ["token-1"] * 4
    assert len(issuer.requests) == 1
