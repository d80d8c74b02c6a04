"""Client connections: cuts slow clients, and closes idle connections to make room for new ones.

gunicorn writes everything through :meth:`Connection.sendall`, except event streams
(:mod:`chronoverse.web.streaming.stream_writer`).
"""

import _socket
import contextlib
import errno
import fcntl
import math
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import Any, Final, NamedTuple

import gevent
import gevent.socket
from gunicorn.http.errors import LimitRequestHeaders

from chronoverse import metrics
from chronoverse.fair_lock import FairLock
from chronoverse.web.guards.event_loop import TimeSlice

#: Seconds without progress after which a client's connection is cut, during an answer or an event stream.
STALL_SECONDS: Final = 20.0
#: Seconds without progress before a connection can be closed to make room. A healthy client needs less.
MIN_IDLE_SECONDS: Final = 0.5
#: Kernel send buffer per client. The default would hold megabytes for a client that stopped reading.
SEND_BUFFER_BYTES: Final = 64 * 2**10
#: Seconds after which the kernel drops a connection with unacknowledged data, instead of after 20 minutes.
USER_TIMEOUT_SECONDS: Final = 20.0


class SendLimits(NamedTuple):
    """Limits for one answer: seconds without progress; in total, ``seconds`` plus its size / ``bytes_per_second``."""

    stall_seconds: float = STALL_SECONDS
    seconds: float = math.inf
    bytes_per_second: float = math.inf


#: Allows a client with 80 kbit/s to receive an ordinary answer of 4 MiB, in seven minutes.
_ANSWER_LIMITS: Final = SendLimits(seconds=20.0, bytes_per_second=10_000)
#: Downloads are allowed 30 s without progress, as a client's kernel may acknowledge nothing until 128 KiB are read.
DOWNLOAD_LIMITS: Final = SendLimits(30.0)


class Connections:
    """A worker's connections, except those taken over by event streams.

    They are ordered by last progress: a request arrived, or the client received part of an answer. Above ``limit``, the
    connections that have waited longest for their clients are closed. A connection takes a turn of ``request_lock``
    before each further read of an incomplete head.
    """

    def __init__(self, limit: int, request_lock: FairLock) -> None:
        self._limit = limit
        self.request_lock: Final = request_lock
        self._made_room_at = 0.0
        self._all: dict[Connection, None] = {}

    def __iter__(self) -> Iterator["Connection"]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: "Connection") -> None:
        """Adds a new connection. Above the limit, closes connections that wait for their clients."""
        self._all[connection] = None
        connection.connections = self
        self.record_progress(connection)
        now = time.monotonic()
        # Closes at most 1,000 per second and 50 at once, because some clients reconnect as soon as they are cut.
        may_close = round((now - self._made_room_at) * 1_000)
        if len(self._all) > self._limit and may_close:
            self._made_room_at = now
            self.make_room(min(len(self._all) - self._limit, may_close, 50))

    def make_room(self, count: int = 1) -> bool:
        """Closes up to ``count`` connections that have waited longest for clients. Returns whether it closed any."""
        until = time.monotonic() - MIN_IDLE_SECONDS
        old = takewhile(lambda each: each.progress_at <= until, self._all)
        closable = list(islice((each for each in old if each.may_be_closed()), count))
        for connection in closable:
            connection.cut("room")
        return bool(closable)

    def record_progress(self, connection: "Connection") -> None:
        connection.progress_at = time.monotonic()
        if connection in self._all:
            del self._all[connection]
            self._all[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Removes ``connection``, if present."""
        self._all.pop(connection, None)


class Connection(gevent.socket.socket):
    """A client's socket, with the current answer's limits. ``connections`` is set once the worker has added it."""

    connections: Connections | None = None
    #: When the connection last made progress, on the monotonic clock, in seconds.
    progress_at: float
    #: Whether the worker waits for the client to send a request.
    is_receiving = True
    #: Whether the worker waits for the client to receive an ordinary answer.
    is_sending_answer = False
    #: Whether the client has received its answer, and has sent no further request.
    is_idle = False
    #: Whether the client sent this request before reading the previous answer (RFC 9112 section 9.3.2).
    is_pipelined = False
    _head_bytes = 0
    _limits = _ANSWER_LIMITS
    _seconds_left = _ANSWER_LIMITS.seconds
    _until = math.inf
    _time_slice: TimeSlice

    def begin_request(self, limits: SendLimits = _ANSWER_LIMITS) -> None:
        """Called when a request has arrived. ``limits`` are those of its answer."""
        self.is_receiving = self.is_idle = False
        self._head_bytes = 0
        self._limits, self._seconds_left, self._until = limits, limits.seconds, math.inf
        self._time_slice = TimeSlice()
        self._record_progress()

    def end_request(self, *, pipelined: bool) -> None:
        """Called when the answer is sent. ``pipelined``: the next request has already been read."""
        self.is_pipelined = pipelined or self.has_input()
        self.is_receiving = self.is_idle = True
        self._record_progress()

    def begin_long_answer(self, limits: SendLimits, until: float = math.inf) -> None:
        """Called for downloads and event streams. The connection is cut at ``until``, but never to make room."""
        self._limits, self._seconds_left, self._until = limits, limits.seconds, until
        if limits.stall_seconds > USER_TIMEOUT_SECONDS:
            # The kernel's own timeout must be longer than ``stall_seconds``.
            _set_user_timeout(self, 2 * limits.stall_seconds)

    def recv(self, *args: Any) -> bytes:
        """Waits for the client's next bytes. Raises gunicorn's LimitRequestHeaders for a head that is too long.

        Only body bytes count as progress; otherwise a client could keep sending a head forever.
        """
        between_requests, self.is_receiving = self.is_receiving, True
        if not between_requests:
            # Yields often: gunicorn takes 2 ms for one read of 8 KiB if each chunk of the body is one byte.
            self._time_slice.check()
        elif self._head_bytes and self.connections:
            with self.connections.request_lock.hold():
                pass
        try:
            data: bytes = super().recv(*args)
        finally:
            self.is_receiving = between_requests
        if between_requests:
            self._head_bytes += len(data)
            # 32 KiB of head, plus 8 KiB of body. Limited, because gunicorn searches the whole again after each read.
            if self._head_bytes > 40 * 2**10:
                raise LimitRequestHeaders("the head is too long")
        else:
            self._record_progress()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all of ``data``. Raises OSError like any socket.

        Raises ConnectionResetError after cutting the connection because the client received nothing for too long, the
        whole answer took too long, or its deadline passed.
        """
        rest = memoryview(data)
        limits, timeout, unsent = self._limits, self.gettimeout(), 0
        self._seconds_left += len(rest) / limits.bytes_per_second
        began = now = progress_at = time.monotonic()
        deadline, self.is_sending_answer = began + self._seconds_left, limits.seconds < math.inf
        try:
            while rest:
                slow_at = min(deadline, progress_at + limits.stall_seconds)
                if now >= self._until:
                    raise self.cut("expired")
                if now >= slow_at:
                    raise self.cut("slow")
                # A full socket's progress is checked every 2 s.
                self.settimeout(min(2.0, slow_at - now, self._until - now))
                try:
                    sent = super().send(rest, flags)
                except TimeoutError as error:
                    if error.errno == errno.ETIMEDOUT:
                        # The kernel's own timeout: the kernel has dropped the connection, and nothing can be sent.
                        raise self.cut("slow") from error
                    sent = 0
                rest = rest[sent:]
                if rest:
                    before, unsent, now = unsent, _unsent_bytes(self), time.monotonic()
                    # Acknowledged bytes are progress, even if the buffer is still too full to accept more.
                    if sent or unsent < before:
                        progress_at = now
                        self._record_progress()
        finally:
            self.is_sending_answer = False
            self._seconds_left -= time.monotonic() - began
            self.settimeout(timeout)

    def send(self, data: Any, flags: int = 0, timeout: object = None) -> int:
        """Like :meth:`sendall`. gunicorn calls it for short data such as ``100 Continue``."""
        self.sendall(data, flags)
        return len(data)

    def cut(self, why: str) -> ConnectionResetError:
        """Resets the connection, discards unsent data, and returns the error to raise."""
        metrics.CONNECTIONS_CUT.labels(why).inc()
        if self.connections:
            self.connections.remove(self)
        with contextlib.suppress(OSError, ValueError), _raw_socket(self) as raw:
            # With a linger time of 0, closing resets the connection and discards unsent data.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.shutdown(socket.SHUT_RDWR)
        return ConnectionResetError(errno.ECONNRESET, f"cut: {why}")

    def may_be_closed(self) -> bool:
        """Whether the connection waits for its client to send a request, or to receive an ordinary answer."""
        return self.is_sending_answer or (self.is_receiving and not self.has_input())

    def has_input(self) -> bool:
        """Whether the client has sent unread bytes, or has closed its side."""
        try:
            _peek(self)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _record_progress(self) -> None:
        if self.connections:
            self.connections.record_progress(self)


def set_socket_options(sock: Any) -> None:
    """Limits the kernel's send buffer and timeouts. Sockets accepted by a listening ``sock`` inherit them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_user_timeout(sock, USER_TIMEOUT_SECONDS)


def begin_long_answer(environ: dict[str, Any], limits: SendLimits | None = None, until: float = math.inf) -> None:
    """Calls :meth:`Connection.begin_long_answer` on the request's socket, if this project's worker class serves it."""
    sock = environ.get("gunicorn.socket")
    if isinstance(sock, Connection):
        sock.begin_long_answer(limits or SendLimits(), until)


def has_left(environ: dict[str, Any]) -> bool:
    """Whether the request's client has closed its side of the connection."""
    try:
        return "gunicorn.socket" in environ and not _peek(environ["gunicorn.socket"])
    except BlockingIOError:
        return False
    except OSError:
        return True


def stop_receiving(sock: socket.socket) -> None:
    """Closes the receiving side. To a greenlet that waits for a request, this looks like the connection's end."""
    # gevent's own shutdown would make this greenlet fail as if the descriptor were closed.
    with contextlib.suppress(OSError), _raw_socket(sock) as raw:
        raw.shutdown(socket.SHUT_RD)


def finish_sending(sock: Any) -> None:
    """Closes the sending side. Discards unread input, because closing the socket would then reset the connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        sock.recv(64 * 2**10)


def is_unresponsive(error: OSError) -> bool:
    """Whether ``error`` means that the peer received nothing for too long, or that its host is unreachable."""
    return isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH


class HangupWatch:
    """Calls ``callback`` once, in a new greenlet, when the peer of ``sock`` disconnects. Cheap: a worker has thousands.

    The argument is ``left``, or ``slow`` if the kernel gave up because the peer received nothing for too long.
    """

    __slots__ = ("_callback", "_sock", "_watcher", "is_slow")

    def __init__(self, sock: Any, callback: Callable[[str], None]) -> None:
        self._sock = sock
        self._callback: Callable[[str], None] | None = callback
        #: Whether the kernel gave up, which it reports only once: later writes fail with EPIPE.
        self.is_slow = False
        # libev's EV_READ, for which gevent has no public name.
        self._watcher = gevent.get_hub().loop.io(sock.fileno(), 1)
        self._watcher.start(self._on_readable)

    def close(self) -> None:
        self._callback = None
        self._watcher.stop()
        self._watcher.close()

    def _on_readable(self) -> None:
        try:
            gone = not _peek(self._sock)
        except BlockingIOError:
            return
        except OSError as error:
            gone, self.is_slow = True, is_unresponsive(error)
        # Also stops if the client has sent bytes: nobody reads them, so the socket would stay readable.
        self._watcher.stop()
        if gone:
            gevent.spawn(self._call, "slow" if self.is_slow else "left")

    def _call(self, why: str) -> None:
        if self._callback is not None:
            self._callback(why)


@contextlib.contextmanager
def _raw_socket(sock: Any) -> Iterator[_socket.socket]:
    """The socket without gevent, with the same descriptor."""
    raw = _socket.socket(fileno=sock.fileno())
    try:
        yield raw
    finally:
        raw.detach()


def _peek(sock: Any) -> bytes:
    """The next byte, left unread. Empty if the client has closed its side. Raises BlockingIOError if none is there."""
    with _raw_socket(sock) as raw:
        return raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def _unsent_bytes(sock: Any) -> int:
    """Bytes in the socket's buffer that the client's kernel has not acknowledged. 0 if the system cannot tell."""
    # https://man7.org/linux/man-pages/man7/tcp.7.html: SIOCOUTQ, another name of TIOCOUTQ.
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def _set_user_timeout(sock: Any, seconds: float) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
