"""Makes the summary of a job's log: goes through all of it for lines that look like errors, and reads its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar, Final

from chronoverse.archive.prefilter import Prefilter
from chronoverse.errors import SearchTooExpensive
from chronoverse.history.page_budget import PageBudget
from chronoverse.history.pages import BatchReader, Search, matches
from chronoverse.history.scans.comparison import NewLines
from chronoverse.history.scans.scan import JobScan
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import MAX_LAST_LINES, LineGroups, compose, error_matcher, looks_like_error
from chronoverse.joblog.values import Job

#: Seconds for finding the new lines, and as many again for finding the errors. That is enough for millions of lines of
#: which few are new or look like errors. After that the summary says that it is truncated.
SUMMARY_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryScan(JobScan):
    """Asks for the summary of a job in at most ``page_bytes``."""

    PATH: ClassVar = "/summary"

    seconds: float = SUMMARY_SECONDS


def read_summary(
    scan: SummaryScan,
    job: Job,
    read: BatchReader,
    budgets: tuple[PageBudget, PageBudget],
    hasher: ShapeHasher,
    new_lines: NewLines | None,
    compared_with: Sequence[str] | None,
) -> bytes:
    """The summary's JSON. Raises what ``read`` raises.

    ``budgets`` bound the time for the new lines and the time for the errors. What is not found in time is left out.
    ``compared_with`` is None when there is nothing to compare with. ``new_lines`` is None then, too, and when there was
    no time to read the jobs to compare with.
    """

    def shape_of(message: str) -> int:
        return hasher.hashes([message])[0]

    new, errors = LineGroups(shape_of), LineGroups(shape_of)
    is_complete = compared_with is None or (new_lines is not None and _find_new(job, read, budgets[0], new_lines, new))
    is_complete &= _find_errors(job, read, budgets[1], errors)
    newest = chain.from_iterable(batch.lines for batch in read(job, job.last + 1, descending=True))
    last = list(islice(newest, MAX_LAST_LINES))[::-1]
    return compose(
        job,
        errors,
        last,
        max_bytes=scan.page_bytes,
        is_complete=is_complete,
        compared_with=compared_with,
        new=new if compared_with is not None else None,
    )


def _find_new(job: Job, read: BatchReader, budget: PageBudget, new_lines: NewLines, new: LineGroups) -> bool:
    """Adds all new lines to ``new``. Returns whether there was time to look at the whole log."""
    for batch in read(job, 0, search=Search(new_lines)):
        for line in batch.lines:
            if batch.is_match or new_lines.is_new(line):
                new.add(line)
        if batch.position >= job.last:
            # A running job may write faster than this reads.
            break
        if budget.is_out_of_time():
            return False
    return True


def _find_errors(job: Job, read: BatchReader, budget: PageBudget, errors: LineGroups) -> bool:
    """Adds all lines that look like errors to ``errors``. Returns whether there was time to look at the whole log."""
    matcher, is_complete = error_matcher(), True
    for batch in read(job, 0, search=Search(Prefilter(matcher))):
        for line in batch.lines:
            try:
                is_candidate = batch.is_match or matches(matcher, line)
            except SearchTooExpensive:
                is_complete = False
                continue
            if is_candidate and looks_like_error(matcher, line.message):
                errors.add(line)
        if batch.position >= job.last:
            # A running job may write faster than this reads.
            break
        if budget.is_out_of_time():
            return False
    return is_complete
