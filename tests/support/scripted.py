"""An HTTP service that sends the exact bytes given by a test, and records requests."""

import contextlib
import socket
import ssl
import threading
from typing import Final, NamedTuple, Self
from urllib.parse import parse_qsl, unquote, urlsplit

#: Seconds for a client to connect, or to send a request, on a busy machine.
PATIENCE_SECONDS: Final = 20.0

STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


class Request(NamedTuple):
    """One request: path, query, headers with lowercase names, decoded target, and body."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    target: str
    body: bytes


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """A complete response. ``Retry_After="3"`` becomes the header ``Retry-After: 3``."""
    named = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def problem(status: str, detail: str, **headers: str) -> bytes:
    """A problem document (RFC 9457)."""
    body = f'{{"title":"{status[4:]}","status":{status[:3]},"detail":"{detail}"}}'.encode()
    return answer(status, body, Content_Type="application/problem+json", **headers)


def stream(*chunks: bytes, after: int | None = 0, whole: bool = True) -> bytes:
    """A chunked event stream. Without ``whole``, it lacks the last chunk, as after a disconnect."""
    head = STREAM + b"Transfer-Encoding: chunked\r\n" + (b"" if after is None else b"Last-Event-ID: %d\r\n" % after)
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"\r\n" + body + (b"0\r\n\r\n" if whole else b"")


class ScriptedService:
    """Sends the next of ``answers`` on each connection, then closes it. None closes without an answer.

    With ``tls``, it speaks TLS, and closes without announcing it. Runs inside a ``with`` block. Stops listening after
    the last answer, so further requests fail.
    """

    def __init__(self, *answers: bytes | None, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        #: Can be set before the ``with`` block, for answers that contain the service's URL.
        self.answers = answers
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_SECONDS)
        self._thread = threading.Thread(target=self._serve)

    @property
    def listener(self) -> socket.socket:
        """The listening socket."""
        return self._listener

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            for answer in self.answers:
                connection, _ = self._listener.accept()
                connection.settimeout(PATIENCE_SECONDS)
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection, contextlib.suppress(OSError):
                    self.requests.append(_request(connection))
                    connection.sendall(answer or b"")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # On Linux, a shutdown interrupts the thread's accept(). Closing alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)


def _request(connection: socket.socket) -> Request:
    head, end, body = b"", b"", b""
    while not end:
        head, end, body = (head + _receive(connection)).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    target = urlsplit(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _receive(connection)
    return Request(target.path, dict(parse_qsl(target.query)), headers, unquote(first.split(" ")[1]), body)


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(65_536)
    if not received:
        raise ConnectionError
    return received
