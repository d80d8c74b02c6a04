"""A webhook receiver: a real HTTP server that can be slow, refuse, redirect and go down."""

import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import orjson


class Message(NamedTuple):
    """A request: its path, headers and body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Listens on the loopback. ``answers`` are the statuses of the next answers, then ``status``. None drops a request.

    ``location`` is sent with each answer. While stopped, connections are refused. With ``tls``, accepts only HTTPS.
    """

    def __init__(self, status: int | None = 204, location: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.messages: list[Message] = []
        self.answers: list[int | None] = []
        self.status = status
        self.headers = {"Location": location} if location else {}
        #: Seconds before an answer, and between its bytes.
        self.pause = self.drip = 0.0
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self._tls = tls

    @property
    def url(self) -> str:
        return f"http{'s' * (self._tls is not None)}://127.0.0.1:{self.port}/hook"

    def start(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    # The sender was killed meanwhile.
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.messages.append(Message(self.path, headers, body))
                status = receiver.answers.pop(0) if receiver.answers else receiver.status
                time.sleep(receiver.pause)
                if status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                extra = "".join(f"{name}: {value}\r\n" for name, value in receiver.headers.items())
                answer = f"HTTP/1.1 {status} x\r\n{extra}Content-Length: 0\r\n\r\n".encode()
                try:
                    for at in range(0, len(answer), 1 if receiver.drip else len(answer)):
                        self.wfile.write(answer[at : at + (1 if receiver.drip else len(answer))])
                        time.sleep(receiver.drip)
                except OSError:
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stops listening. :meth:`start` resumes on the same port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        # Bound but not listening: connections are refused, and no other process can take the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._place.close()
