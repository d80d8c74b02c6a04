"""A proxy in front of an S3 server that makes calls of one kind fail as S3 and networks do."""

import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

#: Timeout of the S3 server's answers, in seconds.
ANSWER_SECONDS: Final = 30.0
#: Errors that the proxy returns itself: status and S3 code. A load balancer's error has no code.
REFUSALS: Final = {"500": (500, "InternalError"), "503": (503, ""), "slow down": (503, "SlowDown")}
_REFUSED: Final = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>Not now.</Message></Error>'
#: Hop-by-hop headers, which are not forwarded.
_HOP_BY_HOP: Final = ("connection", "transfer-encoding", "content-length", "expect")

Call = Literal["put", "get", "delete", "list"]
#: Kinds of faults: an error; a connection cut before or after the call had its effect; a truncated answer.
KINDS: Final = (*REFUSALS, "cut before", "cut after", "cut short")


class Fault(NamedTuple):
    """The fault of every call of one kind, or with ``once`` only of the next one."""

    call: Call
    kind: str
    once: bool


class S3Faults:
    """A context manager that forwards calls to ``upstream`` or makes them fail. Clients connect to its ``url``."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(upstream))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3faults", daemon=True)
        self.url: Final = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        with self._lock:
            self._fault = fault
        try:
            yield
        finally:
            with self._lock:
                self._fault = None

    def fault_for(self, call: Call) -> str:
        """The kind of fault of this call, or an empty string."""
        with self._lock:
            fault = self._fault
            if fault is None or fault.call != call:
                return ""
            if fault.once:
                self._fault = None
            return fault.kind

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self, upstream: tuple[str, int]) -> type["_Handler"]:
        class Handler(_Handler):
            faults = self
            upstream_address = upstream

        return Handler


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    faults: S3Faults
    upstream_address: tuple[str, int]

    def do_GET(self) -> None:
        listing = "list-type" in parse_qs(urlsplit(self.path).query)
        self._forward("list" if listing else "get")

    def do_PUT(self) -> None:
        self._forward("put")

    def do_DELETE(self) -> None:
        self._forward("delete")

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""

    def _forward(self, call: Call) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.faults.fault_for(call)
        if kind in REFUSALS:
            status, code = REFUSALS[kind]
            self._answer(status, {}, _REFUSED.format(code).encode() if code else b"")
        elif kind == "cut before":
            self._cut()
        else:
            status, headers, answer = self._call_upstream(body)
            if kind == "cut after":
                self._cut()
            else:
                self._answer(status, headers, answer, short=kind == "cut short")

    def _call_upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.upstream_address, timeout=ANSWER_SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, short: bool = False) -> None:
        forwarded = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
        head = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in forwarded.items())]
        whole = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body
        with contextlib.suppress(OSError):
            self.wfile.write(whole[: len(whole) - (len(body) or len(whole)) // 2] if short else whole)
        if short:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
