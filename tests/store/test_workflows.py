"""The list of workflows: its contents, its repair, and what it must not delay."""

from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock, call

import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.errors import NotALog, StoreError
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.commands import Commands
from chronoverse.store.topology import PoolKind
from chronoverse.store.workflows import CHECKED_OLDEST, Workflow, WorkflowList
from tests.support.bench import JOB, NOW_SECONDS, Bench, make_lines
from tests.support.waiting import deadline, wait_until

NOW_MS = round(NOW_SECONDS * 1000)


def counts(store: Store, *workflow_ids: str) -> list[tuple[int, int, float] | None]:
    """Number of jobs and of running jobs, and the creation time of the newest, of each workflow."""
    found = store.workflows.read(workflow_ids)
    return [each and (each.jobs, each.running, each.last_job_ms) for each in found if not isinstance(each, StoreError)]


def begin(store: Store, ref: JobRef) -> None:
    store.append(store.open(ref, "token"), make_lines(1, 1))


def end(store: Store, ref: JobRef) -> None:
    store.finish(store.open(ref, "token"), Status.COMPLETED, 0, 0, 1)


def test_a_workflow_is_listed_with_its_first_job(store: Store) -> None:
    """A pending job does not count as running."""
    assert store.workflows.page(None, 10) == []
    store.register(JobRef("wf_1", "waiting"))
    begin(store, JobRef("wf_1", "begun"))
    end(store, JobRef("wf_1", "ended"))

    assert store.workflows.page(None, 10) == [(NOW_MS, "wf_1")]
    assert counts(store, "wf_1", "wf_2") == [(3, 1, NOW_MS), None]


def test_a_foreign_job_is_counted_once_it_is_read(bench: Bench, store: Store) -> None:
    """Its first entry has its creation time. Reading the list detects its end."""
    bench.xadd("1-0", "timestamp", "2026-03-03T10:00:05.123Z", "message", "a line")
    assert store.workflows.page(None, 10) == []
    store.get_job(JOB)
    ((created, _),) = store.workflows.page(None, 10)
    assert counts(store, "wf_1") == [(1, 1, created)]

    bench.xadd("2-0", "event", "end", "status", "COMPLETED")
    assert counts(store, "wf_1") == [(1, 0, created)]


def test_the_newest_jobs_are_returned_with_their_statuses(bench: Bench, store: Store) -> None:
    """At most ten, newest first, with each job's current status. Deleted and unreadable jobs are omitted."""
    for number in range(8):
        end(bench.new_store(clock=partial(float, NOW_SECONDS - 100 + number)), JobRef("wf_1", f"old-{number}"))
    begin(store, JobRef("wf_1", "runs"))
    store.finish(bench.new_store().open(JobRef("wf_1", "failed"), "token"), Status.FAILED, 1, 0, 1)
    later = bench.new_store(clock=lambda: NOW_SECONDS + 60)
    later.register(JobRef("wf_1", "waits"))
    later.register(JobRef("wf_1", "gone"))
    bench.ask("DEL", bench.key("job", JobRef("wf_1", "gone")))
    bench.xadd("1-0", "event", "end", "status", "LOST", "timestamp", "2026-03-03T10:00:00Z")
    store.get_job(JOB)
    for bad in (b"no job!", b"\xff"):
        bench.ask("ZADD", bench.key("jobs"), NOW_MS + 90_000, bad)
        bench.ask("SADD", bench.key("running"), bad)
        bench.ask("HSET", b"%b:{wf_1}:%b:job" % (bench.prefix.encode(), bad), "status", "RUNNING")
    begin(store, JobRef("wf_2", "job_1"))
    bench.ask("SET", bench.key("jobs", JobRef("wf_3", "")), "text")

    assert store.watches.running("wf_1", 10) == [JobRef("wf_1", "runs")]
    one, two, three, four = store.workflows.read(["wf_1", "wf_2", "wf_3", "wf_4"])
    listed = [job_id for _, job_id in store.listing.page("wf_1", None, 10)]
    states = zip(listed, store.get_jobs([JobRef("wf_1", job_id) for job_id in listed]), strict=True)
    statuses = [job.status for _, job in states if isinstance(job, Job)]
    assert isinstance(one, Workflow)
    assert list(one.recent) == statuses[: len(one.recent)]
    assert (len(one.recent), one.last_job) == (7, None)
    assert {Status.PENDING, Status.RUNNING, Status.FAILED, Status.LOST} < set(one.recent)
    assert two == Workflow("wf_2", 1, 1, NOW_MS, "job_1", (Status.RUNNING,))
    assert isinstance(three, NotALog)
    assert four is None


def test_only_a_new_job_moves_its_workflow(bench: Bench, store: Store) -> None:
    """Otherwise paging through the list would return it twice. Its time is its newest job's, as in the listing."""
    begin(store, JobRef("wf_2", "job_1"))
    store.register(JOB)
    bench.xadd("1-0", "message", "a line without a time", job=JobRef("wf_3", "foreign"))
    store.get_job(JobRef("wf_3", "foreign"))
    before = store.workflows.page(None, 10)
    later = bench.new_store(clock=lambda: NOW_SECONDS + 60)
    assert not later.register(JOB)
    attempt = later.open(JOB, "token")
    later.finish(attempt, Status.PENDING, None, 0, 1)
    later.open(JOB, "token-2")
    found = later.require_job(JobRef("wf_3", "foreign"))
    # Another reader can list the job after this one found it unlisted.
    assert later.listing.add_foreign([replace(found, created_at=None, started_at=None)]) == {found.ref: NOW_MS}
    assert later.workflows.page(None, 10) == before


@pytest.mark.parametrize("how", ["register", "open"])
def test_a_reused_id_is_listed_again(bench: Bench, store: Store, how: str) -> None:
    """The earlier job has expired, unread since."""
    begin(store, JOB)
    for kind in ("log", "job", "lease"):
        bench.ask("DEL", bench.key(kind))
    later = bench.new_store(clock=lambda: NOW_SECONDS + 60)
    later.register(JOB) if how == "register" else later.open(JOB, "token")
    assert store.listing.page("wf_1", None, 9) == [(NOW_MS + 60_000, "job_1")]


@pytest.mark.parametrize("how", ["register", "open"])
def test_a_foreign_log_keeps_its_times(bench: Bench, store: Store, how: str) -> None:
    """Registering or opening its job does not change when it began."""
    bench.xadd("1-0", "message", "a", "timestamp", "2026-03-03T09:00:00Z")
    assert isinstance(before := store.get_job(JOB), Job)
    if how == "register":
        assert not store.register(JOB)
    else:
        store.append(store.open(JOB, "token"), make_lines(2, 1))
    assert isinstance(after := store.get_job(JOB), Job)
    assert (after.created_at, after.started_at) == (before.created_at, before.started_at)


def test_an_older_job_does_not_move_its_workflow_back(bench: Bench, store: Store) -> None:
    begin(store, JOB)
    for key, name in ((f"{bench.prefix}:workflows", "wf_1"), (bench.key("jobs"), "job_2")):
        bench.ask("ZADD", key, NOW_MS + 1_000, name)
    store.open(JOB, "token")
    assert store.workflows.page(None, 10) == [(NOW_MS + 1_000, "wf_1")]


def test_only_unlisted_jobs_are_read_to_list_them(bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all 100,000 jobs of a workflow whenever one was deleted."""
    refs = [JobRef("wf_1", f"job_{number}") for number in range(3)]
    for ref in refs:
        end(store, ref)
    listed = store.listing.page("wf_1", None, 10)
    bench.ask("ZREM", bench.key("jobs"), "job_1")
    read = Mock(wraps=store._get_jobs)
    monkeypatch.setattr(store, "_get_jobs", read)
    store.relist(refs)
    assert read.call_args_list == [call(refs[1:2])]
    assert store.listing.page("wf_1", None, 10) == listed


def test_a_lost_runner_does_not_count_as_running(bench: Bench, store: Store, judge: Store) -> None:
    """Reading the list declares the job LOST, as any read of the job does, even days after the first such read."""
    begin(store, JOB)
    bench.expire_lease()
    # The first read starts the grace period.
    judge.workflows.read(["wf_1"])
    assert bench.ttl("lease") > 86_400_000
    wait_until(lambda: counts(judge, "wf_1") == [(1, 0, NOW_MS)], 5, "the job is LOST")


def test_deleting_the_last_job_removes_the_workflow(bench: Bench, store: Store) -> None:
    """While another job remains, it stays, with that job's time."""
    end(store, JOB)
    end(store, JobRef("wf_1", "job_2"))
    bench.ask("ZADD", bench.key("jobs"), NOW_MS - 1_000, "job_2")

    delete_job(store, None, JOB)
    assert store.workflows.page(None, 10) == [(NOW_MS - 1_000, "wf_1")]
    delete_job(store, None, JobRef("wf_1", "job_2"))
    assert store.workflows.page(None, 10) == []
    assert bench.keys() == {bench.key("changes")}


def test_expired_jobs_are_removed_in_batches(bench: Bench, store: Store) -> None:
    """After enough reads all of them are gone, and the workflow with them."""
    for number in range(CHECKED_OLDEST + 1):
        end(store, JobRef("wf_1", f"job_{number}"))
    for number in range(CHECKED_OLDEST + 1):
        for kind in ("log", "job"):
            bench.ask("DEL", bench.key(kind, JobRef("wf_1", f"job_{number}")))

    bench.ask("SADD", bench.key("running"), "not-listed")
    assert counts(store, "wf_1") == [(1, 0, NOW_MS)]
    assert store.workflows.read(["wf_1"]) == [None]
    assert store.workflows.page(None, 10) == []


def test_an_incomplete_list_is_repaired(bench: Bench, store: Store) -> None:
    """A runner can die between writing its job's keys and the list."""
    begin(store, JOB)
    bench.ask("DEL", f"{bench.prefix}:workflows")
    store.workflows.read(["wf_1"])
    assert store.workflows.page(None, 10) == [(NOW_MS, "wf_1")]


def test_a_job_that_begins_while_its_workflow_is_removed_is_listed(store: Store) -> None:
    """The runner has listed the workflow just before a reader, who saw no job, removes it."""

    class Slow(Commands):
        def run(self, workflow_id: str, *command: Any, pool: PoolKind | None = None) -> Any:
            if command[0] == "ZREM":
                begin(store, JOB)
            return super().run(workflow_id, *command, pool=pool)

    store.workflows.add("wf_1", 1.0)
    commands = Slow(store._topology, store._keys)
    assert WorkflowList(commands, store.listing, store.get_jobs).read(["wf_1"]) == [None]
    assert store.workflows.page(None, 10) == [(NOW_MS, "wf_1")]


def test_pages_go_from_the_newest_to_the_oldest(store: Store, bench: Bench) -> None:
    """Workflows with the same time are ordered by name."""
    for number, created in enumerate((5, 7, 7, 1, float("inf"))):
        bench.ask("ZADD", f"{bench.prefix}:workflows", created, f"wf_{number}")
    bench.ask("ZADD", f"{bench.prefix}:workflows", 6, "no id!")

    found = [store.workflows.page(None, 2)]
    in_time = deadline(30, "the last page")
    while found[-1] and in_time():
        found.append(store.workflows.page(found[-1][-1], 2))
    assert [workflow_id for page in found for _, workflow_id in page] == ["wf_4", "wf_2", "wf_1", "wf_0", "wf_3"]


@pytest.mark.parametrize("kind", ["jobs", "running"])
def test_a_key_of_another_type_affects_only_its_workflow(bench: Bench, store: Store, kind: str) -> None:
    """Without its listing, nothing is known about a workflow. Without its running jobs, no job counts as running."""
    begin(store, JobRef("wf_2", "job_1"))
    begin(store, JOB)
    bench.ask("SET", bench.key(kind), "text")

    broken, other = store.workflows.read(["wf_1", "wf_2"])
    assert other == Workflow("wf_2", 1, 1, NOW_MS, "job_1", (Status.RUNNING,))
    if kind == "jobs":
        assert isinstance(broken, NotALog)
    else:
        assert broken == Workflow("wf_1", 1, 0, NOW_MS, "job_1", (Status.RUNNING,))


def test_a_broken_list_delays_no_job(bench: Bench, store: Store) -> None:
    """Jobs begin and end as usual; only the list is unreadable."""
    bench.ask("SET", f"{bench.prefix}:workflows", "text")
    end(store, JOB)
    with pytest.raises(NotALog):
        store.workflows.page(None, 10)
