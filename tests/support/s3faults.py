"""A proxy before an S3 server: it knows what is asked, and does to calls of a kind what S3 and networks do."""

import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

#: Seconds by which a slow answer is late: longer than any client here waits for it.
LATE_SECONDS: Final = 5.0
#: Seconds for the server behind to answer.
ANSWER_SECONDS: Final = 30.0
#: Answers that say that nothing was done: status, and S3's code; a load balancer before it has none.
REFUSALS: Final = {
    "500": (500, "InternalError"),
    "503": (503, ""),
    "slow down": (503, "SlowDown"),
}
_REFUSED: Final = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>Not now.</Message></Error>'
#: Headers that are between two neighbours.
_NEIGHBOURS: Final = ("connection", "transfer-encoding", "content-length", "expect")

Call = Literal["put", "get", "delete", "list"]
CALLS: Final[tuple[Call, ...]] = ("put", "get", "delete", "list")
#: Refused; cut off before it had an effect, or behind that; answered in part; answered too late.
KINDS: Final = (*REFUSALS, "cut before", "cut behind", "cut short", "late")


class Fault(NamedTuple):
    """What happens to each call of one kind, or only to the ``once`` next of them."""

    call: Call
    kind: str
    once: bool


class S3Faults:
    """Forwards to ``upstream``; does what ``fault`` says while there is one. For a ``with``; tells its ``url``."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        #: Set while nothing is to be late.
        self._healed = threading.Event()
        #: How often a fault struck.
        self.struck = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(upstream))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3faults", daemon=True)
        self.url: Final = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def fault(self, fault: Fault | None) -> Iterator[None]:
        """This happens, for as long as the ``with`` lasts."""
        with self._lock:
            self._fault = fault
        self._healed.clear()
        try:
            yield
        finally:
            with self._lock:
                self._fault = None
            self._healed.set()

    def due(self, call: Call) -> str:
        """What is to happen to this one, if anything."""
        with self._lock:
            fault = self._fault
            if fault is None or fault.call != call:
                return ""
            if fault.once:
                self._fault = None
            self.struck += 1
            return fault.kind

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._healed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self, upstream: tuple[str, int]) -> type["_Handler"]:
        class Handler(_Handler):
            faults = self
            behind = upstream

        return Handler

    def healed(self) -> None:
        """Waits until nothing is to be late any more, or for long enough."""
        self._healed.wait(LATE_SECONDS)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    faults: S3Faults
    behind: tuple[str, int]

    def do_GET(self) -> None:
        listing = "list-type" in parse_qs(urlsplit(self.path).query)
        self._pass_on("list" if listing else "get")

    def do_PUT(self) -> None:
        self._pass_on("put")

    def do_DELETE(self) -> None:
        self._pass_on("delete")

    def log_message(self, *args: Any) -> None:
        """Nobody reads it."""

    def _pass_on(self, call: Call) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.faults.due(call)
        if kind in REFUSALS:
            status, code = REFUSALS[kind]
            self._say(status, {}, _REFUSED.format(code).encode() if code else b"")
        elif kind == "cut before":
            self._cut()
        else:
            status, headers, answer = self._ask(body)
            if kind == "late":
                self.faults.healed()
            if kind == "cut behind":
                self._cut()
            else:
                self._say(status, headers, answer, short=kind == "cut short")

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.behind, timeout=ANSWER_SECONDS)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NEIGHBOURS}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _say(self, status: int, headers: dict[str, str], body: bytes, *, short: bool = False) -> None:
        said = {name: value for name, value in headers.items() if name.lower() not in _NEIGHBOURS}
        head = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in said.items())]
        whole = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body
        with contextlib.suppress(OSError):
            self.wfile.write(whole[: len(whole) - (len(body) or len(whole)) // 2] if short else whole)
        if short:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
