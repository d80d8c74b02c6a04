"""A stream whose socket is full: what has piled up goes out as there is room, and its end behind that."""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Final, cast

import gevent
import gevent.socket
import pytest

from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.web.streaming.broadcast import GroupWorker
from chronoverse.web.streaming.stream_writer import LAST_CHUNK, StreamWriters

#: Seconds that anything here may take.
PATIENCE_SECONDS: Final = 10.0
#: Bytes that no socket takes in one go.
LARGE: Final = 2**20


class Talker:
    """What an outlet asks of a viewer: ``frames`` to say, and then, when it has ``ends``, the end."""

    behind = False
    channel = None
    due = float("inf")

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.ends = False
        self.done = False
        self.reason = ""
        self.on_wake = None

    @property
    def has_more(self) -> bool:
        return bool(self.frames)

    def catch_up(self) -> bytes:
        return b""

    def try_next(self) -> bytes | None:
        if self.frames:
            return self.frames.pop(0)
        self.done = self.done or self.ends
        return None

    next = try_next

    def close(self) -> None:
        """It has left."""


class Stage:
    """An outlet that talks to ``peer``. ``closed`` counts how often it said that it was over."""

    def __init__(self, frames: list[bytes]) -> None:
        ours, self.peer = gevent.socket.socketpair()
        self.closed = 0
        self.talker = Talker(frames)
        outlets = StreamWriters(GroupWorker(cast(Tail, None), 15, time.monotonic))
        outlets.take(cast(Viewer, self.talker), ours, self._gone, b"HEAD\r\n\r\n")
        ours.close()

    def _gone(self) -> None:
        self.closed += 1

    def heard(self, until: bytes) -> bytes:
        """What comes, up to ``until``."""
        heard = b""
        with gevent.Timeout(PATIENCE_SECONDS):
            while not heard.endswith(until) and (data := self.peer.recv(65536)):
                heard += data
        return heard

    def over(self) -> None:
        """Waits until it is."""
        with gevent.Timeout(PATIENCE_SECONDS):
            while not self.closed:
                gevent.sleep(0.01)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


FRAMES: Final = [bytes([letter]) * LARGE for letter in b"abc"]
SAID: Final = b"HEAD\r\n\r\n" + b"".join(map(chunk, FRAMES))


@pytest.fixture
def stage() -> Iterator[Stage]:
    """With three frames to say, and no room for the first."""
    stage = Stage(list(FRAMES))
    assert stage.talker.frames
    yield stage
    stage.peer.close()


def test_what_had_no_room_goes_out_in_order(stage: Stage) -> None:
    """And all that follows; the stream stays open."""
    assert stage.heard(chunk(FRAMES[-1])[-LARGE:]) == SAID
    assert stage.closed == 0


def test_who_ends_while_its_socket_is_full_says_all_before(stage: Stage) -> None:
    """And the last chunk, so that nobody takes it for a cut."""
    stage.talker.ends = True
    assert stage.heard(LAST_CHUNK) == SAID + LAST_CHUNK
    stage.over()
    assert stage.closed == 1


def test_who_ends_its_own_side_meanwhile_hears_all(stage: Stage) -> None:
    """It may be done with asking, not with listening."""
    stage.peer.shutdown(socket.SHUT_WR)
    assert stage.heard(LAST_CHUNK) == SAID + LAST_CHUNK
    stage.over()
    assert (stage.closed, stage.talker.reason) == (1, "left")


def test_who_is_gone_is_let_go(stage: Stage) -> None:
    """At once, and once."""
    with contextlib.suppress(OSError):
        stage.peer.close()
    stage.over()
    gevent.sleep(0)
    assert stage.closed == 1
