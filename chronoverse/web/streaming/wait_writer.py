"""Holds the socket of somebody who waits for a line, and answers when it has come, or when nothing more will.

A waiter costs what a viewer costs: no greenlet, and the same broadcast groups. It only has a timer more, because a
stream may end half a second late, but an answer should not come late.
"""

from collections.abc import Callable
from typing import Any

import gevent

from chronoverse.live.viewer import Viewer
from chronoverse.live.wait import Wait
from chronoverse.web.streaming.stream_writer import StreamWriter, StreamWriters


class WaitWriter(StreamWriter):
    """Reads what ``viewer`` says, and writes ``answer()`` when ``wait`` is over. Otherwise as :class:`StreamWriter`."""

    __slots__ = ("_answer", "_timer", "_wait")

    def __init__(
        self,
        viewer: Viewer,
        sock: Any,
        writers: StreamWriters,
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
    def send(self) -> Callable[[bytes], int]:
        """Counts what a group writes as sent, unless it has an event.

        Then the group takes this writer for one that is behind, and gives it the bytes: see :meth:`fall_behind`.
        """
        return _count_without_events

    def start(self, head: bytes) -> None:
        """Begins to wait. Nothing is written yet."""
        self._write_now()

    def fall_behind(self, unsent: bytes | memoryview) -> None:
        """Reads ``unsent``, a chunk that a group has written, and goes on in a greenlet."""
        if unsent:
            # A chunk is its size in a line of its own, the frames, and a newline.
            self._wait.feed(bytes(unsent).split(b"\r\n", 1)[1][:-2])
        self._greenlet = gevent.spawn(self._run, b"")

    @property
    def _is_over(self) -> bool:
        return self.viewer.done or self._wait.is_over

    @property
    def _needs_greenlet(self) -> bool:
        return self._is_over or self.viewer.needs_store_read

    def _write(self, first: bytes = b"") -> bytes | memoryview | None:
        frames = self.viewer.try_next()
        if frames:
            self._wait.feed(frames)
        return None if frames is None and not self._needs_greenlet else b""

    def _to_send(self, frames: bytes) -> bytes:
        self._wait.feed(frames)
        return b""

    def _last_bytes(self) -> bytes:
        return self._answer()

    def _close(self) -> None:
        self._timer.stop()
        self._timer.close()
        super()._close()


def _count_without_events(chunk: bytes) -> int:
    return 0 if b"event: " in chunk else len(chunk)
