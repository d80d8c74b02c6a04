"""Opens connections, sends requests on each, and reads no answer. Closed connections are replaced.

``python -m tests.web.routes.unread WHAT HOST PORT CONNECTIONS SECONDS [CERTIFICATE]``: WHAT is a name in
:data:`REQUESTS`. Uses TLS if the server's certificate is given. Prints a line when all connections are open, and the
number of opened ones at the end.
"""

import contextlib
import select
import socket
import ssl
import sys
import time
from typing import Final

#: What each connection sends: many requests, or one with long headers.
REQUESTS: Final = {
    "requests": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200,
    "headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 8_000) for n in range(90)) + b"\r\n",
}
#: Connections opened at once, before closed ones are replaced.
OPENED_AT_ONCE: Final = 50
#: Timeout of a TLS handshake, in seconds.
HANDSHAKE_SECONDS: Final = 5.0


class Attack:
    """Keeps ``connections`` connections to ``address`` open."""

    def __init__(self, sent: bytes, address: tuple[str, int], connections: int, context: ssl.SSLContext | None) -> None:
        self.opened = 0
        self._sent = sent
        self._address, self._connections, self._context = address, connections, context
        self._open: dict[int, socket.socket] = {}
        self._poll = select.epoll()

    def run(self, seconds: float) -> None:
        until, is_reported = time.monotonic() + seconds, False
        while time.monotonic() < until:
            for _ in range(min(self._connections - len(self._open), OPENED_AT_ONCE)):
                with contextlib.suppress(OSError):
                    self._connect()
            if len(self._open) == self._connections and not is_reported:
                is_reported = True
                print("open", flush=True)
            for descriptor, events in self._poll.poll(0.01):
                self._handle(descriptor, events)
        print(self.opened, flush=True)

    def _connect(self) -> None:
        sock = socket.socket()
        if self._context:
            sock.settimeout(HANDSHAKE_SECONDS)
            sock.connect(self._address)
            sock = self._context.wrap_socket(sock)
        sock.setblocking(False)
        if not self._context:
            sock.connect_ex(self._address)
        self.opened += 1
        self._open[sock.fileno()] = sock
        self._poll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLRDHUP)

    def _handle(self, descriptor: int, events: int) -> None:
        sock = self._open[descriptor]
        if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            del self._open[descriptor]
            sock.close()
            return
        # From here on only the peer's close is reported.
        self._poll.modify(descriptor, select.EPOLLRDHUP)
        with contextlib.suppress(OSError):
            sock.send(self._sent)


def main(what: str, host: str, port: str, connections: str, seconds: str, certificate: str = "") -> None:
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    if context:
        context.check_hostname = False
    Attack(REQUESTS[what], (host, int(port)), int(connections), context).run(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
