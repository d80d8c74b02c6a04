"""A feed: where cursors are in its ring, which frames it drops, what it encodes, and how it closes."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.entries import RawEntry, read_entries
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import End, Gap, Job, JobRef, Line, OutOfSequence, Status
from chronoverse.joblog.sse import Decoder
from chronoverse.live.feed import (
    BUSY,
    FILTER_SHARE,
    FILTER_SLICE_SECONDS,
    MAX_SLICES,
    SLICE_BYTES,
    SLICE_STEP_BYTES,
    EventFrame,
    Feed,
    FilterBudget,
    Slice,
    encode,
    encode_raw,
    join,
)

REF: Final = JobRef("wf_1", "job_1")
NOW: Final = "2026-03-03T10:00:05.123Z"
#: More bytes than any of the small rings here holds.
ROOMY: Final = 10**9


class CountingWaiter:
    """A waiter that only counts how often it was woken."""

    due = 0.0
    line_filter = None
    is_replaying = False

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1


def job(last: int = 0, status: Status = Status.RUNNING, attempt: int = 1) -> Job:
    return Job(REF, status, attempt=attempt, last=last)


def event_frame(number: int, stream: str | None = "stdout", size: int = 10) -> EventFrame:
    """A frame of ``size`` bytes that begin with its number."""
    return EventFrame(number, stream, (b"%d;" % number).ljust(size, b"."))


def line_frame(number: int) -> EventFrame:
    """The frame of a line."""
    return EventFrame(number, "stdout", Line(number, NOW, f"line {number}", "stdout").to_frame())


def filled(*numbers: int, limit: int = ROOMY) -> Feed:
    """A feed that began empty, in which these frames were published one by one."""
    feed = Feed(REF, None)
    for number in numbers:
        feed.publish([event_frame(number)], feed.cursor, limit)
    return feed


def line_filter(stream: str | None) -> LineFilter | None:
    return LineFilter(stream) if stream else None


def take(feed: Feed, position: int | None, stream: str | None = None) -> Slice:
    """The slice from ``position`` on. The position must be in the ring."""
    assert position is not None
    found = feed.take(position, line_filter(stream))
    assert found is not None
    return found


def frames(*events: EventFrame) -> bytes:
    return b"".join([event.frame for event in events])


# The beginning of a feed


def test_a_feed_begins_after_the_jobs_last_line() -> None:
    """A new feed has no older lines: viewers read those themselves."""
    feed = Feed(REF, job(last=7))

    assert (feed.base, feed.cursor, feed.job_frame) == (7, 7, job(last=7).to_frame())
    assert feed.seek(6) is None
    assert take(feed, feed.seek(7)) == Slice(b"", 7, 0)


def test_a_feed_of_a_job_that_does_not_exist_begins_at_zero() -> None:
    """A feed of a job that does not exist yet begins at 0 and has no state."""
    feed = Feed(REF, None)

    assert (feed.base, feed.cursor, feed.job_frame, feed.final) == (0, 0, None, None)


# Seek and take


def test_a_viewer_takes_all_frames_after_its_cursor() -> None:
    """One slice has all frames after a viewer's cursor, and the cursor and position to continue from."""
    feed = filled(1, 2, 3)

    assert take(feed, feed.seek(0)) == Slice(frames(event_frame(1), event_frame(2), event_frame(3)), 3, 3)
    assert take(feed, feed.seek(2)) == Slice(event_frame(3).frame, 3, 3)
    assert take(feed, feed.seek(3)) == Slice(b"", 3, 3)


def test_a_viewer_continues_from_its_position() -> None:
    """A viewer that continues from its position gets the frames published since."""
    feed = filled(1, 2)
    position = take(feed, feed.seek(0)).position
    feed.publish([event_frame(3), event_frame(4)], 2, ROOMY)

    assert take(feed, position) == Slice(frames(event_frame(3), event_frame(4)), 4, 4)


def test_a_cursor_beyond_the_ring_finds_its_end() -> None:
    """When a store was restored to an older state, viewers are ahead of the ring. It has no frames for them yet."""
    feed = filled(1, 2)

    assert take(feed, feed.seek(9)) == Slice(b"", 2, 2)


def test_a_gap_is_one_frame_that_covers_many_numbers() -> None:
    """A cursor before the gap gets the gap's frame. A cursor after the gap does not."""
    gap = EventFrame(5, None, Gap(2, 5, "missing").to_frame())
    feed = filled(1)
    feed.publish([gap, event_frame(6)], 1, ROOMY)

    assert take(feed, feed.seek(1)).frames == gap.frame + event_frame(6).frame
    assert take(feed, feed.seek(5)).frames == event_frame(6).frame


def test_a_cursor_inside_a_gap_is_not_in_the_ring() -> None:
    """Its viewer needs a frame for the rest of the gap only, so it reads for itself."""
    feed = filled(1)
    feed.publish([EventFrame(5, None, Gap(2, 5, "missing").to_frame(), first=2), event_frame(6)], 1, ROOMY)

    assert [feed.seek(cursor) is None for cursor in range(1, 7)] == [False, True, True, True, False, False]


def test_a_full_ring_drops_its_oldest_frames() -> None:
    """The ring drops frames until it is within its limit, and not one frame more."""
    feed = filled(1, 2, 3, 4, 5, limit=30)

    assert (feed.base, feed.cursor) == (2, 5)
    assert feed.seek(1) is None
    assert take(feed, feed.seek(2)) == Slice(frames(event_frame(3), event_frame(4), event_frame(5)), 5, 5)


def test_a_dropped_position_gives_no_slice() -> None:
    """A viewer whose position was dropped must read older lines itself. The oldest position still in the ring works."""
    feed = filled(1, 2, 3, 4, 5, limit=30)

    assert feed.take(1, None) is None
    assert take(feed, 2).frames.startswith(b"3;")


def test_a_batch_larger_than_the_ring_leaves_its_end() -> None:
    """Of a batch larger than the ring, the last frames stay. Positions count the dropped frames too."""
    feed = filled(1)
    feed.publish([event_frame(number) for number in range(2, 12)], 1, 25)

    assert (feed.base, feed.cursor) == (9, 11)
    assert take(feed, feed.seek(9)) == Slice(frames(event_frame(10), event_frame(11)), 11, 11)


def test_a_frame_larger_than_the_ring_leaves_it_empty() -> None:
    """Viewers read a frame that is larger than the ring themselves, and the ring continues after it."""
    feed = filled(1)
    feed.publish([event_frame(2, size=100)], 1, 50)

    assert (feed.base, feed.cursor) == (2, 2)
    assert feed.seek(1) is None
    feed.publish([event_frame(3)], 2, 50)
    assert take(feed, feed.seek(2)).frames == event_frame(3).frame


@given(
    batches=st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=6), max_size=8),
    limit=st.integers(0, 120),
    start=st.integers(0, 5),
)
def test_a_ring_is_the_end_of_what_was_published(batches: list[list[int]], limit: int, start: int) -> None:
    """From every cursor, the ring gives all frames after it in order, or None if they were dropped.

    It stays within its limit.
    """
    feed = Feed(REF, job(last=start))
    events: list[EventFrame] = []
    for sizes in batches:
        fresh = [event_frame(feed.cursor + at, size=size) for at, size in enumerate(sizes, 1)]
        feed.publish(fresh, feed.cursor, limit)
        events += fresh

    whole_ring = take(feed, feed.seek(feed.base))
    assert len(whole_ring.frames) <= limit or not events
    for cursor in range(feed.cursor + 1):
        position = feed.seek(cursor)
        if cursor < feed.base:
            assert position is None
        else:
            assert position == cursor - start
            assert take(feed, position).frames == frames(*events[cursor - start :])


# The size of a slice


def test_a_slice_has_at_most_slice_bytes() -> None:
    """A slice has at most SLICE_BYTES, and the next slice has the rest."""
    events = [event_frame(number, size=100 * 2**10) for number in (1, 2, 3)]
    feed = Feed(REF, None)
    feed.publish(events, 0, ROOMY)

    first = take(feed, 0)
    assert first == Slice(frames(*events[:2]), 2, 2)
    assert take(feed, first.position) == Slice(events[2].frame, 3, 3)


def test_exactly_slice_bytes_are_one_slice() -> None:
    """Frames of exactly SLICE_BYTES together are one slice."""
    events = [event_frame(number, size=SLICE_BYTES // 2) for number in (1, 2, 3)]
    feed = Feed(REF, None)
    feed.publish(events, 0, ROOMY)

    assert len(take(feed, 0).frames) == SLICE_BYTES


def test_a_frame_longer_than_a_slice_is_not_cut() -> None:
    """A frame longer than SLICE_BYTES is a slice of its own."""
    events = [event_frame(1), event_frame(2, size=SLICE_BYTES + 1), event_frame(3)]
    feed = Feed(REF, None)
    feed.publish(events, 0, ROOMY)

    assert take(feed, 0) == Slice(events[0].frame, 1, 1)
    assert take(feed, 1) == Slice(events[1].frame, 2, 2)


def test_the_slice_bound_holds_after_frames_were_dropped() -> None:
    """Only the bytes still in the ring count for a slice's bound, not those of dropped frames."""
    feed = Feed(REF, None)
    for number in range(1, 8):
        feed.publish([event_frame(number, size=SLICE_BYTES // 2)], number - 1, 2 * SLICE_BYTES)

    assert [take(feed, feed.seek(cursor)).cursor for cursor in (3, 4, 5, 6)] == [5, 6, 7, 7]


def test_slices_that_are_cut_short_end_at_common_positions() -> None:
    """Viewers with different positions have the same position after one slice, and share the next slice."""
    feed = Feed(REF, None)
    feed.publish([event_frame(number, size=10 * 2**10) for number in range(1, 101)], 0, ROOMY)

    ends = {take(feed, position).position for position in range(13)}

    assert len(ends) <= 2
    least = SLICE_BYTES - SLICE_STEP_BYTES - 10 * 2**10
    assert all(least < len(take(feed, position).frames) <= SLICE_BYTES for position in range(13))
    assert take(feed, 0).position in {take(feed, position).position for position in (1, 12)}


def test_slice_ends_stay_when_old_frames_are_dropped() -> None:
    """The ends of slices are counted from the feed's first byte, so dropping old frames does not move them."""
    feed = Feed(REF, None)
    feed.publish([event_frame(number, size=10 * 2**10) for number in range(1, 101)], 0, ROOMY)
    before = take(feed, 40).position
    feed.publish([event_frame(101)], 100, 70 * 10 * 2**10)

    assert feed.base > 0
    assert take(feed, 40).position == before


# Cached slices


def test_viewers_at_the_same_position_share_one_slice() -> None:
    """Viewers with the same position and filter get the same slice object."""
    feed = filled(1, 2)

    assert take(feed, 0) is take(feed, 0)
    assert take(feed, 0, "stdout") is take(feed, 0, "stdout")
    assert take(feed, 0) is not take(feed, 0, "stdout")
    assert take(feed, 0, "stderr").frames == b"id: 2\n\n"
    for query in ("a", "b"):
        found = feed.take(0, LineFilter(q=query))
        assert found is feed.take(0, LineFilter(q=query))
        assert found is not feed.take(0, LineFilter("stdout", query))


def test_a_publish_discards_cached_slices() -> None:
    """A cached slice is discarded at the next publish, because the newest lines are missing from it."""
    feed = filled(1)
    take(feed, 0)
    feed.publish([event_frame(2)], 1, ROOMY)

    assert take(feed, 0).frames == frames(event_frame(1), event_frame(2))


def test_at_most_max_slices_are_cached() -> None:
    """The feed caches exactly MAX_SLICES slices. One more evicts a cached slice."""
    feed = filled(*range(1, MAX_SLICES + 3))
    first = take(feed, 0)
    for position in range(1, MAX_SLICES):
        take(feed, position)
    assert take(feed, 0) is first

    take(feed, MAX_SLICES)

    assert take(feed, 0) is not first
    assert take(feed, 0) == first


# Filters


def test_a_filter_leaves_the_other_stream_out() -> None:
    """A filter leaves out the other stream's lines. A block with only an id moves the cursor over those at the end."""
    events = [event_frame(1), event_frame(2, "stderr"), event_frame(3), event_frame(4, "stderr")]

    assert join(events, LineFilter("stdout")) == frames(events[0], events[2]) + b"id: 4\n\n"
    assert join(events, LineFilter("stderr")) == frames(events[1], events[3])
    assert join(events, None) == frames(*events)


def test_a_filter_that_leaves_nothing_still_moves_the_cursor() -> None:
    """When a filter leaves out every line, one block with only an id moves the cursor."""
    assert join([event_frame(1), event_frame(2)], LineFilter("stderr")) == b"id: 2\n\n"
    assert join([], LineFilter("stderr")) == b""


def test_a_gap_passes_every_filter() -> None:
    """A gap passes every filter, because the stream of its lines is not known.

    It has no id, so lines skipped before it get an id of their own.
    """
    gap = EventFrame(3, None, Gap(2, 3, "missing").to_frame())

    assert join([event_frame(1), gap], LineFilter("stderr")) == b"id: 1\n\n" + gap.frame
    assert (
        join([event_frame(1), gap, event_frame(4, "stderr")], LineFilter("stdout"))
        == event_frame(1).frame + gap.frame + b"id: 4\n\n"
    )


def test_an_entry_out_of_sequence_comes_after_the_id_of_skipped_lines() -> None:
    """An id for the skipped lines precedes the error, so a client that reconnects continues after them."""
    misplaced = EventFrame(2, None, OutOfSequence("2-1").to_frame())

    assert join([event_frame(1), event_frame(2), misplaced], LineFilter("stderr")) == b"id: 2\n\n" + misplaced.frame


def test_a_filtered_slice_covers_the_same_numbers_as_an_unfiltered_one() -> None:
    """A filtered slice has the cursor and position of the lines that it skipped."""
    feed = filled(1, 2, 3)

    assert take(feed, 0, "stderr") == Slice(b"id: 3\n\n", 3, 3)
    assert take(feed, 3, "stderr") == Slice(b"", 3, 3)


# Encoding


def test_entries_become_frames() -> None:
    """Lines have their stream, gaps have none, and an entry out of sequence is an error at its position."""
    lines = Line(1, NOW, "a", "stdout"), Line(4, NOW, "b", "stderr")
    gap = Gap(2, 3, "missing")

    events, end = encode([lines[0], gap, lines[1], OutOfSequence("4-1")], 0)

    assert events[:3] == [
        EventFrame(1, "stdout", lines[0].to_frame()),
        EventFrame(3, None, gap.to_frame(), gap.first),
        EventFrame(4, "stderr", lines[1].to_frame()),
    ]
    [event] = Decoder().feed(events[3].frame)
    assert (events[3].number, event.event, event.id, "4-1" in event.data) == (4, "error", "", True)
    assert end is None


#: Fields of the entries that a log may hold: plain lines, other lines, entries without a message, and an end.
RAW: Final = st.lists(
    st.sampled_from(
        [
            [b"timestamp", NOW.encode(), b"message", b"a", b"stream", b"stdout"],
            [b"timestamp", NOW.encode(), b"message", b"\xff", b"stream", b"stderr"],
            [b"timestamp", NOW.encode(), b"message", b"b", b"stream", b"stdout", b"partial", b"1"],
            [b"message", b"c"],
            [b"nothing", b"d"],
            [b"event", b"end", b"status", b"FAILED"],
        ]
    ),
    max_size=8,
)


@given(fields=RAW, steps=st.lists(st.sampled_from([1, 1, 1, 2, 0]), min_size=8, max_size=8), after=st.integers(0, 3))
def test_raw_entries_become_the_same_frames(fields: list[list[bytes]], steps: list[int], after: int) -> None:
    """Plain lines are encoded by a faster code path.

    Both paths give the same frames, also around gaps, entries out of sequence and an end.
    """
    number, entries = after, list[RawEntry]()
    for step, each in zip(steps, fields, strict=False):
        number += step
        entries.append((b"%d-%d" % (number, 0 if step else len(entries) + 1), each))

    assert encode_raw(entries, after, 1) == encode(read_entries(entries, after, 1), after)


@given(fields=RAW, steps=st.lists(st.sampled_from([1, 1, 1, 2, 0]), min_size=8, max_size=8), most=st.integers(1, 800))
def test_encoding_stops_at_the_frame_that_reaches_the_bound(
    fields: list[list[bytes]], steps: list[int], most: int
) -> None:
    """Encoding stops after the frame that reaches the bound. The end is returned only if everything before it fits."""
    number, entries = 0, list[RawEntry]()
    for step, each in zip(steps, fields, strict=False):
        number += step
        entries.append((b"%d-%d" % (number, 0 if step else len(entries) + 1), each))
    whole, end = encode_raw(entries, 0, 1)
    events, closing = encode_raw(entries, 0, 1, most)

    sizes = [len(event.frame) for event in events]
    assert events == whole[: len(events)]
    assert sum(sizes[:-1]) < most
    assert (sum(sizes) >= most and closing is None) or (events, closing) == (whole, end)


def test_an_entry_out_of_sequence_at_the_beginning_has_the_cursors_number() -> None:
    """An entry out of sequence has no number of its own, so its frame has the cursor's."""
    [misplaced], _ = encode([OutOfSequence("5-1")], 5)

    assert (misplaced.number, misplaced.stream) == (5, None)


def test_encode_returns_the_end_separately() -> None:
    """The end is returned without frames, because its frames depend on the job."""
    end = End(2, Status.COMPLETED, 0, 1, 0, NOW)
    line = Line(1, NOW, "a", "stdout")

    assert encode([line, end], 0) == ([EventFrame(1, "stdout", line.to_frame())], end)


@pytest.mark.parametrize(("status", "last"), [(Status.COMPLETED, "end"), (Status.LOST, "error")])
def test_the_closing_frames(status: Status, last: str) -> None:
    """The closing frames are the job's final state, then the event that ends the stream, with its id."""
    end = End(8, status, None, 7, 0, NOW)
    ended = Job(REF, status, last=7, lines=7, end=end, finished_at=NOW)

    events = list(Decoder().feed(ended.closing_frames(end, 30.0)))

    assert [(event.event, event.id) for event in events] == [("job", ""), (last, "8")]


# Publishing


@pytest.mark.parametrize("after", [0, 1, 3])
def test_only_a_batch_that_follows_the_ring_is_published(after: int) -> None:
    """A feed ignores a batch that was not read from the ring's end.

    Its lines are in the ring already, or lines before it are missing.
    """
    feed = filled(1, 2)
    feed.publish([event_frame(after + 1)], after, ROOMY)

    assert (feed.cursor, take(feed, 0).frames) == (2, frames(event_frame(1), event_frame(2)))


def test_a_line_that_several_threads_publish_is_in_the_ring_once() -> None:
    """Eight threads publish the same lines, and each line is in the ring once."""
    feed, threads = Feed(REF, None), 8
    start = threading.Barrier(threads)

    def publish() -> None:
        for number in range(1, 101):
            start.wait()
            feed.publish([event_frame(number)], number - 1, ROOMY)

    workers = [threading.Thread(target=publish) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert take(feed, 0) == Slice(frames(*map(event_frame, range(1, 101))), 100, 100)


@pytest.mark.parametrize(
    "change",
    [
        lambda feed: feed.publish([event_frame(2), event_frame(3)], 1, ROOMY),
        lambda feed: feed.skip(4),
        lambda feed: feed.redact([(1, 1)]),
        lambda feed: feed.reconcile(job(1)),
        lambda feed: feed.close(b"closing"),
    ],
    ids=["publish", "skip", "redact", "reconcile", "close"],
)
def test_each_change_wakes_every_viewer(change: Callable[[Feed], object]) -> None:
    """Once, however many lines it has, and when it is there to be taken."""
    feed, seen = filled(1), list[object]()

    def state() -> object:
        return feed.cursor, feed.base, feed.final, feed.version, feed.job, feed.notices_after(0)

    class SeeingWaiter(CountingWaiter):
        def wake(self) -> None:
            seen.append(state())

    feed.waiters.update([SeeingWaiter(), SeeingWaiter()])
    change(feed)

    assert seen == [state()] * 2


def test_an_ignored_batch_wakes_no_viewer() -> None:
    """A batch that the feed ignores wakes no viewer."""
    feed, waiter = filled(1), CountingWaiter()
    feed.waiters.add(waiter)
    feed.publish([event_frame(9)], 8, ROOMY)

    assert waiter.wakes == 0


# State and end


def wakes_by_state(feed: Feed, jobs: Sequence[Job]) -> list[int]:
    """How often a viewer was woken after each of ``jobs`` was reconciled."""
    waiter = CountingWaiter()
    feed.waiters.add(waiter)
    wakes = []
    for observed in jobs:
        feed.reconcile(observed)
        wakes.append(waiter.wakes)
    return wakes


def test_a_change_of_status_or_attempt_is_shown() -> None:
    """Viewers are woken for a changed status or attempt, and not for a changed last line."""
    feed = Feed(REF, job(status=Status.PENDING, attempt=0))

    assert wakes_by_state(feed, [job(), job(last=5), job(attempt=2), job(last=9, attempt=2)]) == [1, 1, 2, 2]
    assert feed.job_frame == job(attempt=2).to_frame()
    assert feed.job == job(last=9, attempt=2)


def test_the_first_state_of_a_job_is_shown() -> None:
    """Viewers that wait for a job are woken when its first state is found."""
    feed = Feed(REF, None)

    assert wakes_by_state(feed, [job()]) == [1]
    assert feed.job_frame == job().to_frame()


def test_a_terminal_status_is_left_to_the_closing_frames() -> None:
    """A terminal status is sent only in the closing frames. Earlier it would overtake the last lines."""
    feed = Feed(REF, job())

    assert wakes_by_state(feed, [job(status=Status.COMPLETED)]) == [0]
    assert feed.job_frame == job().to_frame()


def test_a_job_that_was_asked_for_too_early_is_not_stored() -> None:
    """Since then a line was published, or a newer job was stored."""
    feed = Feed(REF, job(last=7))
    asked = feed.known
    feed.publish([event_frame(8)], 7, ROOMY)
    assert not feed.reconcile(job(last=7, attempt=2), asked)
    assert feed.job == job(last=7)
    assert feed.reconcile(job(last=8, attempt=2), feed.known)
    assert feed.job == job(last=8, attempt=2)


def test_a_feed_closes_once() -> None:
    """The first closing frames stay, and viewers are woken for them once."""
    feed, waiter = filled(1), CountingWaiter()
    feed.waiters.add(waiter)
    feed.close(b"first")
    feed.close(b"second")

    assert (feed.final, waiter.wakes) == (b"first", 1)


def test_nothing_is_published_after_the_end() -> None:
    """A closed feed never changes. Its frames can still be taken."""
    feed = filled(1)
    feed.close(b"end")
    feed.publish([event_frame(2)], 1, ROOMY)

    assert (feed.cursor, take(feed, feed.seek(0))) == (1, Slice(event_frame(1).frame, 1, 1))


def test_a_slice_without_a_match_has_no_frames() -> None:
    """Its cursor is further on. Filters by stream have a block with the cursor instead."""
    feed = Feed(REF, None)
    feed.publish([line_frame(number) for number in (1, 2, 3)], 0, ROOMY)
    found = take_filtered(feed, LineFilter(None, "nowhere"))
    assert (found.frames, found.cursor) == (b"", 3)
    assert take_filtered(feed, LineFilter("stderr")).frames == b"id: 3\n\n"


def test_queries_wait_when_their_time_is_used_up() -> None:
    """A slice that was made before is still there. Viewers without a query do not notice."""
    now = [0.0]
    budget = FilterBudget(lambda: now[0])
    feed = Feed(REF, None, filter_budget=budget)
    feed.publish([line_frame(1)], 0, ROOMY)
    ready, late = LineFilter(None, "line"), LineFilter(None, "late")
    made = take_filtered(feed, ready)
    with budget.spend(""):
        now[0] += 1.0
    assert take_filtered(feed, ready) is made
    assert take_filtered(feed, late) is BUSY
    assert take_filtered(feed, LineFilter("stdout")).frames
    now[0] += 5.0
    assert take_filtered(feed, late) is not BUSY


class FilteringWaiter:
    """Compares all lines of a feed with an expression of its own when it is woken."""

    due = 0.0
    is_replaying = False

    def __init__(self, feed: Feed, q: str) -> None:
        self.feed = feed
        self.line_filter = LineFilter(None, q, True)

    def wake(self) -> None:
        take_filtered(self.feed, self.line_filter)


def test_the_rest_of_the_worker_runs_while_many_compare_lines() -> None:
    """After some milliseconds of comparing, not only when all have compared theirs."""
    clock = count(0, 0.001)
    yields: list[int] = []
    budget = FilterBudget(lambda: next(clock), lambda: yields.append(1))
    feed = Feed(REF, None, filter_budget=budget)
    feed.waiters |= {FilteringWaiter(feed, f"line {number}") for number in range(60)}
    feed.publish([line_frame(1)], 0, ROOMY)
    assert len(yields) >= 60 * 0.001 / FILTER_SLICE_SECONDS - 1


def test_an_expression_is_compared_with_few_bytes_at_once() -> None:
    """It may need many states for them. A longer line is compared by itself."""
    feed = Feed(REF, None)
    lines = [Line(n, NOW, "a" * (50_000 if n == 40 else 1_000), "stdout") for n in range(1, 42)]
    feed.publish([EventFrame(line.sequence_num, "stdout", line.to_frame()) for line in lines], 0, ROOMY)
    cursors, position = [], 0
    while position < len(lines):
        found = feed.take(position, LineFilter(None, "b+", True))
        assert found is not None
        position = found.position
        cursors.append(found.cursor)
    assert cursors == [15, 30, 40, 41]


class Worker:
    """A worker with a filter budget, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.budget = FilterBudget(lambda: self.now)
        #: Seconds that each subject has taken, and how often it had to wait.
        self.taken: defaultdict[str, float] = defaultdict(float)
        self.refused: Counter[str] = Counter()

    def ask(self, *subjects: str, seconds: float) -> None:
        """Somebody of ``subjects`` wants to compare lines for that many seconds."""
        payer = self.budget.payer(subjects)
        if payer is None:
            self.refused.update(subjects)
            return
        with self.budget.spend(payer):
            self.now += seconds
        self.taken[payer] += seconds

    def run(self, seconds: float, *wishes: tuple[tuple[str, ...], float]) -> None:
        """Each of ``wishes``, subjects and seconds, is asked for every 10 ms."""
        until = self.now + seconds
        while self.now < until:
            for subjects, wish in wishes:
                self.ask(*subjects, seconds=wish)
            self.now += 0.01


def test_one_subject_may_take_all_of_the_time_for_queries() -> None:
    """When nobody else wants any."""
    worker = Worker()
    worker.run(20, (("greedy",), 0.02))
    assert worker.taken["greedy"] == pytest.approx(20 * FILTER_SHARE, rel=0.05)


def test_a_subject_that_takes_little_never_waits_for_one_that_takes_much() -> None:
    """It comes before the other, after it, and again after a pause."""
    worker = Worker()
    for _ in range(3):
        worker.run(5, (("modest",), 0.0001), (("greedy",), 0.02))
        worker.run(5, (("greedy",), 0.02))
    assert worker.refused["modest"] == 0
    assert sum(worker.taken.values()) == pytest.approx(worker.now * FILTER_SHARE, rel=0.05)


def test_subjects_that_all_take_much_get_the_same() -> None:
    """However many queries each of them has, and although one of them asks first."""
    worker = Worker()
    worker.run(20, *[(("many queries",), 0.005)] * 20, (("one query",), 0.02), (("another",), 0.01))
    shares = [taken / sum(worker.taken.values()) for taken in worker.taken.values()]
    assert len(shares) == 3
    assert min(shares) > 0.25


def test_the_time_for_a_shared_query_is_taken_by_whoever_has_taken_least() -> None:
    """So nobody waits only because others have the same query."""
    worker = Worker()
    worker.run(5, (("greedy",), 0.02), (("greedy", "modest"), 0.0001))
    assert worker.refused["modest"] == 0
    assert 0 < worker.taken["modest"] < 0.1


def take_filtered(feed: Feed, line_filter: LineFilter) -> Slice:
    """The slice of all lines that pass."""
    found = feed.take(0, line_filter)
    assert found is not None
    return found
