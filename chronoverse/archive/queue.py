"""What an archiver knows of the jobs it has met: which run, which have ended, which may be left alone for a while."""

import logging
from collections.abc import Callable
from typing import Final

from chronoverse import metrics
from chronoverse.backoff import RetryPolicy
from chronoverse.joblog.values import JobRef

#: Jobs remembered as resting, some 300 bytes each. Those beyond it are only looked at more often.
MAX_SNOOZED: Final = 200_000
#: Jobs of which it is remembered that something is wrong with them, and was said.
MAX_REPORTED: Final = 10_000

log: Final = logging.getLogger(__name__)


class ArchiveQueue:
    """Each job is in one place at most, but for those that are ``untidy``. ``monotonic`` is a clock in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        #: Bytes that their logs take, as far as that is known.
        self.running: Final[dict[JobRef, int]] = {}
        #: Those whose runners we have asked to go slowly.
        self.throttled: Final[set[JobRef]] = set()
        #: When they ended, in Unix seconds.
        self.ended: Final[dict[JobRef, float]] = {}
        #: Jobs that may have objects to be deleted. A job may be here and in another place as well.
        self.with_garbage: Final[dict[JobRef, None]] = {}
        #: When the objects of jobs were looked at last.
        self._checked_at: Final[dict[JobRef, float]] = {}
        self._snoozed_until: Final[dict[JobRef, float]] = {}
        self._reported: Final[dict[JobRef, None]] = {}
        #: How often in a row they were put aside.
        self._failures: Final[dict[JobRef, int]] = {}
        self._monotonic = monotonic

    def largest(self) -> tuple[JobRef, int] | None:
        """The running job whose log takes most."""
        return max(self.running.items(), key=lambda item: item[1], default=None)

    def is_snoozed(self, ref: JobRef) -> bool:
        """Whether nothing is to be done for the job now, or it is known already that something is."""
        return ref in self.ended or self._snoozed_until.get(ref, 0) > self._monotonic()

    def snooze(self, ref: JobRef, seconds: float) -> None:
        """Nothing more of this job for so long."""
        self.forget(ref)
        self._snoozed_until[ref] = self._monotonic() + max(0.0, seconds)
        if len(self._snoozed_until) > MAX_SNOOZED:
            del self._snoozed_until[next(iter(self._snoozed_until))]

    def back_off(self, ref: JobRef, first: float, longest: float) -> None:
        """Nothing more of this job for ``first`` seconds; twice as long each time, up to ``longest`` seconds."""
        times = self._failures.pop(ref, 0)
        self._failures[ref] = times + 1
        if len(self._failures) > MAX_SNOOZED:
            del self._failures[next(iter(self._failures))]
        self.snooze(ref, RetryPolicy(first, longest, jitter=0).delay(times + 1))

    def record_progress(self, ref: JobRef) -> None:
        """The job has got on: the next :meth:`put_aside` is a first one again."""
        self._failures.pop(ref, None)

    def note_garbage(self, ref: JobRef, seconds: float) -> None:
        """There may be objects of the job to delete, unless that was looked at less than so many seconds ago."""
        looked_at = self._checked_at.get(ref)
        if looked_at is None or looked_at + seconds <= self._monotonic():
            self.with_garbage[ref] = None

    def garbage_checked(self, ref: JobRef, *, looked: bool = True) -> None:
        """The job's objects were looked at now, or could not be."""
        self.with_garbage.pop(ref, None)
        self._checked_at.pop(ref, None)
        if looked:
            self._checked_at[ref] = self._monotonic()
        if len(self._checked_at) > MAX_SNOOZED:
            del self._checked_at[next(iter(self._checked_at))]

    def forget(self, ref: JobRef) -> None:
        """The job is in no place."""
        for place in (self.running, self.ended, self._snoozed_until):
            place.pop(ref, None)
        self.throttled.discard(ref)

    def report_once(self, ref: JobRef, wrong: str, *, unexpected: bool = False) -> None:
        """Says what is wrong with a job, once; where it is ``unexpected``, with the traceback of the error at hand."""
        if ref not in self._reported:
            log.error("not archived: %s", wrong, exc_info=unexpected, extra={"fields": {"job": str(ref)}})
        self._reported[ref] = None
        if len(self._reported) > MAX_REPORTED:
            del self._reported[next(iter(self._reported))]

    @property
    def reported(self) -> int:
        """How many jobs something is wrong with."""
        return len(self._reported)

    def update_metrics(self, now: float) -> None:
        """Has the metrics say how it stands. ``now`` is Unix time."""
        metrics.HOT_BYTES_LARGEST.set(max(self.running.values(), default=0))
        metrics.ARCHIVE_WAITING.set(len(self.ended))
        metrics.ARCHIVE_LAG.set(max(0.0, now - min(self.ended.values(), default=now)))
