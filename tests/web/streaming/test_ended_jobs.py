"""The cache of ended jobs: for a moment it saves a read of the store, and it caches no other jobs."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.values import End, Job, JobRef, Status
from chronoverse.web.streaming.ended_jobs import CACHE_SECONDS, MAX_CACHED_JOBS, EndedJobCache

REF = JobRef("w", "j")
DONE = Job(REF, Status.RUNNING).ended(End(1, Status.COMPLETED, 0, 0, 0, None))


class Rig:
    """A store of jobs, a clock, and the cache in front of the store. ``reads`` counts the reads of the store."""

    def __init__(self, *jobs: Job, max_jobs: int = MAX_CACHED_JOBS) -> None:
        self.jobs = {job.ref: job for job in jobs}
        self.now, self.reads = 100.0, 0
        #: Called during each read.
        self.during_read: Callable[[], object] = bool
        self.cache = EndedJobCache(self.read_job, lambda: self.now, max_jobs)

    def read_job(self, ref: JobRef) -> Job | None:
        self.reads += 1
        self.during_read()
        return self.jobs.get(ref)


def test_an_ended_job_is_cached_for_a_moment() -> None:
    """The time begins with the first read, and begins again with the next one."""
    rig = Rig(DONE)

    assert rig.cache.get_cached(REF) is None
    assert rig.cache.get_job(REF) == DONE
    assert rig.cache.get_cached(REF) == DONE
    rig.now += CACHE_SECONDS
    assert rig.cache.get_cached(REF) is None
    assert rig.cache.get_job(REF) == rig.cache.get_cached(REF) == DONE
    assert rig.reads == 2


@pytest.mark.parametrize("found", [None, Job(REF, Status.RUNNING), Job(REF, Status.PENDING)])
def test_no_other_job_is_cached(found: Job | None) -> None:
    """A running job changes, and the tail knows its state. A job that does not exist may come at any time."""
    rig = Rig(*([found] if found else []))

    assert rig.cache.get_job(REF) == found
    assert rig.cache.get_cached(REF) is None


def test_a_changed_job_is_dropped() -> None:
    """It is dropped when it is invalidated, and when a read finds it changed."""
    rig = Rig(DONE)
    rig.cache.get_job(REF)
    rig.cache.invalidate(REF)
    assert rig.cache.get_cached(REF) is None

    rig.cache.get_job(REF)
    rig.jobs.clear()
    assert rig.cache.get_job(REF) is None
    assert rig.cache.get_cached(REF) is None
    rig.cache.invalidate(REF)


def test_a_job_that_is_invalidated_during_a_read_is_not_cached() -> None:
    """The read may have found the job as it was before the change."""
    rig = Rig(DONE)
    rig.during_read = lambda: rig.cache.invalidate(REF)

    assert rig.cache.get_job(REF) == DONE
    assert rig.cache.get_cached(REF) is None


def test_a_failed_read_changes_nothing() -> None:
    """A cached job stays in the cache."""
    rig = Rig(DONE)
    rig.cache.get_job(REF)

    def fail() -> None:
        raise StoreUnavailable("away")

    rig.during_read = fail
    with pytest.raises(StoreUnavailable):
        rig.cache.get_job(REF)
    assert rig.cache.get_cached(REF) == DONE


def test_a_full_cache_drops_the_oldest_job() -> None:
    """That is the one that was read longest ago."""
    refs = [JobRef("w", name) for name in "abc"]
    rig = Rig(*(replace(DONE, ref=ref) for ref in refs), max_jobs=2)
    for ref in (refs[0], refs[1], refs[0], refs[2]):
        rig.cache.get_job(ref)

    assert [ref for ref in refs if rig.cache.get_cached(ref)] == [refs[0], refs[2]]
