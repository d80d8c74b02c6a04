"""The network: ordered in-memory connections with random delays, which faults break, stall and drop.

A :class:`SimSocket` has the part of a socket that ``http.client`` and redis-py use.
"""

import errno
import io
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent.event import Event

from tests.simulation.kernel import Process, loop, world

#: Bytes in transit to a reader, or in its kernel, that make a writer wait.
WINDOW_BYTES: Final = 2_000
#: As integers: operations on flags take twenty times as long.
_PEEK, _DONTWAIT = int(socket.MSG_PEEK), int(socket.MSG_DONTWAIT)


class Link:
    """The link between two processes. Times are ends of faults."""

    def __init__(self) -> None:
        #: New connections are refused, and messages wait; the share of messages that are late.
        self.refused_until = self.stalled_until = 0.0
        self.late = world.late
        #: Until when messages in one direction take some seconds longer, so that answers are older than they seem.
        self.delayed: tuple[str, float, float] = ("", 0.0, 0.0)

    def seconds(self, sender: str = "") -> float:
        """The next message's delay. Most late ones are short, but retransmissions take a second."""
        who, until, more = self.delayed
        if who and who == sender and loop.time < until:
            return more
        chance = world.chance.random
        delay = 0.005 + 1.5 * chance() ** 3 if chance() < self.late else 0.0002 + 0.0018 * chance()
        return max(self.stalled_until - loop.time, 0.0) + delay


class SimSocket:
    """One end of a connection. ``on_data`` receives what arrives, if the owner has no greenlet that reads."""

    def __init__(self, owner: Process, link: Link, name: str) -> None:
        self.owner: Final = owner
        self.link: Final = link
        self.name: Final = name
        self.peer: SimSocket | None = None
        self.on_data: Callable[[bytes], None] | None = None
        self.on_close: Callable[[], None] | None = None
        #: Whether the network has dropped the connection: nothing arrives, and neither side is notified.
        self.forgotten = False
        self.closed = False
        self._timeout: float | None = None
        self._received: deque[bytes] = deque()
        self._ended: OSError | bool = False
        self._readable = Event()
        #: Bytes sent to this end and not read yet, and whether the other end can send.
        self._unread = 0
        self._writable = Event()
        #: What has arrived while the owner was frozen.
        self._held: deque[tuple[bytes | None, OSError | None]] = deque()
        #: Also set when there is something to read.
        self.also: Any = None
        self._due_at = 0.0
        self._files = 0
        self._wants_close = False
        owner.endpoints.append(self)

    # The program's interface

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        return self._timeout

    def fileno(self) -> int:
        return 1_000_000 + id(self) % 1_000_000 if not self.closed else -1

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self.closed or isinstance(self._ended, OSError):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        while self.on_data is None and self.peer and self.peer.on_data is None and self.peer._unread > WINDOW_BYTES:
            self._writable.clear()
            if not self._writable.wait(30.0):
                raise TimeoutError("timed out")
        if self.peer is not None:
            self.peer._unread += len(data)
        self._send(bytes(data))

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = self._wait(flags)
        if len(data) > size:
            data, rest = data[:size], data[size:]
            self._received[0] = rest
        elif data:
            self._received.popleft()
        if flags & _PEEK and data:
            self._received.appendleft(data)
        else:
            self._unread -= len(data)
            if self.peer is not None and self._unread <= WINDOW_BYTES:
                before, loop.current = loop.current, self.peer.owner
                self.peer._writable.set()
                loop.current = before
        if not self._received and not self._ended:
            self._readable.clear()
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0) -> int:
        data = self.recv(nbytes or len(buffer))
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        if not self.closed:
            self._send(None)

    def close(self) -> None:
        if self._files:
            self._wants_close = True
        elif not self.closed:
            self.closed = True
            if self in self.owner.endpoints:
                self.owner.endpoints.remove(self)
            self._send(None)
            self._readable.set()

    def makefile(self, mode: str = "rb", buffering: int | None = None, **_: Any) -> io.BufferedReader:
        self._files += 1
        return _Reader(_File(self))

    def is_readable(self) -> bool:
        return bool(self._received or self._ended or self.closed)

    def is_at_end(self) -> bool:
        return not self._received and bool(self._ended)

    def _wait(self, flags: int) -> bytes:
        while not self._received:
            if self.closed:
                raise OSError(errno.EBADF, "Bad file descriptor")
            if isinstance(self._ended, OSError):
                raise self._ended
            if self._ended:
                return b""
            if self._timeout == 0.0 or flags & _DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            if not self._readable.wait(self._timeout):
                raise TimeoutError("timed out")
        return self._received[0]

    # The network

    def _send(self, data: bytes | None, error: OSError | None = None) -> None:
        """Sends ``data``, or with None the end of the stream."""
        peer = self.peer
        if peer is None or self.forgotten or peer.forgotten:
            return
        # Messages of one connection stay in order: no two arrive at the same time.
        self._due_at = max(self._due_at + 1e-6, loop.time + self.link.seconds(self.owner.name))
        before, loop.current = loop.current, None
        loop.call_at(self._due_at, peer.arrive, data, error)
        loop.current = before

    def arrive(self, data: bytes | None, error: OSError | None = None) -> None:
        """The network delivers, also to the kernel of a frozen process."""
        if self.closed and data is not None and self.peer is not None and not self.forgotten:
            # Nobody reads it. The kernel reports that, and the next write fails.
            error = error or ConnectionResetError(errno.ECONNRESET, "reset")
            loop.call_later(self.link.seconds(), self.peer.arrive, None, error)
        if self.closed or self.forgotten or self.owner.dead:
            return
        loop.current = self.owner
        if self.owner.frozen or self._held:
            # Callbacks are unordered, but arrivals are ordered.
            if not self._held:
                loop.run_callback(self._deliver_held)
            self._held.append((data, error))
        else:
            self._deliver(data, error)
        loop.current = None

    def _deliver_held(self) -> None:
        while self._held:
            self._deliver(*self._held.popleft())

    def _deliver(self, data: bytes | None, error: OSError | None) -> None:
        if self._ended and error is None:
            return
        if data is not None:
            world.trace(self.name.encode() + data)
            if self.on_data is not None:
                self.on_data(data)
                return
            self._received.append(data)
        else:
            self._ended = error or True
            self._writable.set()
            if self.on_close is not None:
                self.on_close()
        self._readable.set()
        if self.also is not None:
            self.also.set()

    def reset(self) -> None:
        """The connection breaks: both ends immediately get an error, and data in transit is lost."""
        peer, self.peer = self.peer, None
        error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        self.arrive(None, error)
        if peer is not None:
            peer.peer = None
            peer.arrive(None, error)

    def forget(self) -> None:
        """The network drops the connection without notice."""
        self.forgotten = True
        if self.peer is not None:
            self.peer.forgotten = True


class _File(io.RawIOBase):
    """The result of ``makefile``; the socket is closed after it."""

    def __init__(self, sock: SimSocket) -> None:
        self._sock = sock
        self.lock = threading.RLock()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.lock:
            return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock._files -= 1
            if self._sock._wants_close and not self._sock._files:
                self._sock.close()


class _Reader(io.BufferedReader):
    """A thread that closes it waits for another's read. The base class does that for threads, but not for greenlets."""

    def close(self) -> None:
        with self.raw.lock:  # type: ignore[attr-defined]
            super().close()


class Network:
    """All listeners, and the links between processes."""

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[Process, Callable[[SimSocket], object]]] = {}
        self._links: dict[tuple[str, str], Link] = {}
        #: Resolves a host name to a process's name.
        self.resolve: Callable[[str], str] = lambda name: name

    def listen(self, address: str, process: Process, accept: Callable[[SimSocket], object]) -> None:
        """``accept`` is called in the event loop with the server's end of each connection."""
        self._listeners[address] = process, accept

    def link(self, one: str, other: str) -> Link:
        """The link between two processes, by name."""
        return self._links.setdefault((min(one, other), max(one, other)), Link())

    def connect(self, address: str, seconds: float | None = None) -> SimSocket:
        """A connection of the current process. Raises OSError."""
        owner = loop.current
        assert isinstance(owner, Process), "the world has no connections"
        address = self.resolve(address)
        process, accept = self._listeners.get(address, (None, None))
        link = self.link(owner.name, process.name if process else address)
        sock = SimSocket(owner, link, f"{owner.name}<{address}:")
        sock.settimeout(seconds)
        event = Event()

        def arrive() -> None:
            if process is None or accept is None or process.dead or loop.time < link.refused_until:
                sock._ended = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            else:
                sock.peer = SimSocket(process, link, f"{address}<{owner.name}:")
                sock.peer.peer = sock
                loop.current = process
                accept(sock.peer)
            loop.current = owner
            if owner.frozen:
                loop.run_callback(event.set)
            elif not owner.dead:
                event.set()
            loop.current = None

        loop.current = None
        loop.call_later(link.seconds(), arrive)
        loop.current = owner
        if not event.wait(seconds):
            sock.close()
            raise TimeoutError("timed out")
        if isinstance(sock._ended, OSError):
            raise sock._ended
        return sock

    def kill(self, process: Process, *, power: bool = False) -> None:
        """Handles a dead process: the kernel closes its connections, unless the machine lost power."""
        process.dead = True
        for end in list(process.endpoints):
            if power:
                end.forget()
            elif end.peer is not None:
                peer, end.peer = end.peer, None
                peer.peer = None
                error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
                loop.call_later(end.link.seconds(), peer.arrive, None, error)
        process.endpoints.clear()


class Pipe:
    """One end of ``socket.socketpair()`` within a process."""

    def __init__(self) -> None:
        self.other = self
        self.event = Event()
        self.is_woken = False

    def setblocking(self, flag: bool) -> None: ...
    def close(self) -> None: ...

    def send(self, data: bytes) -> int:
        self.other.is_woken = True
        self.other.event.set()
        return len(data)

    def recv(self, size: int) -> bytes:
        self.is_woken = False
        return b"\0"

    @staticmethod
    def pair() -> "tuple[Pipe, Pipe]":
        one, other = Pipe(), Pipe()
        one.other, other.other = other, one
        return one, other
