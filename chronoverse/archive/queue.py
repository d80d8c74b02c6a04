"""What an archiver remembers of jobs: which of them need work, and which it need not check for a while."""

import logging
from collections.abc import Callable, Collection
from typing import Final

from cachetools import FIFOCache

from chronoverse import metrics
from chronoverse.backoff import RetryPolicy
from chronoverse.joblog.model import JobRef

#: Snoozed jobs that are remembered, some 400 bytes each. Others are checked more often.
MAX_SNOOZED: Final = 200_000

log: Final = logging.getLogger(__name__)


class ArchiveQueue:
    """The jobs of an archiver. A job is either running, ended, snoozed or unknown, and it may have garbage as well."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        #: Running jobs, with the size of their logs in the store in bytes; 0 while it is unknown.
        self.running: Final[dict[JobRef, int]] = {}
        #: Running jobs whose runners are throttled.
        self.throttled: Final[set[JobRef]] = set()
        #: Ended jobs that are to be archived, with the time of their end in Unix seconds.
        self.ended: Final[dict[JobRef, float]] = {}
        #: Jobs that may have garbage, in the order in which it is to be collected. The values have no meaning.
        self.with_garbage: Final[dict[JobRef, None]] = {}
        self._garbage_checked_at: Final[FIFOCache[JobRef, float]] = FIFOCache(MAX_SNOOZED)
        self._snoozed_until: Final[FIFOCache[JobRef, float]] = FIFOCache(MAX_SNOOZED)
        #: Jobs whose error was logged.
        self.reported: Final[FIFOCache[JobRef, None]] = FIFOCache(10_000)
        #: How often in a row :meth:`back_off` was called for a job.
        self._failures: Final[FIFOCache[JobRef, int]] = FIFOCache(MAX_SNOOZED)
        self._monotonic = monotonic

    def can_skip(self, ref: JobRef) -> bool:
        """Whether the job is snoozed, or is known to be archived next."""
        return ref in self.ended or self._snoozed_until.get(ref, 0) > self._monotonic()

    def snooze(self, ref: JobRef, seconds: float) -> None:
        """Notes that the job need not be checked for that many seconds."""
        self.forget(ref)
        self._snoozed_until[ref] = self._monotonic() + max(0.0, seconds)

    def snoozed_workflows(self) -> set[str]:
        return {ref.workflow_id for ref in self._snoozed_until}

    def wake(self, workflow_ids: Collection[str]) -> None:
        """Notes that the snoozed jobs of these workflows are to be checked at once."""
        for ref in [ref for ref in self._snoozed_until if ref.workflow_id in workflow_ids]:
            del self._snoozed_until[ref]

    def back_off(self, ref: JobRef, first: float, longest: float) -> None:
        """Snoozes the job for ``first`` seconds, and each time twice as long, up to ``longest`` seconds."""
        failures = self._failures.pop(ref, 0) + 1
        self._failures[ref] = failures
        self.snooze(ref, RetryPolicy(first, longest, jitter=0).delay(failures))

    def record_progress(self, ref: JobRef) -> None:
        """Notes that a step on the job has worked: :meth:`back_off` begins with its first delay again."""
        self._failures.pop(ref, None)

    def note_garbage(self, ref: JobRef, seconds: float) -> None:
        """Notes that the job may have garbage, unless that was checked less than that many seconds ago."""
        checked_at = self._garbage_checked_at.get(ref)
        if checked_at is None or checked_at + seconds <= self._monotonic():
            self.with_garbage[ref] = None

    def garbage_checked(self, ref: JobRef, *, failed: bool = False) -> None:
        """Notes that the job's garbage was collected now; or with ``failed``, that it may be tried again at once."""
        self.with_garbage.pop(ref, None)
        self._garbage_checked_at.pop(ref, None)
        if not failed:
            self._garbage_checked_at[ref] = self._monotonic()

    def forget(self, ref: JobRef) -> None:
        """Forgets that the job was running, ended or snoozed."""
        self.running.pop(ref, None)
        self.ended.pop(ref, None)
        self._snoozed_until.pop(ref, None)
        self.throttled.discard(ref)

    def report_once(self, ref: JobRef, problem: str, *, unexpected: bool = False) -> None:
        """Logs a job's problem, unless one was logged before; with the current traceback if it is ``unexpected``."""
        if ref not in self.reported:
            log.error("not archived: %s", problem, exc_info=unexpected, extra={"fields": {"job": str(ref)}})
        self.reported[ref] = None

    def update_metrics(self, now: float) -> None:
        metrics.HOT_BYTES_LARGEST.set(max(self.running.values(), default=0))
        metrics.ARCHIVE_WAITING.set(len(self.ended))
        metrics.ARCHIVE_LAG.set(max(0.0, now - min(self.ended.values(), default=now)))
