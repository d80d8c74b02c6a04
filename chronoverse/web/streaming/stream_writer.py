"""Decides who writes to a viewer's socket. No other module does. The package's docstring has the two states.

:meth:`StreamWriter.fall_behind` leads from *caught up* to *behind*. A writer has caught up again when the viewer has
nothing more to say. Then :meth:`StreamWriters.join_group` puts it into the group.
"""

import _socket
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.socket

from chronoverse.live.viewer import RETRY_READ_SECONDS, Viewer
from chronoverse.live.wait import Wait
from chronoverse.web.guards.connection import (
    STALL_SECONDS,
    Connection,
    finish_sending,
    is_unresponsive,
    on_hangup,
)
from chronoverse.web.streaming.broadcast import BroadcastGroup, GroupContext
from chronoverse.web.streaming.write_scheduler import PendingWrite, WriteScheduler

#: What ends a chunked body. RFC 9112 section 7.1.
LAST_CHUNK: Final = b"0\r\n\r\n"

log = logging.getLogger(__name__)


class Chunker:
    """Frames bodies as chunks (RFC 9112 section 7.1), and caches the last few.

    Viewers at the same position are given the same object, so the object's id is the cache's key.
    """

    def __init__(self) -> None:
        self._cached: dict[int, tuple[bytes, bytes]] = {}

    def __call__(self, body: bytes) -> bytes:
        cached = self._cached.get(id(body))
        if cached is not None:
            return cached[1]
        chunk = b"%x\r\n%b\r\n" % (len(body), body)
        # Bytes from which a body is cached. Framing a shorter one is as fast as finding it.
        if len(body) < 4096:
            return chunk
        # Chunks in the chunker's cache. Viewers that replay the same log are at a few positions of it.
        if len(self._cached) >= 8:
            del self._cached[next(iter(self._cached))]
        # The cache holds the body too: otherwise another object could get its id.
        self._cached[id(body)] = body, chunk
        return chunk


class StreamWriter:
    """Writes what one viewer says to its socket. ``closed`` is called once, after the socket was closed."""

    __slots__ = (
        "_closed", "_greenlet", "_peer_left", "_pending_write", "_socket", "_unsent", "_unwatch", "_woken", "_writers",
        "group", "viewer",
    )  # fmt: skip

    def __init__(self, viewer: Viewer, sock: Any, writers: "StreamWriters", closed: Callable[[], None]) -> None:
        # Detached from gunicorn's object, which gunicorn closes when the request's handler returns.
        self._socket = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._socket.setblocking(False)
        self.viewer = viewer
        self._writers = writers
        self._closed = closed
        #: Caught up: the group that writes to this socket. None when whoever wakes the viewer writes to it alone.
        self.group: BroadcastGroup | None = None
        #: Behind: one of these two is set. Caught up: neither is.
        self._greenlet: gevent.Greenlet | None = None
        self._pending_write: PendingWrite | None = None
        #: What the socket had no room for. It belongs to the pending write.
        self._unsent: memoryview | bytes = b""
        #: Whether the viewer was woken while it was behind. Its greenlet then looks for frames once more.
        self._woken = False
        self._peer_left = False
        self._unwatch = on_hangup(self._socket, self._hang_up)
        viewer.on_wake = self.wake

    @property
    def is_behind(self) -> bool:
        """Whether a greenlet or the write scheduler writes to this socket."""
        return self._greenlet is not None or self._pending_write is not None

    @property
    def take(self) -> Callable[[bytes], int]:
        """Takes what the group has encoded: the socket's own ``send``, which never waits."""
        return self._socket.send

    @property
    def encode(self) -> Callable[[bytes], bytes]:
        """What a group makes of frames for :attr:`take`: a chunk of the response."""
        return self._writers.chunk

    @property
    def group_key(self) -> object:
        """Members of a group have the same one: they take the same bytes."""
        return self.viewer.line_filter

    def start(self, head: bytes) -> None:
        """Writes the response's ``head``, and together with it the frames that the replay cache already has."""
        missed = self.viewer.take_cached()
        self._write_now(head + self._to_send(missed) if missed else head)

    def wake(self) -> None:
        """The viewer may have something new. Writes it when caught up. Never waits, never raises."""
        if self.is_behind:
            self._woken = True
        elif self.group is None or self.group.leave(self):
            self._write_now()

    def fall_behind(self, unsent: bytes | memoryview) -> None:
        """Has ``unsent`` written, and all that follows until the viewer has caught up again."""
        if self._needs_greenlet:
            self._greenlet = gevent.spawn(self._run, unsent)
        else:
            self._unsent = unsent
            self._pending_write = self._writers.scheduler.watch(self._socket.fileno(), self._write_more, self._give_up)

    @property
    def _needs_greenlet(self) -> bool:
        return self._is_over or self.viewer.needs_store_read

    def _write_now(self, first: bytes = b"") -> None:
        try:
            unsent = self._write(first)
        except Exception as error:
            self._fail(error)
            return
        if unsent is None:
            self._writers.join_group(self)
        else:
            self.fall_behind(unsent)

    def _write(self, first: bytes = b"") -> bytes | memoryview | None:
        """Writes ``first`` and the viewer's next frames. Returns what the socket had no room for.

        It is empty when all was written and there is more to say, and None when the viewer has caught up.
        """
        viewer = self.viewer
        frames = viewer.try_next()
        chunk = self._to_send(frames) if frames else b""
        if first:
            chunk = first + chunk
        if not chunk:
            return b"" if frames is not None or self._needs_greenlet else None
        try:
            sent = self._socket.send(chunk)
        except BlockingIOError:
            sent = 0
        if sent < len(chunk):
            return memoryview(chunk)[sent:]
        return b"" if self._needs_greenlet or viewer.has_more or frames == b"" else None

    # Behind, by the write scheduler

    def _write_more(self) -> None:
        """The socket has room: writes what it had no room for, and then once what has come since."""
        pending, unsent = self._pending_write, self._unsent
        if pending is None:
            return
        try:
            if unsent:
                self._unsent = unsent = unsent[self._socket.send(unsent) :]
                if unsent:
                    return
            following = self._write()
        except BlockingIOError:
            return
        except Exception as error:
            self._fail(error)
            return
        if following is not None and not self._needs_greenlet:
            self._unsent = following
            pending.renew()
            return
        self._close_pending_write()
        if following is not None or self._peer_left:
            self._greenlet = gevent.spawn(self._run, following or b"")
        else:
            # In a greenlet of its own: joining may first write to a whole group, which lets other greenlets run.
            gevent.spawn(self._writers.join_group, self)

    def _give_up(self) -> None:
        """The socket has had no room for too long."""
        self.viewer.reason = "slow"
        self._close()

    def _close_pending_write(self) -> None:
        if self._pending_write is not None:
            self._pending_write.close()
        self._unsent, self._pending_write = b"", None

    # Behind, by a greenlet

    def _run(self, unsent: bytes | memoryview) -> None:
        """Writes ``unsent`` and all that follows, until the viewer has caught up or its stream has ended."""
        try:
            viewer = self.viewer
            self._send_all(unsent)
            while not self._is_over:
                self._woken = False
                frames = viewer.next()
                if frames:
                    # The same name for both: two names would hold both objects for as long as the socket is full.
                    frames = self._to_send(frames)
                    self._send_all(frames)
                elif frames is None and not self._is_over and not self._woken:
                    if self._peer_left:
                        break
                    if viewer.feed is None:
                        # The job has ended and a read of the store has failed. The tail wakes no such viewer.
                        gevent.sleep(RETRY_READ_SECONDS)
                        continue
                    self._greenlet = None
                    self._writers.join_group(self)
                    return
            self._send_all(self._last_bytes())
        except Exception as error:
            self._fail(error)
        else:
            self._close()

    @property
    def _is_over(self) -> bool:
        """Whether only the last bytes are left to write."""
        return self.viewer.done

    def _to_send(self, frames: bytes) -> bytes:
        """What is sent for ``frames``."""
        return self._writers.chunk(frames)

    def _last_bytes(self) -> bytes:
        """What is sent at the end."""
        return LAST_CHUNK

    def _send_all(self, data: bytes | memoryview) -> None:
        """Raises OSError when the peer has gone, or took too long."""
        rest, deadline = memoryview(data), time.monotonic() + STALL_SECONDS
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                seconds = max(deadline - time.monotonic(), 0)
                gevent.socket.wait_write(self._socket.fileno(), seconds, TimeoutError())

    # The end

    def _fail(self, error: Exception) -> None:
        """Closes the stream because of ``error``."""
        if not isinstance(error, OSError):
            log.exception("a stream failed")
        elif is_unresponsive(error):
            self.viewer.reason = "slow"
        self._close()

    def _hang_up(self, why: str) -> None:
        """The peer has closed its side."""
        # It may only have ended what it sends. So what it was behind with is still sent, until a write fails.
        self._peer_left = True
        self.viewer.reason = why
        if not self.is_behind:
            self._close()

    def _close(self) -> None:
        viewer = self.viewer
        viewer.done, viewer.on_wake = True, None
        self._unwatch()
        self._close_pending_write()
        if self.group is not None:
            self.group.remove(self)
        viewer.close()
        finish_sending(self._socket)
        self._socket.close()
        self._writers.open_count -= 1
        self._closed()


class WaitWriter(StreamWriter):
    """Reads the frames of ``viewer``, and writes ``answer()`` when ``wait`` is over. Else as :class:`StreamWriter`.

    A waiter costs what a viewer costs: no greenlet, and groups like those of viewers. It only has a timer more, because
    a stream may end half a second late, but an answer should not come late.
    """

    __slots__ = ("_answer", "_timer", "_wait")

    def __init__(
        self,
        viewer: Viewer,
        sock: Any,
        writers: "StreamWriters",
        closed: Callable[[], None],
        wait: Wait,
        answer: Callable[[], bytes],
    ) -> None:
        super().__init__(viewer, sock, writers, closed)
        self._wait = wait
        self._answer = answer
        seconds = viewer.ends_at - writers.scheduler.clock()
        # Seconds by which the timer is late, so that the viewer's time is over when it wakes it.
        self._timer = gevent.get_hub().loop.timer(max(seconds, 0) + 0.005)
        # In a greenlet of its own: the event loop must not wait. After the end this wakes nobody.
        self._timer.start(gevent.spawn, viewer.wake)

    @property
    def take(self) -> Callable[[bytes], int]:
        """Takes a group's frames that have no event. Others are given to :meth:`fall_behind`."""
        return _count_without_events

    @property
    def encode(self) -> Callable[[bytes], bytes]:
        """A group of waiters takes the frames as they are."""
        return bytes

    @property
    def group_key(self) -> object:
        """Waiters have groups of their own."""
        return WaitWriter, self.viewer.line_filter

    def fall_behind(self, unsent: bytes | memoryview) -> None:
        """Reads the frames ``unsent``, and goes on in a greenlet."""
        self._wait.feed(bytes(unsent))
        self._greenlet = gevent.spawn(self._run, b"")

    @property
    def _is_over(self) -> bool:
        return self.viewer.done or self._wait.is_over

    def _to_send(self, frames: bytes) -> bytes:
        self._wait.feed(frames)
        return b""

    def _last_bytes(self) -> bytes:
        return self._answer()

    def _close(self) -> None:
        self._timer.stop()
        self._timer.close()
        super()._close()


def _count_without_events(frames: bytes) -> int:
    return 0 if b"event: " in frames else len(frames)


class StreamWriters:
    """A worker's stream writers, and what they share."""

    def __init__(self, context: GroupContext) -> None:
        self.open_count = 0
        self.chunk = Chunker()
        self.scheduler = WriteScheduler(context.clock)
        self._context = context

    def can_take_over(self, environ: dict[str, Any]) -> bool:
        """Whether the request's socket can be taken over: plain HTTP/1.1, under this project's gunicorn worker."""
        return type(environ.get("gunicorn.socket")) is Connection and environ["SERVER_PROTOCOL"] == "HTTP/1.1"

    def take_over(
        self,
        viewer: Viewer,
        sock: Any,
        closed: Callable[[], None],
        head: bytes,
        make_writer: Callable[..., StreamWriter] = StreamWriter,
    ) -> None:
        """Writes ``head`` to ``sock``, and from now on all that ``viewer`` says. Calls ``closed`` at the end."""
        self.open_count += 1
        make_writer(viewer, sock, self, closed).start(head)

    def join_group(self, writer: StreamWriter) -> None:
        """Puts a caught-up writer into the group of its feed and filter. Does nothing when a feed has few viewers."""
        feed = writer.viewer.feed
        if feed is None or writer.is_behind or writer.group is not None:
            return
        group = feed.groups.get(writer.group_key)
        # Viewers that a feed must have before its caught-up viewers are written to as a group.
        if group is None and feed.viewer_count >= 16:
            group = BroadcastGroup(feed, self._context, writer.encode, writer.viewer.line_filter, writer.group_key)
        if group is not None:
            group.join(writer)
