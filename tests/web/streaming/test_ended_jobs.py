"""A look at an ended job is good for a moment, and at no other."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.values import End, Job, JobRef, Status
from chronoverse.web.streaming import ended_jobs as ended
from chronoverse.web.streaming.ended_jobs import CACHE_SECONDS, EndedJobCache

REF = JobRef("w", "j")
DONE = Job(REF, Status.RUNNING).ended(End(1, Status.COMPLETED, 0, 0, 0, None))


class Shelf:
    """A store of jobs, a clock, and what is to be tested between them."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.ref: job for job in jobs}
        self.now, self.looks = 100.0, 0
        #: Called while somebody looks.
        self.meanwhile: Callable[[], object] = bool
        self.ended = EndedJobCache(self.get_job, lambda: self.now)

    def get_job(self, ref: JobRef) -> Job | None:
        self.looks += 1
        self.meanwhile()
        return self.jobs.get(ref)


def test_an_ended_job_is_known_for_a_moment() -> None:
    """From when it was looked at, and again from when it is looked at again."""
    shelf = Shelf(DONE)

    assert shelf.ended.get_cached(REF) is None
    assert shelf.ended.get_job(REF) == DONE
    assert shelf.ended.get_cached(REF) == DONE
    shelf.now += CACHE_SECONDS
    assert shelf.ended.get_cached(REF) is None
    assert shelf.ended.get_job(REF) == shelf.ended.get_cached(REF) == DONE
    assert shelf.looks == 2


@pytest.mark.parametrize("found", [None, Job(REF, Status.RUNNING), Job(REF, Status.PENDING)])
def test_nothing_else_is_remembered(found: Job | None) -> None:
    """Of a job that goes on only the tail knows anything, and one that there is not may come."""
    shelf = Shelf(*([found] if found else []))

    assert shelf.ended.get_job(REF) == found
    assert shelf.ended.get_cached(REF) is None


def test_what_is_not_what_it_was_is_forgotten() -> None:
    """When somebody says so, and when a look shows it."""
    shelf = Shelf(DONE)
    shelf.ended.get_job(REF)
    shelf.ended.invalidate(REF)
    assert shelf.ended.get_cached(REF) is None

    shelf.ended.get_job(REF)
    shelf.jobs.clear()
    assert shelf.ended.get_job(REF) is None
    assert shelf.ended.get_cached(REF) is None
    shelf.ended.invalidate(REF)


def test_who_was_looking_when_it_was_forgotten_remembers_nothing() -> None:
    """What that look found may be gone."""
    shelf = Shelf(DONE)
    shelf.meanwhile = lambda: shelf.ended.invalidate(REF)

    assert shelf.ended.get_job(REF) == DONE
    assert shelf.ended.get_cached(REF) is None


def test_a_look_that_fails_changes_nothing() -> None:
    """Whoever knew the job knows it still."""
    shelf = Shelf(DONE)
    shelf.ended.get_job(REF)

    def away() -> None:
        raise StoreUnavailable("away")

    shelf.meanwhile = away
    with pytest.raises(StoreUnavailable):
        shelf.ended.get_job(REF)
    assert shelf.ended.get_cached(REF) == DONE


def test_of_more_jobs_than_are_kept_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one looked at longest ago first."""
    monkeypatch.setattr(ended, "MAX_CACHED_JOBS", 2)
    refs = [JobRef("w", name) for name in "abc"]
    shelf = Shelf(*(replace(DONE, ref=ref) for ref in refs))
    for ref in (refs[0], refs[1], refs[0], refs[2]):
        shelf.ended.get_job(ref)

    assert [ref for ref in refs if shelf.ended.get_cached(ref)] == [refs[0], refs[2]]
