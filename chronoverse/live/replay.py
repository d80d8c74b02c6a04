"""Reads the lines that are no longer in a feed's ring, for one viewer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog
from chronoverse.history.tiered_log import only_in_archive
from chronoverse.joblog.entries import missing_numbers
from chronoverse.joblog.events import LOG_IS_GONE, error_frame
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, OutOfSequence
from chronoverse.live.feed import Feed
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache, ReplaySegment
from chronoverse.live.tail import lines_are_gone


@dataclass(slots=True)
class Replay:
    """Reads the lines of the job of ``feed`` that pass ``line_filter``, for one viewer with a token of ``subject``."""

    cache: ReplayCache
    feed: Feed
    line_filter: LineFilter | None
    lease_seconds: float
    subject: str
    reason: str = ""
    _lines: int = FIRST_LINES
    #: Bytes of the last segment read; 0 before the first, which is not throttled.
    _last_bytes: int = 0
    _known_job: Job | None = None

    def step(self, cursor: int, seconds_left: float) -> tuple[bytes | None, int]:
        """Returns the frames after line ``cursor`` (None if nothing follows yet), and the last number that they cover.

        Sets ``reason`` if the stream ends with these frames. The stream must end within ``seconds_left``. Raises
        :class:`StoreError`. If a scan is refused, raises :class:`AtCapacity`, :class:`ShareExceeded` or
        :class:`ScansUnavailable`. After an error, the same step can be retried.
        """
        try:
            return self._step(cursor, seconds_left)
        except (NotALog, ArchiveDamaged, JobNotFound) as error:
            self.reason = "error"
            return error_frame(str(error)), cursor

    def _step(self, cursor: int, seconds_left: float) -> tuple[bytes | None, int]:
        self._known_job = self._known_job or self.feed.job
        if self._last_bytes:
            self.cache.throttle(self._last_bytes)
            self._last_bytes = 0
        segment = self._read_after(cursor, seconds_left)
        if segment is None:
            return self._nothing_follows(cursor)
        self._known_job = segment.job or self._known_job
        self._last_bytes = segment.size
        frames = segment.frames
        if isinstance(segment.closing, OutOfSequence):
            frames += segment.closing.to_frame()
            self.reason = "error"
        elif segment.closing and self.feed.seek(segment.cursor) is None:
            frames += self._get_job().closing_frames(segment.closing, self.lease_seconds)
            self.reason = "end"
        self._lines = segment.next_count
        return frames, segment.cursor

    def _read_after(self, cursor: int, seconds_left: float) -> ReplaySegment | None:
        """The segment after line ``cursor``.

        If the filter has a query, the scan server reads the segment. A few last lines are read by the worker, which is
        faster and works while the scan server is down. For a regular expression, this needs time in the filter budget;
        plain text takes less than a millisecond.
        """
        feed, line_filter = self.feed, self.line_filter
        comparing: Callable[[], AbstractContextManager[object]] = nullcontext
        if line_filter is not None and line_filter.q is not None:
            payer = feed.filter_budget.payer([self.subject])
            stored = feed.cursor - cursor
            if stored > FIRST_LINES or (stored > 0 and line_filter.regex and payer is None):
                # At most 5 s, because the viewer sends no heartbeats while it waits.
                patience = min(5.0, max(seconds_left, 1.0))
                found = self.cache.scan_after(
                    feed.ref, line_filter, cursor, self.subject, patience, is_redacted=lambda: bool(feed.redactions)
                )
                if found is not None:
                    return found
            if payer is not None:
                comparing = partial(feed.filter_budget.spend, payer)
        return self.cache.read_after(feed.ref, line_filter, cursor, self._lines, self._known_job, comparing)

    def _get_job(self) -> Job:
        job = self.cache.store.get_job(self.feed.ref)
        if job is None:
            raise JobNotFound(LOG_IS_GONE)
        return job

    def _nothing_follows(self, cursor: int) -> tuple[bytes | None, int]:
        """The result of :meth:`step` if nothing could be read: a gap follows ``cursor``, or nothing follows yet."""
        feed, job = self.feed, self._get_job()
        ended = feed.job and feed.job.end
        if ended and (job.end is None or job.end.sequence_num != ended.sequence_num):
            self.reason = "error"
            return error_frame("the store has lost the end of this log"), cursor
        if only_in_archive(job, cursor + 1) and self._known_job and only_in_archive(self._known_job, cursor + 1):
            raise ArchiveDamaged(f"line {cursor + 1} is missing from the archive")
        self._known_job = job
        if only_in_archive(job, cursor + 1) or (
            job.last > cursor and not lines_are_gone(self.cache.store, job, cursor)
        ):
            return b"", cursor
        # A closed feed knows the log's length, even if the store has since lost lines.
        last = job.last if feed.final is None else feed.cursor
        gaps = [gap.to_frame() for gap in missing_numbers(cursor, last + 1, job.first)]
        return b"".join(gaps) or None, last if gaps else cursor
