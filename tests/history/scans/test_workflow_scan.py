"""A workflow's search finds all matches in its jobs, over any number of pages, and names unreadable jobs."""

import contextlib
import itertools
import json
import random
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ArchiveUnavailable, StoreUnavailable
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import WorkflowScan
from chronoverse.history.scans.workflow_scan import JobsPage, read_jobs_page
from chronoverse.joblog.model import JobRef, Line, ListingPosition, Status
from chronoverse.store import Store
from chronoverse.store.listing import JobListing, ListedJob
from tests.support.archivers import archive
from tests.support.archives import archive_up_to
from tests.support.bench import NOW, NOW_SECONDS, write_ended
from tests.support.scans import BEGAN, scan_app, write_job
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOBS: Final = 30


def scan(**fields: Any) -> WorkflowScan:
    """A search for ``needle``, with other ``fields``."""
    common: dict[str, Any] = {"workflow_id": "wf_1", "job_id": "", "limit": 20, "per_job": 5, "q": "needle"}
    asked = WorkflowScan(**({**common, "asked_at": BEGAN, "patience": 5.0} | fields))
    assert WorkflowScan.from_json(asked.to_json()) == asked
    return asked


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> FileObjectStore:
    return FileObjectStore(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def logs(server: RedisServer, objects: FileObjectStore) -> Iterator[tuple[Store, dict[str, list[Line]]]]:
    """Archived, partly archived and running jobs: the store, and their lines by job, newest first.

    About one line in five has the word.
    """
    choice, times = random.Random(7), itertools.count(1_772_532_005)
    store = Store(server.url, prefix=f"t{secrets.token_hex(6)}", clock=lambda: float(next(times)))
    logs: dict[str, list[Line]] = {}
    for number in range(JOBS):
        texts = [choice.choice(("hay", "hay", "grass", "a needle", "straw")) for _ in range(choice.choice((0, 3, 40)))]
        job_id, streams = f"job_{number}", ("stdout", "stderr")
        lines = [Line(at, NOW, f"{text} {at}", choice.choice(streams)) for at, text in enumerate(texts, 1)]
        write_job(store, job_id, lines, choice.choice((Status.COMPLETED, Status.FAILED, None)))
        logs = {job_id: lines, **logs}
    archive(store, objects)
    for job_id, lines in logs.items():
        job = store.get_job(JobRef("wf_1", job_id))
        if job and job.end is None and len(lines) > 3 and choice.random() < 0.7:
            archive_up_to(store, objects, job.ref, len(lines) // 2, trim=choice.random() < 0.5)
    yield store, logs
    store.close()


def pages(app: ScanApp, **fields: Any) -> Iterator[JobsPage]:
    start = None
    for _ in range(2_000):
        # A scan that has waited gets no turn. Here the clock advances constantly.
        page = app.read_workflow(scan(**{"patience": 1e9, "start": start} | fields))
        yield page
        start = page.position
        if start is None:
            return
    raise AssertionError("no last page")


def found(pages_: Iterator[JobsPage]) -> list[tuple[str, list[int]]]:
    """The jobs with the numbers of their matches, in page order. Parts of a job are joined."""
    jobs: list[tuple[str, list[int]]] = []
    for page in pages_:
        for job in map(json.loads, page.jobs):
            numbers = [line["sequence_num"] for line in job["logs"] if "context" not in line]
            if jobs and jobs[-1][0] == job["id"]:
                jobs[-1][1].extend(numbers)
            else:
                jobs.append((job["id"], numbers))
    return jobs


@pytest.mark.parametrize(("limit", "ticks"), [(4, 0.15), (4, 0.0), (1, 0.0), (100, 0.6)])
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"per_job": 100}, "needle"),
        ({"per_job": 3}, "needle"),
        ({"per_job": 100, "q": "(grass|STRAW) [1-9]$", "regex": True}, "(grass|straw) [1-9]$"),
        ({"per_job": 2, "stream": "stderr", "before": 1, "after": 2}, "needle"),
        ({"per_job": 5, "q": "nowhere"}, "nowhere"),
    ],
)
def test_it_finds_all_matches(
    logs: tuple[Store, dict[str, list[Line]]],
    objects: FileObjectStore,
    fields: dict[str, Any],
    pattern: str,
    ticks: float,
    limit: int,
) -> None:
    """In both tiers, newest job first, with much or little time per page."""
    store, written = logs
    expected = []
    for job_id, lines in written.items():
        matching = [
            line.sequence_num
            for line in lines
            if re.search(pattern, line.message) and fields.get("stream") in (None, line.stream)
        ]
        if matching:
            expected.append((job_id, matching[: fields["per_job"]]))
    assert found(pages(scan_app(store, objects, ticks), limit=limit, **fields)) == expected


def test_more_means_further_matches(store: Store) -> None:
    """The search looks for one line more than it returns."""
    write_job(store, "two", ["needle"] * 2)
    write_job(store, "three", ["needle"] * 3)
    (page,) = pages(scan_app(store, None), per_job=2)
    assert {job["id"]: job["more"] for job in map(json.loads, page.jobs)} == {"two": False, "three": True}


def test_jobs_are_chosen_by_status_and_start(
    logs: tuple[Store, dict[str, list[Line]]], objects: FileObjectStore
) -> None:
    """Start means the first attempt's."""
    store, written = logs
    app = scan_app(store, objects)
    jobs = {job_id: store.get_job(JobRef("wf_1", job_id)) for job_id in written}
    all_found = [job_id for job_id, _ in found(pages(app))]
    failed = [job_id for job_id in all_found if (job := jobs[job_id]) and job.status is Status.FAILED]
    assert [job_id for job_id, _ in found(pages(app, status="FAILED"))] == failed != []

    first, last = (jobs[all_found[at]] for at in (7, 3))
    assert first is not None
    assert last is not None
    times = {"since": first.started_at, "until": last.started_at}
    assert [job_id for job_id, _ in found(pages(app, **times))] == all_found[3:8]


def test_a_jobs_error_is_reported_with_it(
    logs: tuple[Store, dict[str, list[Line]]], objects: FileObjectStore, tmp_path: Path
) -> None:
    """Other jobs are still searched."""
    store, _ = logs
    app = scan_app(store, objects)
    expected = [job_id for job_id, _ in found(pages(app, limit=100))]
    broken = next(
        job_id for job_id in expected if (job := store.get_job(JobRef("wf_1", job_id))) and job.archived == job.last
    )
    left = FileObjectStore(tmp_path)
    for stored in objects.list(""):
        if not stored.name.startswith(f"wf_1/{broken}/"):
            left.put(stored.name, objects.get(stored.name))
    (page,) = pages(scan_app(store, left), limit=100)
    jobs = [json.loads(job) for job in page.jobs]
    assert [job["id"] for job in jobs] == expected
    assert [job["id"] for job in jobs if "error" in job] == [broken]


def test_an_unavailable_archive_ends_the_page(store: Store, tmp_path: Path) -> None:
    """Earlier matches are returned first. The next page fails, and can be retried."""
    write_job(store, "archived", ["needle"] * 20, None)
    archive_up_to(store, FileObjectStore(tmp_path), JobRef("wf_1", "archived"), 10, trim=True)
    write_job(store, "newer", ["needle"] * 20)
    seen = pages(scan_app(store, None))
    assert [json.loads(job)["id"] for job in next(seen).jobs] == ["newer"]
    with pytest.raises(ArchiveUnavailable):
        next(seen)


class BusyObjects(FileObjectStore):
    """Answers its first reads once four of them are in progress."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.read: list[str] = []

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self.read.append(name)
        wait_until(lambda: len(self.read) >= 4, 20, "four reads are under way")
        return super().get(name, start, stop)


def test_jobs_are_read_ahead_from_a_slow_archive(store: Store, tmp_path: Path) -> None:
    """Only searched ones, once each. Their records are read together."""
    for number in range(20):
        status = Status.COMPLETED if number % 2 else Status.FAILED
        write_job(store, f"job_{number}", [f"needle {number}"], status)
    archive(store, FileObjectStore(tmp_path))
    objects = BusyObjects(tmp_path)
    archived = ArchiveReader(objects, lambda *_: pytest.fail("one record was read"), clock=lambda: 0.0)
    app = ScanApp(store, archived, 65_536, lambda: BEGAN)
    assert found(pages(app, status="FAILED")) == [(f"job_{number}", [1]) for number in range(18, -1, -2)]
    chunks = [store.chunks.chunk(JobRef("wf_1", f"job_{number}"), 1) for number in range(0, 20, 2)]
    assert sorted(objects.read) == sorted(chunk.name for chunk in chunks if chunk)


def test_jobs_are_found_without_their_records_read_together(
    logs: tuple[Store, dict[str, list[Line]]], objects: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while a server of a Cluster goes away."""
    expected = found(pages(scan_app(logs[0], objects)))

    def refuse(_: object) -> None:
        raise StoreUnavailable("the server has gone")

    monkeypatch.setattr(logs[0].chunks, "first_chunks", refuse)
    assert found(pages(scan_app(logs[0], objects))) == expected != []


def test_a_page_can_end_among_deleted_jobs() -> None:
    """The listing can have any number of them. The next page continues after them."""
    times = iter(BEGAN + tick for tick in range(1_000))
    listed = iter(
        ListedJob(float(1_000_000 - number), JobRef("w", f"gone_{number}"), None) for number in range(1_000_000)
    )
    budget = PageBudget(seconds=5.0, clock=lambda: next(times))
    page = read_jobs_page(scan(), listed, lambda *asked: pytest.fail("nothing is searched"), budget)
    assert page.jobs == []
    assert page.position is not None
    assert page.position.job_id == f"gone_{1_000_000 - int(float(page.position.created))}"
    assert next(listed).created_ms > 999_900
    late = read_jobs_page(scan(), listed, lambda *asked: pytest.fail("nothing is searched"), PageBudget(seconds=-1.0))
    assert late.position is not None, "each page passes at least one job"


def test_jobs_of_several_workflows_that_began_together_are_found_once(server: RedisServer, prefix: str) -> None:
    """Wherever a page ends among them."""
    with contextlib.closing(Store(server.url, prefix=prefix, clock=lambda: NOW_SECONDS)) as store:
        refs = [JobRef(workflow_id, job_id) for workflow_id in ("wf_3", "wf_2", "wf_1") for job_id in ("b", "a")]
        for ref in refs:
            write_ended(store, ref, 2, text="needle")
        seen = pages(scan_app(store, None), workflow_id="", prefixes=["wf"], limit=1)
        jobs = [json.loads(job) for page in seen for job in page.jobs]
    assert [JobRef(job["workflow_id"], job["id"]) for job in jobs] == refs


def test_a_search_of_many_workflows_takes_few_round_trips(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page searches many jobs, however long it takes to find the newest jobs of all workflows."""

    def reads() -> int:
        return int(re.findall(rb"total_reads_processed:(\d+)", server.ask("INFO", "stats"))[0])

    count = 600
    server.ask("ZADD", f"{prefix}:workflows", *(each for at in range(count) for each in (at, f"wf_{at}")))
    for at in range(count):
        server.ask("ZADD", f"{prefix}:{{wf_{at}}}:jobs", at, "gone")
    with contextlib.closing(Store(server.url, prefix=prefix)) as store:
        before = reads()
        page = scan_app(store, None, ticks=1.0).read_workflow(scan(workflow_id="", prefixes=["wf"]))
        assert (page.jobs, page.position is None, reads() - before < count / 2) == ([], False, True)
        now, newest = [BEGAN], JobListing.newest

        def slow_newest(*args: Any) -> dict[str, ListingPosition | None]:
            now[0] += 5.0
            return newest(*args)

        monkeypatch.setattr(JobListing, "newest", slow_newest)
        app = ScanApp(store, ArchiveReader(None, store.chunks.chunk), 65_536, lambda: now[0])
        assert app.read_workflow(scan(workflow_id="", prefixes=["wf"])).position is None
