"""New lines are those of a brute-force comparison, in every tier, over any number of pages."""

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.archive.derived import derived_names
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import ArchiveDamaged, JobNotFound, NothingToCompare
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.comparison import COMPARED_JOBS, DerivedReader, read_runs
from chronoverse.history.scans.scan import LineScan
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.entries import Batch
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.shapes import MAX_SHAPES, ShapeHasher, ShapeSet
from chronoverse.store import Store
from tests.support.archivers import archive
from tests.support.archives import archive_up_to
from tests.support.bench import NOW
from tests.support.scans import BEGAN, scan_app, write_job

JOBS: Final = 16


def scan(job_id: str, **fields: Any) -> LineScan:
    """Requests a job's new lines, with other ``fields``."""
    common: dict[str, Any] = {"workflow_id": "wf_1", "job_id": job_id, "position": 0, "limit": 100, "only_new": True}
    asked = LineScan(**({**common, "asked_at": BEGAN, "patience": 5.0} | fields))
    assert LineScan.from_json(asked.to_json()) == asked
    return asked


@functools.cache
def shape_of(message: str) -> str:
    return ShapeHasher().shape(message)


class Logs:
    """Jobs of one workflow in ``store``, and their lines by job, oldest first."""

    def __init__(self, store: Store, objects: FileObjectStore) -> None:
        self.store = store
        self.objects = objects
        self.lines: dict[str, list[Line]] = {}
        self.statuses: dict[str, Status | None] = {}

    def write(self, job_id: str, messages: list[str], status: Status | None = Status.COMPLETED) -> None:
        """Writes a job. With ``status`` None, it keeps running."""
        streams = ("stdout", "stderr")
        lines = [Line(at, NOW, message, streams[at % 3 == 0]) for at, message in enumerate(messages, 1)]
        write_job(self.store, job_id, lines, status)
        self.lines[job_id], self.statuses[job_id] = lines, status

    def app(self, ticks: float = 0.0) -> ScanApp:
        return scan_app(self.store, self.objects, ticks)

    def expected(self, job_id: str, against: str | None = None) -> tuple[list[str], list[Line]]:
        """The result of a brute-force comparison: the jobs to compare with, and the new lines."""
        before = list(self.lines)[: list(self.lines).index(job_id)][::-1]
        good = [each for each in before if self.statuses[each] is Status.COMPLETED][:COMPARED_JOBS]
        others = good if against is None else [against]
        known = {shape_of(line.message) for each in others for line in self.lines[each]}
        return others, [line for line in self.lines[job_id] if shape_of(line.message) not in known]


@pytest.fixture
def logs(store: Store, tmp_path: Path) -> Logs:
    """No jobs yet."""
    return Logs(store, FileObjectStore(tmp_path))


@pytest.fixture
def many(logs: Logs) -> Logs:
    """Archived, partly archived and running jobs. Their lines have a few dozen shapes."""
    choice = random.Random(7)
    words = ["start", "stop", "read", "write", "open", "close", "error", "retry", "sync"]
    for number in range(JOBS):
        status = choice.choice((Status.COMPLETED, Status.COMPLETED, Status.FAILED, None))
        texts = [
            f"{choice.choice(words)} {choice.choice(words)} took {choice.randrange(9999)} ms"
            for _ in range(choice.choice((0, 3, 40)))
        ]
        logs.write(f"job_{number}", texts, status)
        if number == JOBS // 2:
            archive(logs.store, logs.objects)
    for job_id, lines in logs.lines.items():
        job = logs.store.get_job(JobRef("wf_1", job_id))
        if job and not job.archived and len(lines) > 3 and choice.random() < 0.7:
            archive_up_to(logs.store, logs.objects, job.ref, len(lines) // 2, trim=choice.random() < 0.5)
    return logs


def read_all(app: ScanApp, job_id: str, **fields: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The jobs that a job is compared with, and the lines of all pages."""
    position, lines = fields.pop("position", 10**9 if fields.get("descending") else 0), []
    for _ in range(2_000):
        # A scan that has waited gets no turn. Here the clock advances constantly.
        page = app.read(scan(job_id, **{"patience": 1e9, "position": position} | fields))
        lines += [json.loads(line) for line in page.lines]
        position = page.position
        if not page.has_more:
            return [*page.compared_with], lines
    raise AssertionError("no last page")


def check(logs: Logs, app: ScanApp, job_id: str, against: str | None = None, **fields: Any) -> None:
    """Compares the application's result with a brute-force comparison."""
    others, lines = logs.expected(job_id, against)
    if not others:
        with pytest.raises(NothingToCompare, match="COMPLETED"):
            app.read(scan(job_id, patience=1e9))
        return
    found = [line.to_json() for line in (lines[::-1] if fields.get("descending") else lines)]
    assert read_all(app, job_id, against=against, **fields) == (others, found)


@pytest.mark.parametrize("ticks", [0.15, 0.0, 0.6])
@pytest.mark.parametrize("descending", [False, True])
def test_new_lines_are_those_of_a_brute_force_comparison(many: Logs, ticks: float, descending: bool) -> None:
    """Whatever is archived, and even if each request only has time to read a part of the runs."""
    app = many.app(ticks)
    for job_id in many.lines:
        check(many, app, job_id, descending=descending, limit=3 if ticks else 100)


def test_any_job_can_be_named(many: Logs) -> None:
    """It can be running, failed, or newer. Compared with itself, a job has no new lines."""
    app = many.app()
    for against in many.lines:
        check(many, app, "job_9", against)
    assert many.expected("job_9", "job_9")[1] == []


def test_a_running_job_grows(logs: Logs) -> None:
    """On either side of the comparison. Later lines are included."""
    logs.write("good", ["one 1", "two 2"])
    app = logs.app()
    attempt = logs.store.open(JobRef("wf_1", "runs"), "token")
    for number, message in enumerate(["one 7", "three 3", "two 1", "four 4"], 1):
        logs.store.append(attempt, [Line(number, NOW, message, "stdout")])
        seen = [line["sequence_num"] for line in read_all(app, "runs")[1]]
        assert seen == [each for each in (2, 4) if each <= number]
        assert [line["message"] for line in read_all(app, "good", against="runs")[1]] == (
            ["two 2"] if number < 3 else []
        )


@pytest.mark.parametrize("has_set", [True, False])
def test_a_redaction_reaches_the_comparison(logs: Logs, has_set: bool) -> None:
    """Cached shapes are dropped, whether or not the archiver has written a set, or a new one."""
    logs.write("good", ["started 1", "password is hunter"])
    good = JobRef("wf_1", "good")
    archive(logs.store, logs.objects) if has_set else archive_up_to(logs.store, logs.objects, good, 2)
    logs.write("later", ["started 2", "password is hunter", "[redacted]"])
    app = logs.app()
    check(logs, app, "later")
    Redaction(logs.store, logs.objects, good, RedactionRequest(2, 2, lambda line: True, {}, True)).run()
    logs.lines["good"][1] = logs.lines["good"][1]._replace(message="[redacted]")
    for each in (app, logs.app()):
        check(logs, each, "later")
    if has_set:
        archive(logs.store, logs.objects)
        for each in (app, logs.app()):
            check(logs, each, "later")
    assert [line.message for line in logs.expected("later")[1]] == ["password is hunter"]


def test_lines_that_a_running_job_has_dropped_leave_the_comparison(logs: Logs, server: Any, prefix: str) -> None:
    logs.write("runs", ["one 1", "two 2", "three 3"], None)
    logs.write("later", ["one 7", "two 7"])
    app = logs.app()
    check(logs, app, "later", "runs")
    server.ask("XTRIM", f"{prefix}:{{wf_1}}:runs:log", "MINID", "2-0")
    del logs.lines["runs"][0]
    check(logs, app, "later", "runs")


def test_a_deletion_reaches_the_comparison(logs: Logs) -> None:
    """An older run replaces the deleted one. A new job with the same id is not mistaken for the old one."""
    for number in range(COMPARED_JOBS + 2):
        logs.write(f"good_{number}", ["common 1", f"only {chr(97 + number)}"])
    archive(logs.store, logs.objects)
    logs.write("later", [f"only {chr(97 + number)}" for number in range(COMPARED_JOBS + 2)])
    app = logs.app()
    check(logs, app, "later")
    delete_job(logs.store, logs.objects, JobRef("wf_1", "good_5"))
    del logs.lines["good_5"]
    check(logs, app, "later")
    assert [line.message for line in logs.expected("later")[1]] == ["only a", "only f"]
    with pytest.raises(JobNotFound):
        app.read(scan("later", against="good_5"))
    logs.write("good_5", ["only g"])
    check(logs, app, "later", "good_5")


def test_a_set_is_read_instead_of_the_log(logs: Logs) -> None:
    """Even if the archived run's chunks are gone."""
    logs.write("good", ["one 1", "two 2"])
    archive(logs.store, logs.objects, hot_seconds=0)
    logs.write("later", ["one 2", "three 3"])
    for stored in list(logs.objects.list("wf_1/good/")):
        if stored.name.endswith(".zst"):
            logs.objects.delete(stored.name)
    check(logs, logs.app(), "later")


def test_context_and_stream(logs: Logs) -> None:
    """Context lines are marked. New lines among them appear again as new lines."""
    logs.write("good", ["common 1"])
    logs.write("later", ["common 1", "new a", "common 2", "common 3", "new b", "new c", "common 4"])
    app = logs.app()
    _, lines = read_all(app, "later", before=1, after=1)
    assert [(line["sequence_num"], line.get("context", False)) for line in lines] == [
        (1, True), (2, False), (3, True), (4, True), (5, False), (6, False), (7, True),
    ]  # fmt: skip
    assert "highlights" not in lines[0]
    assert [line["sequence_num"] for line in read_all(app, "later", stream="stderr")[1]] == [6]
    assert [line["sequence_num"] for line in read_all(app, "later", position=2)[1]] == [5, 6]


@pytest.mark.parametrize(("error", "reason"), [(NothingToCompare, "100,000"), (ArchiveDamaged, "lacks wf_1")])
def test_an_unusable_run_is_skipped_unless_it_is_named(logs: Logs, error: type[Exception], reason: str) -> None:
    """The log is compared with the other runs."""
    logs.write("unusable", ["common 1"])
    archive(logs.store, logs.objects, hot_seconds=0)
    logs.write("good", ["common 1"])
    logs.write("later", ["common 1", "new"])
    if error is ArchiveDamaged:
        for stored in list(logs.objects.list("wf_1/unusable/")):
            logs.objects.delete(stored.name)
    else:
        full, ref = ShapeSet(), JobRef("wf_1", "unusable")
        full.add(*[range(1, MAX_SHAPES + 2)] * 2)
        sha256 = combined_sha256(logs.store.chunks.chunks(ref))
        logs.objects.put(derived_names(ref, sha256)[0], full.to_bytes())
    app = logs.app()
    assert read_all(app, "later")[0] == ["good"]
    with pytest.raises(error, match=reason):
        app.read(scan("later", against="unusable"))


def test_cached_shapes_are_bounded(logs: Logs) -> None:
    """The most recently used sets of shapes stay in the cache."""
    reads: list[str] = []

    def read(job: Job, position: int, **options: Any) -> Iterator[Batch]:
        reads.append(job.ref.job_id)
        lines = [Line(number, NOW, "x" * number, "stdout") for number in range(1, 4)]
        yield Batch([*lines], 3, True)

    runs = DerivedReader(ArchiveReader(), read, ShapeHasher(), max_size=12)
    for job_id in ("a", "b", "a", "c", "a", "b"):
        found = runs.shapes(Job(JobRef("wf_1", job_id), Status.COMPLETED, last=3), PageBudget())
        assert found is not None
        assert len(found.hashes) == 3
    assert reads == ["a", "b", "c", "b"]


def test_a_partly_read_run_makes_no_line_new() -> None:
    """Lines are compared once all runs are read. Requests with little time read one batch each."""

    def read(job: Job, position: int, **options: Any) -> Iterator[Batch]:
        for number in range(position + 1, 4):
            yield Batch([Line(number, NOW, "x" * number, "stdout")], number, number == 3)

    jobs = [Job(JobRef("wf_1", job_id), Status.COMPLETED, last=3) for job_id in ("a", "b")]
    runs = DerivedReader(ArchiveReader(), read, ShapeHasher())
    found = [read_runs(jobs[0], jobs, is_named=False, runs=runs, budget=PageBudget(seconds=-1)) for _ in range(5)]
    assert found == [*[(None, ["a", "b"])] * 4, ({*ShapeHasher().hashes(["x", "xx", "xxx"])}, ["a", "b"])]


def test_a_job_without_earlier_good_runs_has_nothing_to_compare_with(logs: Logs) -> None:
    """Neither failed nor later runs are used."""
    logs.write("failed", ["one"], Status.FAILED)
    logs.write("this", ["one"], Status.FAILED)
    logs.write("good", ["one"])
    app = logs.app()
    with pytest.raises(NothingToCompare, match="before this"):
        app.read(scan("this"))
    with pytest.raises(JobNotFound):
        app.read(scan("unknown"))
