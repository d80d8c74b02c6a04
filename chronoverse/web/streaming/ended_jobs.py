"""Caches for a moment which jobs have ended. Of many viewers that come to an ended job, only a few read its state."""

import time
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

from chronoverse.joblog.values import Job, JobRef

#: Seconds for which an ended job is cached. Meanwhile the job may be deleted, expire or be redacted. Viewers are still
#: admitted for so long, and their replay tells them. A thousand viewers that come to a worker in two seconds cause ten
#: reads.
CACHE_SECONDS: Final = 0.2
#: Jobs in the cache, of some 1 KB each. The one that was not used for longest is dropped first.
MAX_CACHED_JOBS: Final = 1024


class EndedJobCache:
    """Reads jobs, and caches those that have ended.

    ``read_job`` reads a job's state from the store, and returns None when there is no such job. ``clock`` is monotonic,
    in seconds. For greenlets of one hub: there is no lock, as no method waits while it changes the cache.
    """

    def __init__(
        self,
        read_job: Callable[[JobRef], Job | None],
        clock: Callable[[], float] = time.monotonic,
        max_jobs: int = MAX_CACHED_JOBS,
    ) -> None:
        self._read_job: Final = read_job
        self._cached: Final[TTLCache[JobRef, Job]] = TTLCache(max_jobs, CACHE_SECONDS, timer=clock)
        self._invalidations = 0

    def get_job(self, ref: JobRef) -> Job | None:
        """Reads the job's state. Raises :class:`StoreError`."""
        invalidations = self._invalidations
        job = self._read_job(ref)
        self._cached.pop(ref, None)
        # A job that was invalidated during the read may have been read before it changed.
        if job is not None and job.end is not None and invalidations == self._invalidations:
            self._cached[ref] = job
        return job

    def get_cached(self, ref: JobRef) -> Job | None:
        """The job if it is in the cache. It has ended then."""
        return self._cached.get(ref)

    def invalidate(self, ref: JobRef) -> None:
        """Drops a job that has changed. What is being read just now is not cached either."""
        self._invalidations += 1
        self._cached.pop(ref, None)
