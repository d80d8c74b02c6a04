"""An OpenID provider: oidc-provider, which is certified. Installed by ``npm install --prefix tests/clients``."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.service import ROOT
from tests.support.tools import tool, unavailable
from tests.support.waiting import wait_until

_SCRIPT: Final = ROOT / "tests" / "clients" / "provider.mjs"
#: Time limit of its start on a busy machine, in seconds.
_START_SECONDS: Final = 60.0


class Provider:
    """A provider with the public client ``page``, which accepts any user. Its output is in ``log``.

    Its access tokens are JWTs for the audience ``chronoverse``, with the requested scopes and the claims of
    :meth:`change`. The redirect URI can be ``/ui/sign-in`` on any port of 127.0.0.1.
    """

    client_id: Final = "page"

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        wait_until(lambda: b"http://" in log.read_bytes(), _START_SECONDS, "the provider has started")
        (self.url,) = re.findall(r"^http://\S+$", log.read_text(), re.MULTILINE)

    def change(self, **changes: Any) -> None:
        """Configures its next tokens: ``ttl`` in seconds, and ``claims``, such as ``{"workflows": ["*"]}``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(changes).encode() + b"\n")
        self._process.stdin.flush()
        httpx.get(f"{self.url}/jwks")  # Answered only after it has read the line.

    def settings(self) -> dict[str, Any]:
        """The settings of a service that uses this provider."""
        return {
            "jwt_secret": "",
            "jwt_jwks_url": f"{self.url}/jwks",
            "jwt_issuer": self.url,
            "jwt_audience": "chronoverse",
            "oidc_issuer": self.url,
            "oidc_client_id": self.client_id,
        }

    def requests(self) -> list[dict[str, str | None]]:
        """The ``target`` and ``referer`` of each request so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith('{"target"')]

    def approve(self, uri: str, user: str = "somebody") -> None:
        """Approves a device authorization (RFC 8628) as ``user``, at the ``uri`` that includes the code."""
        with httpx.Client(follow_redirects=True, timeout=_START_SECONDS) as browser:
            answer = browser.get(uri)
            for _ in range(5):
                if "Signed in." in answer.text:
                    return
                fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', answer.text))
                action = re.search(r'action="([^"]+)"', answer.text)
                if 'name="user"' in answer.text:
                    fields["user"] = user
                answer = browser.post(action[1] if action else answer.url, data=fields)
        raise AssertionError(f"the provider does not sign in: {answer.status_code} {answer.text}")


def need_provider() -> None:
    """Skips the test if the provider is not installed. See :func:`unavailable`."""
    tool("node")
    if not (_SCRIPT.parent / "node_modules" / "oidc-provider").is_dir():
        unavailable("npm install --prefix tests/clients was not run")


@contextlib.contextmanager
def providing(directory: Path, **changes: Any) -> Iterator[Provider]:
    """Runs a provider inside a ``with`` block. ``changes`` are as for :meth:`Provider.change`."""
    need_provider()
    log = directory / "provider.log"
    command = [tool("node"), str(_SCRIPT), json.dumps(changes)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        yield Provider(process, log)
    finally:
        process.kill()
        process.communicate()
