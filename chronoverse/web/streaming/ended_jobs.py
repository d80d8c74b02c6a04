"""Jobs that had ended when somebody looked at them just now: of a crowd that comes to one, few look themselves."""

import time
from collections.abc import Callable
from typing import Final

from chronoverse.joblog.values import Job, JobRef

#: Seconds for which a look at an ended job is as good as a new one. What may change is that it is deleted, expires or
#: has something redacted: as long after that somebody may still be let in, to be told by the replay. A thousand who
#: come to a worker in two seconds take ten looks.
CACHE_SECONDS: Final = 0.2
#: Jobs kept, the oldest let go first: some 1 KB each.
MAX_CACHED_JOBS: Final = 1024


class EndedJobCache:
    """Looks at jobs, and remembers for a moment those that have ended.

    ``look`` is a fresh look at a job, None when there is none; ``clock`` is monotonic, in seconds.
    """

    def __init__(self, look: Callable[[JobRef], Job | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh: Final = look
        self._clock: Final = clock
        self._forgotten = 0
        #: The oldest first.
        self._kept: dict[JobRef, tuple[float, Job]] = {}

    def get_job(self, ref: JobRef) -> Job | None:
        """A fresh look. Raises :class:`StoreError`."""
        began, forgotten = self._clock(), self._forgotten
        job = self._fresh(ref)
        self._kept.pop(ref, None)
        if job is not None and job.end is not None and forgotten == self._forgotten:
            self._kept[ref] = began, job
            if len(self._kept) > MAX_CACHED_JOBS:
                del self._kept[next(iter(self._kept))]
        return job

    def get_cached(self, ref: JobRef) -> Job | None:
        """The job, if it had ended by a look of this moment."""
        looked_at, job = self._kept.get(ref, (0.0, None))
        return job if job is not None and self._clock() < looked_at + CACHE_SECONDS else None

    def invalidate(self, ref: JobRef) -> None:
        """The job is not what it was, nor what those find who are looking just now."""
        self._forgotten += 1
        self._kept.pop(ref, None)
