"""A server that publishes the keys with which tokens are checked."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Issuer(ThreadingHTTPServer):
    """An HTTP server with a key set (JWKS) that a test can change. It serves inside a ``with`` block."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        #: The keys. With None it answers 503.
        self.keys: list[dict[str, Any]] | None = []
        #: Sent instead of the keys.
        self.body: bytes | None = None
        #: A URL to which it redirects.
        self.moved_to = ""
        #: Seconds that it takes for an answer.
        self.seconds = 0.0
        #: How many requests it has received, how many it answers now, and how many it has answered at the same time.
        self.requests = self.at_once = self.most_at_once = 0
        self._count = threading.Lock()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks.json"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts a request, from here to the end of the ``with`` block."""
        with self._count:
            self.requests += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._count:
                self.at_once -= 1


class _Answer(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        with self.server.counted():
            time.sleep(self.server.seconds)
            self._send_keys()

    def _send_keys(self) -> None:
        if self.server.keys is None:
            self.send_error(503)
            return
        body = self.server.body
        if body is None:
            body = json.dumps({"keys": self.server.keys}).encode()
        self.send_response(302 if self.server.moved_to else 200)
        self.send_header("Location", self.server.moved_to)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
