"""The scan server's WSGI application. Each process handles one scan at a time."""

import contextlib
import heapq
import logging
import math
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.archive.prefilter import matching_lines
from chronoverse.archive.reader import ArchiveReader
from chronoverse.auth.rights import Workflows
from chronoverse.errors import (
    AtCapacity,
    ChronoverseError,
    JobNotFound,
    NothingToCompare,
    ScansUnavailable,
    SearchTooExpensive,
    StoreError,
)
from chronoverse.history.pages import MAX_LINE_CHARACTERS, Page, PageBudget, matches
from chronoverse.history.scans.comparison import LABELLED_JOBS, Baseline, DerivedReader, NewLines, baseline, read_runs
from chronoverse.history.scans.matches import MatchEncoder
from chronoverse.history.scans.past_runs import PastRunReader
from chronoverse.history.scans.profile_scan import read_job_profile, read_profile, read_slower
from chronoverse.history.scans.scan import (
    BaseScan,
    HistoryScan,
    LineScan,
    ProfileScan,
    ReplayScan,
    SummaryScan,
    WorkflowScan,
    error_to_json,
)
from chronoverse.history.scans.summary_scan import SummaryProgress, SummaryReader
from chronoverse.history.scans.workflow_scan import JobsPage, read_jobs_page
from chronoverse.history.tiered_log import LogReader, Search, has_lines_after, in_archive
from chronoverse.joblog.entries import Match
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, JobRef, Line, ListingPosition, TimeRange
from chronoverse.joblog.past_runs import PastRuns
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import compose
from chronoverse.store import Store
from chronoverse.store.listing import ListedJob

log: Final = logging.getLogger(__name__)


@dataclass(eq=False)
class ScanApp:
    """Answers scans with a :class:`Page`, a :class:`JobsPage`, a job's summary or profile, or event frames.

    An answer's first line is a JSON object with the page's fields; the lines found follow. ``clock`` is the workers'
    monotonic clock. All processes of a scan server share ``progress``.
    """

    store: Store
    archive: ArchiveReader
    max_line_bytes: int
    clock: Callable[[], float] = time.monotonic
    read_replay: Callable[[ReplayScan, PageBudget], tuple[bytes, int]] | None = None
    progress: SummaryProgress = field(default_factory=SummaryProgress)
    unix_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._read = LogReader(self.store, self.archive, self.max_line_bytes)
        self._hasher = ShapeHasher()
        self._runs = DerivedReader(self.archive, self._read, self._hasher)
        # Threads to read several objects at once: for each, S3 takes about 20 ms, and this process about 2 ms.
        self._pool = ThreadPoolExecutor(12, "archive")
        self._past_runs = PastRunReader(self.archive, self._runs, self._pool)
        self._summaries = SummaryReader(self._read, self._hasher, self.progress)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        data, sock = environ["wsgi.input"].read(), environ["gunicorn.socket"]
        status = "500 Error"
        try:
            head, found = self._answer(environ["PATH_INFO"], data, lambda: _has_closed(sock))
            status, body = "200 OK", b"\n".join([orjson.dumps(head, default=tuple), *found])
        except MemoryError:
            # The text searched for can be a secret, so it is not logged.
            asked = {**orjson.loads(data), "q": None}
            log.error("a scan exceeded its memory limit: %s", orjson.dumps(asked).decode())
            body = error_to_json(ScansUnavailable("the scan exceeded its memory limit"))
        except ChronoverseError as error:
            body = error_to_json(error)
        start_response(status, [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
        return [body]

    def _answer(self, path: str, data: bytes, client_is_gone: Callable[[], bool]) -> tuple[dict[str, Any], list[bytes]]:
        if path == SummaryScan.PATH:
            return {}, [self.read_summary(SummaryScan.from_json(data), client_is_gone)]
        if path == ProfileScan.PATH:
            return {}, [self.read_profile(ProfileScan.from_json(data), client_is_gone)]
        if path == ReplayScan.PATH and self.read_replay:
            replay = ReplayScan.from_json(data)
            frames, cursor = self.read_replay(replay, self._budget(replay, client_is_gone))
            return {"position": cursor}, [frames]
        if path == HistoryScan.PATH:
            head, found = self.read_history(HistoryScan.from_json(data), client_is_gone)
            return head, [orjson.dumps(found)]
        if path == WorkflowScan.PATH:
            jobs, position = self.read_workflow(WorkflowScan.from_json(data), client_is_gone)
            return {"position": position}, jobs
        head = self.read(LineScan.from_json(data), client_is_gone)._asdict()
        return head, head.pop("lines")

    def read(self, scan: LineScan, client_is_gone: Callable[[], bool] = lambda: False) -> Page:
        """The page that ``scan`` requests. Ends early if ``client_is_gone``.

        Raises the errors of the store and the archive, :class:`AtCapacity`, :class:`SearchTooExpensive`,
        :class:`NothingToCompare`, and :class:`JobNotFound` for this job or the job to compare with.
        """
        budget = self._budget(scan, client_is_gone)
        job = self.store.require_job(scan.ref)
        new_lines: NewLines | None = None
        compared_with: list[str] = []
        if scan.only_new:
            named = self.store.require_job(JobRef(scan.workflow_id, scan.against)) if scan.against else None
            others = [named] if named else self._baseline(job, scan.labels).runs
            known, compared_with = read_runs(
                job, others, scan.labels or (), is_named=named is not None, runs=self._runs, budget=budget
            )
            if known is None:
                return Page([], scan.position, True, compared_with=compared_with)
            new_lines = NewLines(known, self._hasher)
        matcher = None if scan.q is None else Matcher(scan.q, regex=scan.regex)
        wanted = _Wanted(scan, matcher, TimeRange(scan.since, scan.until), new_lines)
        page = self._page(wanted, job, budget, scan.position, scan.limit)
        return page._replace(compared_with=compared_with)

    def _page(self, wanted: "_Wanted", job: Job, budget: PageBudget, position: int, limit: int) -> Page:
        scan, matcher, search = wanted.scan, wanted.matcher, wanted.search
        descending, has_filters = scan.descending, wanted.has_filters
        encode = {"whole": _encode_whole, "number": _encode_number}.get(scan.form)
        if encode is None:
            context = (scan.after, scan.before) if descending else (scan.before, scan.after)
            encode = MatchEncoder(self._read, job, matcher, scan.stream, descending, *context)
        found: dict[int, bytes] = {}
        count, has_progress = 0, False

        def page(has_more: bool) -> Page:
            return Page([found[number] for number in sorted(found, reverse=descending)], position, has_more, count)

        try:
            for batch in self._read(job, position, descending=descending, search=search):
                lines: Sequence[Line | Match] = batch.matches or ()
                if has_filters or not batch.is_match:
                    lines = stored = batch.lines
                    if matcher and not batch.is_match and not matcher.may_match(line.message for line in stored):
                        budget.entries_left -= len(stored)
                        lines = ()
                for line in lines:
                    # Without a search, a batch's lines take no time, so all of them are used even after the deadline.
                    if search and has_progress and budget.is_used_up():
                        return page(True)
                    has_progress = True
                    budget.entries_left -= 1
                    if wanted.has(line, batch.is_match):
                        if count == limit:
                            return page(True)
                        encoded = encode(line, budget)
                        if encoded is None:
                            return page(True)
                        found.update(encoded)
                        count += 1
                    position = line.sequence_num
                    if count == limit and not wanted.find_next:
                        return page(has_lines_after(job, position, descending))
                position = batch.position
                if batch.is_last:
                    return page(False)
                has_progress = True
                if budget.is_used_up():
                    break
        except SearchTooExpensive:
            # Return the lines found so far as a page. The next page then raises this error.
            if not found:
                raise
            return page(True)
        return page(has_lines_after(job, position, descending))

    def read_workflow(self, scan: WorkflowScan, client_is_gone: Callable[[], bool] = lambda: False) -> JobsPage:
        """The page that ``scan`` requests. Ends early if ``client_is_gone``.

        Raises :class:`AtCapacity`, and errors of the store and the archive that affect more than one job.
        """
        budget = self._budget(scan, client_is_gone)
        # The scan's time range applies to the jobs' start times, not to their lines.
        wanted = _Wanted(scan, Matcher(scan.q or "", regex=scan.regex), TimeRange(), find_next=True)

        def search(job: Job, position: int, limit: int) -> Page:
            return self._page(wanted, job, budget, position, limit)

        def read_ahead(job: Job) -> Future[None] | None:
            # A local file is read faster than a thread starts. Errors are ignored here: the search raises them again.
            if not in_archive(job, 1) or self.archive.read_seconds < 0.002:
                return None
            return self._pool.submit(self.archive.read_ahead, job.ref)

        listed = self._with_records(self._listed(scan))
        first = [*islice(listed, 1)]
        # Finding the newest jobs of 100,000 workflows takes seconds, which must not reduce the time for searching.
        budget.restart_time()
        return read_jobs_page(scan, chain(first, listed), search, budget, read_ahead)

    def read_summary(self, scan: SummaryScan, client_is_gone: Callable[[], bool] = lambda: False) -> bytes:
        """The summary's JSON. Ends early if ``client_is_gone``. Raises what :meth:`read` raises."""
        budget = self._budget(scan, client_is_gone)
        job = self.store.require_job(scan.ref)
        known: Set[int] | None = None
        compared_with: list[str] | None = None
        others, labels = self._baseline(job, scan.labels)
        with contextlib.suppress(NothingToCompare):
            known, compared_with = read_runs(job, others, labels, is_named=False, runs=self._runs, budget=budget)
        new_lines = None if known is None else NewLines(known, self._hasher)

        def read_past(looked_for: Collection[int]) -> PastRuns | None:
            # Reads this job, and older jobs with all ``labels`` or on its branch. With labels, searches 1,000 jobs.
            own = () if scan.labels is not None else [each for each in job.labels if each[0] == "branch"]
            looked_at = islice(self._up_to(job), LABELLED_JOBS) if labels else self._up_to(job)

            def is_wanted(each: Job) -> bool:
                is_own = each.ref == job.ref or (bool(own) and has_labels(each.labels, own))
                return is_own or has_labels(each.labels, labels)

            # A summary without past runs is better than no summary.
            with contextlib.suppress(StoreError):
                budgets = PageBudget(clock=self.clock), self._short_budget()
                past, _ = self._past_runs.read(looked_at, 200, *budgets, is_wanted, looked_for)
                return past._replace(own=own)
            return None

        # The comparison and the search for new lines can use up ``budget``, so the search for errors gets its own.
        renew = partial(self._page_budget, scan, client_is_gone)
        found = self._summaries.find(job, new_lines, compared_with, budget, renew)
        with contextlib.suppress(StoreError):
            pauses = read_job_profile(job, others, self._runs, self._short_budget())
            found = found._replace(slower=read_slower(job, pauses, self._read))
        baseline = ",".join(map("=".join, labels)) or None
        return compose(job, found, scan.page_bytes, partial(self._summaries.line, job), read_past, baseline)

    def read_profile(self, scan: ProfileScan, client_is_gone: Callable[[], bool] = lambda: False) -> bytes:
        """The profile's JSON. Ends early if ``client_is_gone``. Raises what :meth:`read` raises."""
        budget = self._budget(scan, client_is_gone)
        job = self.store.require_job(scan.ref)
        found = read_job_profile(job, self._baseline(job, scan.labels).runs, self._runs, budget)
        return read_profile(job, found, self._read, self.unix_clock(), self._pool)

    def read_history(
        self, scan: HistoryScan, client_is_gone: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer's head, and :meth:`PastRuns.history`. Raises :class:`JobNotFound` if the line does not exist."""
        budget = self._budget(scan, client_is_gone)
        job = self.store.require_job(scan.ref)
        lines = next(self._read(job, scan.line - 1, limit=1)).lines
        if not lines or lines[0].sequence_num != scan.line:
            raise JobNotFound("no such line")
        message = lines[0].message
        (shape,) = self._hasher.hashes([message])
        start = scan.start and (float(scan.start[0]), scan.start[1])
        others = (each for each in self.store.newest_jobs(job.ref.workflow_id, start, 50) if each.ref != job.ref)
        listed = others if start else self._up_to(job)

        def is_wanted(each: Job) -> bool:
            return has_labels(each.labels, scan.labels)

        past, position = self._past_runs.read(listed, scan.jobs, budget, self._short_budget(), is_wanted, [shape])
        head = {
            "position": position and (repr(position[0]), position[1]),
            "looked_at": len(past.runs),
            "shape": self._hasher.shape(message[:MAX_LINE_CHARACTERS]),
        }
        return head, past.history(shape)

    def _up_to(self, job: Job) -> Iterator[ListedJob]:
        """``job`` and older jobs, newest first."""
        before = job.position
        older = self.store.newest_jobs(job.ref.workflow_id, before, 50)
        yield ListedJob(before[0] if before else math.inf, job.ref, job)
        yield from (each for each in older if each.ref != job.ref)

    def _short_budget(self) -> PageBudget:
        """The budget for past runs that are not yet archived, and for a summary's pauses."""
        return PageBudget(seconds=0.25, clock=self.clock)

    def _baseline(self, job: Job, labels: Sequence[Sequence[str]] | None) -> Baseline:
        listed = self.store.newest_jobs(job.ref.workflow_id, job.position)
        return baseline(job, (each.job for each in listed), labels)

    def _listed(self, scan: WorkflowScan) -> Iterator[ListedJob]:
        start, before = scan.start, None
        if start is not None:
            before = float(start.created), start.job_id
            if start.line is not None:
                yield ListedJob(before[0], start.ref, self.store.get_job(start.ref))
        if scan.workflow_id:
            yield from self.store.newest_jobs(scan.workflow_id, before)
        else:
            yield from self.store.listed_jobs(self._merged_positions(scan), 20)

    def _with_records(self, listed: Iterator[ListedJob]) -> Iterator[ListedJob]:
        """Yields ``listed`` unchanged, after reading the chunk records of its jobs, twenty at a time."""
        while some := [*islice(listed, 20)]:
            archived = [each.ref for each in some if each.job and in_archive(each.job, 1)]
            # Ignores errors: the search of the job concerned reads its record again, and reports the error.
            with contextlib.suppress(StoreError):
                self.archive.record_cache.load(partial(self.store.chunks.first_chunks, archived))
            yield from some

    def _merged_positions(self, scan: WorkflowScan) -> Iterator[tuple[float, JobRef]]:
        wanted, workflow_ids = Workflows(frozenset(scan.ids), tuple(scan.prefixes)), list[str]()
        last: ListingPosition | None = None
        while page := self.store.workflows.page(last, 1_000, wanted):
            workflow_ids += [workflow_id for _, workflow_id in page]
            last = page[-1]

        def before(workflow_id: str) -> ListingPosition | None:
            if scan.start is None:
                return None
            # Jobs created at the same time are ordered by workflow id, descending.
            reached = scan.start.workflow_id
            # "\x7f" is greater than any job id, and "" is less.
            job_id = scan.start.job_id if workflow_id == reached else "\x7f" if workflow_id < reached else ""
            return float(scan.start.created), job_id

        starts = {each: before(each) for each in workflow_ids}
        # Reads all workflows together: one read for each would take a second for some thousand workflows.
        newest = self.store.listing.newest(starts)

        def positions(workflow_id: str) -> Iterator[tuple[float, JobRef]]:
            at = starts[workflow_id]
            if first := newest.get(workflow_id):
                at = first
                yield first[0], JobRef(workflow_id, first[1])
            for created, job_id in self.store.listing.positions(workflow_id, at, 20):
                yield created, JobRef(workflow_id, job_id)

        found = (each for each in workflow_ids if each not in newest or newest[each] is not None)
        return heapq.merge(*map(positions, found), reverse=True)

    def _budget(self, scan: BaseScan, client_is_gone: Callable[[], bool]) -> PageBudget:
        """The budget of an answer. Raises :class:`AtCapacity` if the scan has waited too long for its turn."""
        if self.clock() - scan.asked_at > scan.patience:
            raise AtCapacity(f"too many concurrent searches: timed out after {scan.patience:g} s")
        return self._page_budget(scan, client_is_gone)

    def _page_budget(self, scan: BaseScan, client_is_gone: Callable[[], bool]) -> PageBudget:
        return PageBudget(
            page_bytes=scan.page_bytes, seconds=scan.seconds, client_is_gone=client_is_gone, clock=self.clock
        )


class _Wanted(NamedTuple):
    """The lines that a page shows. ``find_next``: scan past the end of a full page, for another matching line."""

    scan: LineScan
    matcher: Matcher | None
    time_range: TimeRange
    new_lines: NewLines | None = None
    find_next: bool = False

    @property
    def search(self) -> Search | None:
        by_query = partial(matching_lines, self.matcher) if self.matcher else None
        frame_filter = self.new_lines.matching_lines if self.new_lines else by_query
        return Search(frame_filter, self.time_range) if frame_filter else None

    @property
    def has_filters(self) -> bool:
        return self.scan.stream is not None or self.time_range != TimeRange() or self.new_lines is not None

    def has(self, line: Line | Match, is_match: bool) -> bool:
        """Whether a page shows ``line``. ``is_match``: it is known to match the query."""
        if isinstance(line, Match):
            return True
        passes = self.scan.stream in (None, line.stream) and self.time_range.has(line.timestamp)
        is_new = passes and (self.new_lines is None or self.new_lines.is_new(line))
        return is_new and (is_match or self.matcher is None or matches(self.matcher, line))


def _encode_whole(line: Line | Match, budget: PageBudget) -> dict[int, bytes] | None:
    json = line.encode()
    return {line.sequence_num: json} if budget.take(json) else None


def _encode_number(line: Line | Match, budget: PageBudget) -> dict[int, bytes] | None:
    return {line.sequence_num: b"%d" % line.sequence_num}


def _has_closed(sock: socket.socket) -> bool:
    """Whether the worker has closed its side of the connection: its client left, or the worker died."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
