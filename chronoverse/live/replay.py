"""A viewer's walk through lines that the tail does not hold any more, by reads of its own."""

from contextlib import nullcontext
from functools import partial
from typing import Final, NamedTuple

from chronoverse.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    ChronoverseError,
    JobNotFound,
    NotALog,
    StoreError,
)
from chronoverse.history.tiered_log import only_in_archive
from chronoverse.joblog.entries import missing_numbers
from chronoverse.joblog.events import LOG_IS_GONE, error_frame
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import End, Job, JobRef, OutOfSequence
from chronoverse.live.delivery_stats import count_store_error
from chronoverse.live.feed import Feed, redact_frames
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache, ReplaySegment
from chronoverse.live.tail import lines_are_gone, redacted_since

#: Seconds between two checks of an ended log for redactions, while it is replayed. The tail does not check such a log.
#: A check takes 0.1 ms: a thousand viewers use a fiftieth of a worker's time for it.
CHECK_SECONDS: Final = 5.0
#: Seconds that a replay waits for the scan server, at most. It sends no heartbeat meanwhile.
SCAN_PATIENCE_SECONDS: Final = 5.0


class Step(NamedTuple):
    """One step of a replay.

    ``frames`` is None when nothing follows the viewer's cursor. ``cursor`` is the last number that the frames cover.
    ``reason`` is set when the stream ends with these frames: ``end`` or ``error``.
    """

    frames: bytes | None
    cursor: int
    reason: str = ""


def error_step(cursor: int, text: str) -> Step:
    """The last step of a stream that ends with an ``error`` frame."""
    return Step(error_frame(text), cursor, "error")


class Replay:
    """Reads the log of ``ref`` for one viewer: the lines that pass ``line_filter``.

    ``finished`` is the job if it had ended before the viewer came. No tail reads such a job. ``subject`` is that of the
    viewer's token. After ``ends_at``, on the viewer's clock, nobody wants any lines.
    """

    def __init__(
        self,
        cache: ReplayCache,
        ref: JobRef,
        line_filter: LineFilter | None,
        finished: Job | None,
        lease_seconds: float,
        subject: str = "",
        ends_at: float = float("inf"),
    ):
        self._cache: Final = cache
        self._store: Final = cache.store
        self._ref: Final = ref
        self._line_filter: Final = line_filter
        self._finished = finished
        self._lease_seconds: Final = lease_seconds
        self._subject: Final = subject
        self._ends_at: Final = ends_at
        self._lines = FIRST_LINES
        #: Bytes that were read for the last segment; 0 before the first, which is never throttled.
        self._last_bytes = 0
        #: The newest state of the job that this replay has met.
        self._known_job = finished
        #: When an ended log is checked again, on the viewer's clock.
        self._check_at: float | None = None
        #: Whether the ended log was redacted during this replay.
        self._is_redacted = False
        #: Since when steps have failed, on the viewer's clock, and what failed first.
        self._failing_since: tuple[float, str] | None = None

    def step(self, cursor: int, feed: Feed | None, now: float) -> Step:
        """What follows line ``cursor``.

        Raises: :class:`StoreError`, and as a scan is refused: :class:`AtCapacity`, :class:`ScansUnavailable`,
        :class:`ShareExceeded`. Then nothing was skipped, and it can be repeated.
        """
        try:
            redacted = self._check_for_redactions(now) if self._finished else b""
            step = Step(redacted, cursor) if redacted else self._step(cursor, feed, now)
        except (NotALog, ArchiveDamaged, JobNotFound) as error:
            return error_step(cursor, str(error))
        self._failing_since = None
        return step

    def record_failure(self, now: float, error: ChronoverseError) -> None:
        """Remembers that a step has raised ``error``."""
        what = "archive" if isinstance(error, ArchiveUnavailable) else "store"
        if isinstance(error, StoreError):
            count_store_error("replay", error)
        else:
            what = "search in the log"
        self._failing_since = self._failing_since or (now, what)

    def failing_for(self, now: float) -> tuple[float, str]:
        """For how many seconds every step has failed, and what failed first."""
        return (now - self._failing_since[0], self._failing_since[1]) if self._failing_since else (0.0, "")

    def _step(self, cursor: int, feed: Feed | None, now: float) -> Step:
        if self._known_job is None and feed is not None:
            self._known_job = feed.job
        if self._last_bytes:
            self._cache.throttle(self._last_bytes)
            self._last_bytes = 0
        if self._finished and self._finished.is_past_end(cursor):
            return self._nothing_follows(cursor, feed)
        payer = feed.filter_budget.payer([self._subject]) if feed and self._has_query else None
        segment = self._scan_after(cursor, feed, now, may_compare=payer is not None) or self._cache.read_after(
            self._ref,
            self._line_filter,
            cursor,
            self._lines,
            self._known_job,
            comparing=partial(feed.filter_budget.spend, payer) if feed and payer is not None else nullcontext,
        )
        if segment is None:
            return self._nothing_follows(cursor, feed)
        self._known_job = segment.job or self._known_job
        self._last_bytes = segment.size
        step = Step(segment.frames, segment.cursor)
        if isinstance(segment.closing, OutOfSequence):
            step = Step(segment.frames + segment.closing.to_frame(), segment.cursor, "error")
        elif segment.closing and not (feed and feed.seek(segment.cursor) is not None):
            step = self._final_step(step, segment.closing)
        self._lines = segment.next_count
        return step

    @property
    def _has_query(self) -> bool:
        return self._line_filter is not None and self._line_filter.q is not None

    def _scan_after(self, cursor: int, feed: Feed | None, now: float, *, may_compare: bool) -> ReplaySegment | None:
        """What the scan server finds, if the viewer has a query, among the lines that were stored before this step.

        None for a few lines that can be compared here: because that ``may_compare`` takes time, or with a text, which
        takes less than a millisecond. Asking takes longer, and the scan server may be away.
        """
        stored = (feed.cursor if feed else self._finished.last if self._finished else 0) - cursor
        line_filter = self._line_filter
        if line_filter is None or line_filter.q is None or stored <= 0:
            return None
        if stored <= FIRST_LINES and (may_compare or not line_filter.regex):
            return None
        patience = min(SCAN_PATIENCE_SECONDS, max(self._ends_at - now, 1.0))
        is_redacted = bool(feed.redactions) if feed else self._is_redacted
        return self._cache.scan_after(self._ref, line_filter, cursor, self._subject, patience, is_redacted=is_redacted)

    def _check_for_redactions(self, now: float) -> bytes:
        """The ``redact`` frames that are due between two segments of an ended log."""
        if self._check_at is None:
            self._check_at = now + CHECK_SECONDS
        elif now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            return self._redactions()
        return b""

    def _redactions(self) -> bytes:
        """A ``redact`` frame for each range that was redacted in the ended log since the last check."""
        job = self._get_job()
        if self._finished is None or job.end is None:
            return b""
        ranges = redacted_since(self._store, self._finished, job)
        self._finished = job
        if ranges:
            self._is_redacted = True
            self._cache.invalidate(self._ref)
        return b"".join(redact_frames(ranges))

    def _get_job(self) -> Job:
        """The job as it is now. Raises: :class:`JobNotFound`."""
        job = self._store.get_job(self._ref)
        if job is None:
            raise JobNotFound(LOG_IS_GONE)
        return job

    def _nothing_follows(self, cursor: int, feed: Feed | None) -> Step:
        """The step when the store has nothing after ``cursor``: the end, a gap, or nothing yet."""
        final = feed.final if feed else None
        job = self._get_job()
        if self._finished and job.end is None:
            return error_step(cursor, "the store has lost the end of this log")
        if only_in_archive(job, cursor + 1) and self._known_job and only_in_archive(self._known_job, cursor + 1):
            raise ArchiveDamaged(f"the archive has no line {cursor + 1}, which it ought to have")
        self._known_job = job
        if only_in_archive(job, cursor + 1) or (job.last > cursor and not lines_are_gone(self._store, job, cursor)):
            return Step(b"", cursor)
        # A closed feed knows how long the log was, even if the store has lost lines since.
        last = feed.cursor if feed and final is not None else job.last
        gaps = [gap.to_frame() for gap in missing_numbers(cursor, last + 1, job.first)]
        step = Step(b"".join(gaps), last) if gaps else Step(None, cursor)
        if self._finished and job.end:
            return self._final_step(step, job.end)
        if final is not None:
            # The tail closed this log with an error, because the store went back behind lines that were sent.
            return Step((step.frames or b"") + final, step.cursor, "error")
        return step

    def _final_step(self, step: Step, end: End) -> Step:
        redacted = self._redactions() if self._finished else b""
        job = self._finished or self._get_job()
        return Step((step.frames or b"") + redacted + job.closing_frames(end, self._lease_seconds), step.cursor, "end")
