"""Holds the socket of somebody who waits for a line, and answers when it has come, or when nothing more will.

A waiter costs what a viewer costs: no greenlet, and groups like those of viewers. It only has a timer more, because a
stream may end half a second late, but an answer should not come late.
"""

from collections.abc import Callable
from typing import Any

import gevent

from chronoverse.live.viewer import Viewer
from chronoverse.live.wait import Wait
from chronoverse.web.streaming.stream_writer import StreamWriter, StreamWriters


class WaitWriter(StreamWriter):
    """Reads the frames of ``viewer``, and writes ``answer()`` when ``wait`` is over. Else as :class:`StreamWriter`."""

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
