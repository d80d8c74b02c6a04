"""The scan server's application answers scans with pages, or with errors that name the problem."""

from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from socket import SHUT_WR, socket, socketpair
from types import SimpleNamespace
from typing import Any, Final

import orjson
import pytest

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import (
    AtCapacity,
    ChronoverseError,
    JobNotFound,
    ScansUnavailable,
    SearchTooExpensive,
    StoreError,
    TooFast,
)
from chronoverse.history.pages import CLIENT_GONE_SECONDS, MAX_ENTRIES, PAGE_SECONDS, PageBudget
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import (
    BaseScan,
    HistoryScan,
    LineScan,
    ProfileScan,
    ReplayScan,
    SummaryScan,
    WorkflowScan,
    error_from_json,
    error_to_json,
)
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.store import Store
from chronoverse.store.listing import ListedJob
from tests.support.bench import NOW as BENCH_NOW
from tests.support.bench import make_lines

JOB: Final = JobRef("wf_1", "job_1")
#: The tests' monotonic time, in seconds.
NOW: Final = 1000.0


def scan(**fields: Any) -> LineScan:
    """A scan of all of :data:`JOB`, with other ``fields``."""
    common: dict[str, Any] = {"workflow_id": JOB.workflow_id, "job_id": JOB.job_id, "asked_at": NOW, "patience": 5.0}
    return LineScan(**({**common, "position": 0, "limit": 100} | fields))


class SlowStore:
    """A workflow with very many jobs, if it is ``listed``, and a log with very many lines.

    Reading a few jobs or lines advances the clock by 0.1 s.
    """

    listing: Any = None
    chunks: Any = SimpleNamespace(first_chunks=lambda jobs: {})

    def __init__(self, listed: bool = False) -> None:
        self.now = NOW
        self._listed = listed

    def clock(self) -> float:
        return self.now

    def require_job(self, ref: JobRef) -> Job:
        return Job(ref, Status.RUNNING, last=10**9)

    def newest_jobs(self, workflow_id: str, before: object = None, count: int = 20) -> Iterator[ListedJob]:
        other = JobRef(workflow_id, "other")
        while self._listed:
            self.now += 0.1
            yield from [ListedJob(0.0, other, self.require_job(other))] * count

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        self.now += 0.1
        fields = [b"timestamp", b"2026-03-03T10:00:05.123Z", b"message", b"hay", b"stream", b"stdout"]
        numbers = range(after + 1, after + 1 + count) if before is None else range(before - 1, before - 1 - count, -1)
        return [(b"%d-0" % number, fields) for number in numbers]


@pytest.fixture
def app(store: Store) -> ScanApp:
    """The application, with a job of ten lines on both streams."""
    attempt = store.open(JOB, "token")
    lines = [line._replace(stream=("stdout", "stderr")[line.sequence_num % 2]) for line in make_lines(1, 10)]
    store.append(attempt, lines)
    return ScanApp(store, ArchiveReader(), 65_536, lambda: NOW)


@pytest.fixture
def pair() -> Iterator[tuple[socket, socket]]:
    """A connection: the server's side, and the worker's."""
    ours, theirs = socketpair()
    with ours, theirs:
        yield ours, theirs


def ask(app: ScanApp, asked: BaseScan, sock: socket) -> tuple[str, bytes]:
    said: list[str] = []
    environ = {"PATH_INFO": asked.PATH, "wsgi.input": BytesIO(asked.to_json()), "gunicorn.socket": sock}
    (body,) = app(environ, lambda status, headers: said.append(status))
    return said[0], body


def test_a_page_comes_with_its_position(app: ScanApp, pair: tuple[socket, socket]) -> None:
    """The body's first line says how far the page got; then each line of the log follows."""
    status, body = ask(app, scan(stream="stderr", limit=2), pair[0])
    head, *lines = [orjson.loads(line) for line in body.split(b"\n")]

    assert (status, head["position"], head["has_more"]) == ("200 OK", 3, True)
    assert [line["sequence_num"] for line in lines] == [1, 3]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("number", 10), ("whole", {"stream": "stdout"}), ("page", {"stream": "stdout", "highlights": [[5, 7]]})],
)
def test_a_line_comes_in_the_form_that_is_asked_for(app: ScanApp, form: str, expected: Any) -> None:
    """The scan requests the last line, descending."""
    page = app.read(scan(position=11, limit=1, descending=True, form=form, q="10"))
    found = orjson.loads(page.lines[0])

    assert page.position == 10
    if form == "number":
        assert found == expected
    else:
        assert {key: found.get(key) for key in expected} == expected


def test_lines_before_one_too_long_to_search_make_a_page(app: ScanApp, store: Store) -> None:
    """The next page raises the error."""
    lines = [Line(1, BENCH_NOW, "aaaaz", "stdout"), Line(2, BENCH_NOW, "a" * 3 * 2**20, "stdout")]
    store.append(store.open(JobRef(JOB.workflow_id, "long"), "token"), lines)
    asked = partial(scan, job_id="long", q="(?:a.{0,50}){4}z", regex=True)
    page = app.read(asked())
    assert (len(page.lines), page.position, page.has_more) == (1, 1, True)
    with pytest.raises(SearchTooExpensive):
        app.read(asked(position=1))


def test_lines_that_were_read_are_searched_even_if_late(app: ScanApp, store: Store) -> None:
    """On a busy machine, connecting to the store took longer than a page may. The tail of one stream is still found."""
    times = iter([NOW, NOW])
    late = ScanApp(store, ArchiveReader(), 65_536, lambda: next(times, NOW + 2 * PAGE_SECONDS))
    asked = scan(position=11, limit=2, descending=True, form="number", stream="stderr")
    assert late.read(asked).lines == app.read(asked).lines == [b"9", b"7"]


def test_a_scan_that_has_waited_too_long_is_refused(app: ScanApp) -> None:
    """By then the worker has stopped waiting for it."""
    assert app.read(scan(asked_at=NOW - 4.9)).lines
    with pytest.raises(AtCapacity, match="timed out after 5 s"):
        app.read(scan(asked_at=NOW - 5.1))


def test_an_error_is_the_same_error_for_the_worker(app: ScanApp, pair: tuple[socket, socket]) -> None:
    """With class and message."""
    status, body = ask(app, scan(job_id="other"), pair[0])
    error = error_from_json(body)

    assert status.startswith("500")
    assert (type(error), str(error)) == (JobNotFound, "no such job")


def test_an_error_with_more_than_a_message_becomes_a_store_error() -> None:
    """Such an error cannot be made from its message alone."""
    error: ChronoverseError = error_from_json(error_to_json(TooFast("slower", 3.0)))

    assert (type(error), str(error)) == (StoreError, "slower")


def test_a_scan_that_takes_too_much_memory_is_refused(
    pair: tuple[socket, socket], caplog: pytest.LogCaptureFixture
) -> None:
    """The process survives it. The log names the job, but not the text searched for, which can be a secret."""

    class Hungry(SlowStore):
        def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
            raise MemoryError

    hungry: Any = Hungry()
    status, body = ask(ScanApp(hungry, ArchiveReader(), 65_536, lambda: NOW), scan(q="hunter2"), pair[0])

    assert status.startswith("500")
    assert isinstance(error_from_json(body), ScansUnavailable)
    assert ("memory limit" in caplog.text, "hunter2" in caplog.text) == (True, False)


def test_lines_that_cannot_match_use_a_pages_budget() -> None:
    """Even if they take hardly any time."""
    log: Any = SlowStore()
    page = ScanApp(log, ArchiveReader(), 65_536, lambda: NOW + (log.now - NOW) / 100).read(scan(q="needle"))
    assert (page.lines, page.has_more) == ([], True)
    assert 0 <= page.position - MAX_ENTRIES < 10_000


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LineScan, {"limit": 100, "q": "needle"}),
        (WorkflowScan, {"limit": 100, "q": "needle", "per_job": 5}),
        (SummaryScan, {}),
        (ProfileScan, {}),
        (HistoryScan, {"line": 1, "jobs": 10**9}),
        (ReplayScan, {"position": 0, "stream": None, "q": "needle", "regex": False, "is_redacted": False}),
    ],
)
def test_a_scan_ends_in_time(
    pair: tuple[socket, socket], kind: type[BaseScan], fields: dict[str, Any], leaves: bool
) -> None:
    """Much earlier if the worker reports that its client has left. A page's next one continues from there."""
    log: Any = SlowStore(listed=kind in (WorkflowScan, HistoryScan))
    ours, theirs = pair
    if leaves:
        theirs.shutdown(SHUT_WR)

    def read_replay(_: ReplayScan, budget: PageBudget) -> tuple[bytes, int]:
        while not budget.is_used_up():
            log.now += 0.01
        return b"", 1

    app = ScanApp(log, ArchiveReader(), 65_536, log.clock, read_replay)
    asked = kind(**JOB._asdict(), asked_at=NOW, patience=5.0, **fields)
    status, body = ask(app, asked, ours)
    assert status == "200 OK"
    head = orjson.loads(body.split(b"\n")[0] or b"{}")
    # New lines, errors and pauses have a budget each.
    budgets = 1 if kind is LineScan else 3
    seconds = CLIENT_GONE_SECONDS if leaves else asked.seconds
    assert min(seconds, asked.seconds) < log.now - NOW < budgets * min(seconds, asked.seconds) + 0.6
    if kind is LineScan:
        assert head["has_more"]
        assert head["position"] > 8
