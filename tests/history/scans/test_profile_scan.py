"""Where a job's time went: the same wherever the logs are, with unknown parts marked."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import JobNotFound
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import ProfileScan, SummaryScan
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.support.archivers import archive
from tests.support.scans import write_job

#: The application's monotonic time.
NOW: Final = 1000.0
#: The Unix time at which every job begins: in the future, so no time passes between a job's last line and its end.
BEGAN: Final = round(time.time()) + 3_600.0
MESSAGES: Final = ("started", "collected 12 items", "test 1 passed", "test 2 passed", "test 3 passed", "done")


class Workflow:
    """Jobs of one workflow. Each begins at :data:`BEGAN`."""

    def __init__(self, store: Store, objects: FileObjectStore) -> None:
        self.store = store
        self.objects = objects

    def write(
        self,
        job_id: str,
        pauses: Sequence[float],
        status: Status | None = Status.COMPLETED,
        *,
        messages: Sequence[str] = MESSAGES,
        labels: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Writes a job with these pauses before its lines. With ``status`` None, it keeps running."""
        stamps = [iso_timestamp(BEGAN + seconds) for seconds in itertools.accumulate(pauses)]
        numbered = enumerate(zip(stamps, messages, strict=False), 1)
        write_job(self.store, job_id, [Line(at, *each, "stdout") for at, each in numbered], status, labels)

    def app(self, clock: Callable[[], float] = lambda: NOW, after: float = 0.0) -> ScanApp:
        """The application. By its Unix clock, all jobs began ``after`` seconds ago."""
        reader = ArchiveReader(self.objects, self.store.chunks.chunk)
        return ScanApp(self.store, reader, 65_536, clock, unix_clock=lambda: BEGAN + after)


@pytest.fixture
def workflow(store: Store, tmp_path: Path) -> Workflow:
    """No jobs yet."""
    return Workflow(store, FileObjectStore(tmp_path))


def profile(app: ScanApp, job_id: str, **fields: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"workflow_id": "wf_1", "job_id": job_id, "asked_at": NOW, "patience": 1e9}
    scan = ProfileScan(**(common | fields))
    found: dict[str, Any] = orjson.loads(app.read_profile(ProfileScan.from_json(scan.to_json())))
    return found


def summary(app: ScanApp, job_id: str) -> dict[str, Any]:
    scan = SummaryScan(workflow_id="wf_1", job_id=job_id, asked_at=NOW, patience=1e9, page_bytes=16_384)
    found: dict[str, Any] = orjson.loads(app.read_summary(scan))
    return found


def numbers(pauses: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """The numbers of the lines around each pause."""
    return [(pause["after"]["sequence_num"], pause["before"]["sequence_num"]) for pause in pauses]


@pytest.mark.parametrize("archived", ["none", "the good runs", "all"])
def test_the_planted_pause_comes_first(workflow: Workflow, archived: str) -> None:
    """Wherever the logs are. A summary has the first three."""
    for run in range(5):
        workflow.write(f"good_{run}", [0, 0.5, 0.1 + run / 100, 0.1, 0.1, 2])
    if archived == "the good runs":
        archive(workflow.store, workflow.objects, hot_seconds=0)
    workflow.write("slow", [0, 0.5, 0.1, 3.15, 0.1, 2.02], Status.FAILED)
    workflow.write("later", [0, 0.5, 9, 9, 9, 2])
    if archived == "all":
        archive(workflow.store, workflow.objects, hot_seconds=0)
    app = workflow.app()
    found = profile(app, "slow")
    assert [*found] == [
        *("job", "compared_with", "seconds", "usual", "slower", "pauses", "running"),
        *("complete", "scanned_to", "truncated", "strip"),
    ]
    assert found["job"]["status"] == "FAILED"
    assert found["compared_with"] == [f"good_{run}" for run in range(4, -1, -1)]
    assert (found["seconds"], found["usual"]) == (5.87, {"least": 2.8, "median": 2.82, "most": 2.84})
    assert numbers(found["slower"]) == [(3, 4)]
    (slower,) = found["slower"]
    assert [*slower] == ["after", "before", "seconds", "usual", "excess"]
    stamp = iso_timestamp(BEGAN + 0.6)
    assert slower["after"] == {"timestamp": stamp, "message": MESSAGES[2], "sequence_num": 3, "stream": "stdout"}
    assert (slower["seconds"], slower["excess"]) == (3.15, 3.05)
    assert slower["usual"] == {"least": 0.1, "median": 0.1, "most": 0.1}
    assert numbers(found["pauses"]) == [(3, 4), (5, 6), (1, 2), *[(2, 3), (4, 5)]]
    assert found["running"] is None
    assert (found["complete"], found["scanned_to"], found["truncated"]) == (True, 6, False)
    assert (found["strip"][0], found["strip"][-1]) == ([0, 1], [5.87, 6])
    short = summary(app, "slow")
    assert ([*short][-1], short["slower"]) == ("slower", found["slower"][:3])
    assert profile(app, "good_2")["slower"] == summary(app, "good_2")["slower"] == []


def test_a_job_without_good_runs(workflow: Workflow) -> None:
    """Its pauses are known, but none is called slower."""
    workflow.write("bad", [0, 1, 5], Status.FAILED)
    workflow.write("first", [0, 1, 5])
    found = profile(workflow.app(), "first")
    assert (found["compared_with"], found["usual"], found["slower"]) == (None, None, [])
    assert numbers(found["pauses"]) == [(2, 3), (1, 2)]
    assert [(pause["seconds"], pause["usual"], pause["excess"]) for pause in found["pauses"]] == [
        (5, None, None),
        (1, None, None),
    ]
    assert summary(workflow.app(), "first")["slower"] == []
    with pytest.raises(JobNotFound):
        profile(workflow.app(), "none")


def test_only_good_runs_with_the_labels_are_compared(workflow: Workflow) -> None:
    """They must have all of them. Runs that cannot be read are left out."""
    workflow.write("unreadable", [0, 1, 9], labels=(("branch", "main"),))
    archive(workflow.store, workflow.objects, hot_seconds=0)
    for stored in list(workflow.objects.list("wf_1/unreadable/")):
        workflow.objects.delete(stored.name)
    workflow.write("main", [0, 1, 1], labels=(("branch", "main"),))
    workflow.write("other", [0, 1, 9], labels=(("branch", "other"),))
    workflow.write("deleted", [0, 1, 9], labels=(("branch", "main"),))
    workflow.write("this", [0, 1, 9])
    delete_job(workflow.store, workflow.objects, JobRef("wf_1", "deleted"))
    assert profile(workflow.app(), "this")["slower"] == []
    found = profile(workflow.app(), "this", labels=[["branch", "main"]])
    assert (found["compared_with"], numbers(found["slower"])) == (["main"], [(2, 3)])


@pytest.mark.parametrize("is_archived", [False, True])
def test_few_lines_and_odd_clocks(workflow: Workflow, is_archived: bool) -> None:
    """A time that goes back is not a pause. Jobs with one line or none have no pauses."""
    workflow.write("back", [0, 5, -30, 1], messages=MESSAGES)
    workflow.write("one", [0], messages=["only"])
    workflow.write("empty", [])
    if is_archived:
        archive(workflow.store, workflow.objects, hot_seconds=0)
    app = workflow.app()
    found = profile(app, "back")
    assert (found["seconds"], numbers(found["pauses"])) == (6, [(1, 2), (3, 4)])
    for job_id, count in (("one", 1), ("empty", 0)):
        found = profile(app, job_id)
        assert (found["seconds"], found["slower"], found["pauses"]) == (0, [], [])
        assert (found["complete"], found["scanned_to"]) == (True, count)
        assert found["strip"] == [[0, 1]] * count


def test_a_redacted_line_and_a_gap(workflow: Workflow) -> None:
    """The line's text is gone, but its pause is kept. The silence after a gap is unknown."""
    workflow.write("good", [0, 1, 1, 1, 1, 1])
    attempt = workflow.store.open(JobRef("wf_1", "this"), "token")
    stamps = [iso_timestamp(BEGAN + seconds) for seconds in (0, 1, 9, 10, 60, 61)]
    lines = [Line(at, stamp, MESSAGES[at - 1], "stdout") for at, stamp in enumerate(stamps, 1)]
    workflow.store.append(attempt, lines[:3])
    workflow.store.append_lost(attempt, 4, 4)
    workflow.store.append(attempt, lines[4:])
    workflow.store.finish(attempt, Status.COMPLETED, 0, 0, 7)
    app = workflow.app()
    hot = profile(app, "this")
    for _ in range(2):
        found = profile(app, "this")
        assert found["slower"] == hot["slower"]
        assert numbers(found["slower"]) == [(2, 3)]
        archive(workflow.store, workflow.objects, hot_seconds=0)
    request = RedactionRequest(3, 3, lambda line: True, {}, exact=True)
    Redaction(workflow.store, workflow.objects, JobRef("wf_1", "this"), request).run()
    # A process can use an archived chunk's record for another second.
    app = workflow.app()
    for _ in range(2):
        found = profile(app, "this")
        assert MESSAGES[2] not in str(found)
        assert [pause["seconds"] for pause in found["pauses"] if pause["before"]["message"] == "[redacted]"] == [8]
        archive(workflow.store, workflow.objects, hot_seconds=0)


def test_without_time_the_same_request_continues(workflow: Workflow) -> None:
    """It says how far it got, and nothing that is still unknown."""
    messages = [f"line {number}" for number in range(3_000)]
    workflow.write("good", [0.01] * 3_000, messages=messages)
    workflow.write("this", [0.01] * 2_000 + [5.0] + [0.01] * 999, messages=messages)
    ticks = itertools.count()
    app = workflow.app(lambda: NOW + 0.4 * next(ticks))
    assert summary(app, "this")["slower"] is None
    asked = [found := profile(app, "this")]
    while not found["complete"]:
        assert (found["usual"], found["slower"]) == (None, [])
        assert found["compared_with"] == ["good"]
        asked.append(found := profile(app, "this"))
    reached = [each["scanned_to"] for each in asked]
    assert reached == sorted(reached)
    assert (0 < reached[0] < 3_000, reached[-1]) == (True, 3_000)
    assert numbers(found["slower"]) == [(2_000, 2_001)]


def test_one_partly_read_good_run_is_not_a_comparison(workflow: Workflow) -> None:
    """The next one is archived, so all of it is known. The job itself is short."""
    workflow.write("archived", [0, 1, 1])
    archive(workflow.store, workflow.objects, hot_seconds=0)
    workflow.write("long", [0.01] * 3_000, messages=[f"line {number}" for number in range(3_000)])
    workflow.write("this", [0, 1, 9])
    ticks = itertools.count()
    app = workflow.app(lambda: NOW + 0.4 * next(ticks))
    found = profile(app, "this")
    assert (found["complete"], found["scanned_to"], found["compared_with"]) == (False, 3, ["long", "archived"])
    assert (found["usual"], found["slower"]) == (None, [])
    while not found["complete"]:
        found = profile(app, "this")
    assert found["usual"] is not None


def test_a_running_job(workflow: Workflow) -> None:
    """Its silence, the usual silence at this point, and the remaining time, for which two good runs are too few."""
    for run in range(3):
        workflow.write(f"good_{run}", [0, 1, 1, 10 + run, 1, 1])
    workflow.write("this", [0, 1, 1], None)
    found = profile(workflow.app(after=6), "this")["running"]
    assert (found["silent_seconds"], found["usual"]) == (4, {"least": 10, "median": 11, "most": 12})
    left = found["seconds_left"]
    assert left["least"] <= 8 < left["median"] < 10 <= left["most"]
    delete_job(workflow.store, workflow.objects, JobRef("wf_1", "good_1"))
    found = profile(workflow.app(after=1), "this")["running"]
    assert (found["silent_seconds"], found["seconds_left"]) == (0, None)
    workflow.write("silent", [], None)
    assert profile(workflow.app(), "silent")["running"]["usual"] is None
    # The line of a foreign runner has no time.
    workflow.write("timeless", [-BEGAN], None)
    assert profile(workflow.app(), "timeless")["running"] == dict.fromkeys(("silent_seconds", "usual", "seconds_left"))
