"""What an archiver knows of the jobs it has met: which run, which have ended, which may be left alone for a while."""

import logging
from collections.abc import Callable
from typing import Final

from chronoverse import metrics
from chronoverse.backoff import RetryPolicy
from chronoverse.joblog.values import JobRef

#: Jobs remembered as resting, some 300 bytes each. Those beyond it are only looked at more often.
RESTING: Final = 200_000
#: Jobs of which it is remembered that something is wrong with them, and was said.
SAID: Final = 10_000

log: Final = logging.getLogger(__name__)


class ArchiveQueue:
    """Each job is in one place at most, but for those that are ``untidy``. ``monotonic`` is a clock in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        #: Bytes that their logs take, as far as that is known.
        self.running: Final[dict[JobRef, int]] = {}
        #: Those whose runners we have asked to go slowly.
        self.slowed: Final[set[JobRef]] = set()
        #: When they ended, in Unix seconds.
        self.ended: Final[dict[JobRef, float]] = {}
        #: Jobs that may have objects to be deleted. A job may be here and in another place as well.
        self.untidy: Final[dict[JobRef, None]] = {}
        #: When the objects of jobs were looked at last.
        self._tidied: Final[dict[JobRef, float]] = {}
        self._resting: Final[dict[JobRef, float]] = {}
        self._said: Final[dict[JobRef, None]] = {}
        #: How often in a row they were put aside.
        self._put_aside: Final[dict[JobRef, int]] = {}
        self._monotonic = monotonic

    def largest(self) -> tuple[JobRef, int] | None:
        """The running job whose log takes most."""
        return max(self.running.items(), key=lambda item: item[1], default=None)

    def is_snoozed(self, ref: JobRef) -> bool:
        """Whether nothing is to be done for the job now, or it is known already that something is."""
        return ref in self.ended or self._resting.get(ref, 0) > self._monotonic()

    def snooze(self, ref: JobRef, seconds: float) -> None:
        """Nothing more of this job for so long."""
        self.forget(ref)
        self._resting[ref] = self._monotonic() + max(0.0, seconds)
        if len(self._resting) > RESTING:
            del self._resting[next(iter(self._resting))]

    def put_aside(self, ref: JobRef, first: float, longest: float) -> None:
        """Nothing more of this job for ``first`` seconds; twice as long each time, up to ``longest`` seconds."""
        times = self._put_aside.pop(ref, 0)
        self._put_aside[ref] = times + 1
        if len(self._put_aside) > RESTING:
            del self._put_aside[next(iter(self._put_aside))]
        self.snooze(ref, RetryPolicy(first, longest, jitter=0).delay(times + 1))

    def went_well(self, ref: JobRef) -> None:
        """The job has got on: the next :meth:`put_aside` is a first one again."""
        self._put_aside.pop(ref, None)

    def suspect(self, ref: JobRef, seconds: float) -> None:
        """There may be objects of the job to delete, unless that was looked at less than so many seconds ago."""
        looked_at = self._tidied.get(ref)
        if looked_at is None or looked_at + seconds <= self._monotonic():
            self.untidy[ref] = None

    def tidied(self, ref: JobRef, *, looked: bool = True) -> None:
        """The job's objects were looked at now, or could not be."""
        self.untidy.pop(ref, None)
        self._tidied.pop(ref, None)
        if looked:
            self._tidied[ref] = self._monotonic()
        if len(self._tidied) > RESTING:
            del self._tidied[next(iter(self._tidied))]

    def forget(self, ref: JobRef) -> None:
        """The job is in no place."""
        for place in (self.running, self.ended, self._resting):
            place.pop(ref, None)
        self.slowed.discard(ref)

    def report_once(self, ref: JobRef, wrong: str, *, unexpected: bool = False) -> None:
        """Says what is wrong with a job, once; where it is ``unexpected``, with the traceback of the error at hand."""
        if ref not in self._said:
            log.error("not archived: %s", wrong, exc_info=unexpected, extra={"fields": {"job": str(ref)}})
        self._said[ref] = None
        if len(self._said) > SAID:
            del self._said[next(iter(self._said))]

    @property
    def wrong(self) -> int:
        """How many jobs something is wrong with."""
        return len(self._said)

    def measure(self, now: float) -> None:
        """Has the metrics say how it stands. ``now`` is Unix time."""
        metrics.HOT_BYTES_LARGEST.set(max(self.running.values(), default=0))
        metrics.ARCHIVE_WAITING.set(len(self.ended))
        metrics.ARCHIVE_LAG.set(max(0.0, now - min(self.ended.values(), default=now)))
