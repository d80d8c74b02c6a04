"""A workflow's changes contain each change of a job exactly once, in order, with the job's state."""

import contextlib
import time
from itertools import pairwise
from pathlib import Path

import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import delete_job
from chronoverse.errors import StoreError
from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.changes import Change, read_change
from chronoverse.store.records import RecordBatch, RecordRun
from tests.support.bench import JOB, NOW, Bench, make_lines
from tests.support.changes import number_from_1
from tests.support.histories import Histories, alive, said
from tests.support.parameters import long_after
from tests.support.servers import RedisServer


@pytest.fixture
def store(bench: Bench) -> Store:
    """The bench's store, with the workflow's changes numbered from 1."""
    number_from_1(bench.ask, bench.key("changes"))
    return bench.store


def changes(bench: Bench, workflow_id: str = JOB.workflow_id) -> list[Change]:
    key = bench.key("changes", JobRef(workflow_id, "any"))
    return [read_change(workflow_id, entry) for entry in bench.ask("XRANGE", key, "-", "+")]


def told(bench: Bench) -> list[tuple[int, str, str]]:
    """The number, the job and the status of each change."""
    return [(each.number, each.job.ref.job_id, each.to_json()["status"]) for each in changes(bench)]


def test_each_change_of_a_job_is_recorded_once(bench: Bench, store: Store) -> None:
    """Neither repeated operations nor new lines are changes."""
    for _ in range(2):
        store.register(JOB, check_labels({"branch": "main"}))
    for _ in range(2):
        attempt = store.open(JOB, "token-1")
    for _ in range(2):
        store.append(attempt, make_lines(1, 3))
        store.get_job(JOB)
    store.finish(attempt, Status.PENDING, 3, 0, 4)
    attempt = store.open(JOB, "token-2", labels=check_labels({"step": "build"}))
    for _ in range(2):
        store.finish(attempt, Status.FAILED, 3, 1, 4)
    ended = store.get_job(JOB)
    for _ in range(2):
        delete_job(store, None, JOB)

    found = changes(bench)
    states = [(each.job.status, each.job.attempt, each.job.exit_code, dict(each.job.labels)) for each in found]
    both = {"branch": "main", "step": "build"}
    assert states == [
        (Status.PENDING, 0, None, {"branch": "main"}),
        (Status.RUNNING, 1, None, {"branch": "main"}),
        (Status.RUNNING, 2, None, both),
        (Status.FAILED, 2, 3, both),
        (Status.FAILED, 2, 3, both),
    ]
    assert [each.number for each in found] == [1, 2, 3, 4, 5]
    assert [each.deleted for each in found] == [False] * 4 + [True]
    assert found[3].job == ended
    assert found[4].to_json() == {**found[3].to_json(), "status": "DELETED"}


def test_log_records_begin_and_end_a_job(bench: Bench, store: Store) -> None:
    run = RecordRun(NOW, "stdout", False, 0, 0, 0, [b"a", b"b"])
    store.records.append(JOB, RecordBatch([run], "1"))
    store.records.append(JOB, RecordBatch([run], "2"))
    store.records.append(JOB, RecordBatch([run], "3", end=(Status.COMPLETED, 0)))
    assert [(each.job.status, each.job.last) for each in changes(bench)] == [(Status.RUNNING, 2), (Status.COMPLETED, 6)]


def test_a_change_by_an_older_version_is_recorded_at_the_next_read(bench: Bench, store: Store) -> None:
    """A job opened by an older version is recorded only once it changes: listing old jobs creates no changes."""
    other = JobRef("wf_1", "old")
    for job in (JOB, other):
        store.open(job, "token")
    bench.ask("HDEL", bench.key("job", other), "told")
    bench.ask("DEL", bench.key("changes"))
    for job in (JOB, other):
        bench.ask("HSET", bench.key("job", job), "status", "FAILED", "exit_code", 1)
        for _ in range(2):
            store.get_job(job)
    assert [(job_id, status) for _, job_id, status in told(bench)] == [("job_1", "FAILED")]


def test_numbers_are_not_reused_after_changes_were_lost(bench: Bench, store: Store) -> None:
    """A reader that resumes after an old number never receives unrelated changes."""
    for _ in range(2):
        # All keys of the workflow are lost.
        bench.ask("DEL", *(bench.keys() or {"nothing"}))
        before = time.time() * 1000
        store.open(JobRef("wf_1", "job_3"), "token")
        store.open(JobRef("wf_1", "job_4"), "token")
        first, second = (each.number for each in changes(bench))
        assert second == first + 1
        assert before - 1 <= first <= time.time() * 1000 + 1


def test_the_newest_change_is_written_again_after_a_restart(tmp_path: Path) -> None:
    """The first reader writes it, numbered by the current time: readers may have changes that the server lost."""
    with (
        RedisServer(tmp_path, None, "--appendonly", "yes", "--appendfsync", "always") as server,
        contextlib.closing(Bench(server, "t")) as bench,
    ):
        number_from_1(bench.ask, bench.key("changes"))

        def register(number: int) -> None:
            bench.store.register(JobRef("wf_1", f"job_{number}"))

        def last() -> int:
            (state,) = bench.store.get_jobs([JobRef("wf_1", "")])
            assert isinstance(state, Job)
            return state.last

        register(1)
        assert last() == 1
        server.kill()
        server.start()
        register(2)
        before = round(time.time() * 1000)
        jump = last()
        register(3)
        assert last() == jump + 1
        found = changes(bench)
        assert [each.number for each in found] == [1, 2, jump, jump + 1]
        assert before - 1 <= jump <= time.time() * 1000 + 1
        assert found[2][1:] == found[1][1:]


def test_numbers_increase_although_the_clock_was_set_back(bench: Bench, store: Store) -> None:
    """Also when the newest change is written again, after a restart."""
    fields = ("id", "job_1", "status", "PENDING", "state", "", "server", "another")
    bench.ask("XADD", bench.key("changes"), "999999999999990-0", *fields)
    (state,) = store.get_jobs([JobRef("wf_1", "")])
    assert isinstance(state, Job)
    assert state.last == 999_999_999_999_991


def test_the_newest_ten_thousand_are_kept(bench: Bench, store: Store) -> None:
    """For a week after the newest one."""
    add = "redis.call('XADD', KEYS[1], number .. '-0', 'id', 'job_0', 'status', 'PENDING', 'state', '')"
    bench.ask("EVAL", f"for number = 20000, 30000 do {add} end", 1, bench.key("changes"))
    store.open(JOB, "token")
    assert bench.ask("XLEN", bench.key("changes")) == 10_000
    assert [each.number for each in changes(bench)][:-1] == list(range(20_002, 30_001))
    assert 604_000_000 < bench.ttl("changes") <= 604_800_000


@pytest.mark.parametrize("kind", ["changes", "running"])
def test_a_key_of_another_type_delays_no_job(bench: Bench, store: Store, kind: str) -> None:
    bench.ask("SET", bench.key(kind), "text")
    attempt = store.open(JOB, "token")
    store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    bench.ask("DEL", bench.key(kind))
    store.get_job(JOB)
    assert changes(bench)[-1].job.status is Status.COMPLETED, "what could not be told is told with the next read"


@pytest.mark.parametrize(
    "fields",
    [
        ["message", "text"],
        ["id", "no id!", "status", "RUNNING", "state", ""],
        ["id", "job_1", "status", "RUNNING", "state", "{"],
        ["id", "job_1", "status", "RUNNING", "state", "[1]"],
        ["id", "job_1", "status", "RUNNING", "state", "1"],
        ["id", "job_1", "status", "RUNNING", "state", "[" * 100_000],
    ],
)
def test_an_invalid_change(bench: Bench, fields: list[str]) -> None:
    bench.ask("XADD", bench.key("changes"), "1-0", *fields)
    with pytest.raises(StoreError, match="invalid change 1-0 of wf_1"):
        changes(bench)


def check(histories: Histories) -> None:
    """Once all jobs are read, the changes, the listing and the jobs agree."""
    store, workflow = histories.store, histories.workflow
    listed = store.listing.page(workflow, None, 100)
    found = [job for job in store.get_jobs(histories.refs) if isinstance(job, Job)]
    store.listing.unlist(workflow, [job_id for _, job_id in listed])
    listed = store.listing.page(workflow, None, 100)
    assert {job_id for _, job_id in listed} == {job.ref.job_id for job in found}
    all_changes = histories.changes()
    assert [each.number for each in all_changes] == list(range(1, len(all_changes) + 1))
    assert alive(all_changes) == {job.ref: said(job) for job in found}
    running = {each.decode() for each in histories.ask("SMEMBERS", histories.key("running"))}
    assert running == {job.ref.job_id for job in found if job.status is Status.RUNNING}
    for before, after in pairwise(all_changes):
        assert (said(before.job), before.deleted) != (said(after.job), after.deleted)


@pytest.mark.parametrize("seed", long_after(2, range(6)))
def test_random_histories(bench: Bench, tmp_path: Path, seed: int) -> None:
    objects = FileObjectStore(tmp_path) if seed % 2 else None
    judge = bench.new_store(lease_seconds=0.001)
    histories = Histories(bench.ask, bench.store, judge, prefix=bench.prefix, objects=objects, seed=seed)
    number_from_1(bench.ask, histories.key("changes"))
    for _ in range(20):
        for _ in range(25):
            histories.step()
        check(histories)
