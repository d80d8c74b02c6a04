"""A proxy between two of our processes. A test makes it fail their connections as networks do.

It forwards bytes and knows no protocol, so it works in front of both Redis and the HTTP service::

    with FaultProxy(server.socket) as proxy:       # a Path is a unix socket, ("127.0.0.1", 8000) is TCP
        store = Store(proxy.redis_url)
        proxy.drop_reply(request=b"line 7")        # line 7 is stored, but the runner gets no reply
        proxy.stall(); proxy.cut(); proxy.refuse(); proxy.throttle(1000)
        proxy.heal()                               # ends all faults; open connections stay open

Each method returns once its fault is in force. Each connection has a thread.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

#: Time limit of a connection's operation, and of a thread's end, in seconds.
TIMEOUT_SECONDS: Final = 10.0
#: Seconds until an idle connection's thread notices a fault.
TICK_SECONDS: Final = 0.02
#: Bytes per read.
READ_BYTES: Final = 65_536


@dataclass
class _Drop:
    """Resets the first connection that forwards the bytes ``request``, in one read, after ``passing`` more bytes.

    Without ``request``, the first that forwards anything. ``up``: whether bytes to the server count, or those from it.
    """

    up: bool
    passing: int
    request: bytes


class _Link:
    """A client's connection, the proxy's own to the server, and the thread that forwards between them."""

    def __init__(self, proxy: "FaultProxy", client: socket.socket, server: socket.socket) -> None:
        self.is_cut = False
        self.drop: _Drop | None = None
        self._proxy = proxy
        self._sinks = {client: server, server: client}
        self._client = client
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        sources = {*self._sinks}
        with contextlib.suppress(OSError):
            while sources and not self.is_cut:
                if self._proxy.stalled:
                    time.sleep(TICK_SECONDS)
                    continue
                for source in select.select(sources, (), (), TICK_SECONDS)[0]:
                    if not self._forward(source, self._sinks[source]):
                        sources.discard(source)
        with self._proxy.lock:
            self._proxy.links.discard(self)
            self._proxy.cuts += self.is_cut
        for sock in self._sinks:
            _close(sock, reset=self.is_cut)

    def _forward(self, source: socket.socket, sink: socket.socket) -> bool:
        """Forwards what can be read, or the end. Returns whether more can follow."""
        up, rate = source is self._client, self._proxy.rate
        if rate and not up:
            time.sleep(TICK_SECONDS)
        with self._proxy.lock:
            if self._proxy.stalled or self.is_cut:
                return True
            data = source.recv(max(int(rate * TICK_SECONDS), 1) if rate and not up else READ_BYTES)
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return False
            self.drop = self.drop or self._fired(up, data)
            if self.drop is None or self.drop.up != up:
                sink.sendall(data)
            else:
                sink.sendall(data[: self.drop.passing])
                self.is_cut = len(data) > self.drop.passing
                self.drop.passing -= len(data)
        return True

    def _fired(self, up: bool, data: bytes) -> _Drop | None:
        """The first drop that ``data`` selects. It is removed, so that it selects no other connection."""
        for drop in self._proxy.drops:
            if (up and drop.request in data) if drop.request else up == drop.up:
                self._proxy.drops.remove(drop)
                drop.passing += len(data.partition(drop.request)[0] + drop.request) if drop.request and drop.up else 0
                return drop
        return None


class FaultProxy:
    """Forwards to ``upstream`` from a TCP port of the loopback."""

    def __init__(self, upstream: Path | tuple[str, int]) -> None:
        self._upstream = upstream
        #: Held while bytes are forwarded, and while faults change.
        self.lock = threading.Lock()
        self.links: set[_Link] = set()
        self.drops: list[_Drop] = []
        self.stalled = False
        self.rate = 0.0
        #: How many connections were ended by a fault.
        self.cuts = 0
        # Bound but not listening: while the proxy refuses connections, no other process can take the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._address: tuple[str, int] = self._place.getsockname()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    @property
    def redis_url(self) -> str:
        """The URL for a Redis client."""
        return "redis://{}:{}".format(*self._address)

    @property
    def http_url(self) -> str:
        """The URL for an HTTP client."""
        return "http://{}:{}".format(*self._address)

    def cut(self) -> None:
        """Resets all open connections; undelivered bytes are lost. New connections are accepted."""
        with self.lock:
            links = [*self.links]
            for link in links:
                link.is_cut = True
        for link in links:
            link.thread.join(TIMEOUT_SECONDS)

    def refuse(self) -> None:
        """Refuses new connections, as if nobody listened. Open ones stay; for a dead server, also call :meth:`cut`."""
        if self._listener is not None and self._acceptor is not None:
            # On Linux, this interrupts accept(). Closing alone would not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join(TIMEOUT_SECONDS)
            self._listener.close()
            self._listener = None

    def stall(self) -> None:
        """Forwards nothing. Connections stay open, and new ones are accepted.

        Senders only notice once the kernel's buffers are full. :meth:`heal` forwards the bytes held back.
        """
        with self.lock:
            self.stalled = True

    def throttle(self, bytes_per_second: float) -> None:
        """Limits the rate of each connection's answers."""
        with self.lock:
            self.rate = bytes_per_second

    def drop_reply(self, passing: int = 0, *, request: bytes = b"", times: int = 1) -> None:
        """Forwards the first ``passing`` bytes of the next answer, then resets that connection; ``times`` times.

        With ``request``: the answer on the next connection that forwards these bytes to the server. The server has then
        carried out the whole request, but the client does not learn of it.
        """
        self._add_drops(False, passing, request, times)

    def drop_request(self, passing: int = 0, *, request: bytes = b"") -> None:
        """Forwards the first ``passing`` bytes of the next request, then resets that connection.

        With ``request``, bytes are counted from the end of that text. The server receives part of a request, or none.
        """
        self._add_drops(True, passing, request, 1)

    def _add_drops(self, up: bool, passing: int, request: bytes, times: int) -> None:
        with self.lock:
            self.drops += [_Drop(up, passing, request) for _ in range(times)]

    def heal(self) -> None:
        """Ends all faults, including pending drops."""
        with self.lock:
            self.stalled, self.rate = False, 0.0
            self.drops.clear()
            for link in self.links:
                link.drop = None
        if self._listener is None:
            self._listener = socket.create_server(self._address, backlog=128)
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        is_unix = isinstance(self._upstream, Path)
        server = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        for sock in (client, server):
            sock.settimeout(TIMEOUT_SECONDS)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            server.connect(os.fspath(self._upstream) if isinstance(self._upstream, Path) else self._upstream)
        except OSError:
            server.close()
            _close(client, reset=True)
            return
        with self.lock:
            self.links.add(_Link(self, client, server))

    def __enter__(self) -> Self:
        self.heal()
        return self

    def __exit__(self, *exception: object) -> None:
        self.refuse()
        self.cut()
        self._place.close()


def _close(sock: socket.socket, *, reset: bool) -> None:
    if reset and sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
