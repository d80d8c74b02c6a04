"""A proxy between the runner under test and the service. It injects the faults of networks and load balancers."""

import contextlib
import gzip
import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import orjson

from chronoverse.runner.http_log_writer import READ_SECONDS

_ANSWERS: Final = {
    401: ("application/problem+json", b'{"title":"Unauthorized","status":401}'),
    429: ("application/problem+json", b'{"title":"Too Many Requests","status":429}'),
    502: ("text/html", b"<h1>502 Bad Gateway</h1>"),
    503: ("application/problem+json", b'{"title":"Service Unavailable","status":503}'),
}
_HOP_HEADERS: Final = ("connection", "transfer-encoding", "host", "content-length", "expect", "date", "server")
RETRY_AFTER_SECONDS: Final = 3


class Fault(NamedTuple):
    """A fault to inject into requests for ``route`` (``attempts``, ``logs`` or ``end``; all requests if empty).

    Affects the first ``times`` requests, except lease renewals, and all requests in the ``seconds`` after the first
    affected one.
    """

    #: ``lose answer``, ``lose request``, ``delay`` (by a second), ``repeat`` (the service gets the request twice),
    #: ``swallow`` (lines are acknowledged but not stored), or a status to answer.
    how: str | int
    route: str = ""
    times: int = 1
    seconds: float = 0


class Proxy(ThreadingHTTPServer):
    """Forwards requests to the service at ``upstream``, with ``faults``.

    While ``is_out``, answers 503 to requests without a fault.

    ``appends`` lists each request with lines: its time, and the status of its answer.
    """

    daemon_threads = True

    def __init__(self, upstream: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.is_out = False
        self.appends: list[tuple[float, int]] = []
        self._left = {fault: fault.times for fault in faults}
        self._began: dict[Fault, float] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def unused(self) -> list[Fault]:
        """The faults that no request has triggered."""
        return [fault for fault, left in self._left.items() if left == fault.times]

    def choose(self, route: str, is_renewal: bool) -> str | int:
        """The fault for a request, or an empty string."""
        with self._lock:
            for fault in self._left:
                began = self._began.get(fault)
                if began is not None and time.monotonic() < began + fault.seconds:
                    return fault.how
                if fault.route in ("", route) and not is_renewal and self._left[fault]:
                    self._left[fault] -= 1
                    self._began.setdefault(fault, time.monotonic())
                    return fault.how
        return 503 if self.is_out else ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: the runner was killed, or aborted a request."""


def _count_lines(content: Mapping[str, Any]) -> int:
    return len(content.get("lines") or ()) + sum(len(run.get("messages", ())) for run in content.get("runs") or ())


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _pass(self) -> None:
        body = b"".join(self._receive())
        route = urlsplit(self.path).path.rpartition("/")[2]
        content = self._parse(body)
        has_lines = _count_lines(content) > 0 or self.headers.get_content_type() == "text/plain"
        how = self.server.choose(route, route == "logs" and not has_lines)
        status, headers, answer = self._answer(how, body, content)
        if has_lines:
            self.server.appends.append((time.monotonic(), status))
        if how in ("lose request", "lose answer"):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _answer(self, how: str | int, body: bytes, content: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        if isinstance(how, int):
            kind, answer = _ANSWERS[how]
            later = {"Retry-After": str(RETRY_AFTER_SECONDS)} if how == 429 else {}
            return how, {"Content-Type": kind, **later}, answer
        if how == "swallow":
            next_number = content["first"] + _count_lines(content)
            return 200, {"Content-Type": "application/json"}, b'{"next":%d}' % next_number
        if how == "lose request":
            return 0, {}, b""
        if how == "delay":
            time.sleep(1.0)
        if how == "repeat":
            self._forward(body)
        return self._forward(body)

    do_GET = do_PUT = do_POST = _pass

    def _receive(self) -> Iterator[bytes]:
        """Yields the body, which may be chunked: https://www.rfc-editor.org/rfc/rfc9112#section-7.1"""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _parse(self, body: bytes) -> dict[str, Any]:
        """Parses the body's JSON. Returns an empty dict for invalid JSON, which the service refuses."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            content = orjson.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            if isinstance(content, dict):
                return content
        return {}

    def _forward(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=READ_SECONDS)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""
