"""A feed: where cursors are in its ring, which frames it drops, what it encodes, and how it closes."""

import contextlib
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog.entries import RawEntry, read_entries
from chronoverse.joblog.events import redact_frame
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
    Waiter,
    encode,
    encode_raw,
    join,
)
from tests.support.entries import raw_entries

REF: Final = JobRef("wf_1", "job_1")
NOW: Final = "2026-03-03T10:00:05.123Z"
#: The time of a line without one.
EPOCH: Final = "1970-01-01T00:00:00.000Z"
#: More bytes than any of the small rings here holds.
ROOMY: Final = 10**9


class CountingWaiter:
    """A waiter that only counts how often it was woken."""

    due = 0.0
    line_filter: LineFilter | None = None
    is_replaying = False

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1


def job(last: int = 0, status: Status = Status.RUNNING, attempt: int = 1) -> Job:
    return Job(REF, status, attempt=attempt, last=last)


def event_frame(number: int, stream: str | None = "stdout", size: int = 10) -> EventFrame:
    """A frame of ``size`` bytes that begin with its number."""
    return EventFrame(number, stream, (b"%d;" % number).ljust(size, b"."), content=b"%d" % number)


def line_frame(number: int) -> EventFrame:
    return frame_of(Line(number, NOW, f"line {number}", "stdout"))


def frame_of(line: Line) -> EventFrame:
    return EventFrame(line.sequence_num, line.stream, line.to_frame(), content=line.message.encode())


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
    """A new feed has no older lines: viewers read those themselves. Before the job exists, it has no state either."""
    feed, empty = Feed(REF, job(last=7)), Feed(REF, None)

    assert (feed.base, feed.cursor, feed.job_frame) == (7, 7, job(last=7).to_frame())
    assert feed.seek(6) is None
    assert take(feed, feed.seek(7)) == Slice(b"", 7, 0)
    assert (empty.base, empty.cursor, empty.job_frame, empty.final) == (0, 0, None, None)


# Seek and take


class Ring:
    """What a feed should hold: all frames ever published, by position, of which those from ``first`` on are left."""

    def __init__(self, start: int) -> None:
        self.base = self.cursor = start
        self.all: list[EventFrame | None] = []
        self.first = 0
        self.is_closed = False

    def kept(self, position: int | None = None) -> list[EventFrame]:
        return [each for each in self.all[self.first if position is None else position :] if each]

    def publish(self, events: list[EventFrame], after: int, limit: int) -> bool:
        if self.is_closed or after != self.cursor:
            return False
        self.all += events
        self.cursor = events[-1].number
        while sum(len(each.frame) + len(each.content) for each in self.kept()) > limit:
            self.base = self.kept()[0].number
            self.first += 1
        return True

    def empty(self, to: int, *, is_skipped: bool) -> None:
        # A position that nobody has had.
        self.all += [None] if is_skipped else []
        self.first, self.base, self.cursor = len(self.all), to, to

    def seek(self, cursor: int) -> int | None:
        later = [each for each in self.kept() if each.number > cursor]
        if cursor < self.base or (later and later[0].first <= cursor):
            return None
        return len(self.all) - len(later)

    def take(self, position: int, stream: str | None) -> Slice | None:
        if position < self.first:
            return None
        rest = self.kept(position)
        # Slices end at multiples of a step from the feed's first byte, and have one frame at least.
        end = start = sum(len(each.frame) for each in self.all[:position] if each)
        stop = (start + SLICE_BYTES) // SLICE_STEP_BYTES * SLICE_STEP_BYTES
        for taken, each in enumerate(rest):
            end += len(each.frame)
            if end > stop and taken:
                rest = rest[:taken]
                break
        passing = [each for each in rest if None in (stream, each.stream) or each.stream == stream]
        text, cursor = frames(*passing), rest[-1].number if rest else self.cursor
        moved = b"" if not rest or (passing and passing[-1] is rest[-1]) else b"id: %d\n\n" % cursor
        return Slice(text + moved, cursor, position + len(rest) if rest else len(self.all))


@pytest.mark.parametrize("seed", range(40))
def test_a_feed_is_the_end_of_what_was_published(seed: int) -> None:
    """From every cursor and every position that a viewer may have, with any bound, over gaps, skips and redactions."""
    choice = random.Random(seed)
    start, unit = choice.randrange(3), choice.choice([1, 1, 2 * 2**10])
    limit = choice.choice([0, 15 * unit, 60 * unit, 200 * unit, ROOMY])
    feed, ring = Feed(REF, job(last=start)), Ring(start)
    shown, notices = job(last=start), [(1, b"")]
    for step in range(25):
        kind = choice.choice(["publish"] * 8 + ["late", "skip", "redact", "job", "close"][: 5 if step > 15 else 4])
        if kind in ("publish", "late"):
            after, number, events = ring.cursor + (kind == "late") * choice.choice([-1, 1]), ring.cursor, []
            for _ in range(choice.randrange(1, 5)):
                first, number = number + 1, number + choice.choice([1, 1, 1, 4])
                stream = choice.choice(["stdout", "stderr"])
                each = event_frame(number, stream, unit * choice.choice([3, 10, 10, 50, 63, 130]))
                events.append(each._replace(first=first) if number > first else each)
            assert feed.publish(events, after, limit) == ring.publish(events, after, limit)
        elif kind == "skip":
            to = ring.cursor + choice.randrange(-1, 3)
            feed.skip(to)
            if to > ring.cursor and not ring.is_closed:
                ring.empty(to, is_skipped=True)
        elif kind == "redact":
            feed.redact([(step, step + 1), (step + 9, step + 9)])
            ring.empty(ring.cursor, is_skipped=False)
            notices.append((0, redact_frame(step, step + 1) + redact_frame(step + 9, step + 9)))
        elif kind == "job":
            found = job(
                ring.cursor, choice.choice([Status.PENDING, Status.RUNNING, Status.LOST]), choice.choice([1, 2])
            )
            known = feed.known
            assert feed.reconcile(found, choice.choice([None, known]))
            assert not feed.reconcile(found, (-1, found))
            if not found.status.terminal and (found.status, found.attempt) != (shown.status, shown.attempt):
                notices = [(0, text) for _, text in notices] + [(1, b"")]
            shown = found
        else:
            feed.close(b"first" if not ring.is_closed else b"second")
            ring.is_closed = True
        assert (feed.base, feed.cursor, feed.final) == (ring.base, ring.cursor, b"first" if ring.is_closed else None)
        for version in range(len(notices)):
            told = b"".join(text for _, text in notices[version + 1 :])
            assert feed.job_frame
            has_job = any(is_job for is_job, _ in notices[version + 1 :])
            assert feed.notices_after(version) == (told + feed.job_frame * has_job, len(notices) - 1)
        for cursor in range(ring.cursor + 3):
            assert feed.seek(cursor) == ring.seek(cursor)
        for position in range(len(ring.all) + 1):
            wanted = choice.choice([None, None, "stdout", "stderr"])
            assert feed.take(position, line_filter(wanted)) == ring.take(position, wanted)


# The size of a slice


def test_slices_that_are_cut_short_end_at_common_positions() -> None:
    """Viewers with different positions have the same position after one slice, and share the next slice."""
    feed = Feed(REF, None)
    feed.publish([event_frame(number, size=10 * 2**10) for number in range(1, 101)], 0, ROOMY)

    ends = {take(feed, position).position for position in range(13)}

    assert len(ends) <= 2
    least = SLICE_BYTES - SLICE_STEP_BYTES - 10 * 2**10
    assert all(least < len(take(feed, position).frames) <= SLICE_BYTES for position in range(13))
    assert take(feed, 0).position in {take(feed, position).position for position in (1, 12)}


# Cached slices


def test_viewers_at_the_same_position_share_one_slice() -> None:
    feed = filled(1, 2)

    assert take(feed, 0) is take(feed, 0)
    assert take(feed, 0, "stdout") is take(feed, 0, "stdout")
    assert take(feed, 0) is not take(feed, 0, "stdout")
    assert take(feed, 0, "stderr").frames == b"id: 2\n\n"
    for query in ("a", "b"):
        found = feed.take(0, LineFilter(q=query))
        assert found is feed.take(0, LineFilter(q=query))
        assert found is not feed.take(0, LineFilter("stdout", query))


def test_at_most_max_slices_are_cached() -> None:
    feed = filled(*range(1, MAX_SLICES + 3))
    first = take(feed, 0)
    for position in range(1, MAX_SLICES):
        take(feed, position)
    assert take(feed, 0) is first

    take(feed, MAX_SLICES)

    assert take(feed, 0) is not first
    assert take(feed, 0) == first


# Filters


def test_what_has_no_stream_passes_every_filter() -> None:
    """Gaps and entries out of sequence. They have no id, so lines skipped before them get an id of their own."""
    gap = EventFrame(3, None, Gap(2, 3, "missing").to_frame())
    misplaced = EventFrame(2, None, OutOfSequence("2-1").to_frame())
    first, second, fourth = event_frame(1), event_frame(2), event_frame(4, "stderr")

    assert join([first, gap], LineFilter("stderr")) == b"id: 1\n\n" + gap.frame
    assert join([first, gap, fourth], LineFilter("stdout")) == first.frame + gap.frame + b"id: 4\n\n"
    assert join([first, second, misplaced], LineFilter("stderr")) == b"id: 2\n\n" + misplaced.frame


# Encoding


def test_entries_become_frames() -> None:
    """Lines have their stream, gaps have none, and an entry out of sequence is an error at its position.

    The end is returned without frames, because its frames depend on the job.
    """
    lines = Line(1, NOW, "a", "stdout"), Line(4, NOW, "b", "stderr")
    gap = Gap(2, 3, "missing")

    end = End(5, Status.COMPLETED, 0, 1, 0, NOW)
    events, closing = encode([lines[0], gap, lines[1], OutOfSequence("4-1"), end], 0)

    assert events[:3] == [frame_of(lines[0]), EventFrame(3, None, gap.to_frame(), gap.first), frame_of(lines[1])]
    [event] = Decoder().feed(events[3].frame)
    assert (events[3].number, event.event, event.id, "4-1" in event.data) == (4, "error", "", True)
    assert closing is end
    [misplaced], closing = encode([OutOfSequence("5-1")], 5)
    assert (misplaced.number, misplaced.stream, closing) == (5, None, None)


@given(entries=raw_entries())
@example(entries=[(b"6-0", [b"timestamp", b"", b"message", b"x", b"stream", b"stderr"])])
def test_raw_entries_become_the_same_frames(entries: list[RawEntry]) -> None:
    """Plain lines are encoded by a faster code path.

    Both paths give the same frames, also around gaps, entries out of sequence and an end.
    """
    events, closing = encode_raw(entries, 5, 1)
    # A message that is not UTF-8 is compared as it is shown.
    shown = [
        each._replace(content=each.content and each.content.decode("utf-8", "replace").encode()) for each in events
    ]
    assert (shown, closing) == encode(read_entries(entries, 5, 1), 5)


@given(entries=raw_entries(), most=st.integers(1, 800))
@example(
    entries=[(b"%d-0" % number, [b"message", b"x"]) for number in (6, 7)],
    most=len(Line(6, EPOCH, "x", "stdout").to_frame()),
)
def test_encoding_stops_at_the_frame_that_reaches_the_bound(entries: list[RawEntry], most: int) -> None:
    """The end is returned only if everything before it fits."""
    whole, end = encode_raw(entries, 5, 1)
    events, closing = encode_raw(entries, 5, 1, most)

    sizes = [len(event.frame) for event in events]
    assert events == whole[: len(events)]
    assert sum(sizes[:-1]) < most
    assert (sum(sizes) >= most and closing is None) or (events, closing) == (whole, end)


# Publishing


def test_a_line_that_several_threads_publish_is_in_the_ring_once() -> None:
    """The second one waits for the first."""
    feed, both = Feed(REF, None), threading.Barrier(2)

    class Slow(list[EventFrame]):
        def __iter__(self) -> Iterator[EventFrame]:
            # Nobody else may come here meanwhile.
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)
            return super().__iter__()

    workers = [threading.Thread(target=feed.publish, args=(Slow([event_frame(1)]), 0, ROOMY)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert take(feed, 0) == Slice(event_frame(1).frame, 1, 1)


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
    # A batch that does not follow and a second end are ignored.
    feed.publish([event_frame(19)], 18, ROOMY)
    feed.close(b"first")
    feed.close(b"second")
    assert (feed.final, len(seen)) in ((b"first", 4), (b"closing", 2))


# State


def test_changes_of_a_job_are_shown() -> None:
    """Its first state, and each new status or attempt, but not each new last line.

    A terminal status is left to the closing frames: earlier, it would overtake the last lines.
    """
    feed, waiter = Feed(REF, None), CountingWaiter()
    feed.waiters.add(waiter)
    pending, again = job(status=Status.PENDING, attempt=0), job(attempt=2)
    for found, wakes, shown in (
        (pending, 1, pending),
        (job(), 2, job()),
        (job(last=5), 2, job()),
        (again, 3, again),
        (job(last=9, attempt=2), 3, again),
        (job(last=9, attempt=2, status=Status.COMPLETED), 3, again),
    ):
        assert feed.reconcile(found)
        assert (feed.job, waiter.wakes, feed.job_frame) == (found, wakes, shown.to_frame())


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
    assert len(yields) == pytest.approx(60 * 0.001 / FILTER_SLICE_SECONDS, abs=1)


@pytest.mark.parametrize(("waiters", "times"), [(399, 0), (400, 1), (799, 1), (1_000, 2)])
def test_the_rest_of_the_worker_runs_while_many_viewers_are_woken(waiters: int, times: int) -> None:
    """Those who compare lines come last."""
    woken, yields = list[Waiter](), list[int]()

    class NotingWaiter(CountingWaiter):
        def wake(self) -> None:
            woken.append(self)

    feed = Feed(REF, None, lambda: yields.append(1))
    feed.waiters |= {NotingWaiter() for _ in range(waiters)}
    for each in [*feed.waiters][:3]:
        each.__dict__["line_filter"] = LineFilter("stdout")
    feed.publish([line_frame(1)], 0, ROOMY)
    assert (len(woken), len(yields)) == (waiters, times)
    assert [each.line_filter is not None for each in woken[-4:]] == [False, True, True, True]


@pytest.mark.parametrize(
    ("query", "is_regex", "lengths", "cursors"),
    [("b+", True, [1_000] * 39 + [50_000, 1_000], [15, 30, 40, 41]), ("b", False, [1] * 600, [250, 500, 600])],
)
def test_a_query_is_compared_with_few_lines_or_bytes_at_once(
    query: str, is_regex: bool, lengths: list[int], cursors: list[int]
) -> None:
    """An expression may need many states for them. A longer line is compared by itself."""
    feed = Feed(REF, None)
    feed.publish([frame_of(Line(n, NOW, "a" * length, "stdout")) for n, length in enumerate(lengths, 1)], 0, ROOMY)
    reached, position = [], 0
    while position < len(lengths):
        found = feed.take(position, LineFilter(None, query, is_regex))
        assert found is not None
        position = found.position
        reached.append(found.cursor)
    assert reached == cursors


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


def test_subjects_that_have_left_are_forgotten() -> None:
    worker = Worker()
    for number in range(100):
        worker.ask(f"subject {number}", seconds=0.001)
    worker.run(20, (("other",), 0.001))
    assert worker.budget._taken.keys() == {"other"}


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
    found = feed.take(0, line_filter)
    assert found is not None
    return found
