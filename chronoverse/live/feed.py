"""What a worker holds of one job being watched: the newest frames of its log, encoded once for all its viewers.

Pure but for its lock. The tail publishes into it, viewers take out of it, and nobody waits here.
"""

import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.entries import Entry, RawEntry, plain_frames, read_entries, stream_name
from chronoverse.joblog.values import MAX_NUMBER, End, Gap, Job, JobRef, Line, OutOfSequence

#: Bytes handed out at once (a longer single frame goes whole): what a viewer that stopped reading holds on to.
SLICE_BYTES: Final = 252 * 2**10
#: Bytes between the places where takes that are cut short end. A socket that has room takes 130,966 bytes at once (its
#: buffer is bounded by ``SEND_BUFFER_BYTES``): with 128 KiB nearly every take was two writes, the second of 200 bytes.
SLICE_STEP_BYTES: Final = 126 * 2**10
#: Joined writes remembered between two publishes. Nearly all viewers stand at the same place and share one.
MAX_SLICES: Final = 32
#: Viewers woken in one go. Each may take a write to its socket, some 10 µs: so nobody else waits for over 5 ms.
WAKES_PER_YIELD: Final = 400


class EventFrame(NamedTuple):
    """A frame in its place. ``number`` is the cursor behind it; ``stream`` is None where every filter lets it pass.

    ``first`` is the first number that a gap names, when that is not ``number``.
    """

    number: int
    stream: str | None
    frame: bytes
    first: int = MAX_NUMBER


class Waiter(Protocol):
    """Somebody to wake when a feed changes, or when ``due`` (on the tail's clock) has come."""

    due: float

    def wake(self) -> None: ...


class Slice(NamedTuple):
    """Frames joined into one write, the cursor behind them, and the ring position to go on from."""

    frames: bytes
    cursor: int
    position: int


def encode(
    entries: Iterable[Entry], cursor: int, most_bytes: int = sys.maxsize
) -> tuple[list[EventFrame], End | OutOfSequence | None]:
    """The frames of ``entries``, and what they close with: a terminal entry, or a Stray that is the last.

    Entries that follow the frame with which they come to ``most_bytes`` are left out.
    """
    events: list[EventFrame] = []
    size = 0
    for entry in entries:
        if size >= most_bytes:
            break
        if type(entry) is Line:
            cursor = entry.sequence_num
            events.append(EventFrame(cursor, entry.stream, entry.to_frame()))
        elif type(entry) is Gap:
            cursor = entry.last
            events.append(EventFrame(cursor, None, entry.to_frame(), entry.first))
        elif type(entry) is OutOfSequence:
            if entry.last:
                return events, entry
            events.append(EventFrame(cursor, None, entry.to_frame()))
        elif type(entry) is End:
            return events, entry
        size += len(events[-1].frame)
    return events, None


def encode_raw(
    entries: Sequence[RawEntry], cursor: int, first: int, most_bytes: int = sys.maxsize
) -> tuple[list[EventFrame], End | OutOfSequence | None]:
    """As :func:`encode`, of the raw entries behind ``cursor``; plain lines at the beginning at a third of the cost."""
    frames = plain_frames(entries, cursor, most_bytes)
    streams = [stream_name(entry[1][5]) for entry in entries[: len(frames)]]
    events = list(map(EventFrame, range(cursor + 1, cursor + len(frames) + 1), streams, frames))
    if len(frames) == len(entries):
        return events, None
    cursor += len(frames)
    left = most_bytes - sum(map(len, frames))
    others, closing = encode(read_entries(entries[len(frames) :], cursor, first), cursor, left)
    return events + others, closing


def join(events: list[EventFrame], stream: str | None) -> bytes:
    """One write. Under a filter, a block with nothing but an id moves the client's cursor over what was skipped."""
    if stream is None:
        return b"".join([event.frame for event in events])
    frames, skipped = [], 0
    for event in events:
        if event.stream not in (None, stream):
            skipped = event.number
            continue
        if skipped and event.stream is None:
            # A line brings its own id; what every filter lets pass has none.
            frames.append(sse.cursor(skipped))
        frames.append(event.frame)
        skipped = 0
    if skipped:
        frames.append(sse.cursor(skipped))
    return b"".join(frames)


def redact_frames(ranges: Iterable[tuple[int, int]]) -> list[bytes]:
    """A ``redact`` for each range of lines, its first and its last, that do not say any more what they said."""
    return [sse.frame("redact", orjson.dumps({"from": first, "to": last})) for first, last in ranges]


class Feed:
    """A ring of the frames behind ``base``, up to ``cursor``; positions in it count every event there ever was.

    ``final`` holds the closing bytes once there are any: the feed never changes after that.
    """

    def __init__(self, ref: JobRef, job: Job | None, yield_to_loop: Callable[[], object] = bool) -> None:
        self.ref = ref
        self.yield_to_loop = yield_to_loop
        self.job = job
        self.cursor = job.last if job else 0
        self.base = self.cursor
        self.final: bytes | None = None
        self.state: bytes | None = job.to_frame() if job else None
        #: A ``redact`` frame for each redaction since somebody watches. One took seconds, so there are never many.
        self.redactions: list[bytes] = []
        self.viewers: set[Waiter] = set()
        #: How many more there are, whom one of these waiters stands for.
        self.group_size = 0
        #: How many of them take from the ring; the others read for themselves, or are about to.
        self.ring_readers = 0
        #: When the tail last looked at the job's state, and when it should again, on its clock.
        self.checked_at = self.check_at = 0.0
        #: Whether the tail's current read covers this feed, or need not: it has closed.
        self.subscribed = False
        self._lock = threading.Lock()
        self._frames: list[EventFrame] = []
        self._ends: list[int] = []
        self._first_position = 0
        #: Bytes of all the frames that were let go: places are counted from the first byte there ever was.
        self._dropped_bytes = 0
        self._slices: dict[tuple[int, str | None], Slice] = {}
        self._latest: tuple[Job, Job] | None = None

    def latest(self) -> Job | None:
        """The job as it was observed, with the newest line as its last: the same object for all who ask meanwhile."""
        job, cursor = self.job, self.cursor
        if job is None or job.last == cursor:
            return job
        if self._latest is None or self._latest[0] is not job or self._latest[1].last != cursor:
            self._latest = job, replace(job, last=cursor)
        return self._latest[1]

    # The tail's side

    def publish(self, events: list[EventFrame], after: int, limit: int) -> bool:
        """Adds ``events``, which follow ``after``, and lets the oldest go, down to ``limit`` bytes.

        False, and nothing done, when the feed is no longer at ``after``: the other thread was faster, or it has
        closed.
        """
        with self._lock:
            if self.cursor != after or self.final is not None:
                return False
            size = self._ends[-1] if self._ends else 0
            self._ends += [size + end for end in accumulate([len(event.frame) for event in events])]
            self._frames += events
            self.cursor = events[-1].number
            self._slices = {}
            self._drop_oldest(self._ends[-1] - limit)
        self.wake_all()
        return True

    def skip(self, to: int) -> None:
        """Goes on behind ``to``, which is ahead, with an empty ring: who is not there yet reads for himself."""
        with self._lock:
            if to <= self.cursor or self.final is not None:
                return
            # One more than there were, so that nobody stands where the new lines begin.
            self._empty(len(self._frames) + 1)
            self.cursor = self.base = to
        self.wake_all()

    def redact(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Lines ``first`` to ``last`` of each range do not say any more what they said: every viewer is told.

        The ring lets its copies go. Who stands at its end stays there.
        """
        with self._lock:
            self.redactions += redact_frames(ranges)
            self._empty(len(self._frames))
            self.base = self.cursor
            # As much as a new state: viewers look whether it is another object.
            self.state = bytes(bytearray(self.state or b"")) if self.state else None
        self.wake_all()

    def _empty(self, count: int) -> None:
        self._dropped_bytes += self._ends[-1] if self._ends else 0
        self._frames, self._ends, self._slices = [], [], {}
        self._first_position += count

    def _drop_oldest(self, surplus: int) -> None:
        """Drops the oldest events until ``surplus`` bytes are gone."""
        if surplus <= 0:
            return
        count = bisect_left(self._ends, surplus) + 1
        gone = self._ends[count - 1]
        self.base = self._frames[count - 1].number
        self._first_position += count
        self._dropped_bytes += gone
        del self._frames[:count]
        self._ends = [end - gone for end in self._ends[count:]]

    def reconcile(self, job: Job) -> None:
        """Takes note of what the job is now; viewers get a ``job`` frame when it is new or got on.

        That it has ended they learn behind its last line.
        """
        known, self.job = self.job, job
        changed = known and not job.status.terminal and (known.status, known.attempt) != (job.status, job.attempt)
        if known is None or changed:
            self.state = job.to_frame()
            self.wake_all()

    def close(self, final: bytes) -> None:
        """Nothing follows but ``final``. Only the first call counts."""
        if self.final is None:
            self.final = final
            self.wake_all()

    def wake_all(self) -> None:
        """Wakes every viewer. Lets other greenlets run now and then, because a worker has more to do."""
        for number, viewer in enumerate(tuple(self.viewers), 1):
            viewer.wake()
            if number % WAKES_PER_YIELD == 0:
                self.yield_to_loop()

    # The viewers' side

    def seek(self, cursor: int) -> int | None:
        """The position of the first event behind ``cursor``.

        None when the ring does not begin there: it no longer reaches back so far, or ``cursor`` is inside of a gap,
        of which that viewer must be told the rest only.
        """
        with self._lock:
            index = bisect_right(self._frames, cursor, key=_number)
            if cursor < self.base or (index < len(self._frames) and self._frames[index].first <= cursor):
                return None
            return self._first_position + index

    def pending_events(self, told: int, state: bytes | None) -> tuple[bytes, int, bytes | None]:
        """What a viewer with ``told`` notices and ``state`` is told; how many notices it has then, and the state."""
        notices, now = self.redactions[told:], self.state
        return b"".join(notices) + (now if now and now != state else b""), told + len(notices), now

    def enter_ring(self, position: int) -> tuple[int, int]:
        """A viewer takes from the ring from ``position`` on. What it finds there: frames, and their bytes."""
        with self._lock:
            self.ring_readers += 1
            start = max(position - self._first_position, 0)
            before = self._ends[start - 1] if start else 0
            return len(self._frames) - start, (self._ends[-1] if self._ends else 0) - before

    def leave_ring(self) -> None:
        """It does so no longer."""
        with self._lock:
            self.ring_readers -= 1

    def take(self, position: int, stream: str | None) -> Slice | None:
        """All from ``position`` on, or None when the ring has let part of it go."""
        # Without the lock, which would be 3 % of a crowd's cost: what was right before a publish is only less than all.
        found = self._slices.get((position, stream))
        if found is not None:
            return found
        with self._lock:
            if position < self._first_position:
                return None
            found = self._make_slice(position - self._first_position, stream)
            if len(self._slices) >= MAX_SLICES:
                self._slices.clear()
            self._slices[position, stream] = found
            return found

    def _make_slice(self, start: int, stream: str | None) -> Slice:
        if start == len(self._frames):
            return Slice(b"", self.cursor, self._first_position + start)
        before = self._dropped_bytes + (self._ends[start - 1] if start else 0)
        # Up to the last of some places that are the same for all: who began elsewhere stands with others after it.
        until = (before + SLICE_BYTES) // SLICE_STEP_BYTES * SLICE_STEP_BYTES
        stop = max(bisect_right(self._ends, until - self._dropped_bytes), start + 1)
        events = self._frames[start:stop]
        return Slice(join(events, stream), events[-1].number, self._first_position + stop)


def _number(event: EventFrame) -> int:
    return event.number
