"""A proxy between two of our processes. A test makes it fail their connections as networks do.

    runner or client ──UP──> FaultProxy ──UP──> Redis or the service
                     <─DOWN─            <─DOWN─

It forwards bytes and knows no protocol, so it works in front of both Redis and the HTTP service. Each side is a TCP or
a unix socket::

    with FaultProxy(server.socket) as proxy:       # a Path is a unix socket, ("127.0.0.1", 8000) is TCP
        store = Store(proxy.redis_url)
        proxy.drop_reply(request=b"line 7")        # line 7 is stored, but the runner gets no reply
        proxy.stall(); proxy.cut(); proxy.refuse(); proxy.throttle(1000)
        proxy.heal()                               # ends all faults; open connections stay open

Each method returns once its fault is in force. One thread does all the work; :meth:`FaultProxy.stop` ends it.
"""

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tests.support.faultlink import BOTH, DOWN, MAX_REQUEST_BYTES, TICK_SECONDS, UP, Faults, Link, Trigger, reset

__all__ = ["BOTH", "DOWN", "UP", "Address", "FaultProxy", "Traffic"]

#: Maximum open connections; further ones are reset. Our connection pools open 6.
MAX_CONNECTIONS: Final = 512
#: Time limit of connecting to the server, and of a method's task in the thread, in seconds.
CONNECT_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 10.0

#: Address of one side: a path for a unix socket, host and port for TCP.
Address = Path | tuple[str, int]


class Traffic(NamedTuple):
    """What was forwarded since the start."""

    #: Connections accepted so far, open now, and ended by a fault.
    accepted: int
    open: int
    cut: int
    #: Bytes forwarded to the server and to the client.
    up: int
    down: int


class FaultProxy:
    """Forwards to ``upstream``; listens at ``listen``, by default on a free TCP port of the loopback."""

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self._upstream = upstream
        self._tasks: queue.SimpleQueue[tuple[Callable[[], object], threading.Event]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ)
        self._watched: dict[socket.socket, int] = {}
        self._links: dict[Link, tuple[socket.socket, socket.socket]] = {}
        self._faults = Faults()
        self._granted_at = 0.0
        self._accepted = self._cut = 0
        self._refusing = self._listening = self._stopping = False
        self._listener = _bound(listen)
        name: Any = self._listener.getsockname()
        #: Where clients connect: a path, or host and port.
        self.address: Address = Path(name) if isinstance(name, str) else (name[0], name[1])
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)

    @property
    def redis_url(self) -> str:
        """The URL for a Redis client."""
        return f"unix://{self.address}" if isinstance(self.address, Path) else "redis://{}:{}".format(*self.address)

    @property
    def http_url(self) -> str:
        """The URL for an HTTP client; TCP only."""
        assert not isinstance(self.address, Path), "clients of HTTP need TCP"
        return "http://{}:{}".format(*self.address)

    @property
    def traffic(self) -> Traffic:
        """What was forwarded so far. Counted by the thread, so it includes everything that a peer has received."""
        found: list[Traffic] = []
        self._do(lambda: found.append(self._count()))
        return found[0]

    def cut(self) -> None:
        """Resets all open connections; undelivered bytes are lost. New connections are accepted."""
        self._do(self._reset_all)

    def refuse(self) -> None:
        """Refuses new connections, as if nobody listened. Open ones stay; for a dead server, also call :meth:`cut`."""
        self._do(lambda: setattr(self, "_refusing", True))

    def stall(self, *directions: str) -> None:
        """Forwards nothing in these ``directions`` (both by default). Connections stay open, and new ones are accepted.

        Senders only notice once the kernel's buffers are full. :meth:`heal` forwards the bytes held back here.
        """
        self._do(lambda: setattr(self._faults, "stalled", frozenset(directions or BOTH)))

    def throttle(self, bytes_per_second: float, *directions: str) -> None:
        """Limits the rate of each connection in each of ``directions`` (both by default)."""
        self._do(lambda: setattr(self._faults, "rates", dict.fromkeys(directions or BOTH, bytes_per_second)))

    def drop_reply(self, passing: int = 0, *, request: bytes = b"", times: int = 1) -> None:
        """Forwards the first ``passing`` bytes of the next answer, then resets that connection; ``times`` times.

        With ``request``: the answer on the next connection that forwards these bytes to the server. The server has then
        carried out the whole request, but the client does not learn of it.
        """
        self._add_triggers(DOWN, passing, request, times)

    def drop_request(self, passing: int = 0, *, request: bytes = b"", times: int = 1) -> None:
        """Forwards the first ``passing`` bytes of the next request, then resets that connection; ``times`` times.

        With ``request``, bytes are counted from the end of that text. The server receives part of a request, or none.
        """
        self._add_triggers(UP, passing, request, times)

    def heal(self) -> None:
        """Ends all faults, including pending drops."""
        self._do(self._heal)

    def start(self) -> Self:
        """Starts listening."""
        self._thread.start()
        self._do(lambda: None)
        return self

    def stop(self) -> None:
        """Resets all connections, closes the listener, and ends the thread. Idempotent."""
        if self._thread.is_alive():
            self._do(lambda: setattr(self, "_stopping", True))
            self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), "the proxy hangs"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _add_triggers(self, direction: str, passing: int, request: bytes, times: int) -> None:
        assert len(request) <= MAX_REQUEST_BYTES, f"request may have {MAX_REQUEST_BYTES} bytes"
        self._do(lambda: self._faults.triggers.extend(Trigger(direction, passing, request) for _ in range(times)))

    def _do(self, task: Callable[[], object]) -> None:
        """Runs ``task`` in the thread, and waits until the fault is in force."""
        assert self._thread.is_alive(), "the proxy is not running"
        done = threading.Event()
        self._tasks.put((task, done))
        self._wakeup_writer.send(b"!")
        assert done.wait(TIMEOUT_SECONDS), "the proxy hangs"

    # Everything below runs in the thread.

    def _run(self) -> None:
        done: list[threading.Event] = []
        try:
            while not self._stopping:
                self._update()
                while done:
                    done.pop().set()
                for key, events in self._selector.select(TICK_SECONDS if self._faults.rates else None):
                    if key.fileobj is self._wakeup_reader:
                        done += self._run_tasks()
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif not key.data.over:
                        key.data.forward(key.fileobj, events)
        finally:
            self._close()
            while done:
                done.pop().set()

    def _run_tasks(self) -> Iterator[threading.Event]:
        self._wakeup_reader.recv(4096)
        with contextlib.suppress(queue.Empty):
            while True:
                task, done = self._tasks.get_nowait()
                task()
                yield done

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    def _count(self) -> Traffic:
        forwarded = self._faults.forwarded
        return Traffic(self._accepted, len(self._links), self._cut, forwarded[UP], forwarded[DOWN])

    def _heal(self) -> None:
        self._refusing = False
        self._faults.stalled, self._faults.rates = frozenset(), {}
        self._faults.triggers.clear()
        for link in self._links:
            link.disarm()

    def _update(self) -> None:
        """Watches the sockets that can be read or written under the faults in force."""
        if self._refusing and self._listening:
            self._selector.unregister(self._listener)
            self._listener.close()
            # Bound but not listening: the kernel refuses connections, and no other process can take the address.
            self._listener = _bound(self.address)
            self._listening = False
        elif not self._refusing and not self._listening:
            self._listener.listen(MAX_CONNECTIONS)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._listening = True
        now = time.monotonic()
        for link in list(self._links):
            link.add_credit(now - self._granted_at)
            if link.over:
                self._forget(link)
            else:
                for sock, mask in link.wants().items():
                    self._watch(link, sock, mask)
        self._granted_at = now

    def _watch(self, link: Link, sock: socket.socket, mask: int) -> None:
        before = self._watched.pop(sock, 0)
        if mask:
            self._watched[sock] = mask
        if before and not mask:
            self._selector.unregister(sock)
        elif mask and not before:
            self._selector.register(sock, mask, link)
        elif mask != before:
            self._selector.modify(sock, mask, link)

    def _forget(self, link: Link) -> None:
        self._cut += link.cut
        for sock in self._links.pop(link):
            self._watch(link, sock, 0)
        link.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._accepted += 1
        server = socket.socket(_family(self._upstream))
        server.settimeout(CONNECT_SECONDS)
        try:
            if len(self._links) >= MAX_CONNECTIONS:
                raise ConnectionRefusedError
            server.connect(_plain(self._upstream))
        except OSError:
            server.close()
            reset(client)
            return
        self._links[Link(client, server, self._faults)] = (client, server)

    def _close(self) -> None:
        for link in list(self._links):
            link.reset()
            self._forget(link)
        for sock in (self._listener, self._wakeup_reader, self._wakeup_writer):
            sock.close()
        self._selector.close()
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)


def _bound(address: Address) -> socket.socket:
    sock = socket.socket(_family(address))
    if isinstance(address, Path):
        address.unlink(missing_ok=True)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(_plain(address))
    return sock


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET


def _plain(address: Address) -> Any:
    return os.fspath(address) if isinstance(address, Path) else address
