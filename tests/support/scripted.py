"""An HTTP service that says exactly the bytes it was told to, cuts included, and remembers what it was asked."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

#: Seconds that a client may take to connect, to ask, or to hang up, on a busy machine.
PATIENCE_SECONDS: Final = 20.0

STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


class Asked(NamedTuple):
    """One request: its path, its query, and its headers with names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole response. ``Retry_After="3"`` is the header ``Retry-After: 3``."""
    named = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def problem(status: str, detail: str, **headers: str) -> bytes:
    """A refusal in the form of RFC 9457."""
    body = f'{{"title":"{status[4:]}","status":{status[:3]},"detail":"{detail}"}}'.encode()
    return answer(status, body, Content_Type="application/problem+json", **headers)


def stream(*chunks: bytes, after: int | None = 0, whole: bool = True) -> bytes:
    """A chunked event stream; one that is not ``whole`` lacks its last chunk, as when the connection is cut."""
    head = STREAM + b"Transfer-Encoding: chunked\r\n" + (b"" if after is None else b"Last-Event-ID: %d\r\n" % after)
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"\r\n" + body + (b"0\r\n\r\n" if whole else b"")


class Scripted:
    """Answers each connection with the next of ``answers`` and hangs up. A None hangs up without a word.

    The last of ``answers`` is never followed by another: a client that asks too often finds nobody.
    """

    def __init__(self, answers: Sequence[bytes | None]) -> None:
        self.asked: list[Asked] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_SECONDS)
        self._thread = threading.Thread(target=self._serve)

    @property
    def listener(self) -> socket.socket:
        """The socket that it listens at."""
        return self._listener

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            for said in self._answers:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE_SECONDS)
                    self.asked.append(_request(connection))
                    connection.sendall(said or b"")

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # A listener that is shut down wakes its accept, on Linux; close alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)


def _request(connection: socket.socket) -> Asked:
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65_536)
        if not received:
            raise ConnectionError
        head += received
    first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    target = urlsplit(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(target.path, dict(parse_qsl(target.query)), headers)


@contextlib.contextmanager
def scripted(*answers: bytes | None) -> Iterator[Scripted]:
    """A service with these answers, for a ``with``."""
    with Scripted(answers) as service:
        yield service
