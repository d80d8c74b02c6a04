"""The newest frames of one watched job, encoded once for all its viewers. No call blocks for long."""

import math
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate, repeat
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from chronoverse.joblog import sse
from chronoverse.joblog.entries import Entry, RawEntry, in_sequence, plain_frames, read_entries
from chronoverse.joblog.events import redact_frame
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import MAX_NUMBER, End, Gap, Job, JobRef, Line, OutOfSequence
from chronoverse.token_bucket import TokenBucket

#: Maximum bytes of a slice, unless a single frame is longer. A viewer that stops reading holds one slice.
SLICE_BYTES: Final = 252 * 2**10
#: Slices end at multiples of this, so that viewers share them. This size fits into a socket buffer (130,966 bytes).
SLICE_STEP_BYTES: Final = 126 * 2**10
MAX_SLICES: Final = 64
#: The maximum share of a worker's time for comparing lines with queries.
FILTER_SHARE: Final = 0.2
#: Seconds of comparing after which other greenlets run.
FILTER_SLICE_SECONDS: Final = 0.003
#: Viewers woken in a row before other greenlets run. Each can cause a write of 10 µs, so this takes up to 4 ms.
WAKES_PER_YIELD: Final = 400


class EventFrame(NamedTuple):
    """One encoded event of a log.

    ``number`` is the last line number it covers. ``first`` is set for gaps only: the first number it covers. ``stream``
    is None for frames that pass every stream filter. ``content`` is what a filter compares: a line's message, or a
    job's status and labels.
    """

    number: int
    stream: str | None
    frame: bytes
    first: int = MAX_NUMBER
    content: Any = None


def _held_bytes(event: EventFrame) -> int:
    _, _, frame, _, content = event
    if not content:
        return len(frame)
    # A change's content is its status and labels, which are also in its frame.
    return len(frame) + (len(content) if isinstance(content, bytes) else len(frame))


_new_frame: Final = partial(tuple.__new__, EventFrame)


class Waiter(Protocol):
    """A viewer or a group. The feed wakes it on changes; the tail wakes it at ``due``, on the tail's clock."""

    due: float

    @property
    def line_filter(self) -> LineFilter | None: ...
    @property
    def is_replaying(self) -> bool: ...
    def wake(self) -> None: ...


class Slice(NamedTuple):
    """Frames joined for one write, the last line number that they cover, and the ring position after them."""

    frames: bytes
    cursor: int
    position: int


#: A feed's state, to detect changes during a store query: the last line number, and the job.
Known = tuple[int, Job | None]
#: Returned instead of a slice when the filter budget is used up.
BUSY: Final = Slice(b"", -1, -1)


class FilterBudget:
    """Limits the time that a worker spends comparing lines with queries, and shares it fairly among subjects.

    ``yield_to_loop`` runs other greenlets.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, yield_to_loop: Callable[[], object] = lambda: None
    ) -> None:
        self._clock = clock
        self._yield_to_loop = yield_to_loop
        self._spent = 0.0
        self._bucket = TokenBucket(FILTER_SHARE, 0.1 / FILTER_SHARE)  # bursts of 0.1 s
        self._halved_at = clock()
        self._taken: dict[str, float] = {}

    def payer(self, subjects: Iterable[str]) -> str | None:
        """The one of ``subjects`` to charge for work done for all of them. None if no subject has time left."""
        now = self._clock()
        left = -FILTER_SHARE * self._bucket.debt_seconds(now)
        # Once a second, each subject's usage is halved.
        if now >= self._halved_at + 1.0:
            self._halved_at = now
            self._taken = {who: taken / 2 for who, taken in self._taken.items() if taken > 0.001}
        # The last 0.05 s of a burst are reserved for subjects whose usage is below the average.
        if left >= 0.05:
            return next(iter(subjects), None)
        subject = min(subjects, key=self._taken_by, default=None)
        if subject is None or left < 0:
            return None
        takes_less = self._taken_by(subject) * len(self._taken) < sum(self._taken.values())
        return subject if takes_less else None

    @contextmanager
    def spend(self, payer: str) -> Iterator[None]:
        """Charges ``payer`` for the duration of the ``with`` block."""
        began = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - began
            self._bucket.take(taken, began)
            self._spent += taken
            self._taken[payer] = self._taken_by(payer) + taken

    def give_way(self) -> None:
        """Yields to other greenlets if comparing has taken :data:`FILTER_SLICE_SECONDS` since the last yield."""
        if self._spent >= FILTER_SLICE_SECONDS:
            self._spent = 0.0
            self._yield_to_loop()

    def _taken_by(self, subject: str) -> float:
        return self._taken.get(subject, 0.0)


def encode(
    entries: Iterable[Entry], cursor: int, most_bytes: int = sys.maxsize
) -> tuple[list[EventFrame], End | OutOfSequence | None]:
    """Returns the frames of ``entries``, and the entry that closes the log, if any.

    A log is closed by its terminal entry, or by an entry whose number is too large. Encoding stops after the frame that
    reaches ``most_bytes``.
    """
    events: list[EventFrame] = []
    for entry in entries:
        if most_bytes <= 0:
            break
        stream, first, content = None, MAX_NUMBER, None
        if isinstance(entry, Line):
            cursor, stream, content = entry.sequence_num, entry.stream, entry.message.encode()
        elif isinstance(entry, Gap):
            cursor, first = entry.last, entry.first
        elif isinstance(entry, End) or entry.last:
            return events, entry
        events.append(EventFrame(cursor, stream, entry.to_frame(), first, content))
        most_bytes -= len(events[-1].frame)
    return events, None


def encode_raw(
    entries: Sequence[RawEntry], cursor: int, first: int, most_bytes: int = sys.maxsize
) -> tuple[list[EventFrame], End | OutOfSequence | None]:
    """Like :func:`encode`, for raw entries after line ``cursor``. Plain lines at the start take a third of the time."""
    frames = plain_frames(entries, cursor, most_bytes)
    events = plain_events(entries, cursor, frames)
    if len(frames) == len(entries):
        return events, None
    cursor += len(frames)
    left = most_bytes - sum(map(len, frames))
    others, closing = encode(read_entries(entries[len(frames) :], cursor, first), cursor, left)
    return events + others, closing


def plain_events(entries: Sequence[RawEntry], cursor: int, frames: Sequence[bytes]) -> list[EventFrame]:
    """Events of the first ``entries``, which follow line ``cursor``. ``frames``: from :func:`plain_frames`."""
    fields = [entry[1] for entry in entries[: len(frames)]]
    streams = ["stderr" if each[5] == b"stderr" else "stdout" for each in fields]
    numbers, messages = range(cursor + 1, cursor + len(frames) + 1), [each[3] for each in fields]
    # EventFrame's own constructor would take twice as long.
    return list(map(_new_frame, zip(numbers, streams, frames, repeat(MAX_NUMBER), messages, strict=False)))


def join(events: list[EventFrame], line_filter: LineFilter | None) -> bytes:
    """The frames for one write. Filtered-out lines become an ``id:``-only block, which advances the client's cursor."""
    if line_filter is None:
        return b"".join([event.frame for event in events])
    frames, skipped = [], 0
    passing = line_filter.select([(event.stream, event.content) for event in events])
    for event, passes in zip(events, passing, strict=True):
        if not passes:
            skipped = event.number
            continue
        if skipped and event.stream is None:
            # Frames without a stream have no id to move the cursor, unlike lines.
            frames.append(sse.cursor(skipped))
        frames.append(event.frame)
        skipped = 0
    if skipped:
        frames.append(sse.cursor(skipped))
    return b"".join(frames)


class Feed:
    """A ring buffer of the frames after line ``base`` up to line ``cursor``. Positions count all frames of the feed.

    ``final``: the closing frames, set once the log has ended. After that, only redactions change the feed.
    """

    def __init__(
        self,
        ref: JobRef,
        job: Job | None,
        yield_to_loop: Callable[[], object] = lambda: None,
        filter_budget: "FilterBudget | None" = None,
    ) -> None:
        self.ref = ref
        self.filter_budget = filter_budget or FilterBudget()
        self.yield_to_loop = yield_to_loop
        self.job = job
        self.cursor = job.last if job else 0
        self.base = self.cursor
        self.final: bytes | None = None
        self.job_frame: bytes | None = job.to_frame() if job else None
        self.version = 0
        #: Each redaction since the feed began: the feed's version after it, and its ``redact`` frame.
        self.redactions: list[tuple[int, bytes]] = []
        self.viewer_count = 0
        #: Groups of caught-up viewers, and all viewers that are in no group.
        self.waiters: set[Waiter] = set()
        #: Groups that have members. Only ``web.streaming`` knows their type.
        self.groups: dict[object, Any] = {}
        #: When the tail next checks the job's state, on the tail's clock. 0: immediately.
        self.check_at = 0.0
        #: Until when the ring may be shown, on the tail's clock. Each check of the job extends this time.
        self.fresh_until = math.inf
        #: Whether the store has lost lines that viewers have.
        self.is_ahead = False
        self._job_version = 0
        self._lock = threading.Lock()
        #: Number and hash of the newest line, kept even if the ring is dropped. None after a gap or a redaction.
        self._newest: tuple[int, int] | None = None
        self._frames: list[EventFrame] = []
        #: The position after each frame, in bytes of all frames of the feed, and the position after the newest frame.
        self._ends: list[int] = []
        self._end = 0
        self._first_position = 0
        self._held_bytes = 0
        self._slices: dict[tuple[int, LineFilter | None], Slice] = {}

    @property
    def known(self) -> Known:
        """The current state. A store reply is outdated if the state has changed since the request."""
        return self.cursor, self.job

    def encode(self, entries: Sequence[RawEntry], after: int) -> tuple[list[EventFrame], End | OutOfSequence | None]:
        first = 1 if self.job is None or in_sequence(entries, after) else self.job.first
        # Encodes at most 8 MiB, the maximum of a ring, plus the rest of the last line.
        return encode_raw(entries, after, first, 8 * 2**20)

    def differs(self, entries: Sequence[RawEntry], cursor: int) -> bool:
        """Whether the first of ``entries`` has the newest published number, ``cursor``, but another text or time."""
        events, _ = self.encode(entries[:1], cursor - 1)
        if self._newest is None or not events or not events[0].stream:
            return False
        number, digest = self._newest
        return number == events[0].number == cursor and digest != hash(events[0].frame)

    def publish(self, events: list[EventFrame], after: int, limit: int) -> bool:
        """Adds ``events``, which follow line ``after``. Keeps the newest frames and contents, up to ``limit`` bytes.

        Returns False and does nothing if the feed is closed, or another thread has advanced it.
        """
        with self._lock:
            if self.cursor != after or self.final is not None:
                return False
            self._ends += [self._end + size for size in accumulate([len(event.frame) for event in events])]
            self._end = self._ends[-1]
            self._frames += events
            self._held_bytes += sum(map(_held_bytes, events))
            newest = events[-1]
            self.cursor, self._newest = newest.number, (newest.number, hash(newest.frame)) if newest.stream else None
            self._slices = {}
            self._drop_oldest(limit)
        self.wake_all()
        return True

    def skip(self, to: int) -> None:
        """Empties the ring and continues after line ``to``, if ``to`` is ahead. Viewers replay the skipped lines."""
        with self._lock:
            if to <= self.cursor or self.final is not None:
                return
            # Leaves one position unused, so that a caught-up viewer is not already at the position of the new lines.
            self.cursor = to
            self._empty(len(self._frames) + 1)
        self.wake_all()

    def redact(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Drops the ring, which contains the old text, and sends viewers a ``redact`` frame for each range of lines."""
        with self._lock:
            self.version += 1
            self.redactions += [(self.version, redact_frame(first, last)) for first, last in ranges]
            self._newest = None
            self._empty(len(self._frames))
        self.wake_all()

    def drop_ring(self) -> None:
        """Empties the ring. Viewers that are behind replay its lines."""
        with self._lock:
            self._empty(len(self._frames))

    def _empty(self, count: int) -> None:
        self._frames, self._ends, self._slices = [], [], {}
        self._held_bytes = 0
        self._first_position += count
        self.base = self.cursor

    def _drop_oldest(self, limit: int) -> None:
        count = 0
        while self._held_bytes > limit:
            self._held_bytes -= _held_bytes(self._frames[count])
            count += 1
        if not count:
            return
        self.base = self._frames[count - 1].number
        self._first_position += count
        del self._frames[:count], self._ends[:count]

    def reconcile(self, job: Job, asked: Known | None = None) -> bool:
        """Updates the job. Viewers get a ``job`` frame if the job is new, or its status or attempt changed.

        ``asked`` is the feed's state at the request. Returns False and does nothing if the state has changed since.
        """
        with self._lock:
            if asked is not None and self.known != asked:
                return False
            known, self.job = self.job, job
            changed = known and not job.status.terminal and (known.status, known.attempt) != (job.status, job.attempt)
            if known is None or changed:
                self.job_frame = job.to_frame()
                self.version = self._job_version = self.version + 1
        if known is None or changed:
            self.wake_all()
        return True

    def close(self, final: bytes) -> None:
        """Closes the feed with the frames ``final``. Later calls have no effect."""
        if self.final is None:
            self.final = final
            self.wake_all()

    def wake_all(self) -> None:
        """Wakes all waiters, unfiltered ones first, and yields to other greenlets in between."""
        waiters = sorted(self.waiters, key=lambda waiter: waiter.line_filter is not None)
        for number, waiter in enumerate(waiters, 1):
            waiter.wake()
            self.filter_budget.give_way()
            if number % WAKES_PER_YIELD == 0:
                self.yield_to_loop()

    # Called by viewers

    def seek(self, cursor: int) -> int | None:
        """The position of the first frame after line ``cursor``. None if the ring begins later.

        Also None if ``cursor`` is inside a gap: the ring's frame names the whole gap, but the viewer needs only its
        rest.
        """
        with self._lock:
            index = bisect_right(self._frames, cursor, key=attrgetter("number"))
            if cursor < self.base or (index < len(self._frames) and self._frames[index].first <= cursor):
                return None
            return self._first_position + index

    def notices_after(self, version: int) -> tuple[bytes, int]:
        """The ``redact`` and ``job`` frames newer than ``version``, and the current version."""
        with self._lock:
            notices = [frame for number, frame in self.redactions if number > version]
            if self.job_frame and self._job_version > version:
                notices.append(self.job_frame)
            return b"".join(notices), self.version

    def take(
        self, position: int, line_filter: LineFilter | None = None, subjects: Iterable[str] = ("",)
    ) -> Slice | None:
        """The slice at ``position``. None if the ring has dropped part of it.

        With a query, the slice can have no frames and still advance the cursor. Returns :data:`BUSY` if the filter
        budget has no time left for ``subjects``, those that want the slice.
        """
        # This needs no lock, because an outdated slice is still a valid prefix of the ring.
        found = self._slices.get((position, line_filter))
        if found is not None:
            return found
        has_query = line_filter is not None and line_filter.q is not None
        payer = self.filter_budget.payer(subjects) if has_query else ""
        if payer is None:
            return BUSY
        with self._lock:
            if position < self._first_position:
                return None
            with self.filter_budget.spend(payer) if has_query else nullcontext():
                found = self._make_slice(position - self._first_position, line_filter)
            if len(self._slices) >= MAX_SLICES:
                self._slices.clear()
            self._slices[position, line_filter] = found
            return found

    def _make_slice(self, start: int, line_filter: LineFilter | None) -> Slice:
        if start == len(self._frames):
            return Slice(b"", self.cursor, self._first_position + start)
        before = self._ends[start] - len(self._frames[start].frame)
        # Slices end at the same positions for all viewers, so viewers that began at different lines soon share them.
        until = (before + SLICE_BYTES) // SLICE_STEP_BYTES * SLICE_STEP_BYTES
        stop = max(bisect_right(self._ends, until), start + 1)
        if line_filter is not None and line_filter.q is not None:
            # Limits the time for comparing to about 1 ms. A regular expression can need 0.3 µs per byte.
            stop = min(stop, start + 250)
            if line_filter.regex:
                stop = min(stop, bisect_right(self._ends, before + 16 * 2**10, start) + 1)
        events = self._frames[start:stop]
        frames = join(events, line_filter)
        cursor, position = events[-1].number, self._first_position + stop
        if line_filter is not None and line_filter.q is not None and frames == sse.cursor(cursor):
            # Nothing matched. Writing an ``id:``-only block for each slice would take too many writes.
            frames = b""
        return Slice(frames, cursor, position)
