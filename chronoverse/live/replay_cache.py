"""Caches older lines in segments: one read and one encoding serve several viewers of a worker."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ShareExceeded, StoreUnavailable
from chronoverse.fair_lock import FairLock
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.history.tiered_log import read_tiers
from chronoverse.joblog import sse
from chronoverse.joblog.entries import RawEntry, in_sequence, plain_frames, read_entries
from chronoverse.joblog.events import LOG_FRAME
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import MAX_LINE_BYTES, End, Job, JobRef, OutOfSequence
from chronoverse.live.feed import encode, join, plain_events
from chronoverse.store import Store
from chronoverse.store.adaptive_batch import next_lines
from chronoverse.store.sequential_reader import SequentialReader

#: Target bytes of a segment. Larger segments are no faster.
SEGMENT_BYTES: Final = 64 * 2**10
#: Maximum bytes of a segment. A viewer that does not read its socket holds one segment.
MAX_SEGMENT_BYTES: Final = 256 * 2**10
#: Minimum and maximum lines of a segment, powers of two. The maximum keeps a worker busy for 0.5 ms.
SEGMENT_LINES: Final = (4, 512)
#: Maximum bytes of one store read. With a large ``max_line_bytes``, it limits the lines of a read.
READ_BYTES: Final = 32 * 2**20
#: Lines of the first segment, when the average line length is still unknown.
FIRST_LINES: Final = 32
#: Seconds for which a segment is cached. The tail can also take this long to notice that a log is gone.
CACHE_SECONDS: Final = 1.0

#: Requests a scan for a subject. Returns the frames, and the last line number that they cover.
ReplayScanner = Callable[[ReplayScan, str], tuple[bytes, int] | None]
#: A job, a filter (for a workflow, its wanted jobs; None for all), and the number after which the segment begins.
_Key = tuple[JobRef, Any, int]


class ReplaySegment(NamedTuple):
    """Part of a log as event frames, up to line ``cursor``. ``closing``: the next entry, if it closes the log.

    ``next_count``: entries to request next. ``size``: bytes of the frames before filtering. ``complete``: the segment
    has all requested lines, or as many as fit. ``job`` is set if it had to be fetched.
    """

    frames: bytes
    cursor: int
    closing: End | OutOfSequence | None
    next_count: int
    size: int
    complete: bool = False
    job: Job | None = None


_Segment = TypeVar("_Segment", ReplaySegment, ReplaySegment | None)


@dataclass(eq=False)
class ReplayCache:
    """A worker's reads of older lines, one segment at a time.

    Calls ``pause`` before each segment, so that live viewers go first; viewers call ``throttle`` with each segment's
    size. A read requests at most ``most_lines`` lines; the cache holds at most ``most_bytes``. ``scan`` makes the scan
    server filter lines by a query. Without ``scan``, the worker filters them.
    """

    store: Store
    archive: ArchiveReader = field(default_factory=ArchiveReader)
    _: KW_ONLY
    max_line_bytes: int = MAX_LINE_BYTES
    most_lines: int = SEGMENT_LINES[1]
    most_bytes: int = 8 * 2**20
    pause: Callable[[], object] = lambda: None
    throttle: Callable[[int], object] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    scan: ReplayScanner | None = None
    _invalidated: int = 0
    _cached_bytes: int = 0

    def __post_init__(self) -> None:
        #: Viewers that need the same segment wait until the first of them has read it for all.
        self._loading = FairLock(0, ShareExceeded, at_once=math.inf, each=1)
        #: One lock per store server: a server that does not answer blocks only the viewers of its own jobs.
        self._locks: dict[Hashable, FairLock] = defaultdict(lambda: FairLock(5.0, StoreUnavailable, self.pause))
        #: One reader per store server, used only while holding its lock.
        self._readers: dict[Hashable, SequentialReader] = {}
        self.most_lines = min(self.most_lines, _power_of_two(READ_BYTES // self.max_line_bytes))
        #: Segments and when they were read, oldest first. A cachetools TTLCache would cost a returning viewer 8 µs.
        self._segments: dict[_Key, tuple[float, ReplaySegment]] = {}

    def read_after(
        self,
        ref: JobRef,
        line_filter: LineFilter | None,
        cursor: int,
        lines: int,
        known: Job | None = None,
        comparing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> ReplaySegment | None:
        """The segment after line ``cursor``, filtered by ``line_filter``. None if no line follows.

        The segment has up to ``lines`` lines (a power of two), and ends at a multiple of ``lines``, so that viewers
        share it. Lines are filtered in a ``with comparing()`` block. Raises :class:`StoreError`.
        """
        lines = min(lines, self.most_lines)
        count = lines - cursor % lines
        key = (ref, line_filter, cursor)

        def read_store() -> tuple[ReplaySegment | None, Sequence[RawEntry] | None]:
            server = self.store.server_of(ref)
            with self._locks[server].hold():
                if cached := self._find_complete(key):
                    return cached, None
                if server not in self._readers:
                    self._readers[server] = self.store.sequential_reader(server)
                asked = self._invalidated, self.clock()
                entries = self._readers[server].read(ref, cursor, count)
                if not in_sequence(entries, cursor):
                    self._readers[server].discard()
                    return None, entries
                with comparing():
                    segment = make_segment(entries, cursor, 1, line_filter) if entries else None
                # A segment that closes the log is not cached.
                if segment and segment.closing is None:
                    segment = segment._replace(complete=segment.complete or len(entries) == count)
                    self._remember(key, segment, asked)
                return segment, None

        # Fetches the job without holding the lock, because this can take a whole grace period.
        found, incomplete, job = read_tiers(
            known,
            cursor,
            lambda: self._read_archive(key, count, comparing),
            read_store,
            lambda: self.store.get_job(ref),
        )
        if incomplete:
            with comparing():
                found = make_segment(incomplete, cursor, job.first if job else 1, line_filter)
        return found._replace(job=job) if found and job else found

    def scan_after(
        self,
        ref: JobRef,
        line_filter: LineFilter,
        cursor: int,
        subject: str,
        patience: float,
        *,
        is_redacted: Callable[[], bool],
    ) -> ReplaySegment | None:
        """Like :meth:`read_after`, but the scan server reads and filters, for 0.1 s or up to the log's end.

        None without a scan server, or if there is nothing to send or skip. Waits up to ``patience`` seconds for a turn,
        then calls ``is_redacted``: if the log was redacted a moment ago, the scan ignores caches. Raises what
        :meth:`ScanClient.replay` raises.
        """
        if (scan := self.scan) is None:
            return None
        deadline = time.monotonic() + patience

        def load() -> ReplaySegment | None:
            wanted = ReplayScan(
                workflow_id=ref.workflow_id,
                job_id=ref.job_id,
                position=cursor,
                is_redacted=is_redacted(),
                asked_at=time.monotonic(),
                patience=deadline - time.monotonic(),
                **line_filter.of_lines,
            )
            found = scan(wanted, subject)
            if found is None or found == (b"", cursor):
                return None
            return ReplaySegment(found[0], found[1], None, FIRST_LINES, len(found[0]), complete=True)

        return self.load_once((ref, line_filter, cursor), patience, load)

    def load_once(
        self,
        key: _Key,
        seconds: float,
        load: Callable[[], _Segment],
        is_valid: Callable[[ReplaySegment], bool] = lambda _: True,
    ) -> ReplaySegment | _Segment:
        """The cached segment if ``is_valid``, else the result of ``load``, called by one caller per key at a time.

        Raises :class:`ShareExceeded` after waiting for ``seconds``, and what ``load`` raises.
        """
        with self._loading.hold(key, seconds):
            if (cached := self._find_complete(key)) and is_valid(cached):
                return cached
            asked = self._invalidated, self.clock()
            segment = load()
            if segment is not None:
                self._remember(key, segment, asked)
            return segment

    def _read_archive(
        self, key: _Key, count: int, comparing: Callable[[], AbstractContextManager[object]]
    ) -> ReplaySegment | None:
        """The segment from the archive. None if the archive has no lines after the cursor."""
        ref, line_filter, cursor = key
        # Fetches the object before taking the lock, because this can be slow. Concurrent callers share one fetch.
        if not self._find_complete(key):
            self.archive.entries(ref, cursor, 1)
        with self._locks[self.store.server_of(ref)].hold():
            if cached := self._find_complete(key):
                return cached
            asked = self._invalidated, self.clock()
            lines = self.archive.json_lines(ref, cursor, count) if line_filter is None else []
            if lines:
                frames = b"".join([LOG_FRAME % (line, number) for number, line in enumerate(lines, cursor + 1)])
                read, reached, size = len(lines), cursor + len(lines), len(frames)
            else:
                events, _ = encode(self.archive.entries(ref, cursor, count), cursor, MAX_SEGMENT_BYTES)
                if not events or events[-1].number == cursor:
                    return None
                with comparing():
                    frames = join(events, line_filter)
                read, reached, size = len(events), events[-1].number, sum([len(event.frame) for event in events])
            segment = ReplaySegment(frames, reached, None, _next_count(read, size), size, complete=True)
            self._remember(key, segment, asked)
            return segment

    def invalidate(self, ref: JobRef) -> None:
        self.archive.forget(ref)
        self._invalidated += 1
        for reader in self._readers.values():
            reader.discard()
        for key in [key for key in self._segments if key[0] == ref]:
            self._drop(key)

    def cached(self, ref: JobRef, line_filter: LineFilter | None, cursor: int) -> tuple[bytes, int]:
        """The cached lines after ``cursor``, about :data:`SEGMENT_BYTES`, and the last line's number. Never waits."""
        found: list[bytes] = []
        size = 0
        while segment := self._find((ref, line_filter, cursor)):
            size += len(segment.frames)
            if found and size > SEGMENT_BYTES:
                break
            found.append(segment.frames)
            cursor = segment.cursor
        return b"".join(found), cursor

    def _find(self, key: _Key) -> ReplaySegment | None:
        read_at, segment = self._segments.get(key, (0.0, None))
        return segment if segment and self.clock() < read_at + CACHE_SECONDS else None

    def _find_complete(self, key: _Key) -> ReplaySegment | None:
        # The log can have grown since an incomplete segment was read, so only :meth:`cached` uses such segments.
        segment = self._find(key)
        return segment if segment and segment.complete else None

    def _remember(self, key: _Key, segment: ReplaySegment, asked: tuple[int, float]) -> None:
        """Caches a segment, unless anything was invalidated since its read began.

        ``asked``: the number of invalidations, and the time, at the beginning of the read.
        """
        self._drop(key)
        if asked[0] != self._invalidated:
            return
        self._segments[key] = asked[1], segment
        self._cached_bytes += len(segment.frames)
        now = self.clock()
        # This can empty the cache, as a single line of a foreign runner can be larger than the whole cache.
        while self._segments:
            oldest = next(iter(self._segments))
            if self._cached_bytes <= self.most_bytes and now < self._segments[oldest][0] + CACHE_SECONDS:
                break
            self._drop(oldest)

    def _drop(self, key: _Key) -> None:
        _, segment = self._segments.pop(key, (0.0, None))
        self._cached_bytes -= len(segment.frames) if segment else 0


def make_segment(entries: Sequence[RawEntry], cursor: int, first: int, line_filter: LineFilter | None) -> ReplaySegment:
    """A segment of ``entries``, which follow line ``cursor``: all of them, or the first :data:`MAX_SEGMENT_BYTES`.

    ``first`` is the first line number in the store.
    """
    plain = plain_frames(entries, cursor, MAX_SEGMENT_BYTES)
    reached, size = cursor + len(plain), sum(map(len, plain))
    events, closing = encode(read_entries(entries[len(plain) :], reached, first), reached, MAX_SEGMENT_BYTES - size)
    size += sum([len(event.frame) for event in events])
    cut = size >= MAX_SEGMENT_BYTES
    lines = len(plain) + len(events) if cut else len(entries)
    next_count = _next_count(lines, size)
    if line_filter is None:
        frames = b"".join(plain + [event.frame for event in events])
    else:
        frames = join(plain_events(entries, cursor, plain) + events, line_filter)
    return ReplaySegment(frames, events[-1].number if events else reached, closing, next_count, size, complete=cut)


def read_frames(cache: ReplayCache, scan: ReplayScan, budget: PageBudget) -> tuple[bytes, int]:
    """The event frames that ``scan`` requests, and the last line number that they cover. Runs in the scan server.

    Stops before the entry that closes the log, or where no line follows. If no frames are returned, the worker reads
    the log itself to find out why. Raises what :meth:`ReplayCache.read_after` raises.
    """
    ref, line_filter = scan.ref, LineFilter(scan.stream, scan.q, scan.regex)
    if scan.is_redacted:
        cache.invalidate(ref)
    job = cache.store.get_job(ref)
    found: list[bytes] = []
    cursor, lines = scan.position, FIRST_LINES
    while not budget.is_used_up():
        segment = cache.read_after(ref, line_filter, cursor, lines, job)
        if segment is None:
            break
        if found and found[-1] == sse.cursor(cursor) and segment.frames.startswith((b"id:", b"event: log\n")):
            # Of consecutive ``id:``-only blocks, only the last matters.
            found.pop()
        found.append(segment.frames)
        budget.bytes_left -= len(segment.frames)
        cursor, lines, job = segment.cursor, segment.next_count, segment.job or job
        if segment.closing:
            break
    return b"".join(found), cursor


def _next_count(lines: int, size: int) -> int:
    """Lines to request after a read of ``lines`` with ``size`` bytes: a power of two, at most four times ``lines``."""
    return _power_of_two(next_lines(lines, lines, size, SEGMENT_BYTES, *SEGMENT_LINES))


def _power_of_two(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)
