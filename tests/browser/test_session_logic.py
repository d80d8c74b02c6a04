"""The page's token, in Node.js: nothing restores it after the reader has signed out."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

from tests.support.service import ROOT
from tests.support.tools import tool

PATIENCE_SECONDS: Final = 20.0


class Issuer(ThreadingHTTPServer):
    """Responds to a renewal only after ``/answer``. A GET waits until the event in its path has happened."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.happened = {name: threading.Event() for name in ("asked", "answer", "revoked")}
        self.answered = threading.Event()
        self.revoked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        name = self.path[1:]
        if name == "answer":
            self.server.happened[name].set()
            self.server.answered.wait(PATIENCE_SECONDS)
        assert self.server.happened[name].wait(PATIENCE_SECONDS), name
        self._answer({})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.path == "/token":
            self.server.happened["asked"].set()
            assert self.server.happened["answer"].wait(PATIENCE_SECONDS)
            self._answer({"access_token": "new-token", "refresh_token": "new-refresh", "expires_in": 300})
            self.server.answered.set()
        else:
            self._answer({})
            self.server.revoked.append(form["token"][0])
            if len(self.server.revoked) == 2:
                self.server.happened["revoked"].set()

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_nothing_restores_a_token_after_a_sign_out() -> None:
    """Neither a pending renewal, whose new tokens are revoked like the old ones; nor another tab's sign-out."""
    with Issuer() as issuer:
        threading.Thread(target=issuer.serve_forever, args=(0.01,), daemon=True).start()
        script = Path(__file__).with_name("session_logic.mjs")
        done = subprocess.run(
            [tool("node"), str(script), str(ROOT / "chronoverse" / "web" / "static" / "js"), issuer.url],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        issuer.shutdown()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "used": "old-token",
        "after": None,
        "later": None,
        "again": "another-token",
        "elsewhere": None,
        # Whatever requests the token first notices the sign-out, before the event about it, and reloads the page.
        "reloads": 1,
        "replaced": "new-token",
    }
    assert sorted(issuer.revoked) == ["new-refresh", "old-refresh"]
