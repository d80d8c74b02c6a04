"""Searches the jobs of one or all workflows, newest job first. Each page scans a limited part."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import orjson

from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog, SearchTooExpensive, StoreUnavailable
from chronoverse.history.pages import Page, PageBudget
from chronoverse.history.scans.scan import WorkflowPosition, WorkflowScan
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, TimeRange
from chronoverse.store.listing import ListedJob


class JobsPage(NamedTuple):
    """A page: the JSON of each job. ``position``: where the search continues; None at the end."""

    jobs: list[bytes]
    position: WorkflowPosition | None


def read_jobs_page(
    scan: WorkflowScan,
    listed: Iterable[ListedJob],
    search: Callable[[Job, int, int], Page],
    budget: PageBudget,
    read_ahead: Callable[[Job], Future[None] | None] = lambda job: None,
) -> JobsPage:
    """Searches ``listed`` until the ``budget`` is used up, but always at least a part of one job.

    Calls ``read_ahead`` with jobs before they are searched. ``search`` gets a job, the line after which to start, and
    how many lines to find. Raises what ``search`` raises, but reports the error of a single job in the page.
    """
    jobs: list[bytes] = []
    start, position = scan.start, scan.start
    wanted = _ahead(_wanted(scan, listed), read_ahead, lambda: scan.limit - len(jobs))
    for number, (created_ms, ref, job) in enumerate(wanted):
        if len(jobs) == scan.limit or (number and budget.is_used_up()):
            return JobsPage(jobs, position)
        is_resumed = start is not None and start.line is not None and start.ref == ref
        line, found = (start.line or 0, start.found) if start and is_resumed else (0, 0)
        which = {} if scan.workflow_id else {"workflow_id": ref.workflow_id}
        if job is not None:
            try:
                matches = search(job, line, max(1, scan.per_job - found))
            except JobNotFound:
                pass
            except (ArchiveDamaged, NotALog, SearchTooExpensive) as error:
                jobs.append(_job_json(job, [], more=False, error=str(error), **which))
            except StoreUnavailable:
                # Returns what was found so far as a page. If the error persists, the next page raises it.
                if jobs:
                    return JobsPage(jobs, position)
                raise
            else:
                found += matches.match_count
                if matches.match_count:
                    jobs.append(_job_json(job, matches.lines, more=matches.has_more, **which))
                if matches.has_more and found < scan.per_job:
                    return JobsPage(jobs, WorkflowPosition(repr(created_ms), *ref, matches.position, found))
        position = WorkflowPosition(repr(created_ms), *ref)
    return JobsPage(jobs, None)


def _wanted(scan: WorkflowScan, listed: Iterable[ListedJob]) -> Iterator[ListedJob]:
    """``listed``, with ``job`` set to None in entries that are not to be searched."""
    time_range = TimeRange(scan.since, scan.until)
    for each in listed:
        job = each.job
        started = (job and (job.started_at or job.created_at)) or ""
        is_wanted = job is not None and scan.status in (None, job.status) and has_labels(job.labels, scan.labels or ())
        yield each if is_wanted and time_range.has(started) else each._replace(job=None)


def _ahead(
    listed: Iterable[ListedJob], read_ahead: Callable[[Job], Future[None] | None], room: Callable[[], int]
) -> Iterator[ListedJob]:
    """Yields ``listed``. Calls ``read_ahead`` for up to twelve jobs ahead, but no more than fit on the page."""
    waiting: deque[tuple[ListedJob, Future[None] | None]] = deque()

    def begin() -> ListedJob:
        each, reading = waiting.popleft()
        # Cancels a read that has not begun, as the search will do it. Waits for others, so that none is done twice.
        if reading is not None and not reading.cancel():
            wait([reading])
        return each

    try:
        for each in listed:
            waiting.append((each, read_ahead(each.job) if each.job and waiting else None))
            while len(waiting) > max(0, min(12, room() - 1)):
                yield begin()
        while waiting:
            yield begin()
    finally:
        for _, reading in waiting:
            if reading is not None:
                reading.cancel()


def _job_json(job: Job, lines: list[bytes], *, more: bool, **extra: Any) -> bytes:
    logs = orjson.Fragment(b"[%b]" % b",".join(lines))
    body = {"id": job.ref.job_id, "status": job.status, "created_at": job.created_at, "logs": logs, "more": more}
    return orjson.dumps({**body, **extra})
