"""Broadcast groups: which viewers a group takes in, and what it writes to them."""

from collections.abc import Callable
from typing import Final, cast

import pytest

from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.live.feed import WAKES_PER_YIELD, EventFrame, Feed
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.web.streaming.broadcast import BroadcastGroup
from chronoverse.web.streaming.stream_writer import StreamWriter

REF: Final = JobRef("wf_1", "job_1")
#: Bytes of a ring that holds everything.
LARGE_RING: Final = 10**9


class FakeViewer:
    """What a group needs of a viewer: a position in the ring of ``feed``."""

    due = ends_at = float("inf")
    sent_at = 0.0
    heartbeat_seconds = 15.0
    line_filter = None
    is_replaying = False

    def __init__(self, feed: Feed, cursor: int) -> None:
        self.cursor = cursor
        self.ring_position = feed.seek(cursor)
        feed.waiters.add(self)

    has_skipped = False

    def advance(self, cursor: int, position: int, sent_at: float, *, has_skipped: bool) -> None:
        self.has_skipped = has_skipped
        self.cursor, self.ring_position, self.sent_at = cursor, position, sent_at

    def wake(self) -> None:
        """Does nothing."""


class FakeWriter:
    """A member of a group. ``sent`` is what was written to it."""

    def __init__(self, feed: Feed, cursor: int) -> None:
        self.fake_viewer = FakeViewer(feed, cursor)
        self.viewer = cast(Viewer, self.fake_viewer)
        self.group: BroadcastGroup | None = None
        self.is_behind = False
        self.sent = b""

    def wake(self) -> None:
        """Does nothing."""

    def fall_behind(self, unsent: memoryview | bytes) -> None:
        self.is_behind = True

    def take(self, chunk: bytes) -> int:
        self.sent += chunk
        return len(chunk)


class FakeTail:
    """What a group needs of the tail."""

    def clock(self) -> float:
        return 0.0

    def count_delivered(self, lines: int, size: int, viewers: int) -> None:
        """Does nothing."""

    def healthy(self, ref: JobRef) -> bool:
        return True


def publish(feed: Feed, number: int) -> None:
    feed.publish([EventFrame(number, "stdout", b"%d;" % number)], number - 1, LARGE_RING)


@pytest.fixture
def on_yield() -> list[Callable[[], object]]:
    """Functions that are called when a group lets other greenlets run."""
    return []


@pytest.fixture
def feed(on_yield: list[Callable[[], object]]) -> Feed:
    """The feed of a job with one line."""
    feed = Feed(REF, Job(REF, Status.RUNNING, attempt=1), lambda: [each() for each in on_yield])
    publish(feed, 1)
    return feed


def make_group(feed: Feed, count: int) -> tuple[BroadcastGroup, list[FakeWriter]]:
    """A group with ``count`` members, which all have line 1."""
    group = BroadcastGroup(feed, cast(Tail, FakeTail()), bytes)
    members = [FakeWriter(feed, 1) for _ in range(count)]
    assert all(group.join(cast(StreamWriter, each)) for each in members)
    return group, members


def test_all_members_are_sent_a_new_line_once(feed: Feed) -> None:
    """They joined at the same position."""
    _, members = make_group(feed, 3)
    publish(feed, 2)

    assert [each.sent for each in members] == [b"2;"] * 3


def test_the_group_without_a_filter_comes_first(feed: Feed) -> None:
    """Comparing lines for the others, however many filters there are, does not delay it."""
    _, (member,) = make_group(feed, 1)
    found: list[bytes] = []

    class Filtered:
        """Notes what the member has when it is woken."""

        due = float("inf")
        line_filter = LineFilter("stderr")
        is_replaying = False

        def wake(self) -> None:
            found.append(member.sent)

    feed.waiters |= {Filtered() for _ in range(20)}
    publish(feed, 2)
    assert found == [b"2;"] * 20


def test_a_group_belongs_to_its_feed_while_it_has_members(feed: Feed) -> None:
    """The feed wakes the group instead of the members. Afterwards it wakes each of them again, and no group."""
    group, members = make_group(feed, 2)
    assert (feed.groups, feed.waiters) == ({None: group}, {group})

    for each in members:
        group.remove(cast(StreamWriter, each))
    assert (feed.groups, feed.waiters) == ({}, {each.viewer for each in members})


def test_a_newcomer_is_not_added_when_all_members_leave_while_the_group_catches_up(
    feed: Feed, on_yield: list[Callable[[], object]]
) -> None:
    """The feed may have another group by then."""
    group, members = make_group(feed, WAKES_PER_YIELD)
    feed.waiters.discard(group)
    publish(feed, 2)
    newcomer = FakeWriter(feed, 2)

    def remove_all() -> None:
        for each in members:
            group.remove(cast(StreamWriter, each))

    on_yield.append(remove_all)

    assert not group.join(cast(StreamWriter, newcomer))
    assert not feed.groups
    assert newcomer.viewer in feed.waiters


def test_a_group_catches_up_with_a_newcomer_that_is_ahead_of_it(feed: Feed) -> None:
    """The members are sent the line that the newcomer already has. The newcomer is not sent it again."""
    group, members = make_group(feed, 2)
    feed.waiters.discard(group)
    publish(feed, 2)
    newcomer = FakeWriter(feed, 2)

    assert group.join(cast(StreamWriter, newcomer))
    assert [each.sent for each in (*members, newcomer)] == [b"2;", b"2;", b""]


@pytest.mark.parametrize("meanwhile", ["fell behind", "closed", "joined", "moved on"])
def test_a_newcomer_that_changed_while_the_group_caught_up_is_not_added(
    feed: Feed, on_yield: list[Callable[[], object]], meanwhile: str
) -> None:
    """Writing to the group lets other greenlets run. They may wake, close or add the newcomer."""
    group, members = make_group(feed, WAKES_PER_YIELD + 1)
    feed.waiters.discard(group)
    publish(feed, 2)
    newcomer = FakeWriter(feed, 2)

    def change_newcomer() -> None:
        viewer = newcomer.fake_viewer
        newcomer.is_behind = meanwhile == "fell behind"
        viewer.ring_position = {"closed": None, "moved on": 7}.get(meanwhile, viewer.ring_position)
        newcomer.group = group if meanwhile == "joined" else None

    on_yield.append(change_newcomer)

    assert not group.join(cast(StreamWriter, newcomer))
    feed.waiters.add(group)
    publish(feed, 3)
    assert newcomer.sent == b""
    assert {each.sent for each in members} == {b"2;3;"}
