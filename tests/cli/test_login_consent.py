"""``chronoverse login`` at a hostile service, which can name another one's issuer, client and audience; ``logout``."""

import os
import subprocess
from pathlib import Path

import orjson
import pytest

from chronoverse.client.login import Login, LoginFile
from tests.cli.conftest import COMMAND, PATIENCE_SECONDS, Cli, environ
from tests.support.scripted import ScriptedService, answer


@pytest.mark.parametrize("reply", ["y", "n", None], ids=["yes", "no", "nobody"])
def test_what_the_service_names_is_shown_and_confirmed(
    tmp_path: Path, terminal: tuple[int, int], reply: str | None
) -> None:
    """No request is sent to the issuer before that."""
    refusal = answer("400 Bad Request", orjson.dumps({"error": "no metadata"}))
    with ScriptedService(*[refusal] * 4) as issuer:
        named = {"issuer": issuer.url, "client_id": "theirs", "scopes": "openid logs:admin", "audience": "their-logs"}
        with ScriptedService(answer("200 OK", orjson.dumps(named))) as service:
            if reply is not None:
                os.write(terminal[0], f"{reply}\n".encode())
            done = subprocess.run(
                [*COMMAND, "login"],
                env=environ(tmp_path, URL=service.url),
                stdin=subprocess.DEVNULL if reply is None else terminal[1],
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
    asked = f"requires a token from {named['issuer']} (client theirs, audience their-logs, scopes openid logs:admin)"
    assert asked in done.stderr
    assert bool(issuer.requests) == (reply == "y")
    assert done.returncode == {"y": 78, "n": 1, None: 64}[reply], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answered", "said"), [(answer("200 OK"), ""), (None, "was removed here but not revoked: ")])
def test_a_sign_out_revokes_the_sign_in_once(cli: Cli, tmp_path: Path, answered: bytes | None, said: str) -> None:
    """The sign-in is removed even if the issuer does not answer."""
    url = "https://logs.example.com"
    with ScriptedService(answered) as issuer:
        login = Login(
            issuer=issuer.url, client_id="cli", token_endpoint="", revocation_endpoint=f"{issuer.url}/revoke",
            access_token="a", refresh_token="r", at=0, until=0,
        )  # fmt: skip
        LoginFile(tmp_path, url).write(login)
        done, again = cli("logout", URL=url), cli("logout", URL=url)
    assert [(each.path, each.body) for each in issuer.requests] == [
        ("/revoke", b"token=r&token_type_hint=refresh_token&client_id=cli")
    ]
    *more, last = done.stderr.splitlines()
    assert (done.returncode, len(more), last) == (0, bool(said), f"chronoverse: signed out of {url}")
    assert said in done.stderr
    assert (again.returncode, again.stderr) == (0, f"chronoverse: not signed in to {url}\n")
