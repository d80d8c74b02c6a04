"""Streams with a full socket: no unsent frame is lost, and the stream ends only after all are sent."""

import errno
import gc
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import gevent
import gevent.socket
import pytest

from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.web.guards.connection import STALL_SECONDS
from chronoverse.web.routes.wait import Wait, WaitWriter
from chronoverse.web.streaming.stream_writer import LAST_CHUNK, StreamWriter, StreamWriters
from tests.support.reading import Clock

#: Time limit of any wait, in seconds.
MAX_WAIT_SECONDS: Final = 10.0
#: More bytes than a socket accepts at once.
LARGE: Final = 2**20


class FakeViewer:
    """The part of a viewer that a stream writer uses. Yields ``frames``, then ends if ``ends`` is set."""

    needs_store_read = False
    line_filter = None
    feed = SimpleNamespace(groups={}, viewer_count=1)
    due = ends_at = float("inf")

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.ends = False
        self.done = False
        self.reason = ""
        self.on_wake: Callable[[], object] = bool

    @property
    def has_more(self) -> bool:
        return bool(self.frames)

    def take_cached(self) -> bytes:
        return b""

    def try_next(self) -> bytes | None:
        found = self.frames.pop(0) if self.frames else None
        if self.ends and not self.frames and not self.done:
            self.done, self.reason = True, "end"
        return found

    next = try_next

    def wake(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class OpenStream:
    """A stream writer and its ``peer``. ``closed`` counts the writer's calls of its callback."""

    def __init__(
        self,
        viewer: FakeViewer,
        make_writer: Callable[..., StreamWriter] = StreamWriter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        ours, self.peer = gevent.socket.socketpair()
        self.closed = 0
        self.viewer = viewer
        writers = StreamWriters(cast(Tail, SimpleNamespace(clock=clock)))
        environ = {"gunicorn.socket": ours}
        writers.take_over(cast(Viewer, viewer), environ, self._count_closed, b"HEAD\r\n\r\n", make_writer)
        ours.close()

    def _count_closed(self) -> None:
        self.closed += 1

    def read(self, until: bytes) -> bytes:
        """What the peer receives, until it ends with ``until``."""
        received = b""
        with gevent.Timeout(MAX_WAIT_SECONDS):
            while not received.endswith(until) and (data := self.peer.recv(65536)):
                received += data
        return received

    def wait_closed(self) -> None:
        """Waits until the writer has closed its socket."""
        with gevent.Timeout(MAX_WAIT_SECONDS):
            while not self.closed:
                gevent.sleep(0.01)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


FRAMES: Final = [bytes([letter]) * LARGE for letter in b"abc"]
ALL_SENT: Final = b"HEAD\r\n\r\n" + b"".join(map(chunk, FRAMES))


@pytest.fixture
def stream() -> Iterator[OpenStream]:
    """A stream with three frames. The first one alone fills the socket."""
    stream = OpenStream(FakeViewer(list(FRAMES)))
    assert stream.viewer.frames
    yield stream
    stream.peer.close()


def test_a_stream_that_ends_with_a_full_socket_sends_everything_first(stream: OpenStream) -> None:
    """Then the last chunk, which tells the client that the response is complete."""
    stream.viewer.ends = True
    assert stream.read(LAST_CHUNK) == ALL_SENT + LAST_CHUNK
    stream.wait_closed()
    assert stream.closed == 1


def test_a_frame_that_comes_while_the_viewer_reads_is_sent() -> None:
    """Its wake-up does not start another read."""

    class Reader(FakeViewer):
        needs_store_read = True

        def next(self) -> bytes | None:
            found = self.try_next()
            if found is None and not self.done:
                self.frames.append(b"late")
                self.ends = True
                self.on_wake()
            return found

    stream = OpenStream(Reader([]))
    assert stream.read(LAST_CHUNK) == b"HEAD\r\n\r\n" + chunk(b"late") + LAST_CHUNK
    stream.peer.close()


def test_a_slice_without_frames_is_followed_by_the_next() -> None:
    """A filter can exclude all lines of a slice."""
    viewer, slices = FakeViewer([]), iter([b"", b"frames"])
    viewer.try_next = lambda: next(slices, None)  # type: ignore[method-assign]
    stream = OpenStream(viewer)
    assert stream.read(b"frames\r\n") == b"HEAD\r\n\r\n" + chunk(b"frames")
    stream.peer.close()


def test_a_peer_that_half_closes_its_connection_receives_everything(stream: OpenStream) -> None:
    """It can still be reading."""
    stream.peer.shutdown(socket.SHUT_WR)
    assert stream.read(LAST_CHUNK) == ALL_SENT + LAST_CHUNK
    stream.wait_closed()
    assert (stream.closed, stream.viewer.reason) == (1, "left")


@pytest.mark.parametrize(("half", "why"), [(True, "end"), (False, "left")])
def test_a_peer_leaves_while_the_end_is_sent(stream: OpenStream, half: bool, why: str) -> None:
    stream.viewer.ends = True
    with gevent.Timeout(MAX_WAIT_SECONDS):
        while not stream.viewer.done:
            stream.peer.recv(65_536)
    if half:
        stream.peer.shutdown(socket.SHUT_WR)
        # The writer notices it before the rest is read.
        gevent.sleep(0.01)
        assert stream.read(LAST_CHUNK).endswith(LAST_CHUNK)
    stream.peer.close()
    stream.wait_closed()
    assert stream.viewer.reason == why


def test_a_peer_can_take_any_time_for_a_frame() -> None:
    """One that receives nothing for 20 s is given up on."""
    clock = Clock()
    stream = OpenStream(FakeViewer(list(FRAMES)), clock=clock)
    received = 0
    # A quarter of a frame is more than the socket holds.
    for quarter in range(1, 4 * len(FRAMES) - 1):
        clock.now += STALL_SECONDS - 1
        with gevent.Timeout(MAX_WAIT_SECONDS):
            while received < quarter * LARGE // 4:
                data = stream.peer.recv(65_536)
                assert data
                received += len(data)
    # The scheduler checks once a second.
    gevent.sleep(1.1)
    assert (stream.closed, stream.viewer.reason) == (0, "")
    clock.now += STALL_SECONDS + 1
    stream.wait_closed()
    assert stream.viewer.reason == "slow"
    stream.peer.close()


@pytest.mark.parametrize(
    ("number", "is_known", "why"),
    [
        (errno.ETIMEDOUT, False, "slow"),
        (errno.EHOSTUNREACH, False, "slow"),
        (errno.EPIPE, False, "left"),
        (errno.EPIPE, True, "slow"),
    ],
)
def test_a_peer_of_which_the_kernel_hears_nothing_is_slow(number: int, is_known: bool, why: str) -> None:
    """``is_known``: whether a read in the same round of the event loop got the kernel's error first."""
    stream = OpenStream(FakeViewer([]))
    cast(Any, stream.viewer.on_wake).__self__._hangup_watch.is_slow = is_known

    def fail() -> bytes | None:
        raise OSError(number, "")

    stream.viewer.try_next = fail  # type: ignore[method-assign]
    stream.viewer.on_wake()
    stream.wait_closed()
    assert stream.viewer.reason == why
    stream.peer.close()


def test_a_wait_is_released_when_its_client_disconnects() -> None:
    """Not only at its timeout five minutes later: thousands can come and go by then."""
    viewer = FakeViewer([])
    viewer.ends_at = time.monotonic() + 300
    wait = cast(Wait, SimpleNamespace(is_over=False))
    stream = OpenStream(viewer, partial(WaitWriter, wait=wait, answer=bytes))
    left = weakref.ref(viewer)
    stream.peer.close()
    stream.wait_closed()
    del stream, viewer, wait
    gevent.sleep(0)
    gc.collect()
    assert left() is None
