"""Earlier runs with a line: the same result as reading every log, wherever the logs and their shapes are."""

import functools
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse.archive.derived import derived_names
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import SHAPES_BYTES, ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.cli.summary import summary_text
from chronoverse.errors import JobNotFound
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.comparison import DerivedReader
from chronoverse.history.scans.past_runs import PastRunReader
from chronoverse.history.scans.scan import HistoryScan, SummaryScan
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.model import End, Job, JobRef, Status
from chronoverse.joblog.shapes import MAX_SHAPES, ShapeHasher, ShapeSet
from chronoverse.store import Store
from chronoverse.store.listing import ListedJob
from tests.support.archivers import archive
from tests.support.scans import BEGAN, scan_app, write_job

ENDS: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.LOST)


@functools.cache
def shape_of(message: str) -> str:
    return ShapeHasher().shape(message)


class Workflow:
    """Jobs of one workflow in ``store``, oldest first: the status and messages of each by id."""

    def __init__(self, store: Store, objects: FileObjectStore) -> None:
        self.store = store
        self.objects = objects
        self.jobs: dict[str, tuple[Status | None, list[str]]] = {}

    def write(
        self, job_id: str, messages: list[str], status: Status | None = Status.COMPLETED, branch: str | None = None
    ) -> None:
        """Writes a job. With ``status`` None, it keeps running."""
        write_job(self.store, job_id, messages, status, (("branch", branch),) if branch else ())
        self.jobs[job_id] = status, messages

    def app(self, ticks: float = 0.0) -> ScanApp:
        return scan_app(self.store, self.objects, ticks)

    def set_name(self, job_id: str) -> str:
        """The name of the job's set of shapes."""
        ref = JobRef("wf_1", job_id)
        return derived_names(ref, combined_sha256(self.store.chunks.chunks(ref)))[0]

    def expected(self, job_id: str, line: int, jobs: int) -> dict[str, Any]:
        """The result of reading every log."""
        shape = shape_of(self.jobs[job_id][1][line - 1])
        ids = [*self.jobs][: [*self.jobs].index(job_id) + 1][::-1]
        ended = [each for each in ids if self.jobs[each][0] is not None][:jobs]
        places = [
            (each, [shape_of(text) for text in self.jobs[each][1]].index(shape) + 1)
            for each in ended
            if any(shape_of(text) == shape for text in self.jobs[each][1])
        ]

        def count(ids: list[str]) -> dict[str, int]:
            return {status: sum(self.jobs[each][0] is status for each in ids) for status in ENDS}

        return {
            "looked_at": {**count(ended), "without_shapes": 0},
            "seen": count([each for each, _ in places]),
            "places": places,
        }


@pytest.fixture
def workflow(store: Store, tmp_path: Path) -> Workflow:
    """No jobs yet."""
    return Workflow(store, FileObjectStore(tmp_path))


def ask(app: ScanApp, job_id: str, line: int, jobs: int = 200, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    common: dict[str, Any] = {"workflow_id": "wf_1", "job_id": job_id, "asked_at": BEGAN, "patience": 1e9}
    scan = HistoryScan(line=line, jobs=jobs, **(common | fields))
    return app.read_history(HistoryScan.from_json(scan.to_json()))


def check(workflow: Workflow, app: ScanApp, job_id: str, line: int, jobs: int = 200) -> None:
    """Compares the sum of all pages with the result of reading every log."""
    expected = workflow.expected(job_id, line, jobs)
    counts: dict[str, dict[str, int]] = {"looked_at": {}, "seen": {}}
    places: list[tuple[str, int]] = []
    oldest: tuple[str, int] | None = None
    start, left = None, jobs
    while True:
        head, found = ask(app, job_id, line, left, start=start)
        for name, total in counts.items():
            counts[name] = {key: total.get(key, 0) + value for key, value in found[name].items()}
        page = [(place["id"], place["sequence_num"]) for place in found["jobs"]]
        places += page
        if page:
            assert found["last"]["id"] == page[0][0]
            oldest = found["first"]["id"], found["first"]["sequence_num"]
        left -= head["looked_at"]
        start = head["position"]
        if start is None:
            break
    assert counts == {name: expected[name] for name in counts}
    # A page lists up to 20 jobs.
    assert set(places) <= set(expected["places"])
    assert places[:20] == expected["places"][:20]
    assert oldest == (expected["places"][-1] if expected["places"] else None)


def test_it_is_the_result_of_reading_every_log(workflow: Workflow) -> None:
    """Whatever is archived, over any number of pages. Running jobs are not counted."""
    choice = random.Random(5)
    words = ["start", "stop", "read", "write", "open", "close", "error", "retry", "sync"]
    for number in range(40):
        status = choice.choice((*ENDS, None))
        texts = [f"{choice.choice(words)} {choice.choice(words)} took {choice.randrange(9999)} ms" for _ in range(9)]
        workflow.write(f"job_{number}", texts[: choice.choice((1, 9))], status)
        if number == 28:
            archive(workflow.store, workflow.objects)
    for ticks, jobs in ((0.0, 200), (0.0, 7), (0.7, 200)):
        if ticks:
            # Without time, unarchived logs are not read.
            archive(workflow.store, workflow.objects)
        app = workflow.app(ticks)
        for job_id in ("job_39", "job_30", "job_3", "job_0"):
            check(workflow, app, job_id, len(workflow.jobs[job_id][1]), jobs)
    # Its page ends with the listing, even after the time limit.
    assert ask(workflow.app(0.7), "job_3", 1)[0]["position"] is None


def test_no_more_runs_are_read_than_requested() -> None:
    """The listing is read in parts. Here no run's shapes are known."""

    def listed(number: int) -> ListedJob:
        job = Job(JobRef("wf_1", f"job_{number}"), Status.FAILED, archive_sha256="x")
        return ListedJob(float(number), job.ref, job.ended(End(1, Status.FAILED, 1, 0, 0, None)))

    archive = ArchiveReader()
    with ThreadPoolExecutor(1) as pool:
        reader = PastRunReader(archive, DerivedReader(archive, lambda *_: iter(()), ShapeHasher()), pool)
        past, position = reader.read(map(listed, range(120)), 60, PageBudget(), PageBudget(), lambda job: True, [1])
    assert ([run.job.ref.job_id for run in past.runs], position) == ([f"job_{each}" for each in range(60)], None)


def test_only_jobs_with_the_labels_are_counted(workflow: Workflow) -> None:
    """They must have all of them, including the job itself."""
    for number, branch in enumerate(("main", "other", "main", "other")):
        write_job(workflow.store, f"job_{number}", ["a line"], labels=(("branch", branch), ("step", "test")))
    labels = [["branch", "main"], ["step", "test"]]
    _, found = ask(workflow.app(), "job_3", 1, labels=labels)
    assert [place["id"] for place in found["jobs"]] == ["job_2", "job_0"]
    assert found["looked_at"]["COMPLETED"] == 2
    assert ask(workflow.app(), "job_3", 1, labels=[["branch", "none"]])[1]["first"] is None


def test_a_missing_line_is_not_found(workflow: Workflow) -> None:
    """Nor is a line of a missing job."""
    workflow.write("job", ["one"])
    for job_id, line in (("job", 2), ("job", 10**14), ("other", 1)):
        with pytest.raises(JobNotFound):
            ask(workflow.app(), job_id, line)


def test_any_line_has_a_shape(workflow: Workflow) -> None:
    """A long one, a colored one, and one with only placeholders."""
    texts = ["word " * 13_000, "\x1b[31mred\x1b[0m 7", "12 2026-01-01 0xff", ""]
    workflow.write("before", texts)
    workflow.write("job", texts)
    archive(workflow.store, workflow.objects)
    for line in range(1, 5):
        check(workflow, workflow.app(), "job", line)
    assert ask(workflow.app(), "job", 2)[0]["shape"] == "red #"
    assert ask(workflow.app(), "job", 3)[0]["shape"] == "#"


def test_jobs_without_shapes_are_counted(workflow: Workflow) -> None:
    """Their set is missing, damaged, or from a later version."""
    for name in ("missing", "damaged", "later", "good"):
        workflow.write(name, ["one 1", "two"])
    archive(workflow.store, workflow.objects)
    workflow.objects.delete(workflow.set_name("missing"))
    data = workflow.objects.get(workflow.set_name("damaged"))
    workflow.objects.put(workflow.set_name("damaged"), data[:-1] + b"x")
    workflow.objects.put(workflow.set_name("later").replace("/shapes2-", "/shapes9-"), data)
    workflow.objects.delete(workflow.set_name("later"))
    workflow.write("last", ["one 2"], Status.FAILED)
    _, found = ask(workflow.app(), "last", 1)
    assert found["looked_at"] == {"COMPLETED": 1, "FAILED": 1, "CANCELED": 0, "LOST": 0, "without_shapes": 3}
    assert found["seen"] == {"COMPLETED": 1, "FAILED": 1, "CANCELED": 0, "LOST": 0}


def test_a_redaction_and_a_deletion_reach_all_counts(workflow: Workflow) -> None:
    """Also in a process that has already read the shapes."""
    for number in range(3):
        workflow.write(f"job_{number}", ["started", "password is hunter", "done"], Status.FAILED)
    archive(workflow.store, workflow.objects)
    app = workflow.app()
    check(workflow, app, "job_2", 2)
    request = RedactionRequest(2, 2, lambda line: True, {}, True)
    Redaction(workflow.store, workflow.objects, JobRef("wf_1", "job_1"), request).run()
    workflow.jobs["job_1"] = Status.FAILED, ["started", "[redacted]", "done"]
    for _ in range(2):
        check(workflow, app, "job_2", 2)
        assert ask(app, "job_1", 2)[0]["shape"] == "[redacted]"
        archive(workflow.store, workflow.objects)
    delete_job(workflow.store, workflow.objects, JobRef("wf_1", "job_0"))
    del workflow.jobs["job_0"]
    check(workflow, app, "job_2", 2)
    check(workflow, app, "job_2", 1)


def summarize(workflow: Workflow, job_id: str, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"asked_at": BEGAN, "patience": 5.0, "page_bytes": 16_384, **more}
    scan = SummaryScan.from_json(SummaryScan(workflow_id="wf_1", job_id=job_id, **fields).to_json())
    found: dict[str, Any] = orjson.loads(workflow.app().read_summary(scan))
    return found


def test_a_summary_has_earlier_occurrences_and_the_verdict(workflow: Workflow) -> None:
    """For a long line, its whole shape, though only its beginning is shown."""
    long = "error: " + "word " * 900
    workflow.write("good_1", ["started 1", f"{long}one"])
    workflow.write("bad_1", ["started 2", f"{long}two", "error: disk"], Status.FAILED)
    workflow.write("good_2", ["started 3"])
    workflow.write("bad_2", ["started 4", "error: disk", "line", "x", "y", f"{long}two"], Status.FAILED)
    archive(workflow.store, workflow.objects)
    summary = summarize(workflow, "bad_2")
    seen = {line["message"][:11]: line["seen"] for line in summary["errors"]["first"]}
    job = workflow.store.get_job(JobRef("wf_1", "bad_1"))
    first = {"first_id": "bad_1", "first_started_at": job and job.started_at, "looked_at": 4}
    assert seen == {
        "error: disk": {"COMPLETED": 0, "FAILED": 2, **first, "first_sequence_num": 3},
        "error: word": {"COMPLETED": 0, "FAILED": 2, **first, "first_sequence_num": 2},
    }
    assert all("seen" in line for line in summary["new"]["first"])
    assert summary["cause"]["line"]["message"] == "error: disk"
    assert summary["verdict"] == {"kind": "recurring", "id": None}


def test_a_good_run_of_another_branch_does_not_end_a_series(workflow: Workflow) -> None:
    """By default, and with the label. With ``*`` (no labels), all runs are used."""
    for number in range(3):
        workflow.write(f"good_{number}", ["started"], branch="main")
    workflow.write("bad_1", ["started", "error: disk"], Status.FAILED, "main")
    workflow.write("topic", ["started"], branch="topic")
    workflow.write("bad_2", ["started", "error: disk"], Status.FAILED, "main")
    of_main = {"label": "branch=main"}
    for labels in (None, [["branch", "main"]]):
        summary = summarize(workflow, "bad_2", labels=labels)
        assert (summary["baseline"], summary["verdict"]) == (of_main, {"kind": "since", "id": "bad_1"})
        assert summary["compared_with"] == ["good_2", "good_1", "good_0"]
        assert summary["cause"]["line"]["seen"]["looked_at"] == 5
    summary = summarize(workflow, "bad_2", labels=[])
    assert (summary["baseline"], summary["verdict"]) == (None, {"kind": "recurring", "id": None})
    assert summary["compared_with"] == ["topic", "good_2", "good_1", "good_0"]


def test_a_branch_with_few_good_runs_is_compared_with_the_default_branch(workflow: Workflow) -> None:
    """If it also has few good runs there, a job is compared with all. So is one without a branch."""
    for number in range(2):
        workflow.write(f"main_{number}", ["started"], branch="main")
    workflow.write("topic_0", ["started", "odd"], branch="topic")
    workflow.write("bad_0", ["started", "error: disk"], Status.FAILED, "topic")
    summary = summarize(workflow, "bad_0")
    assert (summary["baseline"], summary["compared_with"]) == (None, ["topic_0", "main_1", "main_0"])
    workflow.write("main_2", ["started"], branch="main")
    workflow.write("bad_1", ["started", "error: disk"], Status.FAILED, "topic")
    summary = summarize(workflow, "bad_1")
    assert (summary["baseline"], summary["compared_with"]) == ({"label": "branch=main"}, ["main_2", "main_1", "main_0"])
    # Its own runs come first, and good runs of the default branch do not end their series.
    assert summary["verdict"] == {"kind": "since", "id": "bad_0"}
    workflow.write("main_3", ["started", "error: net"], Status.FAILED, "main")
    workflow.write("bad_net", ["started", "error: net"], Status.FAILED, "topic_2")
    assert summarize(workflow, "bad_net")["verdict"] == {"kind": "since", "id": "main_3"}
    for number in range(1, 3):
        workflow.write(f"topic_{number}", ["started"], branch="topic")
    workflow.write("bad_2", ["started", "odd"], Status.FAILED, "topic")
    summary = summarize(workflow, "bad_2")
    assert (summary["baseline"], summary["new"]["count"]) == ({"label": "branch=topic"}, 0)
    workflow.write("bad_3", ["started"], Status.FAILED)
    assert summarize(workflow, "bad_3")["baseline"] is None


def test_a_verdict_left_open_by_a_damaged_set_is_marked(workflow: Workflow) -> None:
    """The failure may have occurred before. The summary says how many jobs were unreadable."""
    workflow.write("good", ["started 1"])
    workflow.write("bad", ["started 2", "error: disk"], Status.FAILED)
    archive(workflow.store, workflow.objects)
    said = "Unknown whether it is new: 1 run could not be read."
    assert summarize(workflow, "bad")["verdict"] == {"kind": "new", "id": None}
    workflow.objects.put(workflow.set_name("good"), b"damaged")
    summary = summarize(workflow, "bad")
    assert (summary["verdict"], summary["cause"]["line"]["seen"]["without_shapes"]) == (None, 1)
    assert said in list(summary_text(summary))


@pytest.mark.long
def test_large_sets_of_shapes_are_not_held_all_at_once(workflow: Workflow) -> None:
    """For a history or a summary, only the cache, the sets being read, and the result are in memory."""
    shapes = ShapeSet()
    (shape,) = ShapeHasher().hashes(["error: disk"])
    shapes.add([shape, *range(2**40, 2**40 + MAX_SHAPES - 1)], range(1, MAX_SHAPES + 1))
    data = shapes.to_bytes()
    del shapes
    runs = SHAPES_BYTES // len(data) + 30
    for number in range(runs):
        workflow.write(f"job_{number}", ["error: disk"], Status.FAILED)
    archive(workflow.store, workflow.objects)
    for number in range(runs):
        workflow.objects.put(workflow.set_name(f"job_{number}"), data)
    last = f"job_{runs - 1}"
    common: dict[str, Any] = {"workflow_id": "wf_1", "job_id": last, "asked_at": BEGAN, "patience": 5.0}
    app = workflow.app()
    tracemalloc.start()
    try:
        _, found = ask(app, last, 1, 1_000)
        summary = orjson.loads(app.read_summary(SummaryScan(page_bytes=16_384, **common)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["seen"]["FAILED"] == summary["cause"]["line"]["seen"]["FAILED"] == runs
    assert summary["verdict"] == {"kind": "since", "id": "job_0"}
    # Eight sets are read at a time, each into up to two buffers.
    assert peak < SHAPES_BYTES + 20 * len(data)
