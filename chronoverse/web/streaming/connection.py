"""A client's connection: how long it may take an answer, what it may hold, and which is closed to make room.

Everything that is written to a client of gunicorn goes through :meth:`Connection.sendall`: answers, downloads and
refusals. Only an event stream's socket is taken over, by :mod:`chronoverse.web.streaming.stream_writer`.
"""

import _socket
import contextlib
import errno
import fcntl
import math
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import Any, Final, NamedTuple

import gevent
import gevent.socket
import gevent.ssl
from gunicorn.http.errors import LimitRequestHeaders

from chronoverse import metrics
from chronoverse.live.fair_lock import FairLock

#: Seconds for which a client may take nothing of an answer or an event stream before it is cut.
STALL_SECONDS: Final = 20.0
#: The same for a download, whose client may be slow. A client's kernel may say nothing until its whole buffer has been
#: read, which is 128 KiB at first: 4.4 kB/s are enough for that.
DOWNLOAD_STALL_SECONDS: Final = 30.0
#: Seconds that an ordinary answer may take to be sent, and bytes for each of which it may take longer: a client with
#: 80 kbit/s gets 4 MiB in seven minutes.
ANSWER_SECONDS: Final = 20.0
ANSWER_BYTES_PER_SECOND: Final = 10_000
#: A connection that got on less than so many seconds ago is not closed to make room, however many there are: a client
#: that is well has sent its request by then.
MIN_IDLE_SECONDS: Final = 0.5
#: Connections that are closed to make room, in a second and at once. Some clients connect again as soon as they are
#: closed, and a client that comes among them waits until all of these are accepted.
CLOSED_PER_SECOND: Final = 1_000
CLOSED_AT_ONCE: Final = 50
#: Seconds between looks whether a full socket's client has taken anything.
PROGRESS_CHECK_SECONDS: Final = 2.0
#: Bytes the kernel may hold for one client; left alone it would take megabytes for one that stopped reading.
SEND_BUFFER_BYTES: Final = 64 * 2**10
#: Milliseconds unacknowledged data may stay out: a half-open connection is dropped after that, not in 20 minutes.
USER_TIMEOUT_MS: Final = 20_000
#: Bytes of a request's head, and of what was read with it. gunicorn looks through a head again with each 8 KiB that
#: come: for 32 KiB that takes 1 ms, for the 800 KiB that its own bounds allow 180 ms, in which nobody else goes on.
HEAD_BYTES: Final = 40 * 2**10
#: Bytes thrown away of what a client has sent behind its request, before the connection is closed.
DISCARD_BYTES: Final = 64 * 2**10
#: SO_LINGER with no time to linger: closing resets the connection, and what was not sent is forgotten.
_RESET: Final = struct.pack("ii", 1, 0)


class SendLimits(NamedTuple):
    """How long a client may take for an answer: ``seconds``, and more for each byte.

    It may not take nothing for longer than ``stall_seconds``.
    """

    stall_seconds: float = STALL_SECONDS
    seconds: float = math.inf
    bytes_per_second: float = math.inf


ANSWER_LIMITS: Final = SendLimits(seconds=ANSWER_SECONDS, bytes_per_second=ANSWER_BYTES_PER_SECOND)
DOWNLOAD_LIMITS: Final = SendLimits(DOWNLOAD_STALL_SECONDS)
EVENTS_LIMITS: Final = SendLimits()


class Connections:
    """A worker's connections that wait for their clients or are answered.

    They stand in the order in which they last got on: a request came, or a part of an answer was taken. Beyond
    ``limit`` those that wait for their clients are closed. ``turns`` are taken at going on with a request's head that
    is longer than one read.
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
        """Takes in a new one. If all places are taken, those that have waited for their clients make room."""
        self._all[connection] = None
        connection.connections = self
        self.record_progress(connection)
        now = time.monotonic()
        due = round((now - self._made_room_at) * CLOSED_PER_SECOND)
        if len(self._all) > self._limit and due:
            self._made_room_at = now
            self.make_room(min(len(self._all) - self._limit, due, CLOSED_AT_ONCE))

    def make_room(self, places: int = 1) -> bool:
        """Closes up to ``places`` connections that have waited for their clients, those first that did the longest.

        None is closed that got on less than :data:`MIN_IDLE_SECONDS` ago. Returns whether one was closed.
        """
        until = time.monotonic() - MIN_IDLE_SECONDS
        old = takewhile(lambda each: each.progress_at <= until, self._all)
        stuck = list(islice((each for each in old if each.may_be_closed()), places))
        for connection in stuck:
            connection.cut("room")
        return bool(stuck)

    def record_progress(self, connection: "Connection") -> None:
        """Puts ``connection`` behind all others."""
        connection.progress_at = time.monotonic()
        if connection in self._all:
            del self._all[connection]
            self._all[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Takes ``connection`` out, if it is one of them."""
        self._all.pop(connection, None)


class Connection(gevent.socket.socket):
    """A client's socket. It keeps to the bounds of the answer under way; ``connections`` is where it has its place."""

    connections: Connections | None = None
    #: When it last got on, on the monotonic clock, in seconds.
    progress_at = 0.0
    #: Whether we wait for the client to send something, and whether for it to take an ordinary answer.
    is_receiving = True
    is_sending_answer = False
    #: Whether it has had an answer, and no further request.
    is_idle = False
    #: Whether the request was sent before the answer to an earlier one was read (RFC 9112 section 9.3.2).
    is_pipelined = False
    _head_bytes = 0
    _bounds = ANSWER_LIMITS
    _seconds_left = ANSWER_SECONDS
    _until = math.inf

    def begin_request(self, bounds: SendLimits = ANSWER_LIMITS) -> None:
        """A request has come, and its answer is to keep to ``bounds``."""
        self.is_receiving = self.is_idle = False
        self._head_bytes = 0
        self._bounds, self._seconds_left, self._until = bounds, bounds.seconds, math.inf
        self._record_progress()

    def end_request(self, *, pipelined: bool) -> None:
        """The answer is sent. ``pipelined`` is whether the next request has been read already."""
        self.is_pipelined = pipelined or self.has_input()
        self.is_receiving = self.is_idle = True
        self._record_progress()

    def begin_long_answer(self, bounds: SendLimits, until: float = math.inf) -> None:
        """The answer is a long one: it has ``bounds`` of its own, and is not closed to make room for others.

        At the monotonic time ``until`` it is cut off.
        """
        self._bounds, self._seconds_left, self._until = bounds, bounds.seconds, until
        if bounds.stall_seconds * 1000 > USER_TIMEOUT_MS:
            # The kernel counts a client that takes nothing as one that acknowledges nothing.
            _set_user_timeout(self, 2 * bounds.stall_seconds)

    def recv(self, *args: Any) -> bytes:
        """Waits for the client's next bytes. Only those of a request's body count as getting on: a head has to be
        whole, or it could be drawn out.

        Raises LimitRequestHeaders, gunicorn's error, for a head that is too long.
        """
        between_requests, self.is_receiving = self.is_receiving, True
        if between_requests and self._head_bytes and self.connections:
            with self.connections.request_lock:
                pass
        try:
            data: bytes = super().recv(*args)
        finally:
            self.is_receiving = between_requests
        if between_requests:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                raise LimitRequestHeaders("the head is too long")
        else:
            self._record_progress()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all of ``data``.

        Raises ConnectionResetError, having cut the connection, when the client takes nothing for too long, when the
        answer as a whole takes too long, or when its time is over; and OSError as any socket does.
        """
        rest = memoryview(data)
        bounds, timeout, unsent = self._bounds, self.gettimeout(), 0
        self._seconds_left += len(rest) / bounds.bytes_per_second
        began = now = got_on = time.monotonic()
        late, self.is_sending_answer = began + self._seconds_left, bounds.seconds < math.inf
        try:
            while rest:
                slow = min(late, got_on + bounds.stall_seconds)
                if now >= self._until:
                    raise self.cut("expired")
                if now >= slow:
                    raise self.cut("slow")
                self.settimeout(min(PROGRESS_CHECK_SECONDS, slow - now, self._until - now))
                try:
                    sent = super().send(rest, flags)
                except TimeoutError as error:
                    if error.errno == errno.ETIMEDOUT:
                        # The kernel has given the client up, which is told nothing.
                        raise self.cut("slow") from error
                    sent = 0
                rest = rest[sent:]
                if rest:
                    before, unsent, now = unsent, _unsent_bytes(self), time.monotonic()
                    # What the client's kernel has acknowledged has left the buffer, which may be too full all the
                    # same to have more put into it.
                    if sent or unsent < before:
                        got_on = now
                        self._record_progress()
        finally:
            self.is_sending_answer = False
            self._seconds_left -= time.monotonic() - began
            self.settimeout(timeout)

    def send(self, data: Any, flags: int = 0, timeout: object = None) -> int:
        """As :meth:`sendall`. A server uses it for a few bytes, as those of ``100 Continue``."""
        self.sendall(data, flags)
        return len(data)

    def cut(self, why: str) -> ConnectionResetError:
        """Ends it at once, whoever waits for it, and forgets what the client has not taken. Returns what to raise."""
        metrics.CONNECTIONS_CUT.labels(why).inc()
        if self.connections:
            self.connections.remove(self)
        with contextlib.suppress(OSError, ValueError), _raw_socket(self) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            plain.shutdown(socket.SHUT_RDWR)
        return ConnectionResetError(errno.ECONNRESET, f"cut: {why}")

    def may_be_closed(self) -> bool:
        """Whether it may be closed to make room: the client has to go on, not we. Never one that streams."""
        return self.is_sending_answer or (self.is_receiving and not self.has_input())

    def has_input(self) -> bool:
        """Whether the client has sent something that is not read yet, or has closed its side."""
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


class TlsConnection(Connection, gevent.ssl.SSLSocket):
    """The same where gunicorn itself speaks TLS."""

    def handshake(self, seconds: float) -> bool:
        """Whether the client speaks TLS as well: the handshake has to be done within ``seconds``."""
        with gevent.Timeout(seconds, False), contextlib.suppress(OSError):
            self.do_handshake()
            return True
        return False

    def has_input(self) -> bool:
        """As for any connection. What was decrypted already counts too."""
        return bool(self.pending()) or super().has_input()


def set_socket_options(sock: Any) -> None:
    """Bounds what the kernel does for ``sock``; for a listening one, for each connection that it accepts."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_user_timeout(sock, USER_TIMEOUT_MS / 1000)


def begin_long_answer(
    environ: dict[str, Any], bounds: SendLimits = EVENTS_LIMITS, until: float = math.inf
) -> socket.socket | None:
    """Has the request's socket stream, as :meth:`Connection.stream` does.

    Returns the socket where the server is gunicorn with gevent; else there is none, and nothing is done.
    """
    sock: Any = environ.get("gunicorn.socket")
    if isinstance(sock, Connection):
        sock.begin_long_answer(bounds, until)
    elif isinstance(sock, gevent.socket.socket):
        # gunicorn's own worker.
        set_socket_options(sock)
        sock.settimeout(bounds.stall_seconds)
    else:
        return None
    tuned: socket.socket = sock
    return tuned


def stop_receiving(sock: socket.socket) -> None:
    """No further request is read from it: whoever waits for one sees the end."""
    # gevent's own shutdown would have the reader fail instead, as if the descriptor were gone; that of TLS would
    # have what is sent from now on go out in clear.
    with contextlib.suppress(OSError), _raw_socket(sock) as plain:
        plain.shutdown(socket.SHUT_RD)


def finish_sending(sock: Any) -> None:
    """Ends what is sent, and throws away what was not read: with something unread, as a further request, closing would
    reset the connection, and take back what the client has not read yet."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        sock.recv(DISCARD_BYTES)


def is_unresponsive(error: OSError) -> bool:
    """Whether ``error`` says of a peer that it took nothing for too long, or that its machine is not there any more."""
    return isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH


def on_hangup(sock: Any, left: Callable[[str], None]) -> Callable[[], None]:
    """Calls ``left`` once when the peer closes; without it that is noticed two heartbeats late. Returns the undoing.

    It is told ``left``, or ``slow`` when the kernel gave up a peer that took nothing for :data:`USER_TIMEOUT_MS`.

    In a greenlet of its own: the hub itself may not even wait for a lock, and what it was told is lost when it has to.
    """
    watcher = gevent.get_hub().loop.io(sock.fileno(), 1)
    watching = True

    def readable() -> None:
        why = "left"
        try:
            gone = not _peek(sock)
        except BlockingIOError:
            return
        except OSError as error:
            gone = True
            why = "slow" if is_unresponsive(error) else "left"
        # A client that sends on after its request is not watched further: the data would wake us for ever.
        watcher.stop()
        if gone:
            gevent.spawn(leave, why)

    def leave(why: str) -> None:
        if watching:
            left(why)

    def undo() -> None:
        nonlocal watching
        watching = False
        watcher.stop()
        watcher.close()

    watcher.start(readable)
    return undo


@contextlib.contextmanager
def _raw_socket(sock: Any) -> Iterator[_socket.socket]:
    """The socket itself, without gevent and TLS. The two share a descriptor."""
    plain = _socket.socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
    try:
        yield plain
    finally:
        plain.detach()


def _peek(sock: Any) -> bytes:
    """The next byte that the client has sent, left where it is; none when it has closed its side.

    Of a TLS connection it is an encrypted one. Raises BlockingIOError when there is none yet.
    """
    with _raw_socket(sock) as plain:
        return plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def _unsent_bytes(sock: Any) -> int:
    """Bytes in the socket's buffer that the client's kernel has not acknowledged; 0 where the system cannot tell."""
    # https://man7.org/linux/man-pages/man7/tcp.7.html, under SIOCOUTQ, which is another name of TIOCOUTQ.
    try:
        told = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except OSError:
        return 0
    unsent: int = struct.unpack("i", told)[0]
    return unsent


def _set_user_timeout(sock: Any, seconds: float) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
