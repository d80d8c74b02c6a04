"""Makes the summary of a job's log: goes through all of it for lines that look like errors, and reads its end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar, Final

import orjson

from chronoverse.archive.prefilter import Prefilter
from chronoverse.errors import SearchTooExpensive
from chronoverse.history.page_budget import PageBudget
from chronoverse.history.pages import ReadBatch, Search, matches
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import MAX_LAST_LINES, LineGroups, compose, error_matcher, looks_like_error
from chronoverse.joblog.time_range import TimeRange
from chronoverse.joblog.values import Job, JobRef

#: Seconds in which a summary goes through a log. That is enough for some five million lines of which few look like
#: errors. After that the summary says that it is truncated.
SUMMARY_SECONDS: Final = 2.0

#: A job's log strictly after a number, downwards if the second argument is true. With a search, other lines may be left
#: out.
LogReader = Callable[[int, bool, Search | None], Iterator[ReadBatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryScan:
    """Asks for the summary of a job in at most ``max_bytes``.

    The other fields are those of :class:`~chronoverse.history.scans.scan.Scan`.
    """

    #: The path of the request to the scan server.
    PATH: ClassVar = "/summary"

    workflow_id: str
    job_id: str
    max_bytes: int
    asked_at: float
    patience: float
    seconds: float = SUMMARY_SECONDS

    @property
    def ref(self) -> JobRef:
        """The job."""
        return JobRef(self.workflow_id, self.job_id)

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> "SummaryScan":
        """The scan that :meth:`to_json` wrote."""
        return cls(**orjson.loads(data))


def read_summary(scan: SummaryScan, job: Job, read: LogReader, budget: PageBudget) -> bytes:
    """The summary's JSON. What the ``budget`` leaves no time for is left out. Raises what ``read`` raises."""
    hasher = ShapeHasher()
    errors = LineGroups(lambda message: hasher.hashes([message])[0])
    is_complete = _find_errors(job, read, budget, errors)
    newest = chain.from_iterable(batch.lines for batch in read(job.last + 1, True, None))
    last = list(islice(newest, MAX_LAST_LINES))[::-1]
    return compose(job, errors, last, max_bytes=scan.max_bytes, is_complete=is_complete)


def _find_errors(job: Job, read: LogReader, budget: PageBudget, errors: LineGroups) -> bool:
    """Adds all lines that look like errors to ``errors``. Returns whether there was time to look at the whole log."""
    matcher, is_complete = error_matcher(), True
    for batch in read(0, False, Search(Prefilter(matcher), TimeRange())):
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
