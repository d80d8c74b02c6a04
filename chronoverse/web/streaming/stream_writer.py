"""The only module that writes to viewers' sockets. The package's docstring describes a viewer's two states."""

import _socket
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import gevent
import gevent.event
import gevent.socket

from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.web.guards.connection import STALL_SECONDS, Connection, HangupWatch, finish_sending, is_unresponsive
from chronoverse.web.streaming.broadcast import BroadcastGroup

#: Seconds of writing to full sockets before other greenlets run.
_PASS_SECONDS: Final = 0.003
LAST_CHUNK: Final = b"0\r\n\r\n"

log = logging.getLogger(__name__)


def chunk(body: bytes) -> bytes:
    """``body`` as a chunk (RFC 9112 section 7.1). Viewers that receive the same long body share one chunk."""
    return _long_chunk(body) if len(body) >= 4096 else b"%x\r\n%b\r\n" % (len(body), body)


# Viewers that replay the same log are at only a few positions.
@lru_cache(8)
def _long_chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


class StreamWriter:
    """Writes one viewer's frames to its socket. Calls ``closed`` once, after closing the socket.

    A subclass that writes something else overrides the members from :attr:`is_over` to :meth:`last_bytes`.
    """

    __slots__ = (
        "_closed", "_greenlet", "_hangup_watch", "_peer_left", "_socket", "_unsent", "_woken", "_writers", "group",
        "viewer", "write_watch",
    )  # fmt: skip

    def __init__(self, viewer: Viewer, sock: Any, writers: "StreamWriters", closed: Callable[[], None]) -> None:
        # Detached, because gunicorn closes its own socket object when the handler returns.
        self._socket = _socket.socket(fileno=sock.detach())
        self._socket.setblocking(False)
        self.viewer = viewer
        self._writers = writers
        self._closed = closed
        #: While caught up: the group that writes to this socket, or None if this writer does.
        self.group: BroadcastGroup | None = None
        #: While behind, exactly one of these is set; while caught up, neither is.
        self._greenlet: gevent.Greenlet | None = None
        self.write_watch: Any = None
        #: Bytes that did not fit into the socket, for the write scheduler.
        self._unsent: memoryview | bytes = b""
        #: Whether the viewer was woken while behind: its greenlet then checks for frames again.
        self._woken = False
        self._peer_left = False
        self._hangup_watch = HangupWatch(self._socket, self._hang_up)
        viewer.on_wake = self.wake

    @property
    def is_behind(self) -> bool:
        """Whether a greenlet or the write scheduler writes to this socket."""
        return self._greenlet is not None or self.write_watch is not None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def is_over(self) -> bool:
        return self.viewer.done

    @property
    def take(self) -> Callable[[bytes], int]:
        """The function that sends the group's encoded frames: the socket's ``send``, which never blocks."""
        return self._socket.send

    @staticmethod
    def encode(frames: bytes) -> bytes:
        return chunk(frames)

    def to_send(self, frames: bytes) -> bytes:
        return chunk(frames)

    def last_bytes(self) -> bytes:
        return LAST_CHUNK

    def start(self, head: bytes) -> None:
        """Writes the response's ``head``, and the frames already in the replay cache."""
        missed = self.viewer.take_cached()
        self._write_now(head + self.to_send(missed) if missed else head)

    def wake(self) -> None:
        """Writes the viewer's new frames, unless it is behind. Never waits, never raises."""
        if self.is_behind:
            self._woken = True
        elif self.group is None or self.group.leave(self):
            self._write_now()

    def fall_behind(self, unsent: bytes | memoryview) -> None:
        """Makes the scheduler or a greenlet write ``unsent`` and all later frames, until the viewer has caught up."""
        if self._needs_greenlet:
            self._greenlet = gevent.spawn(self._run, unsent)
        else:
            self._unsent = unsent
            self._writers.scheduler.watch(self)

    @property
    def _needs_greenlet(self) -> bool:
        return self.is_over or self.viewer.needs_store_read

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
        """Writes ``first`` and the next frames. Returns the unsent bytes; empty if more follow, None if caught up."""
        viewer = self.viewer
        frames = viewer.try_next()
        data = self.to_send(frames) if frames else b""
        if first:
            data = first + data
        if not data:
            return b"" if frames is not None or self._needs_greenlet else None
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            return memoryview(data)[sent:]
        return b"" if self._needs_greenlet or viewer.has_more or frames == b"" else None

    def write_more(self) -> None:
        """Called when the socket has room. Writes the unsent bytes, then one batch of newer frames."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                self._writers.scheduler.renew(self)
                if self._unsent:
                    return
            following = self._write()
        except BlockingIOError:
            return
        except Exception as error:
            self._fail(error)
            return
        if following is not None and not self._needs_greenlet:
            self._unsent = following
            self._writers.scheduler.renew(self)
            return
        self._writers.scheduler.remove(self)
        self._unsent = b""
        if following is not None or self._peer_left:
            self._greenlet = gevent.spawn(self._run, following or b"")
        else:
            # Joins in a greenlet, because joining can first write to a whole group, and yields.
            gevent.spawn(self._writers.join_group, self)

    def give_up(self) -> None:
        self.viewer.reason = "slow"
        self.close()

    def _run(self, unsent: bytes | memoryview) -> None:
        """Writes ``unsent`` and all later frames, until the viewer has caught up or its stream ends."""
        try:
            viewer = self.viewer
            self._send_all(unsent)
            while not self.is_over:
                self._woken = False
                frames = viewer.next()
                if frames:
                    # Reuses the name: a second one would keep both copies in memory while the socket is full.
                    frames = self.to_send(frames)
                    self._send_all(frames)
                elif frames is None and not self.is_over and not self._woken:
                    if self._peer_left:
                        break
                    self._greenlet = None
                    self._writers.join_group(self)
                    return
            self._send_all(self.last_bytes())
        except Exception as error:
            self._fail(error)
        else:
            self.close()

    def _send_all(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                gevent.socket.wait_write(self._socket.fileno(), STALL_SECONDS, TimeoutError())

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            log.exception("a stream failed")
        else:
            self.viewer.reason = "slow" if is_unresponsive(error) or self._hangup_watch.is_slow else "left"
        self.close()

    def _hang_up(self, why: str) -> None:
        # The client may have closed only its sending side, so the backlog is sent until a write fails.
        self._peer_left = True
        if not self.is_over:
            self.viewer.reason = why
        if not self.is_behind:
            self.close()

    def close(self) -> None:
        viewer = self.viewer
        viewer.done, viewer.on_wake = True, None
        self._hangup_watch.close()
        self._writers.scheduler.remove(self)
        if self.group is not None:
            self.group.remove(self)
        viewer.close()
        finish_sending(self._socket)
        self._socket.close()
        self._writers.open_count -= 1
        self._closed()


class WriteScheduler:
    """Writes to sockets whose send buffer was full, once it has room. One greenlet serves a whole worker (ADR 6)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        #: The writers with full sockets, and when to give up on each.
        self._deadlines: dict[StreamWriter, float] = {}
        #: Writers whose sockets have room again, in order (a dict of None is an ordered set).
        self._writable: dict[StreamWriter, None] = {}
        self._wakeup = gevent.event.Event()
        self._greenlet: gevent.Greenlet | None = None

    def watch(self, writer: StreamWriter) -> None:
        """Until :meth:`remove`, calls ``write_more`` when the socket has room; ``give_up`` if full for too long."""
        # libev's EV_WRITE, for which gevent has no public name.
        writer.write_watch = gevent.get_hub().loop.io(writer.fileno(), 2)
        writer.write_watch.start(self._queue, writer)
        self.renew(writer)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def renew(self, writer: StreamWriter) -> None:
        self._deadlines[writer] = self.clock() + STALL_SECONDS

    def remove(self, writer: StreamWriter) -> None:
        """Stops watching ``writer``, if watched."""
        if writer.write_watch is not None:
            writer.write_watch.stop()
            writer.write_watch.close()
            writer.write_watch = None
            del self._deadlines[writer]
            self._writable.pop(writer, None)

    def _queue(self, writer: StreamWriter) -> None:
        """Notes that a socket has room. Called by the event loop, so it must not block."""
        if writer not in self._writable:
            self._writable[writer] = None
            self._wakeup.set()

    def _run(self) -> None:
        swept_at = self.clock()
        while True:
            # Once a second, checks for sockets that have been full for too long.
            self._wakeup.wait(1.0)
            self._wakeup.clear()
            until = self.clock() + _PASS_SECONDS
            for writer in list(self._writable):
                self._writable.pop(writer, None)
                self._call(writer, writer.write_more)
                if self.clock() >= until:
                    gevent.sleep(0)
                    until = self.clock() + _PASS_SECONDS
            if self._writable:
                self._wakeup.set()
            if self.clock() >= swept_at + 1.0:
                swept_at = self.clock()
                # Spares writers that are still queued: their sockets are writable, so the delay is ours.
                for writer in [each for each, deadline in self._deadlines.items() if deadline <= swept_at]:
                    if writer not in self._writable:
                        self._call(writer, writer.give_up)

    def _call(self, writer: StreamWriter, function: Callable[[], None]) -> None:
        """Calls ``function`` unless ``writer`` was removed. An error ends only this watch."""
        if writer in self._deadlines:
            try:
                function()
            except Exception:
                log.exception("a stream failed")
                self.remove(writer)


class StreamWriters:
    """A worker's stream writers and their scheduler."""

    def __init__(self, tail: Tail) -> None:
        self.open_count = 0
        self.scheduler = WriteScheduler(tail.clock)
        self._tail = tail

    def can_take_over(self, environ: dict[str, Any]) -> bool:
        """Whether the request's socket can be taken over: plain HTTP under this project's gunicorn worker."""
        return type(environ.get("gunicorn.socket")) is Connection

    def take_over(
        self,
        viewer: Viewer,
        environ: dict[str, Any],
        closed: Callable[[], None],
        head: bytes,
        make_writer: Callable[..., StreamWriter] = StreamWriter,
    ) -> None:
        """Writes ``head`` to the request's socket, then all frames of ``viewer``. Calls ``closed`` at the end."""
        self.open_count += 1
        make_writer(viewer, environ["gunicorn.socket"], self, closed).start(head)

    def join_group(self, writer: StreamWriter) -> None:
        """Adds a caught-up writer to the group of its feed and filter. Does nothing if the feed has few viewers."""
        feed = writer.viewer.feed
        if writer.viewer.done or writer.is_behind or writer.group is not None:
            return
        key = type(writer), writer.viewer.line_filter
        group = feed.groups.get(key)
        # A feed needs 16 viewers before it gets a group.
        if group is None and feed.viewer_count >= 16:
            group = BroadcastGroup(feed, self._tail, key)
        if group is not None:
            group.join(writer)
