"""A watched job's ring of frames: who finds what in it, what it lets go, and how it closes."""

import threading
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.ending import closing_frames
from chronoverse.joblog.entries import RawEntry, read_entries
from chronoverse.joblog.sse import Decoder
from chronoverse.joblog.values import End, Gap, Job, JobRef, Line, OutOfSequence, Status
from chronoverse.live.feed import (
    MAX_SLICES,
    SLICE_BYTES,
    SLICE_STEP_BYTES,
    EventFrame,
    Feed,
    Slice,
    encode,
    encode_raw,
    join,
)

REF: Final = JobRef("wf_1", "job_1")
NOW: Final = "2026-03-03T10:00:05.123Z"
#: More bytes than any of the small rings here holds.
ROOMY: Final = 10**9


class Bell:
    """A viewer that only counts how often it was woken."""

    due = 0.0

    def __init__(self) -> None:
        self.rung = 0

    def wake(self) -> None:
        self.rung += 1


def job(last: int = 0, status: Status = Status.RUNNING, attempt: int = 1) -> Job:
    return Job(REF, status, attempt=attempt, last=last)


def item(number: int, stream: str | None = "stdout", size: int = 10) -> EventFrame:
    """A frame of ``size`` bytes that begin with its number."""
    return EventFrame(number, stream, (b"%d;" % number).ljust(size, b"."))


def filled(*numbers: int, limit: int = ROOMY) -> Feed:
    """A channel that was empty when it was joined, with these items published one by one."""
    channel = Feed(REF, None)
    for number in numbers:
        channel.publish([item(number)], channel.cursor, limit)
    return channel


def take(channel: Feed, position: int | None, stream: str | None = None) -> Slice:
    """What is there from ``position`` on; it has to be there."""
    assert position is not None
    taken = channel.take(position, stream)
    assert taken is not None
    return taken


def frames(*items: EventFrame) -> bytes:
    return b"".join([item.frame for item in items])


# What a channel begins with


def test_a_channel_begins_at_the_jobs_last_line() -> None:
    """Everything before it is for the viewers to read themselves."""
    channel = Feed(REF, job(last=7))

    assert (channel.base, channel.cursor, channel.state) == (7, 7, job(last=7).to_frame())
    assert channel.seek(6) is None
    assert take(channel, channel.seek(7)) == Slice(b"", 7, 0)


def test_a_channel_of_a_job_to_come_begins_at_zero() -> None:
    """And has no state to show."""
    channel = Feed(REF, None)

    assert (channel.base, channel.cursor, channel.state, channel.final) == (0, 0, None, None)


def test_the_latest_job_ends_at_the_newest_line() -> None:
    """One object for a crowd that comes at once, another as soon as there is a line or a new look more."""
    channel = Feed(REF, job(last=7))
    assert channel.latest() is channel.job
    channel.publish([item(8)], 7, ROOMY)

    latest = channel.latest()
    assert latest == job(last=8)
    assert channel.latest() is latest
    channel.publish([item(9)], 8, ROOMY)
    assert channel.latest() == job(last=9)
    channel.reconcile(job(last=9, attempt=2))
    assert channel.latest() == job(last=9, attempt=2)


# Seek and take


def test_a_viewer_takes_all_that_is_behind_its_cursor() -> None:
    """In one write, with the cursor and the position to go on from."""
    channel = filled(1, 2, 3)

    assert take(channel, channel.seek(0)) == Slice(frames(item(1), item(2), item(3)), 3, 3)
    assert take(channel, channel.seek(2)) == Slice(item(3).frame, 3, 3)
    assert take(channel, channel.seek(3)) == Slice(b"", 3, 3)


def test_a_viewer_goes_on_from_its_position() -> None:
    """What was published meanwhile is next."""
    channel = filled(1, 2)
    position = take(channel, channel.seek(0)).position
    channel.publish([item(3), item(4)], 2, ROOMY)

    assert take(channel, position) == Slice(frames(item(3), item(4)), 4, 4)


def test_a_cursor_beyond_the_ring_finds_its_end() -> None:
    """A store that went back leaves viewers ahead of it: there is nothing for them yet."""
    channel = filled(1, 2)

    assert take(channel, channel.seek(9)) == Slice(b"", 2, 2)


def test_a_gap_is_one_item_of_many_numbers() -> None:
    """A cursor before it gets it; one behind it does not."""
    gap = EventFrame(5, None, Gap(2, 5, "missing").to_frame())
    channel = filled(1)
    channel.publish([gap, item(6)], 1, ROOMY)

    assert take(channel, channel.seek(1)).frames == gap.frame + item(6).frame
    assert take(channel, channel.seek(5)).frames == item(6).frame


def test_the_ring_lets_the_oldest_go() -> None:
    """Down to its limit, and not a frame more."""
    channel = filled(1, 2, 3, 4, 5, limit=30)

    assert (channel.base, channel.cursor) == (2, 5)
    assert channel.seek(1) is None
    assert take(channel, channel.seek(2)) == Slice(frames(item(3), item(4), item(5)), 5, 5)


def test_a_position_that_was_let_go_is_no_longer_there() -> None:
    """Its viewer must read for itself; one just inside goes on."""
    channel = filled(1, 2, 3, 4, 5, limit=30)

    assert channel.take(1, None) is None
    assert take(channel, 2).frames.startswith(b"3;")


def test_a_batch_larger_than_the_ring_leaves_its_end() -> None:
    """Positions go on counting what nobody could take."""
    channel = filled(1)
    channel.publish([item(number) for number in range(2, 12)], 1, 25)

    assert (channel.base, channel.cursor) == (9, 11)
    assert take(channel, channel.seek(9)) == Slice(frames(item(10), item(11)), 11, 11)


def test_a_frame_larger_than_the_ring_leaves_it_empty() -> None:
    """Then everybody reads for himself, and the ring goes on behind it."""
    channel = filled(1)
    channel.publish([item(2, size=100)], 1, 50)

    assert (channel.base, channel.cursor) == (2, 2)
    assert channel.seek(1) is None
    channel.publish([item(3)], 2, 50)
    assert take(channel, channel.seek(2)).frames == item(3).frame


@given(
    batches=st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=6), max_size=8),
    limit=st.integers(0, 120),
    start=st.integers(0, 5),
)
def test_a_ring_is_the_end_of_what_was_published(batches: list[list[int]], limit: int, start: int) -> None:
    """From every cursor: what is behind it in order, or None where it has gone; never more bytes than the limit."""
    channel = Feed(REF, job(last=start))
    items: list[EventFrame] = []
    for sizes in batches:
        fresh = [item(channel.cursor + at, size=size) for at, size in enumerate(sizes, 1)]
        channel.publish(fresh, channel.cursor, limit)
        items += fresh

    held = take(channel, channel.seek(channel.base))
    assert len(held.frames) <= limit or not items
    for cursor in range(channel.cursor + 1):
        position = channel.seek(cursor)
        if cursor < channel.base:
            assert position is None
        else:
            assert position == cursor - start
            assert take(channel, position).frames == frames(*items[cursor - start :])


# How much at once


def test_no_more_than_the_bound_is_handed_out_at_once() -> None:
    """The rest is the next write."""
    items = [item(number, size=100 * 2**10) for number in (1, 2, 3)]
    channel = Feed(REF, None)
    channel.publish(items, 0, ROOMY)

    first = take(channel, 0)
    assert first == Slice(frames(*items[:2]), 2, 2)
    assert take(channel, first.position) == Slice(items[2].frame, 3, 3)


def test_exactly_the_bound_is_one_write() -> None:
    """Not one byte less."""
    items = [item(number, size=SLICE_BYTES // 2) for number in (1, 2, 3)]
    channel = Feed(REF, None)
    channel.publish(items, 0, ROOMY)

    assert len(take(channel, 0).frames) == SLICE_BYTES


def test_a_frame_beyond_the_bound_goes_whole() -> None:
    """And alone."""
    items = [item(1), item(2, size=SLICE_BYTES + 1), item(3)]
    channel = Feed(REF, None)
    channel.publish(items, 0, ROOMY)

    assert take(channel, 0) == Slice(items[0].frame, 1, 1)
    assert take(channel, 1) == Slice(items[1].frame, 2, 2)


def test_the_bound_holds_behind_what_was_let_go() -> None:
    """The ring's own bytes are counted, not those of the past."""
    channel = Feed(REF, None)
    for number in range(1, 8):
        channel.publish([item(number, size=SLICE_BYTES // 2)], number - 1, 2 * SLICE_BYTES)

    assert [take(channel, channel.seek(cursor)).cursor for cursor in (3, 4, 5, 6)] == [5, 6, 7, 7]


def test_writes_that_are_cut_short_end_at_the_same_places_for_all() -> None:
    """Whoever began elsewhere stands with the others after one write, and shares the next with them."""
    channel = Feed(REF, None)
    channel.publish([item(number, size=10 * 2**10) for number in range(1, 101)], 0, ROOMY)

    reached = {take(channel, position).position for position in range(13)}

    assert len(reached) <= 2
    least = SLICE_BYTES - SLICE_STEP_BYTES - 10 * 2**10
    assert all(least < len(take(channel, position).frames) <= SLICE_BYTES for position in range(13))
    assert take(channel, 0).position in {take(channel, position).position for position in (1, 12)}


def test_the_places_stay_when_the_oldest_go() -> None:
    """They are counted from the first byte there ever was."""
    channel = Feed(REF, None)
    channel.publish([item(number, size=10 * 2**10) for number in range(1, 101)], 0, ROOMY)
    before = take(channel, 40).position
    channel.publish([item(101)], 100, 70 * 10 * 2**10)

    assert channel.base > 0
    assert take(channel, 40).position == before


# One write for all who stand at the same place


def test_viewers_at_the_same_place_share_one_write() -> None:
    """The very same object, per filter."""
    channel = filled(1, 2)

    assert take(channel, 0) is take(channel, 0)
    assert take(channel, 0, "stdout") is take(channel, 0, "stdout")
    assert take(channel, 0) is not take(channel, 0, "stdout")


def test_a_shared_write_does_not_outlive_the_next_publish() -> None:
    """Or the newest lines would be missing from it."""
    channel = filled(1)
    take(channel, 0)
    channel.publish([item(2)], 1, ROOMY)

    assert take(channel, 0).frames == frames(item(1), item(2))


def test_few_writes_are_remembered() -> None:
    """As many as the bound, and not one more."""
    channel = filled(*range(1, MAX_SLICES + 3))
    first = take(channel, 0)
    for position in range(1, MAX_SLICES):
        take(channel, position)
    assert take(channel, 0) is first

    take(channel, MAX_SLICES)

    assert take(channel, 0) is not first
    assert take(channel, 0) == first


# Filters


def test_a_filter_leaves_the_other_stream_out() -> None:
    """And an id-only block moves the cursor over what was left out at the end."""
    items = [item(1), item(2, "stderr"), item(3), item(4, "stderr")]

    assert join(items, "stdout") == frames(items[0], items[2]) + b"id: 4\n\n"
    assert join(items, "stderr") == frames(items[1], items[3])
    assert join(items, None) == frames(*items)


def test_a_filter_that_leaves_nothing_still_moves_the_cursor() -> None:
    """One block, whatever was skipped."""
    assert join([item(1), item(2)], "stderr") == b"id: 2\n\n"
    assert join([], "stderr") == b""


def test_a_gap_passes_every_filter() -> None:
    """Nobody knows which stream its lines were of. It has no id, so what was skipped before it gets its own."""
    gap = EventFrame(3, None, Gap(2, 3, "missing").to_frame())

    assert join([item(1), gap], "stderr") == b"id: 1\n\n" + gap.frame
    assert join([item(1), gap, item(4, "stderr")], "stdout") == item(1).frame + gap.frame + b"id: 4\n\n"


def test_a_stray_at_the_end_hides_nothing_that_was_skipped() -> None:
    """The client comes back behind what it has not been shown."""
    stray = EventFrame(2, None, OutOfSequence("2-1").to_frame())

    assert join([item(1), item(2), stray], "stderr") == b"id: 2\n\n" + stray.frame


def test_a_filtered_write_reaches_as_far_as_an_unfiltered_one() -> None:
    """Its viewer's cursor and position are those of what it skipped."""
    channel = filled(1, 2, 3)

    assert take(channel, 0, "stderr") == Slice(b"id: 3\n\n", 3, 3)
    assert take(channel, 3, "stderr") == Slice(b"", 3, 3)


# Encoding


def test_entries_become_items() -> None:
    """Lines with their stream, gaps without one, strays as an error in the place where they were met."""
    lines = Line(1, NOW, "a", "stdout"), Line(4, NOW, "b", "stderr")
    gap = Gap(2, 3, "missing")

    items, end = encode([lines[0], gap, lines[1], OutOfSequence("4-1")], 0)

    assert items[:3] == [
        EventFrame(1, "stdout", lines[0].to_frame()),
        EventFrame(3, None, gap.to_frame(), gap.first),
        EventFrame(4, "stderr", lines[1].to_frame()),
    ]
    [event] = Decoder().feed(items[3].frame)
    assert (items[3].number, event.event, event.id, "4-1" in event.data) == (4, "error", "", True)
    assert end is None


#: What a log may hold, by where its numbers begin: plain lines, and all that is none.
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
def test_raw_entries_become_the_same_items(fields: list[list[bytes]], steps: list[int], after: int) -> None:
    """Whether they are plain, which takes a shorter way, or not: with holes, strays and an end among them."""
    number, entries = after, list[RawEntry]()
    for step, each in zip(steps, fields, strict=False):
        number += step
        entries.append((b"%d-%d" % (number, 0 if step else len(entries) + 1), each))

    assert encode_raw(entries, after, 1) == encode(read_entries(entries, after, 1), after)


@given(fields=RAW, steps=st.lists(st.sampled_from([1, 1, 1, 2, 0]), min_size=8, max_size=8), most=st.integers(1, 800))
def test_entries_beyond_a_bound_are_left_for_another_time(
    fields: list[list[bytes]], steps: list[int], most: int
) -> None:
    """All up to the frame with which the bound is reached, and no end unless everything before it fits."""
    number, entries = 0, list[RawEntry]()
    for step, each in zip(steps, fields, strict=False):
        number += step
        entries.append((b"%d-%d" % (number, 0 if step else len(entries) + 1), each))
    whole, end = encode_raw(entries, 0, 1)
    items, closing = encode_raw(entries, 0, 1, most)

    sizes = [len(item.frame) for item in items]
    assert items == whole[: len(items)]
    assert sum(sizes[:-1]) < most
    assert (sum(sizes) >= most and closing is None) or (items, closing) == (whole, end)


def test_a_stray_at_the_beginning_stands_at_the_cursor() -> None:
    """It has no number of its own."""
    [stray], _ = encode([OutOfSequence("5-1")], 5)

    assert (stray.number, stray.stream) == (5, None)


def test_the_end_comes_back_by_itself() -> None:
    """Its frames depend on the job."""
    end = End(2, Status.COMPLETED, 0, 1, 0, NOW)
    line = Line(1, NOW, "a", "stdout")

    assert encode([line, end], 0) == ([EventFrame(1, "stdout", line.to_frame())], end)


@pytest.mark.parametrize(("status", "last"), [(Status.COMPLETED, "end"), (Status.LOST, "error")])
def test_the_closing_frames(status: Status, last: str) -> None:
    """The job as it ended, then what ends the stream, with its id."""
    end = End(8, status, None, 7, 0, NOW)
    ended = Job(REF, status, last=7, lines=7, end=end, finished_at=NOW)

    events = list(Decoder().feed(closing_frames(ended, end, 30.0)))

    assert [(event.event, event.id) for event in events] == [("job", ""), (last, "8")]


# Publishing


@pytest.mark.parametrize("after", [0, 1, 3])
def test_only_what_follows_is_published(after: int) -> None:
    """A batch read from another place than the ring's end is somebody else's, and already there or wrong."""
    channel = filled(1, 2)
    channel.publish([item(after + 1)], after, ROOMY)

    assert (channel.cursor, take(channel, 0).frames) == (2, frames(item(1), item(2)))


def test_the_faster_of_two_threads_publishes() -> None:
    """Many come with the same lines; each is in the ring once."""
    channel, threads = Feed(REF, None), 8
    start = threading.Barrier(threads)

    def publish() -> None:
        for number in range(1, 101):
            start.wait()
            channel.publish([item(number)], number - 1, ROOMY)

    workers = [threading.Thread(target=publish) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert take(channel, 0) == Slice(frames(*map(item, range(1, 101))), 100, 100)


def test_publishing_wakes_every_viewer() -> None:
    """Once a batch."""
    channel, bells = filled(1), (Bell(), Bell())
    channel.viewers.update(bells)
    channel.publish([item(2), item(3)], 1, ROOMY)

    assert [bell.rung for bell in bells] == [1, 1]


def test_what_is_not_published_wakes_nobody() -> None:
    """There is nothing to see."""
    channel, bell = filled(1), Bell()
    channel.viewers.add(bell)
    channel.publish([item(9)], 8, ROOMY)

    assert bell.rung == 0


# State and end


def states(channel: Feed, jobs: Sequence[Job]) -> list[int]:
    """How often a viewer was woken after each of ``jobs`` was observed."""
    bell = Bell()
    channel.viewers.add(bell)
    rung = []
    for observed in jobs:
        channel.reconcile(observed)
        rung.append(bell.rung)
    return rung


def test_a_change_of_status_or_attempt_is_shown() -> None:
    """Viewers are woken for it, and for nothing else."""
    channel = Feed(REF, job(status=Status.PENDING, attempt=0))

    assert states(channel, [job(), job(last=5), job(attempt=2), job(last=9, attempt=2)]) == [1, 1, 2, 2]
    assert channel.state == job(attempt=2).to_frame()
    assert channel.job == job(last=9, attempt=2)


def test_the_first_look_at_a_job_is_shown() -> None:
    """Somebody waited for it."""
    channel = Feed(REF, None)

    assert states(channel, [job()]) == [1]
    assert channel.state == job().to_frame()


def test_a_terminal_status_is_left_to_the_closing_frames() -> None:
    """Or it would overtake the last lines."""
    channel = Feed(REF, job())

    assert states(channel, [job(status=Status.COMPLETED)]) == [0]
    assert channel.state == job().to_frame()


def test_a_channel_closes_once() -> None:
    """The first closing bytes stay, and viewers are woken for them once."""
    channel, bell = filled(1), Bell()
    channel.viewers.add(bell)
    channel.close(b"first")
    channel.close(b"second")

    assert (channel.final, bell.rung) == (b"first", 1)


def test_nothing_is_published_behind_the_end() -> None:
    """A closed channel never changes; what it holds can still be taken."""
    channel = filled(1)
    channel.close(b"end")
    channel.publish([item(2)], 1, ROOMY)

    assert (channel.cursor, take(channel, channel.seek(0))) == (1, Slice(item(1).frame, 1, 1))
