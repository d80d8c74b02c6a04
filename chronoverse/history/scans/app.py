"""The scan server's WSGI application. A process of the server calls it for one scan at a time."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import orjson

from chronoverse.archive.prefilter import Prefilter
from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import (
    AtCapacity,
    ChronoverseError,
    JobNotFound,
    NothingToCompare,
    ScansUnavailable,
    StoreError,
    StoreUnavailable,
)
from chronoverse.history.page_budget import PageBudget
from chronoverse.history.pages import (
    BatchReader,
    LineEncoder,
    Page,
    Search,
    encode_line,
    read_batches,
    read_page,
)
from chronoverse.history.scans.comparison import NewLines, NewLinesPage, NewLinesScan, RunShapes, compare, runs_before
from chronoverse.history.scans.matches import MatchEncoder
from chronoverse.history.scans.scan import (
    COMPARED_WITH,
    HAS_MORE,
    POSITION,
    BaseScan,
    Form,
    LineScan,
    ReplayScan,
    error_to_json,
)
from chronoverse.history.scans.summary_scan import SummaryProgress, SummaryScan, read_summary
from chronoverse.history.scans.workflow_scan import (
    BATCH_JOBS,
    JobsPage,
    ListedJob,
    WorkflowScan,
    read_jobs_page,
)
from chronoverse.history.tiered_log import StoredLog
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, JobRef, Line, ListingPosition, TimeRange
from chronoverse.joblog.shapes import ShapeHasher, ShapeSet

log: Final = logging.getLogger(__name__)


class Listing(Protocol):
    """What the application needs of :class:`chronoverse.store.listing.JobListing`."""

    def page(self, workflow_id: str, before: ListingPosition | None, count: int) -> list[ListingPosition]: ...


class ScannedStore(StoredLog, Protocol):
    """What the application needs of :class:`chronoverse.store.Store`."""

    @property
    def listing(self) -> Listing: ...
    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]: ...


class ScanApp:
    """Answers scans: with a :class:`Page`, a :class:`JobsPage` for a :class:`WorkflowScan`, a
    :class:`NewLinesPage`, a job's summary, or the event frames for a :class:`ReplayScan`.

    What was found is in the body, one piece of JSON on each line, and the rest is in headers. ``max_line_bytes`` is how
    long a runner's lines may be. ``clock`` is monotonic, in seconds, and the clock of the workers. ``read_replay``
    finds the frames, and the last number that they cover. The processes of a scan server share ``progress``.
    """

    def __init__(
        self,
        store: ScannedStore,
        archive: ArchiveReader,
        max_line_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        read_replay: Callable[[ReplayScan, PageBudget], tuple[bytes, int]] | None = None,
        progress: SummaryProgress | None = None,
    ) -> None:
        self._store = store
        self._read: Final[BatchReader] = partial(read_batches, store, archive, max_line_bytes=max_line_bytes)
        self._read_replay = read_replay
        self._clock = clock
        self._hasher = ShapeHasher()
        self._run_shapes = RunShapes(archive, self._read, self._hasher)
        self._progress = progress or SummaryProgress()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        """The answer to one scan: 200 with a page, or 500 with one of our errors."""
        data, sock = environ["wsgi.input"].read(), environ["gunicorn.socket"]
        try:
            headers, found = self._answer(environ["PATH_INFO"], data, lambda: _has_closed(sock))
            status, body = "200 OK", b"\n".join(found)
        except MemoryError:
            log.error("a scan takes more memory than it may: %s", data.decode("utf-8", "replace"))
            status, headers, body = "500 Error", {}, error_to_json(ScansUnavailable("the scan takes too much memory"))
        except ChronoverseError as error:
            status, headers, body = "500 Error", {}, error_to_json(error)
        content = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        start_response(status, [*headers.items(), *content.items()])
        return [body]

    def _answer(self, path: str, data: bytes, client_is_gone: Callable[[], bool]) -> tuple[dict[str, str], list[bytes]]:
        """The headers and the lines of the answer to a scan."""
        if path == SummaryScan.PATH:
            return {}, [self.read_summary(SummaryScan.from_json(data), client_is_gone)]
        if path == ReplayScan.PATH and self._read_replay:
            replay = ReplayScan.from_json(data)
            frames, cursor = self._read_replay(replay, self._budget(replay, client_is_gone))
            return {POSITION: str(cursor)}, [frames]
        if path == WorkflowScan.PATH:
            jobs, position = self.read_workflow(WorkflowScan.from_json(data), client_is_gone)
            return {POSITION: orjson.dumps(position and position.to_json()).decode()}, jobs
        if path == NewLinesScan.PATH:
            page, compared_with = self.read_new(NewLinesScan.from_json(data), client_is_gone)
            return {**_page_headers(page), COMPARED_WITH: orjson.dumps(compared_with).decode()}, page.lines
        page = self.read(LineScan.from_json(data), client_is_gone)
        return _page_headers(page), page.lines

    def read(self, scan: LineScan, client_is_gone: Callable[[], bool] = lambda: False) -> Page:
        """The page that ``scan`` asks for. It ends soon after ``client_is_gone`` returns true.

        Raises as the store and the archive do. Raises :class:`AtCapacity`, :class:`JobNotFound` and
        :class:`SearchTooExpensive`.
        """
        budget = self._budget(scan, client_is_gone)
        job = self._require_job(scan.ref)
        time_range = TimeRange(scan.since, scan.until)
        matcher = None if scan.q is None else Matcher(scan.q, regex=scan.regex)
        encode: LineEncoder
        if scan.form == Form.PAGE and matcher:
            context = scan.before, scan.after
            encode = MatchEncoder(self._read, job, matcher, context, scan.stream, descending=scan.descending)
        else:
            encode = _ENCODERS[scan.form]
        return read_page(
            self._read,
            job,
            scan.position,
            scan.limit,
            budget,
            descending=scan.descending,
            search=Search(Prefilter(matcher), time_range) if matcher else None,
            predicate=lambda line: scan.stream in (None, line.stream) and time_range.has(line.timestamp),
            matcher=matcher,
            encode=encode,
        )

    def read_workflow(self, scan: WorkflowScan, client_is_gone: Callable[[], bool] = lambda: False) -> JobsPage:
        """The page that ``scan`` asks for. It ends soon after ``client_is_gone`` returns true.

        Raises as the store and the archive do, unless it concerns one job only. Raises :class:`AtCapacity`.
        """
        budget = self._budget(scan, client_is_gone)
        matcher = Matcher(scan.q, regex=scan.regex)

        def search(job: Job, position: int, limit: int, only_count: bool) -> Page:
            context = scan.before, scan.after
            return read_page(
                self._read,
                job,
                position,
                limit,
                budget,
                descending=False,
                search=Search(Prefilter(matcher)),
                predicate=lambda line: scan.stream in (None, line.stream),
                matcher=matcher,
                encode=_encode_number
                if only_count
                else MatchEncoder(self._read, job, matcher, context, scan.stream, descending=False),
            )

        return read_jobs_page(scan, self._listed(scan), search, budget)

    def read_summary(self, scan: SummaryScan, client_is_gone: Callable[[], bool] = lambda: False) -> bytes:
        """The summary that ``scan`` asks for, as JSON. It ends soon after ``client_is_gone`` returns true.

        Raises as the store and the archive do. Raises :class:`AtCapacity` and :class:`JobNotFound`.
        """
        budget = self._budget(scan, client_is_gone)
        job = self._require_job(scan.ref)
        runs: list[ShapeSet] | None = None
        compared_with: list[str] | None = None
        with contextlib.suppress(NothingToCompare):
            others = self._others(job, None)
            runs, compared_with = compare(job, others, is_named=False, shapes=self._run_shapes, budget=budget)
        new_lines = None if runs is None else NewLines(runs, self._hasher)
        # The comparison and the new lines may use up all the time. The errors have as much for themselves.
        budgets = (lambda: budget), (lambda: self._page_budget(scan, client_is_gone))
        return read_summary(scan, job, self._read, budgets, self._hasher, new_lines, compared_with, self._progress)

    def read_new(self, scan: NewLinesScan, client_is_gone: Callable[[], bool] = lambda: False) -> NewLinesPage:
        """The page that ``scan`` asks for. It ends soon after ``client_is_gone`` returns true.

        Raises as the store and the archive do. Raises :class:`AtCapacity`, :class:`JobNotFound`, also for the job to
        compare with, and :class:`NothingToCompare`.
        """
        budget = self._budget(scan, client_is_gone)
        job = self._require_job(scan.ref)
        others = self._others(job, scan.against)
        is_named = scan.against is not None
        runs, compared_with = compare(job, others, is_named=is_named, shapes=self._run_shapes, budget=budget)
        if runs is None:
            return NewLinesPage(Page([], scan.position, True), compared_with)
        new_lines = NewLines(runs, self._hasher)
        encode: LineEncoder = encode_line
        if scan.before or scan.after:
            context = scan.before, scan.after
            encode = MatchEncoder(self._read, job, None, context, scan.stream, descending=scan.descending)
        page = read_page(
            self._read,
            job,
            scan.position,
            scan.limit,
            budget,
            descending=scan.descending,
            search=Search(new_lines),
            predicate=lambda line: scan.stream in (None, line.stream) and new_lines.is_new(line),
            encode=encode,
        )
        return NewLinesPage(page, compared_with)

    def _others(self, job: Job, against: str | None) -> list[Job]:
        """The jobs to compare with. Raises as the store does, and :class:`JobNotFound`."""
        workflow_id = job.ref.workflow_id
        if against is not None:
            return [self._require_job(JobRef(workflow_id, against))]
        created = job.created_seconds
        # A foreign job without any time was listed when somebody first asked for it. Any other job may be older.
        before = None if created is None else (round(1000 * created), job.ref.job_id)
        return list(runs_before(job, (listed.job for listed in self._listed_after(workflow_id, before))))

    def _require_job(self, ref: JobRef) -> Job:
        job = self._store.get_job(ref)
        if job is None:
            raise JobNotFound("no such job")
        return job

    def _listed(self, scan: WorkflowScan) -> Iterator[ListedJob]:
        """The workflow's jobs from the start of ``scan`` on. Raises as the store does."""
        start = scan.start
        if start is not None and start.line is not None:
            job = self._store.get_job(JobRef(scan.workflow_id, start.job_id))
            yield ListedJob(start.created_ms, start.job_id, job)
        before = None if start is None else (start.created_ms, start.job_id)
        yield from self._listed_after(scan.workflow_id, before)

    def _listed_after(self, workflow_id: str, before: ListingPosition | None) -> Iterator[ListedJob]:
        """The workflow's jobs that are listed strictly after ``before``."""
        while listed := self._store.listing.page(workflow_id, before, BATCH_JOBS):
            jobs = self._store.get_jobs([JobRef(workflow_id, job_id) for _, job_id in listed])
            for (created_ms, job_id), found in zip(listed, jobs, strict=True):
                if isinstance(found, StoreUnavailable):
                    raise found
                yield ListedJob(created_ms, job_id, found if isinstance(found, Job) else None)
            before = listed[-1]

    def _budget(self, scan: BaseScan, client_is_gone: Callable[[], bool]) -> PageBudget:
        """The budget of an answer. Raises :class:`AtCapacity` for a scan that has waited too long for its turn."""
        if self._clock() - scan.asked_at > scan.patience:
            raise AtCapacity(f"too many searches at a time: this one did not get its turn within {scan.patience:g} s")
        return self._page_budget(scan, client_is_gone)

    def _page_budget(self, scan: BaseScan, client_is_gone: Callable[[], bool]) -> PageBudget:
        return PageBudget(
            page_bytes=scan.page_bytes, seconds=scan.seconds, client_is_gone=client_is_gone, clock=self._clock
        )


def _encode_whole(line: Line, budget: PageBudget) -> dict[int, bytes] | None:
    json = line.encode()
    return {line.sequence_num: json} if budget.take(json) else None


def _encode_number(line: Line, budget: PageBudget) -> dict[int, bytes]:
    return {line.sequence_num: b"%d" % line.sequence_num}


_ENCODERS: Final[dict[str, LineEncoder]] = {
    Form.PAGE: encode_line,
    Form.WHOLE: _encode_whole,
    Form.NUMBER: _encode_number,
}


def _page_headers(page: Page) -> dict[str, str]:
    return {POSITION: str(page.position), HAS_MORE: str(int(page.has_more))}


def _has_closed(sock: socket.socket) -> bool:
    """Whether the worker has closed its side of the connection: its client has left, or the worker has died."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
