"""Broadcast groups: which viewers can join, and what the group writes to them."""

from collections.abc import Callable
from itertools import count
from typing import Any, Final, cast

import pytest

from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.live.feed import SLICE_BYTES, WAKES_PER_YIELD, EventFrame, Feed, FilterBudget
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import STORE_PATIENCE_SECONDS, Viewer
from chronoverse.web.streaming.broadcast import BroadcastGroup
from chronoverse.web.streaming.stream_writer import StreamWriter
from tests.support.reading import Clock

REF: Final = JobRef("wf_1", "job_1")
#: Capacity of a ring that keeps everything, in bytes.
LARGE_RING: Final = 10**9


class FakeWriter:
    """A group member whose viewer has caught up. Records in ``sent`` what was written to it."""

    def __init__(self, feed: Feed, clock: Clock | None = None, **options: Any) -> None:
        self.tail = FakeTail(feed, clock or Clock())
        self.viewer = Viewer(
            cast(ReplayCache, None), cast(Tail, self.tail), REF, feed.job, after=feed.cursor, **options
        )
        while self.viewer.try_next() is not None:
            pass
        self.group: BroadcastGroup | None = None
        self.is_behind = False
        self.sent = b""
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def encode(self, frames: bytes) -> bytes:
        return frames

    def fall_behind(self, unsent: memoryview | bytes) -> None:
        self.is_behind = True

    def take(self, chunk: bytes) -> int:
        self.sent += chunk
        return len(chunk)


class FakeTail:
    """The part of the tail that a group and its viewers use."""

    lease_seconds = 30.0
    silent_for = 0.0

    def __init__(self, feed: Feed, clock: Clock) -> None:
        self.feed = feed
        self.clock = clock

    def join(self, ref: JobRef, job: Job | None, viewer: Viewer) -> Feed:
        self.feed.waiters.add(viewer)
        return self.feed

    def count_delivered(self, ref: JobRef, lines: int, size: int, viewers: int = 1) -> None:
        """Does nothing."""

    def drop_stale_ring(self, feed: Feed) -> None:
        """Does nothing."""

    def silent_seconds(self, ref: JobRef) -> float:
        return self.silent_for

    def healthy(self, ref: JobRef) -> bool:
        return not self.silent_for


def publish(feed: Feed, number: int) -> None:
    feed.publish([EventFrame(number, "stdout", b"%d;" % number)], number - 1, LARGE_RING)


@pytest.fixture
def on_yield() -> list[Callable[[], object]]:
    """Called whenever a group yields to other greenlets."""
    return []


def make_feed(on_yield: Callable[[], object]) -> Feed:
    """The feed of a job with one line."""
    feed = Feed(REF, Job(REF, Status.RUNNING, attempt=1), on_yield)
    publish(feed, 1)
    return feed


@pytest.fixture
def feed(on_yield: list[Callable[[], object]]) -> Feed:
    return make_feed(lambda: [each() for each in on_yield])


def make_group(feed: Feed, count: int, **options: Any) -> tuple[BroadcastGroup, list[FakeWriter]]:
    """A group with ``count`` members, all at line 1. ``options`` are for their viewers."""
    clock = options.setdefault("clock", Clock())
    group = BroadcastGroup(feed, cast(Tail, FakeTail(feed, clock)))
    members = [FakeWriter(feed, **options) for _ in range(count)]
    assert all(group.join(cast(StreamWriter, each)) for each in members)
    return group, members


def test_the_unfiltered_group_is_woken_first(feed: Feed) -> None:
    """Matching lines against others' filters, however many there are, does not delay it."""
    _, (member,) = make_group(feed, 1)
    found: list[bytes] = []

    class Filtered:
        """Records what the member has received when this waiter is woken."""

        due = float("inf")
        line_filter = LineFilter("stderr")
        is_replaying = False

        def wake(self) -> None:
            found.append(member.sent)

    feed.waiters |= {Filtered() for _ in range(20)}
    publish(feed, 2)
    assert found == [b"2;"] * 20


def test_a_feed_has_a_group_only_while_it_has_members(feed: Feed) -> None:
    """Meanwhile the feed wakes the group in place of its members; afterwards each viewer again."""
    group, members = make_group(feed, 2)
    assert (feed.groups, feed.waiters) == ({None: group}, {group})

    for each in members:
        group.remove(cast(StreamWriter, each))
    assert (feed.groups, feed.waiters) == ({}, {each.viewer for each in members})


def test_a_group_catches_up_with_a_newcomer_ahead_of_it(feed: Feed) -> None:
    """The members receive the line that the newcomer already has; the newcomer does not receive it twice."""
    group, members = make_group(feed, 2)
    feed.waiters.discard(group)
    publish(feed, 2)
    newcomer = FakeWriter(feed)

    assert group.join(cast(StreamWriter, newcomer))
    assert [each.sent for each in (*members, newcomer)] == [b"2;", b"2;", b""]


@pytest.mark.parametrize("meanwhile", ["fell behind", "closed", "joined", "all others left"])
def test_a_newcomer_that_changed_during_catch_up_is_not_added(
    feed: Feed, on_yield: list[Callable[[], object]], meanwhile: str
) -> None:
    """Writing to the group yields to other greenlets, which can wake, close or add the newcomer.

    If all members leave, the feed can have another group by then.
    """
    group, members = make_group(feed, WAKES_PER_YIELD + 1)
    feed.waiters.discard(group)
    publish(feed, 2)
    newcomer = FakeWriter(feed)

    def change_newcomer() -> None:
        newcomer.is_behind = meanwhile == "fell behind"
        newcomer.viewer.done = meanwhile == "closed"
        newcomer.group = group if meanwhile == "joined" else None
        for each in members if meanwhile == "all others left" else ():
            group.remove(cast(StreamWriter, each))

    on_yield.append(change_newcomer)

    assert not group.join(cast(StreamWriter, newcomer))
    if meanwhile == "all others left":
        assert (feed.groups, newcomer.viewer in feed.waiters) == ({}, True)
        return
    feed.waiters.add(group)
    publish(feed, 3)
    assert newcomer.sent == b""
    assert {each.sent for each in members} == {b"2;3;"}


@pytest.mark.parametrize("which", range(3))
def test_a_member_that_leaves_receives_no_line_twice(feed: Feed, which: int) -> None:
    """Nor do the others, whether it was the leader, which decides what all receive, or not."""
    group, members = make_group(feed, 3)
    publish(feed, 2)
    left = members.pop(which)
    group.remove(cast(StreamWriter, left))

    assert (left.viewer.cursor, left.viewer.try_next()) == (2, None)
    publish(feed, 3)
    assert [each.sent for each in (left, *members)] == [b"2;", b"2;3;", b"2;3;"]


def test_a_member_that_closes_while_others_are_woken_is_not_woken(
    feed: Feed, on_yield: list[Callable[[], object]]
) -> None:
    """It would close a second time, and the worker's number of open streams would be wrong."""
    group, members = make_group(feed, WAKES_PER_YIELD + 1)
    on_yield.append(lambda: group.remove(cast(StreamWriter, members[-1])))
    feed.close(b"the end")
    assert [each.wakes for each in members] == [1] * WAKES_PER_YIELD + [0]


def test_a_leader_whose_stream_ends_does_so_alone(feed: Feed) -> None:
    """The other members do not receive its last frames."""
    _, (leader, *others) = make_group(feed, 3)
    publish(feed, 2)
    # A drain that begins while the group is writing.
    leader.viewer.close_with_retry(1000)
    publish(feed, 3)

    assert leader.viewer.done
    assert leader.is_behind
    assert [each.sent for each in (leader, *others)] == [b"2;", b"2;3;", b"2;3;"]


def test_filtered_out_lines_advance_the_cursor_of_all_members(feed: Feed) -> None:
    """Including a member that joined before its client had received the current cursor."""
    line_filter = LineFilter("stdout")
    group, members = make_group(feed, 2, line_filter=line_filter)
    newcomer = FakeWriter(feed, line_filter=line_filter)
    newcomer.viewer.note_skipped()

    assert group.join(cast(StreamWriter, newcomer))
    publish(feed, 2)
    assert {each.sent for each in (*members, newcomer)} == {b"id: 1\n\n2;"}


@pytest.mark.parametrize("line_filter", [None, LineFilter(q="x")], ids=["all", "filtered"])
def test_all_new_frames_are_written_in_one_wake(line_filter: LineFilter | None) -> None:
    """Nobody wakes the group again for the second slice. Other greenlets run between slices that compare lines."""
    clock, at_yields = count(0, 0.01), list[bytes]()
    budget = FilterBudget(lambda: next(clock), lambda: at_yields.append(members[0].sent))
    feed = Feed(REF, Job(REF, Status.RUNNING, attempt=1), filter_budget=budget)
    _, members = make_group(feed, 2, line_filter=line_filter)
    frames = [b"%d" % number * SLICE_BYTES for number in (1, 2)]
    feed.publish([EventFrame(n, "stdout", frame, content=b"x") for n, frame in enumerate(frames, 1)], 0, LARGE_RING)

    assert {each.sent for each in members} == {b"".join(frames)}
    assert (frames[0] in at_yields) == bool(line_filter)


@pytest.mark.parametrize(
    "event",
    [
        lambda feed: publish(feed, 3),
        lambda feed: feed.redact([(1, 1)]),
        lambda feed: feed.close(b"the end"),
        lambda feed: feed.reconcile(Job(REF, Status.FAILED, attempt=1, last=2)),
    ],
    ids=["line", "redaction", "end", "job"],
)
def test_what_happens_while_a_group_writes_is_not_missed(event: Callable[[Feed], object]) -> None:
    """As if it had happened afterwards."""
    found = []
    for during in (True, False):
        events, feeds = [event], list[Feed]()
        feeds.append(make_feed(lambda: events.pop()(feeds[0]) if during and events else None))  # noqa: B023
        _, members = make_group(feeds[0], WAKES_PER_YIELD)
        publish(feeds[0], 2)
        if not during:
            event(feeds[0])
        found.append([(each.sent, each.group is None) for each in members])
    assert found[0] == found[1]


def test_a_member_whose_token_expires_leaves_the_group(feed: Feed) -> None:
    """It ends its own stream; the others continue until their tokens expire."""
    clock = Clock()
    group, members = make_group(feed, 2, clock=clock)
    expiring = [FakeWriter(feed, clock, expires_at=clock() + seconds) for seconds in (10, 5, 15)]
    for each in expiring:
        assert group.join(cast(StreamWriter, each))

    for left in ([group, None, group], [None, None, group], [None, None, None]):
        clock.now += 5
        group.wake()
        assert [each.group for each in expiring] == left
    assert [each.group for each in members] == [group, group]


def test_any_member_can_pay_for_filtering() -> None:
    """Here the leader's subject has exhausted its filter time, but the other subject has not."""
    clock = Clock()
    budget = FilterBudget(clock)
    feed = Feed(REF, Job(REF, Status.RUNNING, attempt=1), filter_budget=budget)
    line_filter = LineFilter(q="x")
    group = BroadcastGroup(feed, cast(Tail, FakeTail(feed, clock)))
    members = [FakeWriter(feed, clock, line_filter=line_filter, subject=subject) for subject in ("ada", "bob")]
    assert all(group.join(cast(StreamWriter, each)) for each in members)
    for subject, seconds in (("ada", 0.06), ("bob", 0.001)):
        with budget.spend(subject):
            clock.now += seconds
    line = Line(1, "2026-03-03T10:00:05.123Z", "x", "stdout").to_frame()
    feed.publish([EventFrame(1, "stdout", line, content=b"x")], 0, LARGE_RING)

    assert [each.sent for each in members] == [line, line]


def test_all_streams_end_when_the_store_does_not_answer(feed: Feed) -> None:
    """The leader ends its stream with an error, then each new leader does."""
    clock = Clock()
    group, members = make_group(feed, 3, clock=clock)
    clock.now += STORE_PATIENCE_SECONDS
    for each in members:
        each.tail.silent_for = STORE_PATIENCE_SECONDS
    group.wake()

    assert [each.viewer.reason for each in members] == ["error"] * 3
    assert not feed.groups
