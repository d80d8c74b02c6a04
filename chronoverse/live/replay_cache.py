"""The past of logs in pieces, each read and encoded once for all viewers of a worker that want it."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

from chronoverse.errors import StoreUnavailable
from chronoverse.history.source import Archive, LogReader
from chronoverse.history.tiered_log import MissingArchive, archive_has
from chronoverse.joblog.entries import RawEntry, in_sequence, plain_frames, read_entries, stream_name
from chronoverse.joblog.values import MAX_LINE_BYTES, End, Job, JobRef, OutOfSequence
from chronoverse.live.fair_lock import FairLock
from chronoverse.live.feed import Frame, encode, join

#: Bytes that a piece should come to. Larger ones are no faster.
SEGMENT_BYTES: Final = 64 * 2**10
#: Bytes at which a piece ends, whatever was asked for: a viewer that stopped reading holds so many, and the rest of the
#: line with which they are reached. Four lines of 64 KiB fit, unless JSON escapes their characters.
MOST_BYTES: Final = 256 * 2**10
#: The least and the most lines asked for to get there, powers of two. The most bounds how long a worker is busy with
#: one piece (0.5 ms).
SEGMENT_LINES: Final = (4, 512)
#: Bytes of lines that one read of the store may bring, where lines are suddenly as long as a runner may write them:
#: where that is longer than 64 KiB, fewer lines are asked for at once.
READ_BYTES: Final = 32 * 2**20
#: Lines asked for at first, when nobody knows how long they are.
FIRST_LINES: Final = 32
#: Bytes of pieces kept for others who want the same.
KEPT_BYTES: Final = 8 * 2**20
#: Seconds a piece is kept. The tail takes as long to notice that a log has gone.
KEPT_SECONDS: Final = 1.0
#: Seconds a viewer waits for its turn. A thousand turns take a tenth of one, unless the store does not answer.
TURN_SECONDS: Final = 5.0


#: A job, a filter, and the line that a piece follows.
_Key = tuple[JobRef, str | None, int]


class Segment(NamedTuple):
    """Frames, the cursor behind them, and what they close with: a terminal entry, or a Stray that is the last.

    ``lines`` is how many entries it is made of, and ``following`` how many to ask for next. ``whole``: there were as
    many as had been asked for, or more than fit, so that nothing can be added to it. ``job`` is a look at the job,
    where one was needed.
    """

    frames: bytes
    cursor: int
    closing: End | OutOfSequence | None
    lines: int
    next_count: int
    complete: bool = False
    job: Job | None = None


class ReplayCache:
    """All that a worker reads of the past, one piece at a time. ``clock`` is monotonic, in seconds.

    ``max_line_bytes`` is how long a runner may make a line; it bounds what one read of the store may bring.
    ``pause`` lets whoever is live go on for once, before each piece: see :class:`Turns`. ``rest`` is called by a viewer
    with the bytes of its last piece before it reads the next, and returns when the machine has room for that.
    """

    #: The most lines asked for at once, and the most bytes kept.
    most_lines = SEGMENT_LINES[1]
    most_bytes = KEPT_BYTES

    def __init__(
        self,
        store: LogReader,
        archive: Archive | None = None,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        pause: Callable[[], object] = bool,
        throttle: Callable[[int], object] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store: Final = store
        self.rest: Final = throttle
        self._archive: Final = archive or MissingArchive()
        self._clock = clock
        #: By server, so that one that does not answer keeps only its own jobs' viewers waiting.
        self._turns: dict[Hashable, FairLock] = defaultdict(lambda: FairLock(TURN_SECONDS, StoreUnavailable, pause))
        self._most_lines = min(self.most_lines, _power_of_two(READ_BYTES // max_line_bytes))
        self._kept: dict[_Key, tuple[float, Segment]] = {}
        self._kept_bytes = 0

    def after(
        self, ref: JobRef, stream: str | None, cursor: int, lines: int, known: Job | None = None
    ) -> Segment | None:
        """The piece that follows line ``cursor``, under the filter ``stream``; None when nothing is there.

        It is up to ``lines`` long, a power of two, and ends at a multiple of that: so viewers who began at different
        lines soon want the same pieces. ``known`` is what is known of the job: the archive is asked for what it has
        and the store has no more. Raises :class:`StoreError`.
        """
        lines = min(lines, self._most_lines)
        count = lines - cursor % lines
        key = (ref, stream, cursor)
        if known and archive_has(known, cursor):
            piece = self._archived(key, count)
            if piece is not None:
                return piece
        with self._turns[self.store.server_of(ref)]:
            kept = self._find(key)
            if kept is not None:
                return kept
            entries = self.store.read_sequential(ref, cursor, count)
            if in_sequence(entries, cursor):
                piece = _piece(entries, cursor, 1, stream) if entries else None
                # A piece that closes the log is not kept: each viewer reads it anew.
                if piece and piece.closing is None:
                    piece = piece._replace(complete=piece.complete or piece.lines == count)
                    self._keep(key, piece)
                return piece
        # Not within the turn: a look may take as long as a runner is given to come back.
        job = self.store.get_job(ref)
        if job and cursor < job.archived:
            # What the store has lost, the archive may have.
            piece = self._archived(key, count)
            if piece is not None:
                return piece._replace(job=job)
        return _piece(entries, cursor, job.first if job else 1, stream)._replace(job=job)

    def _archived(self, key: _Key, count: int) -> Segment | None:
        """The piece out of the archive; None when it does not go so far."""
        ref, stream, cursor = key
        turns = self._turns[self.store.server_of(ref)]
        with turns:
            kept = self._find(key)
            if kept is not None:
                return kept
        # Not within the turn: it may come from far away. What several want is fetched once all the same.
        self._archive.entries(ref, cursor, 1)
        with turns:
            kept = self._find(key)
            if kept is not None:
                return kept
            found = self._archive.frames(ref, cursor, count) if stream is None else None
            if found is not None:
                frames, reached = found
                lines = reached - cursor
                piece = Segment(frames, reached, None, lines, _following(lines, len(frames)), complete=True)
            else:
                entries = self._archive.entries(ref, cursor, count)
                if not entries:
                    return None
                items, _ = encode(entries, cursor, MOST_BYTES)
                if items[-1].number == cursor:
                    return None
                size = sum([len(item.frame) for item in items])
                following = _following(len(items), size)
                piece = Segment(join(items, stream), items[-1].number, None, len(items), following, complete=True)
            self._keep(key, piece)
            return piece

    def _find(self, key: _Key) -> Segment | None:
        """The piece that was kept under ``key``, and that nothing can be added to."""
        self._forget(self.most_bytes)
        kept = self._kept.get(key)
        # One that may have grown is only good enough for whoever does not want to wait.
        return kept[1] if kept and kept[1].complete else None

    def forget(self, ref: JobRef) -> None:
        """Lets all go that was read of ``ref``: it is not what it was."""
        self._archive.forget(ref)
        for key in [key for key in self._kept if key[0] == ref]:
            self._kept_bytes -= len(self._kept.pop(key)[1].frames)

    def cached(self, ref: JobRef, stream: str | None, cursor: int) -> tuple[bytes, int]:
        """What others have read lately of what follows line ``cursor``, and the cursor behind it. Never waits.

        It ends where it would come to :data:`SEGMENT_BYTES`, and anywhere before the end of the log.
        """
        found: list[bytes] = []
        size, oldest = 0, self._clock() - KEPT_SECONDS
        while kept := self._kept.get((ref, stream, cursor)):
            read_at, piece = kept
            size += len(piece.frames)
            if read_at <= oldest or (found and size > SEGMENT_BYTES):
                break
            found.append(piece.frames)
            cursor = piece.cursor
        return b"".join(found), cursor

    def _keep(self, key: _Key, piece: Segment) -> None:
        size = len(piece.frames)
        if before := self._kept.pop(key, None):
            self._kept_bytes -= len(before[1].frames)
        if size <= self.most_bytes:
            self._forget(self.most_bytes - size)
            self._kept[key] = self._clock(), piece
            self._kept_bytes += size

    def _forget(self, most: int) -> None:
        """Lets the oldest go, until none is too old and all together have no more than ``most`` bytes."""
        too_old = self._clock() - KEPT_SECONDS
        while self._kept:
            key, (read_at, piece) = next(iter(self._kept.items()))
            if read_at > too_old and self._kept_bytes <= most:
                return
            del self._kept[key]
            self._kept_bytes -= len(piece.frames)


def _piece(entries: Sequence[RawEntry], cursor: int, first: int, stream: str | None) -> Segment:
    """What ``entries``, which follow line ``cursor``, are to a viewer: all of them, or the first :data:`MOST_BYTES`.

    ``first`` is the first number the store has.
    """
    plain = plain_frames(entries, cursor, MOST_BYTES)
    reached, size = cursor + len(plain), sum(map(len, plain))
    items, closing = encode(read_entries(entries[len(plain) :], reached, first), reached, MOST_BYTES - size)
    size += sum([len(item.frame) for item in items])
    cut = size >= MOST_BYTES
    lines = len(plain) + len(items) if cut else len(entries)
    following = _following(lines, size)
    if stream is None:
        frames = b"".join(plain + [item.frame for item in items])
    else:
        # No filter is worth a way of its own: one viewer in many has it.
        named = [stream_name(fields[5]) for _, fields in entries[: len(plain)]]
        frames = join([*map(Frame, range(cursor + 1, reached + 1), named, plain), *items], stream)
    return Segment(frames, items[-1].number if items else reached, closing, lines, following, complete=cut)


def _following(lines: int, size: int) -> int:
    """How many lines to ask for after ``lines`` that came to ``size`` bytes: a power of two, and no leap."""
    least, most = SEGMENT_LINES
    fitting = _power_of_two(SEGMENT_BYTES * lines // max(size, 1))
    return max(least, min(most, fitting, _power_of_two(lines * 4)))


def _power_of_two(number: int) -> int:
    """The largest one that is not more than ``number``; 1 where that is less."""
    return 1 << (max(number, 1).bit_length() - 1)
