"""A viewer's bytes straight onto its socket: no greenlet waits for lines.

A viewer that is caught up costs one non-blocking write per wake, made by whoever wakes it (the tail). One whose
socket is full is written to when it has room, by the worker's
:class:`chronoverse.web.streaming.write_scheduler.WriteScheduler`. Only what may wait for more than that has a greenlet,
for as long as it takes: a replay, the end.
"""

import _socket
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import gevent
import gevent.socket

from chronoverse.live.feed import Feed
from chronoverse.live.viewer import RETRY_READ_SECONDS, Viewer
from chronoverse.web.streaming.broadcast import BroadcastGroup, GroupWorker
from chronoverse.web.streaming.connection import SEND_SECONDS, Connection, finish, on_hangup, unresponsive
from chronoverse.web.streaming.write_scheduler import PendingWrite, WriteScheduler

#: What ends a chunked body. RFC 9112 section 7.1.
LAST_CHUNK: Final = b"0\r\n\r\n"
#: Viewers of a job from which on they are written to as one.
CROWD_VIEWERS: Final = 16
#: Chunks remembered: viewers who are behind stand at a few places. A short one is framed as fast as it is found.
CHUNKS: Final = 8
CHUNK_BYTES: Final = 4096

log = logging.getLogger(__name__)


class Chunker:
    """Frames bodies as chunks (RFC 9112 section 7.1). One of the last few objects again, as for the next viewer, is
    framed already."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, bytes]] = {}

    def __call__(self, body: bytes) -> bytes:
        known = self._known.get(id(body))
        if known is not None:
            return known[1]
        chunk = b"%x\r\n%b\r\n" % (len(body), body)
        if len(body) < CHUNK_BYTES:
            return chunk
        if len(self._known) >= CHUNKS:
            del self._known[next(iter(self._known))]
        # Holding the body keeps its id from being another's.
        self._known[id(body)] = body, chunk
        return chunk


class StreamWriter:
    """Drives one viewer. ``closed`` is called once, when all is over and the socket is closed.

    Everything here runs on one gevent hub, so that nothing happens between two lines unless the first one waits.
    """

    __slots__ = (
        "_again", "_closed", "_greenlet", "_left", "_outlets", "_rest", "_room", "_socket", "_unwatch", "crowd",
        "viewer",
    )  # fmt: skip

    def __init__(self, viewer: Viewer, sock: Any, outlets: "StreamWriters", closed: Callable[[], None]) -> None:
        # Taken from gunicorn, which closes what it holds of the connection when the request's handler returns.
        self._socket = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._socket.setblocking(False)
        self.viewer = viewer
        self.crowd: BroadcastGroup | None = None
        self._outlets = outlets
        self._closed = closed
        self._again = self._left = False
        self._greenlet: gevent.Greenlet | None = None
        #: While the socket is full: what it had no room for, and the watch for room.
        self._rest: memoryview | bytes = b""
        self._room: PendingWrite | None = None
        self._unwatch = on_hangup(self._socket, self._hang_up)
        viewer.on_wake = self.wake

    @property
    def busy(self) -> bool:
        """Whether it is being written for, by a greenlet or as its socket has room."""
        return self._greenlet is not None or self._room is not None

    def wake(self) -> None:
        """Writes what there is, or has somebody do it who may wait. Never waits, never raises."""
        if self.busy:
            self._again = True
            return
        if self.crowd is None or self.crowd.leave(self):
            self._go_on()

    def _go_on(self, first: bytes = b"") -> None:
        try:
            rest = self._write(first)
        except Exception as error:
            self._failed(error)
            self._close()
            return
        if rest is not None:
            self.carry_on(rest)
        else:
            self._outlets.settle(self, self._socket.send)

    def begin(self, head: bytes) -> None:
        """Writes the response's ``head``, and in the same go whatever is at hand behind it."""
        missed = self.viewer.catch_up()
        self._go_on(head + self._outlets.chunk(missed) if missed else head)

    def carry_on(self, rest: bytes | memoryview) -> None:
        """Has ``rest`` written, and whatever follows."""
        viewer = self.viewer
        if viewer.done or viewer.behind:
            self._greenlet = gevent.spawn(self._run, rest)
        else:
            self._rest = rest
            self._room = self._outlets.pump.watch(self._socket.fileno(), self._fill, self._give_up)

    def _fill(self) -> None:
        """The socket has room: writes once of what it had none for, and once of what came since."""
        room, rest = self._room, self._rest
        if room is None:
            return
        try:
            if rest:
                self._rest = rest = rest[self._socket.send(rest) :]
                if rest:
                    return
            following = self._write()
        except BlockingIOError:
            return
        except Exception as error:
            self._failed(error)
            self._close()
            return
        if following is not None and not self.viewer.done and not self.viewer.behind:
            self._rest = following
            room.renew()
            return
        self._forget_room()
        if following is not None or self._left:
            self._greenlet = gevent.spawn(self._run, following or b"")
        else:
            # In a greenlet of its own, as it may wait for a whole crowd to be written to.
            gevent.spawn(self._outlets.settle, self, self._socket.send)

    def _give_up(self) -> None:
        """The socket has had no room for too long."""
        self.viewer.reason = "slow"
        self._close()

    def _forget_room(self) -> None:
        if self._room is not None:
            self._room.close()
        self._rest, self._room = b"", None

    def _write(self, first: bytes = b"") -> bytes | memoryview | None:
        """What is left to write, perhaps nothing yet but more to look for; None when all is done."""
        viewer = self.viewer
        frames = viewer.try_next()
        chunk = self._outlets.chunk(frames) if frames else b""
        if first:
            chunk = first + chunk
        if not chunk:
            return b"" if frames is not None or viewer.behind or viewer.done else None
        try:
            sent = self._socket.send(chunk)
        except BlockingIOError:
            sent = 0
        if sent < len(chunk):
            return memoryview(chunk)[sent:]
        return b"" if viewer.done or viewer.behind or viewer.has_more or frames == b"" else None

    def _run(self, rest: bytes | memoryview) -> None:
        try:
            viewer = self.viewer
            self._send(rest)
            while not viewer.done:
                self._again = False
                frames = viewer.next()
                if frames:
                    # One name, or both would be held for as long as the socket is full.
                    frames = self._outlets.chunk(frames)
                    self._send(frames)
                elif frames is None and not viewer.done and not self._again:
                    if self._left:
                        break
                    if viewer.channel is None:
                        # No tail wakes a viewer of a job that has ended: this is a read that failed.
                        gevent.sleep(RETRY_READ_SECONDS)
                        continue
                    self._greenlet = None
                    self._outlets.settle(self, self._socket.send)
                    return
            self._send(LAST_CHUNK)
        except Exception as error:
            self._failed(error)
        self._close()

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            log.exception("a stream failed")
        elif unresponsive(error):
            self.viewer.reason = "slow"

    def _send(self, data: bytes | memoryview) -> None:
        """Raises OSError: the peer has gone, or took too long."""
        rest, deadline = memoryview(data), time.monotonic() + SEND_SECONDS
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                seconds = max(deadline - time.monotonic(), 0)
                gevent.socket.wait_write(self._socket.fileno(), seconds, TimeoutError())

    def _hang_up(self, why: str) -> None:
        # The peer may only have ended its own side: what it has asked for is sent, until that fails or all is said.
        self._left = True
        self.viewer.reason = why
        if not self.busy:
            self._close()

    def _close(self) -> None:
        viewer = self.viewer
        viewer.done, viewer.on_wake = True, None
        self._unwatch()
        self._forget_room()
        if self.crowd is not None:
            self.crowd.remove(self)
        viewer.close()
        finish(self._socket)
        self._socket.close()
        self._closed()


class StreamWriters:
    """A worker's outlets. There are none until ``answer`` is what has its server leave the socket to them."""

    def __init__(self, worker: GroupWorker) -> None:
        self.answer: object | None = None
        self.open = 0
        self.chunk = Chunker()
        self.pump = WriteScheduler(worker.clock)
        self._worker = worker
        self._crowds: dict[Feed, BroadcastGroup] = {}

    def fit(self, environ: dict[str, Any]) -> bool:
        """Whether the socket under this request is ours to write to: plain HTTP/1.1, on gunicorn with gevent."""
        plain = type(environ.get("gunicorn.socket")) is Connection
        return plain and self.answer is not None and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"

    def take(self, viewer: Viewer, sock: Any, closed: Callable[[], None], head: bytes) -> None:
        """Has an outlet write ``head``, and all that ``viewer`` says from now on."""

        def gone() -> None:
            self.open -= 1
            closed()

        self.open += 1
        StreamWriter(viewer, sock, self, gone).begin(head)

    def settle(self, outlet: StreamWriter, send: Callable[[bytes], int]) -> None:
        """Lets an outlet that has nothing to write wait with others like it, where there are enough of them."""
        channel = outlet.viewer.channel
        if channel is None or outlet.busy or outlet.crowd is not None:
            return
        crowd = self._crowds.get(channel)
        if crowd is None and len(channel.viewers) >= CROWD_VIEWERS:
            crowd = BroadcastGroup(channel, self._worker, self.chunk, partial(self._crowds.pop, channel, None))
        if crowd is not None and crowd.join(outlet, send):
            self._crowds[channel] = crowd
