"""A small HTTP/1.1 server for WSGI applications on simulated sockets, with one greenlet per connection."""

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any, Final

from tests.simulation.kernel import Process, world
from tests.simulation.network import Network, SimSocket

#: A WSGI application.
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(network: Network, address: str, process: Process, app: Application) -> None:
    """Serves ``app`` at ``address`` in ``process``."""
    network.listen(address, process, lambda sock: process.spawn(_serve, sock, app, address))


def _serve(sock: SimSocket, app: Application, host: str) -> None:
    # A disconnected client or a broken link is not an error of the service.
    with contextlib.suppress(OSError), contextlib.closing(sock), sock.makefile("rb") as file:
        while _serve_request(sock, file, app, host):
            pass


def read_headers(file: Any) -> list[tuple[str, str]]:
    lines = iter(lambda: file.readline().decode("latin-1").strip(), "")
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _serve_request(sock: SimSocket, file: Any, app: Application, host: str) -> bool:
    first = file.readline().decode("latin-1").split()
    if len(first) != 3:
        return False
    headers = {name.lower(): value for name, value in read_headers(file)}
    size = int(headers.get("content-length", "0"))
    body = file.read(size)
    if len(body) < size:
        return False
    path, _, query = first[1].partition("?")
    environ = {
        "REQUEST_METHOD": first[0], "SCRIPT_NAME": "", "PATH_INFO": path, "RAW_URI": first[1], "QUERY_STRING": query,
        "SERVER_NAME": host, "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "10.0.0.9",
        "CONTENT_LENGTH": str(size), "CONTENT_TYPE": headers.get("content-type", ""), "gunicorn.socket": sock,
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
    }  # fmt: skip
    answer = _Answer(sock)
    result = app(environ, answer.start)
    try:
        for chunk in result:
            if chunk:
                answer.write(chunk)
    finally:
        if (close := getattr(result, "close", None)) is not None:
            close()
    answer.finish()
    return True


class _Answer:
    def __init__(self, sock: SimSocket) -> None:
        self._sock: Final = sock
        self._is_chunked = False
        self._head: bytes | None = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], None]:
        if status.startswith("401"):
            world.violation(f"{world.process_name} refuses a valid token")
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        self._is_chunked = not has_length and status[:3] not in ("204", "304")
        own = [("Transfer-Encoding", "chunked")] if self._is_chunked else []
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in [*headers, *own]), "", ""]
        self._head = "\r\n".join(lines).encode("latin-1")
        return self.write

    def write(self, data: bytes) -> None:
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        head, self._head = self._head or b"", None
        self._sock.sendall(head + data)

    def finish(self) -> None:
        end = b"0\r\n\r\n" if self._is_chunked else b""
        if self._head is not None or end:
            self._sock.sendall((self._head or b"") + end)
