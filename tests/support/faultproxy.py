"""A proxy between two of our processes that does to their connections what networks do, on a test's word.

    runner or client ──UP──> FaultProxy ──UP──> Redis or the service
                     <─DOWN─            <─DOWN─

It forwards bytes and knows no protocol, so it stands between runner and Redis as well as between client and HTTP,
on TCP or on unix sockets (each side its own)::

    with FaultProxy(server.socket) as proxy:       # a Path is a unix socket, ("127.0.0.1", 8000) is TCP
        store = Store(proxy.redis_url)
        proxy.drop_reply(asked=b"line 7")          # line 7 is stored, and the runner does not learn of it
        proxy.stall(); proxy.cut(); proxy.refuse(); proxy.throttle(1000)
        proxy.heal()                               # all faults off; connections that still stand go on

A method returns once its fault is in force. All work is done by one thread, which :meth:`FaultProxy.stop` ends;
:class:`tests.support.faultprocess.ProxyProcess` does the same in a process of its own, for when speed counts.
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

from tests.support.faultlink import BOTH, DOWN, MAX_ASKED_BYTES, TICK_SECONDS, UP, Faults, Link, Trip, reset

__all__ = ["BOTH", "DOWN", "UP", "Address", "FaultProxy", "Tally"]

#: Connections at a time; further ones are reset. Our own pools open 6.
MAX_CONNECTIONS: Final = 512
#: Seconds to connect to the server, and for the thread to do what it was told.
CONNECT_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 10.0

#: Where one side is: a path for a unix socket, host and port for TCP.
Address = Path | tuple[str, int]


class Tally(NamedTuple):
    """What has gone through since the start."""

    #: Connections accepted, those that are open now, and those that a fault ended.
    accepted: int
    open: int
    cut: int
    #: Bytes forwarded towards the server and towards the client.
    up: int
    down: int


class FaultProxy:
    """Forwards to ``upstream``; listens at ``listen``, by default on a free TCP port of the loopback."""

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self._upstream = upstream
        self._orders: queue.SimpleQueue[tuple[Callable[[], object], threading.Event]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._watched: dict[socket.socket, int] = {}
        self._links: dict[Link, tuple[socket.socket, socket.socket]] = {}
        self._faults = Faults()
        self._granted_at = 0.0
        self._accepted = self._cut = 0
        self._refusing = self._listening = self._stopping = False
        self._listener = _bound(listen)
        name: Any = self._listener.getsockname()
        #: Where clients connect: the path, or host and port.
        self.address: Address = Path(name) if isinstance(name, str) else (name[0], name[1])
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)

    @property
    def redis_url(self) -> str:
        """The address as a client of Redis spells it."""
        return f"unix://{self.address}" if isinstance(self.address, Path) else "redis://{}:{}".format(*self.address)

    @property
    def http_url(self) -> str:
        """The address as a client of HTTP spells it; TCP only."""
        assert not isinstance(self.address, Path), "clients of HTTP need TCP"
        return "http://{}:{}".format(*self.address)

    @property
    def tally(self) -> Tally:
        """What has gone through so far; the thread is asked, so that what a peer has received is counted."""
        found: list[Tally] = []
        self._do(lambda: found.append(self._count()))
        return found[0]

    def cut(self) -> None:
        """Resets every open connection; what was on its way is lost. New connections are let through."""
        self._do(self._reset_all)

    def refuse(self) -> None:
        """New connections are refused, as if nobody listened. Open ones stay: :meth:`cut` too for a dead server."""
        self._do(lambda: setattr(self, "_refusing", True))

    def stall(self, *directions: str) -> None:
        """Bytes stop on their way, in both ``directions`` unless named; connections are still made and stay open.

        Senders notice only once the kernel's buffers are full. What waits here is forwarded after :meth:`heal`.
        """
        self._do(lambda: setattr(self._faults, "stalled", frozenset(directions or BOTH)))

    def throttle(self, bytes_per_second: float, *directions: str) -> None:
        """Forwards no faster than this on each connection, in each of ``directions`` (both unless named)."""
        self._do(lambda: setattr(self._faults, "rates", dict.fromkeys(directions or BOTH, bytes_per_second)))

    def drop_reply(self, passing: int = 0, *, asked: bytes = b"", times: int = 1) -> None:
        """Swallows the next answer but for its first ``passing`` bytes, then resets that connection; ``times`` times.

        With ``asked`` it is the answer on the next connection that forwards these bytes towards the server. The
        server has had the whole request when it answers: it did what was asked, and nobody learns of it.
        """
        self._trip(DOWN, passing, asked, times)

    def drop_request(self, passing: int = 0, *, asked: bytes = b"", times: int = 1) -> None:
        """Forwards the next request's first ``passing`` bytes, then resets that connection; ``times`` times.

        With ``asked`` these bytes are counted from behind ``asked``. The server gets part of a request, or none.
        """
        self._trip(UP, passing, asked, times)

    def heal(self) -> None:
        """No more faults: nothing is stalled, throttled, refused or waiting to be dropped."""
        self._do(self._heal)

    def start(self) -> Self:
        """Begins to listen."""
        self._thread.start()
        self._do(lambda: None)
        return self

    def stop(self) -> None:
        """Resets every connection, closes the listener, and ends the thread. Does nothing twice."""
        if self._thread.is_alive():
            self._do(lambda: setattr(self, "_stopping", True))
            self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the proxy hangs"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _trip(self, direction: str, passing: int, asked: bytes, times: int) -> None:
        assert len(asked) <= MAX_ASKED_BYTES, f"asked may have {MAX_ASKED_BYTES} bytes"
        self._do(lambda: self._faults.trips.extend(Trip(direction, passing, asked) for _ in range(times)))

    def _do(self, order: Callable[[], object]) -> None:
        """Has the thread carry ``order`` out, and waits until it is in force."""
        assert self._thread.is_alive(), "the proxy is not running"
        done = threading.Event()
        self._orders.put((order, done))
        self._mouth.send(b"!")
        assert done.wait(PATIENCE_SECONDS), "the proxy hangs"

    # From here on: the thread's own.

    def _run(self) -> None:
        done: list[threading.Event] = []
        try:
            while not self._stopping:
                self._update()
                while done:
                    done.pop().set()
                for key, events in self._selector.select(TICK_SECONDS if self._faults.rates else None):
                    if key.fileobj is self._ear:
                        done += self._obey()
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif not key.data.over:
                        key.data.forward(key.fileobj, events)
        finally:
            self._close()
            while done:
                done.pop().set()

    def _obey(self) -> Iterator[threading.Event]:
        self._ear.recv(4096)
        with contextlib.suppress(queue.Empty):
            while True:
                order, done = self._orders.get_nowait()
                order()
                yield done

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    def _count(self) -> Tally:
        forwarded = self._faults.forwarded
        return Tally(self._accepted, len(self._links), self._cut, forwarded[UP], forwarded[DOWN])

    def _heal(self) -> None:
        self._refusing = False
        self._faults.stalled, self._faults.rates = frozenset(), {}
        self._faults.trips.clear()
        for link in self._links:
            link.disarm()

    def _update(self) -> None:
        """Brings what is watched in line with the faults in force."""
        if self._refusing and self._listening:
            self._selector.unregister(self._listener)
            self._listener.close()
            # Bound but not listening: the kernel refuses, and the address stays ours.
            self._listener = _bound(self.address)
            self._listening = False
        elif not self._refusing and not self._listening:
            self._listener.listen(MAX_CONNECTIONS)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._listening = True
        now = time.monotonic()
        for link in list(self._links):
            link.grant(now - self._granted_at)
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
        for sock in (self._listener, self._ear, self._mouth):
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
