"""Viewers that are written to as one: who is let in, and who is not any more by the time that there is a place."""

from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from chronoverse.joblog.values import Job, JobRef, Status
from chronoverse.live.feed import BREATH_WAKES, Feed, Frame
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.web.streaming.broadcast import BroadcastGroup, GroupWorker, Member

REF: Final = JobRef("wf_1", "job_1")
ROOMY: Final = 10**9


class Standing:
    """What a crowd asks of a viewer: one that stands somewhere in the ring of ``channel``."""

    due = ends_at = float("inf")
    sent_at = 0.0

    def __init__(self, channel: Feed, cursor: int) -> None:
        self.channel = channel
        self.cursor = cursor
        self.ring_position = channel.seek(cursor)
        channel.viewers.add(self)

    def moved(self, cursor: int, position: int, sent_at: float) -> None:
        self.cursor, self.ring_position, self.sent_at = cursor, position, sent_at

    def wake(self) -> None:
        """It is woken by whoever drives it."""


class Driver:
    """Drives one by itself. What it was sent is kept."""

    def __init__(self, channel: Feed, cursor: int) -> None:
        self.standing = Standing(channel, cursor)
        self.viewer = cast(Viewer, self.standing)
        self.crowd: BroadcastGroup | None = None
        self.busy = False
        self.sent = b""

    def wake(self) -> None:
        pass

    def carry_on(self, rest: memoryview | bytes) -> None:
        self.busy = True

    def send(self, chunk: bytes) -> int:
        self.sent += chunk
        return len(chunk)


class Left:
    """What a crowd asks of the tail."""

    def leave(self, channel: Feed, viewer: Any) -> None:
        channel.viewers.discard(viewer)

    def healthy(self, ref: JobRef) -> bool:
        return True


def publish(channel: Feed, number: int) -> None:
    channel.publish([Frame(number, "stdout", b"%d;" % number)], number - 1, ROOMY)


@pytest.fixture
def breath() -> list[Callable[[], object]]:
    """What happens when the crowd lets others go on."""
    return []


@pytest.fixture
def channel(breath: list[Callable[[], object]]) -> Feed:
    """Of a job with one line."""
    channel = Feed(REF, Job(REF, Status.RUNNING, attempt=1), lambda: [each() for each in breath])
    publish(channel, 1)
    return channel


def crowd_of(channel: Feed, count: int) -> tuple[BroadcastGroup, list[Driver]]:
    """A crowd of so many that have seen line 1."""
    crowd = BroadcastGroup(channel, GroupWorker(cast(Tail, Left()), 15, lambda: 0.0), bytes, bool)
    members = [Driver(channel, 1) for _ in range(count)]
    assert all(crowd.join(cast(Member, each), each.send) for each in members)
    return crowd, members


def test_who_stands_with_the_others_is_let_in(channel: Feed) -> None:
    """And is sent what they are sent, once."""
    _, members = crowd_of(channel, 3)
    publish(channel, 2)

    assert [each.sent for each in members] == [b"2;"] * 3


def test_who_is_ahead_is_let_in_once_the_others_have_come_as_far(channel: Feed) -> None:
    """They are written to at once, and not he."""
    crowd, members = crowd_of(channel, 2)
    channel.viewers.discard(crowd)
    publish(channel, 2)
    newcomer = Driver(channel, 2)

    assert crowd.join(cast(Member, newcomer), newcomer.send)
    assert [each.sent for each in (*members, newcomer)] == [b"2;", b"2;", b""]


@pytest.mark.parametrize("meanwhile", ["busy", "closed", "let in", "further"])
def test_who_is_no_longer_there_when_the_others_have_come_is_not_let_in(
    channel: Feed, breath: list[Callable[[], object]], meanwhile: str
) -> None:
    """While they were written to others went on: it may have been woken, have ended, or have been let in already."""
    crowd, members = crowd_of(channel, BREATH_WAKES + 1)
    channel.viewers.discard(crowd)
    publish(channel, 2)
    newcomer = Driver(channel, 2)

    def happens() -> None:
        newcomer.busy = meanwhile == "busy"
        newcomer.standing.ring_position = {"closed": None, "further": 7}.get(meanwhile, newcomer.standing.ring_position)
        newcomer.crowd = crowd if meanwhile == "let in" else None

    breath.append(happens)

    assert not crowd.join(cast(Member, newcomer), newcomer.send)
    channel.viewers.add(crowd)
    publish(channel, 3)
    assert newcomer.sent == b""
    assert {each.sent for each in members} == {b"2;3;"}
