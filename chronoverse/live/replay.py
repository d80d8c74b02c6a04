"""Reads the lines that are no longer in a feed's ring, for one viewer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog
from chronoverse.history.tiered_log import only_in_archive
from chronoverse.joblog.entries import missing_numbers
from chronoverse.joblog.events import LOG_IS_GONE, error_frame, redact_frame
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import End, Job, JobRef, OutOfSequence
from chronoverse.live.feed import Feed
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache, ReplaySegment
from chronoverse.live.tail import lines_are_gone, redacted_since

#: Seconds between checks for redactions of an ended log, which the tail does not check.
CHECK_SECONDS: Final = 5.0


@dataclass(slots=True)
class Replay:
    """Reads the lines of ``ref`` that pass ``line_filter``, for one viewer.

    ``finished`` is the job if it had ended before the viewer connected; the tail then does not read it. ``subject`` is
    the subject of the viewer's token.
    """

    cache: ReplayCache
    ref: JobRef
    line_filter: LineFilter | None
    finished: Job | None
    lease_seconds: float
    subject: str
    reason: str = ""
    _lines: int = FIRST_LINES
    #: Bytes of the last segment read; 0 before the first, which is not throttled.
    _last_bytes: int = 0
    _known_job: Job | None = None
    _check_at: float | None = None
    _is_redacted: bool = False

    def step(self, cursor: int, feed: Feed | None, now: float, ends_at: float) -> tuple[bytes | None, int]:
        """Returns the frames after line ``cursor`` (None if nothing follows yet), and the last line number that they
        cover.

        Sets ``reason`` if the stream ends with these frames. ``ends_at`` is the viewer's deadline, on the clock of
        ``now``. Raises :class:`StoreError`. If a scan is refused, raises :class:`AtCapacity`, :class:`ShareExceeded` or
        :class:`ScansUnavailable`. After an error, the same step can be retried.
        """
        try:
            redacted = b""
            if self.finished:
                self._check_at = self._check_at or now + CHECK_SECONDS
                if now >= self._check_at:
                    self._check_at = now + CHECK_SECONDS
                    redacted = self._redactions()
            return (redacted, cursor) if redacted else self._step(cursor, feed, ends_at - now)
        except (NotALog, ArchiveDamaged, JobNotFound) as error:
            self.reason = "error"
            return error_frame(str(error)), cursor

    def _step(self, cursor: int, feed: Feed | None, seconds_left: float) -> tuple[bytes | None, int]:
        self._known_job = self._known_job or self.finished or (feed.job if feed else None)
        if self._last_bytes:
            self.cache.throttle(self._last_bytes)
            self._last_bytes = 0
        if self.finished and self.finished.is_past_end(cursor):
            return self._nothing_follows(cursor, feed)
        segment = self._read_after(cursor, feed, seconds_left)
        if segment is None:
            return self._nothing_follows(cursor, feed)
        self._known_job = segment.job or self._known_job
        self._last_bytes = segment.size
        frames = segment.frames
        if isinstance(segment.closing, OutOfSequence):
            frames += segment.closing.to_frame()
            self.reason = "error"
        elif segment.closing and not (feed and feed.seek(segment.cursor) is not None):
            frames += self._closing_frames(segment.closing)
        self._lines = segment.next_count
        return frames, segment.cursor

    def _read_after(self, cursor: int, feed: Feed | None, seconds_left: float) -> ReplaySegment | None:
        """The segment after line ``cursor``.

        With a query, the scan server reads it. If only a few lines are left, the worker reads it: this is faster than a
        request, and works while the scan server is down. For a regular expression, the filter budget must allow this;
        plain text takes less than a millisecond.
        """
        line_filter = self.line_filter
        comparing: Callable[[], AbstractContextManager[object]] = nullcontext
        if line_filter is not None and line_filter.q is not None:
            payer = feed.filter_budget.payer([self.subject]) if feed else None
            stored = (feed.cursor if feed else self.finished.last if self.finished else 0) - cursor
            if stored > FIRST_LINES or (stored > 0 and line_filter.regex and payer is None):
                # At most 5 s, because the viewer sends no heartbeats while it waits.
                patience = min(5.0, max(seconds_left, 1.0))
                is_redacted = bool(feed.redactions) if feed else self._is_redacted
                found = self.cache.scan_after(
                    self.ref, line_filter, cursor, self.subject, patience, is_redacted=is_redacted
                )
                if found is not None:
                    return found
            if feed and payer is not None:
                comparing = partial(feed.filter_budget.spend, payer)
        return self.cache.read_after(self.ref, line_filter, cursor, self._lines, self._known_job, comparing)

    def _redactions(self) -> bytes:
        job = self._get_job()
        if self.finished is None or job.end is None:
            return b""
        ranges = redacted_since(self.cache.store, self.finished, job)
        self.finished = job
        if ranges:
            self._is_redacted = True
            self.cache.invalidate(self.ref)
        return b"".join([redact_frame(first, last) for first, last in ranges])

    def _get_job(self) -> Job:
        job = self.cache.store.get_job(self.ref)
        if job is None:
            raise JobNotFound(LOG_IS_GONE)
        return job

    def _nothing_follows(self, cursor: int, feed: Feed | None) -> tuple[bytes | None, int]:
        """Like :meth:`step`, when nothing was read after ``cursor``: the log's end, a gap, or nothing yet."""
        final = feed.final if feed else None
        job = self._get_job()
        ended = self.finished and self.finished.end
        if ended and (job.end is None or job.end.sequence_num != ended.sequence_num):
            self.reason = "error"
            return error_frame("the store has lost the end of this log"), cursor
        if only_in_archive(job, cursor + 1) and self._known_job and only_in_archive(self._known_job, cursor + 1):
            raise ArchiveDamaged(f"the archive has no line {cursor + 1}, which it ought to have")
        self._known_job = job
        if only_in_archive(job, cursor + 1) or (
            job.last > cursor and not lines_are_gone(self.cache.store, job, cursor)
        ):
            return b"", cursor
        # A closed feed knows the log's length, even if the store has since lost lines.
        last = feed.cursor if feed and final is not None else job.last
        gaps = [gap.to_frame() for gap in missing_numbers(cursor, last + 1, job.first)]
        frames, cursor = b"".join(gaps), last if gaps else cursor
        if self.finished and job.end:
            return frames + self._closing_frames(job.end), cursor
        if final is not None:
            # The tail closed the feed with an error, because the store lost lines that were already sent.
            self.reason = "error"
            return frames + final, cursor
        return frames or None, cursor

    def _closing_frames(self, end: End) -> bytes:
        redacted = self._redactions() if self.finished else b""
        job = self.finished or self._get_job()
        self.reason = "end"
        return redacted + job.closing_frames(end, self.lease_seconds)
