"""The changes of a workflow: each change of a job is in them once, in order, with the job's state."""

import contextlib
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.errors import Closed, CorruptLog, Deleted, Fenced, Held, LabelSet, SequenceGap, StoreError
from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Attempt, Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.changes import Change, read_change
from chronoverse.store.records import RecordBatch, RecordRun
from tests.support.bench import JOB, NOW, Bench, make_lines
from tests.support.changes import number_from_1
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def store(bench: Bench) -> Store:
    """The bench's store. The workflow's changes begin with 1."""
    number_from_1(bench.ask, bench.key("changes"))
    return bench.store


def changes(bench: Bench, workflow_id: str = JOB.workflow_id) -> list[Change]:
    """All changes of the workflow."""
    key = bench.key("changes", JobRef(workflow_id, "any"))
    return [read_change(workflow_id, entry) for entry in bench.ask("XRANGE", key, "-", "+")]


def told(bench: Bench) -> list[tuple[int, str, str]]:
    """The number, the job and the status of each change."""
    return [(each.number, each.job.ref.job_id, each.to_json()["status"]) for each in changes(bench)]


def test_each_change_of_a_job_is_told_once(bench: Bench, store: Store) -> None:
    """What is repeated, and what changes nothing that a job says of itself, is no change."""
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


def test_a_lost_job_is_told_when_somebody_looks(bench: Bench, store: Store) -> None:
    store.append(store.open(JOB, "token"), make_lines(1, 2))
    bench.expire_lease()
    judge = bench.new_store(lease_seconds=0.001)
    wait_until(lambda: judge.get_jobs([JOB])[0].status is Status.LOST, 5, "the job is LOST")  # type: ignore[union-attr]
    judge.get_job(JOB)
    assert told(bench) == [(1, "job_1", "RUNNING"), (2, "job_1", "LOST")]
    assert changes(bench)[-1].job == judge.get_job(JOB)


def test_a_foreign_job_is_told_when_somebody_looks(bench: Bench, store: Store) -> None:
    """Its beginning, its labels, its end, and that it is gone."""

    def look() -> Any:
        store.get_job(JOB)
        return store.get_job(JOB)

    bench.xadd("1-0", "message", "a line")
    assert look() == changes(bench)[-1].job
    bench.ask("HSET", bench.key("job"), "label:branch", b"main", "label:other", b"\xff")
    assert look() == changes(bench)[-1].job
    bench.xadd("2-0", "event", "end", "status", "FAILED", "exit_code", "7")
    assert look() == changes(bench)[-1].job
    bench.ask("DEL", bench.key("job"), bench.key("log"))
    assert look() is None
    store.listing.unlist("wf_1", [JOB.job_id])
    store.listing.unlist("wf_1", [JOB.job_id])
    statuses = ["RUNNING", "RUNNING", "FAILED", "DELETED"]
    assert told(bench) == [(number, "job_1", status) for number, status in enumerate(statuses, 1)]
    assert [dict(each.job.labels) for each in changes(bench)[:3]] == [{}, {"branch": "main"}, {"branch": "main"}]


def test_a_registered_job_that_a_foreign_runner_writes(bench: Bench, store: Store) -> None:
    store.register(JOB)
    bench.xadd("1-0", "message", "a line")
    for _ in range(2):
        store.get_job(JOB)
        store.register(JOB)
    bench.xadd("2-0", "event", "end", "status", "CANCELED")
    store.get_job(JOB)
    assert [status for _, _, status in told(bench)] == ["PENDING", "RUNNING", "CANCELED"]


def test_log_records_begin_and_end_a_job(bench: Bench, store: Store) -> None:
    run = RecordRun(NOW, "stdout", False, 0, 0, 0, [b"a", b"b"])
    store.records.append(JOB, RecordBatch([run], "1"))
    store.records.append(JOB, RecordBatch([run], "2"))
    store.records.append(JOB, RecordBatch([run], "3", end=(Status.COMPLETED, 0)))
    assert [(each.job.status, each.job.last) for each in changes(bench)] == [
        (Status.RUNNING, 2),
        (Status.COMPLETED, 6),
    ]


def test_what_an_older_version_changed_is_told_with_the_next_read(bench: Bench, store: Store) -> None:
    """Of a job that it began, nothing is told until it changes again: a listing of old jobs is no news."""
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


def test_numbers_do_not_begin_again_where_changes_were_lost(bench: Bench, store: Store) -> None:
    """A reader that continues after an older number is never given the changes of another time."""
    for _ in range(2):
        # All of the workflow is lost.
        bench.ask("DEL", *(bench.keys() or {"nothing"}))
        before = time.time() * 1000
        store.open(JobRef("wf_1", "job_3"), "token")
        store.open(JobRef("wf_1", "job_4"), "token")
        first, second = (each.number for each in changes(bench))
        assert second == first + 1
        assert before - 1 <= first <= time.time() * 1000 + 1


def test_numbers_continue_with_the_time_after_a_restart(tmp_path: Path) -> None:
    """The server may have lost changes that readers have. So it is where another server takes over."""
    with (
        RedisServer(tmp_path, None, "--appendonly", "yes") as server,
        contextlib.closing(Bench(server, "t")) as bench,
    ):
        number_from_1(bench.ask, bench.key("changes"))
        for number in range(2):
            bench.store.register(JobRef("wf_1", f"job_{number}"))
        server.kill()
        server.start()
        for number in range(2, 4):
            bench.store.register(JobRef("wf_1", f"job_{number}"))
        numbers = [each.number for each in changes(bench)]
    assert numbers[:2] == [1, 2]
    assert numbers[2] > 1_000_000_000_000
    assert numbers[3] == numbers[2] + 1


def test_the_newest_ten_thousand_are_kept(bench: Bench, store: Store) -> None:
    """For a week after the last one."""
    bench.ask("XADD", bench.key("changes"), "20000-0", "id", "job_0", "status", "PENDING", "state", "")
    for number in range(20_001, 30_001):
        bench.ask("XADD", bench.key("changes"), f"{number}-0", "id", "job_0", "status", "PENDING", "state", "")
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
    ],
)
def test_an_entry_that_is_no_change(bench: Bench, fields: list[str]) -> None:
    bench.ask("XADD", bench.key("changes"), "1-0", *fields)
    with pytest.raises(StoreError, match="invalid change 1-0 of wf_1"):
        changes(bench)


class Model:
    """Random histories of a workflow, and what is known of its jobs by the changes alone."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.store = bench.store
        number_from_1(bench.ask, bench.key("changes"))
        self.random = random.Random(seed)
        self.attempts: dict[str, Attempt] = {}
        self.lines: dict[str, int] = {}
        self.foreign: dict[str, int] = {}
        self.judge = bench.new_store(lease_seconds=0.001)

    def step(self) -> None:
        """One operation, which may be refused."""
        job = JobRef("wf_1", f"job_{self.random.randrange(12)}")
        operations: list[Callable[[JobRef], object]] = [
            self.register, self.open, self.append, self.finish, self.lose, self.write_foreign, self.end_foreign,
            self.label, self.delete, self.drop, self.read,
        ]  # fmt: skip
        with contextlib.suppress(Held, Closed, Fenced, Deleted, LabelSet, CorruptLog, SequenceGap):
            self.random.choice(operations)(job)

    def labels(self) -> Any:
        count = self.random.choice((0, 0, 1, 2))
        return check_labels({f"k{self.random.randrange(3)}": self.random.choice("ab") for _ in range(count)})

    def register(self, job: JobRef) -> None:
        self.store.register(job, self.labels())

    def open(self, job: JobRef) -> None:
        if job.job_id in self.attempts and self.random.random() < 0.5:
            attempt = self.attempts[job.job_id]
            self.store.finish(attempt, Status.PENDING, 1, 0, self.lines.get(job.job_id, attempt.next))
        attempt = self.store.open(job, f"token-{self.random.random()}", labels=self.labels())
        self.attempts[job.job_id] = attempt
        self.lines[job.job_id] = attempt.next

    def append(self, job: JobRef) -> None:
        if job.job_id in self.attempts:
            next_number = self.lines[job.job_id]
            self.lines[job.job_id] = self.store.append(self.attempts[job.job_id], make_lines(next_number, 2))

    def finish(self, job: JobRef) -> None:
        if job.job_id in self.attempts:
            status = self.random.choice((Status.COMPLETED, Status.FAILED, Status.CANCELED))
            code = self.random.choice((None, 0, 3))
            self.store.finish(self.attempts[job.job_id], status, code, 0, self.lines[job.job_id])

    def lose(self, job: JobRef) -> None:
        self.bench.ask("DEL", self.bench.key("lease", job))
        for _ in range(3):
            self.judge.get_job(job)

    def write_foreign(self, job: JobRef) -> None:
        last = self.bench.ask("XREVRANGE", self.bench.key("log", job), "+", "-", "COUNT", 1)
        number = int(last[0][0].partition(b"-")[0]) if last else 0
        if self.bench.ask("EXISTS", self.bench.key("lease", job)) == 0 and number < 20:
            self.bench.xadd(f"{number + 1}-0", "message", "a", "timestamp", NOW, job=job)

    def end_foreign(self, job: JobRef) -> None:
        if self.bench.ask("XLEN", self.bench.key("log", job)) and not self.bench.ask(
            "EXISTS", self.bench.key("lease", job)
        ):
            status = self.random.choice(("COMPLETED", "FAILED", "nonsense"))
            self.bench.xadd("*", "event", "end", "status", status, job=job)

    def label(self, job: JobRef) -> None:
        if self.bench.ask("EXISTS", self.bench.key("log", job)) and not self.bench.ask(
            "HEXISTS", self.bench.key("job", job), "attempt"
        ):
            self.bench.ask("HSET", self.bench.key("job", job), f"label:k{self.random.randrange(3)}", "a")

    def delete(self, job: JobRef) -> None:
        tombstone_ms = self.random.choice((0, 0, 0, 20))
        delete_job(self.store, None, job, tombstone_ms=tombstone_ms)

    def drop(self, job: JobRef) -> None:
        """The keys of a job that does not run expire."""
        (found,) = self.store.get_jobs([job])
        if isinstance(found, Job) and found.status is not Status.RUNNING:
            self.bench.ask("DEL", self.bench.key("log", job), self.bench.key("job", job))

    def read(self, job: JobRef) -> None:
        self.store.get_job(job)

    def check(self) -> None:
        """After everybody was read, the changes, the listing and the jobs agree."""
        listed = self.store.listing.page("wf_1", None, 100)
        refs = [JobRef("wf_1", f"job_{number}") for number in range(12)]
        found = {ref: job for ref, job in zip(refs, self.store.get_jobs(refs), strict=True) if isinstance(job, Job)}
        self.store.listing.unlist("wf_1", [job_id for _, job_id in listed])
        listed = self.store.listing.page("wf_1", None, 100)
        assert {job_id for _, job_id in listed} == {ref.job_id for ref in found}
        all_changes = changes(self.bench)
        assert [each.number for each in all_changes] == list(range(1, len(all_changes) + 1))
        by_changes = {each.job.ref: each for each in all_changes}
        alive = {ref: each.job for ref, each in by_changes.items() if not each.deleted}
        assert {ref: said(job) for ref, job in alive.items()} == {ref: said(job) for ref, job in found.items()}
        running = {each.decode() for each in self.bench.ask("SMEMBERS", self.bench.key("running"))}
        assert running == {ref.job_id for ref, job in found.items() if job.status is Status.RUNNING}
        for before, after in pairwise(all_changes):
            assert (said(before.job), before.deleted) != (said(after.job), after.deleted)


def said(job: Job) -> Any:
    """What a change is a change of."""
    return job.ref, job.status, job.attempt, job.exit_code, job.labels


@pytest.mark.parametrize("seed", range(6))
def test_random_histories(bench: Bench, seed: int) -> None:
    model = Model(bench, seed)
    for _ in range(20):
        for _ in range(25):
            model.step()
        model.check()
