"""The store on a Cluster: operations on every master, one live reader for all slots, and moving slots."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import redis

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import delete_job
from chronoverse.errors import Deleted, KeysMoving, StoreError, StoreUnavailable
from chronoverse.joblog.model import Attempt, Job, JobRef, LineRun, Status
from chronoverse.settings.redis_url import RedisUrl
from chronoverse.store import Durability, Store
from chronoverse.store.changes import Change, read_change
from chronoverse.store.cluster import MAP_SECONDS, ClusterTopology, slot_of
from chronoverse.store.live_reader import Found, LiveReader
from chronoverse.store.workflows import Workflow
from tests.support.archives import ArchiveBuilder
from tests.support.bench import NOW, make_lines
from tests.support.fleets import Cluster
from tests.support.waiting import deadline, wait_until

#: A read's maximum wait where no line is expected, and where one is, in seconds.
SHORT: Final = 0.1
LONG: Final = 20.0


@pytest.fixture
def store(cluster: Cluster, prefix: str) -> Iterator[Store]:
    store = Store(cluster.url, prefix=prefix)
    yield store
    store.close()


@pytest.fixture
def jobs(cluster: Cluster, store: Store) -> list[JobRef]:
    """A job on each master, with two lines."""
    jobs = [JobRef(cluster.workflow(number), "job_1") for number in cluster.masters()]
    for job in jobs:
        store.append(store.open(job, "token"), make_lines(1, 2))
    return jobs


@contextlib.contextmanager
def reading(store: Store, block_seconds: float) -> Iterator[LiveReader]:
    with contextlib.closing(store.live_reader(block_seconds)) as reader:
        yield reader


def node_threads() -> int:
    """Number of live reader threads in this process."""
    return len([each for each in threading.enumerate() if each.name == "tail-node"])


def numbers(found: Sequence[Found]) -> dict[JobRef, list[bytes]]:
    """The entry ids of a read."""
    assert not any(isinstance(entries, StoreError) for _, _, entries in found)
    return {job: [entry[0] for entry in entries] for job, _, entries in found if not isinstance(entries, StoreError)}


def read_all(reader: LiveReader, cursors: dict[JobRef, int], count: int = 1) -> dict[JobRef, list[bytes]]:
    """Watches the jobs, and returns each job's next ``count`` ids after its cursor."""
    found: dict[JobRef, list[bytes]] = {job: [] for job in cursors}
    for job, cursor in cursors.items():
        reader.watch(job, cursor)

    def has_all() -> bool:
        for job, after, entries in reader.read(100):
            assert not isinstance(entries, StoreError)
            # An earlier cursor's result may have been pending.
            if after == cursors[job]:
                found[job] += [entry_id for entry_id, _ in entries]
                cursors[job] += len(entries)
            reader.watch(job, cursors[job])
        return all(len(ids) >= count for ids in found.values())

    wait_until(has_all, 5, "all are read")
    return found


def test_every_operation_finds_its_server(store: Store, cluster: Cluster, prefix: str) -> None:
    """From registration to end, for a job on each master."""
    for number in cluster.masters():
        job = JobRef(cluster.workflow(number), "job_1")
        assert store.register(job)
        attempt = store.open(job, "token")
        store.append(attempt, make_lines(1, 2))
        assert store.append_runs(attempt, 3, [LineRun(NOW, "stdout", False, [b"a line"] * 2)]) == 5
        store.renew(attempt)
        assert [entry_id for entry_id, _ in store.read(job, 1, 2)] == [b"2-0", b"3-0"]
        assert [entry_id for entry_id, _ in store.page(job, before=4, count=1)] == [b"3-0"]
        store.finish(attempt, Status.COMPLETED, 0, 0, 5)
        found_job = store.require_job(job)
        assert (found_job.status, found_job.last) == (Status.COMPLETED, 4)
        assert [job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)] == ["job_1"]
        foreign = JobRef(job.workflow_id, "job_2")
        cluster.ask("XADD", f"{prefix}:{{{job.workflow_id}}}:job_2:log", "1-0", "message", "a line")
        assert store.get_jobs([foreign, job])[0] == store.get_job(foreign)
        cluster.ask("UNLINK", f"{prefix}:{{{job.workflow_id}}}:job_2:log")
        assert {job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)} == {"job_1", "job_2"}
        store.listing.unlist(job.workflow_id, ["job_1", "job_2"])
        assert [job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)] == ["job_1"]
    jobs = [JobRef(cluster.workflow(number), "job_1") for number in cluster.masters()]
    asked = [*jobs, JobRef(jobs[1].workflow_id, "unknown"), *reversed(jobs)]
    found = [job.ref if isinstance(job, Job) else job for job in store.get_jobs(asked)]
    assert found == [*jobs, None, *reversed(jobs)]
    store.ping()


def test_shared_keys_of_workflows_delay_no_job(cluster: Cluster, prefix: str) -> None:
    """If the server of the list and of the common quotas hangs, only the first new job waits for it."""
    # Both are on one server, which no replica can replace.
    candidates = (
        (each, cluster.owner(f"{each}:workflows")) for each in (f"{prefix}{count}" for count in itertools.count())
    )
    prefix, number = next(
        (each, owner)
        for each, owner in candidates
        if owner == cluster.owner(f"{each}:limits") and owner != cluster.pair[0]
    )
    with contextlib.closing(Store(cluster.url, prefix=prefix)) as store:
        names = [cluster.workflow(each) for each in cluster.masters()]
        for workflow_id in names:
            store.open(JobRef(workflow_id, "job_1"), "token")
        assert {workflow_id for _, workflow_id in store.workflows.page(None, 10)} == set(names)
        assert [each and (each.jobs, each.running) for each in workflows(store, names)] == [(1, 1)] * len(names)
        newest = [each and (each.last_job, each.recent) for each in workflows(store, names)]
        assert newest == [("job_1", (Status.RUNNING,))] * len(names)

        others = [cluster.workflow(each, "late") for each in cluster.masters() if each != number]
        os.kill(cluster.servers[number].pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for count in range(6):
                for workflow_id in others:
                    store.open(JobRef(workflow_id, f"job_{count}"), "token")
            # Twelve seconds, if each of them waited.
            assert time.monotonic() - began < 8
        finally:
            os.kill(cluster.servers[number].pid, signal.SIGCONT)
        # As an archiver does once it finds the jobs.
        assert len(workflows(store, others)) == len(others)
        assert {workflow_id for _, workflow_id in store.workflows.page(None, 10)} == {*names, *others}


@pytest.mark.long
def test_a_workflow_on_an_unresponsive_server_is_reported(
    store: Store, jobs: list[JobRef], cluster: Cluster, prefix: str
) -> None:
    """The other workflows are counted. No replica takes over here."""
    names, busy = [job.workflow_id for job in jobs], {cluster.owner(f"{prefix}:workflows"), *cluster.pair}
    number = next(each for each in cluster.masters() if each not in busy)
    expected = [cluster.owner(workflow_id) == number for workflow_id in names]
    os.kill(cluster.servers[number].pid, signal.SIGSTOP)
    try:
        found = store.workflows.read(names)
    finally:
        os.kill(cluster.servers[number].pid, signal.SIGCONT)
    assert [isinstance(each, StoreUnavailable) for each in found] == expected


def workflows(store: Store, names: list[str]) -> list[Workflow | None]:
    """The workflows, without those that cannot be read."""
    found = store.workflows.read(names)
    return [each for each in found if not isinstance(each, StoreError)]


def test_the_durability_probe_asks_the_jobs_master(cluster: Cluster, prefix: str) -> None:
    """The master with a replica."""
    store = Store(cluster.url, prefix=prefix, durability=Durability.REPLICATED)
    attempt = store.open(JobRef(cluster.workflow(cluster.pair[0]), "job_1"), "token")
    store.append(attempt, make_lines(1, 2))
    probe = store.durability_probe()
    assert probe
    assert probe.confirm(attempt) == 3
    store.close()


def test_one_reader_reads_jobs_of_all_slots(store: Store, jobs: list[JobRef]) -> None:
    """It returns existing lines and then waits, with one thread per node that has watched jobs."""
    with reading(store, SHORT) as reader:
        assert read_all(reader, dict.fromkeys(jobs, 1)) == {job: [b"2-0"] for job in jobs}
        assert reader.read(100) == []
        assert all(reader.silent_seconds(job) < 5 for job in jobs)
        assert node_threads() == 3
        for job in jobs[1:]:
            reader.unwatch(job)
        wait_until(lambda: reader.read(100) == [] and node_threads() == 1, 20, "the other threads have ended")
    wait_until(lambda: node_threads() == 0, 20, "the last thread has ended")


def test_an_unresponsive_server_silences_only_its_own_jobs(store: Store, jobs: list[JobRef], cluster: Cluster) -> None:
    """Lines on the other servers arrive, and the reader reports which server is unresponsive."""
    number = next(each for each in cluster.masters() if each not in cluster.pair)
    (silent,) = [job for job in jobs if cluster.owner(job.workflow_id) == number]
    others = [job for job in jobs if job != silent]
    attempts = [store.open(job, "token") for job in others]
    with reading(store, SHORT) as reader:
        read_all(reader, dict.fromkeys(jobs, 1))
        os.kill(cluster.servers[number].pid, signal.SIGSTOP)
        try:

            def is_noticed() -> bool:
                """Whether that server has been silent for longer than the others, which a busy machine delays too."""
                assert reader.read(100) == []
                return reader.silent_seconds(silent) > 0.4 + 2 * max(map(reader.silent_seconds, others))

            wait_until(is_noticed, 10, "the silence is noticed, and only there")
            for attempt in attempts:
                store.append(attempt, make_lines(3, 1))
            found: dict[JobRef, list[bytes]] = {}
            wait_until(lambda: found.update(numbers(reader.read(100))) or len(found) == len(others), 5, "lines come")
        finally:
            os.kill(cluster.servers[number].pid, signal.SIGCONT)
        wait_until(lambda: reader.read(100) or reader.silent_seconds(silent) < 0.4, 5, "it answers")
        store.append(store.open(silent, "token"), make_lines(3, 1))
        found.clear()
        wait_until(lambda: found.update(numbers(reader.read(100))) or found, 5, "its line comes")
        assert found == {silent: [b"3-0"]}


def test_an_unresponsive_server_is_asked_for_the_map_last(cluster: Cluster) -> None:
    """Each failed command invalidates the map, and all callers wait for the next one.

    Here it is also the server that the last slot moved to, which is asked first while it responds.
    """
    now = [0.0]
    topology = ClusterTopology(RedisUrl.parse(cluster.url), clock=lambda: now[0])
    number = next(each for each in cluster.masters() if each not in cluster.pair)
    sick, healthy = cluster.workflow(number), cluster.workflow(cluster.pair[0])
    topology.run(healthy, lambda client: client.execute_command("PING"))
    topology.report_error(sick, redis.exceptions.MovedError(f"{slot_of(sick)} 127.0.0.1:{cluster.ports[number]}"))
    os.kill(cluster.servers[number].pid, signal.SIGSTOP)
    try:
        seconds = []
        for now[0] in range(1, 21):
            topology.report_error(sick, redis.TimeoutError())
            began = time.monotonic()
            topology.run(healthy, lambda client: client.execute_command("PING"))
            seconds.append(time.monotonic() - began)
    finally:
        os.kill(cluster.servers[number].pid, signal.SIGCONT)
    topology.close()

    # A busy machine may delay some. If the server was asked first, each would take a second.
    assert sorted(seconds)[len(seconds) * 3 // 4] < MAP_SECONDS / 2


def test_a_node_that_does_not_know_its_name_is_where_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = ClusterTopology(RedisUrl.parse("redis+cluster://seed:7000"))
    ranges = [[0, slot_of("b"), [b"", 7001]], [slot_of("b") + 1, 16_383, [b"other", 7002]]]
    monkeypatch.setattr(topology, "_ask_map", lambda address: ranges)
    topology.refresh()
    assert [topology.server_of(each) for each in "ba"] == [("seed", 7001), ("other", 7002)]


@pytest.mark.parametrize("failure", ["no node", "command", "reader"])
def test_a_map_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """For example after a failover, or if a slot has no node. Nothing else asks for the map."""
    last = slot_of("b") if failure == "no node" else 16_383
    now, maps = [0.0], [[[0, last, [b"old", 7000]]], [[0, 16_383, [b"new", 7000]]]]
    topology = ClusterTopology(RedisUrl.parse("redis+cluster://seed:7000"), clock=lambda: now[0])
    monkeypatch.setattr(topology, "_ask_map", lambda address: maps.pop(0))
    error = redis.ConnectionError("gone")

    def fail(client: redis.Redis) -> None:
        raise error

    for now[0] in (1, 2):
        topology.group_by_node([JobRef("b", "job_1")])
        assert topology.server_of("b") == ("old", 7000)
    if failure == "reader":
        topology.report_error("a", error)
    else:
        with pytest.raises(redis.ConnectionError, match=failure if failure == "no node" else "gone"):
            topology.run("a", fail)
    now[0] = 3
    topology.group_by_node([JobRef("a", "job_1")])
    assert topology.server_of("a") == ("new", 7000)


def test_a_slot_moves_during_use(store: Store, cluster: Cluster, prefix: str) -> None:
    """Commands with several keys must wait while the keys are on two servers; single-key commands work."""
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, "moving"), "job_1")
    attempt = store.open(job, "token")
    store.append(attempt, make_lines(1, 1))
    with reading(store, SHORT) as reader:
        read_all(reader, {job: 0})
        slot = cluster.begin_move(job.workflow_id, source, target)
        assert store.append(attempt, make_lines(2, 1)) == 3
        cluster.move_keys(slot, source, target, f"{prefix}:{{{job.workflow_id}}}:job_1:lease")
        with pytest.raises(KeysMoving):
            store.get_jobs([job])
        with pytest.raises(KeysMoving):
            store.append(attempt, make_lines(3, 1))
        assert read_all(reader, {job: 1}) == {job: [b"2-0"]}
        cluster.move_keys(slot, source, target)
        assert store.append(attempt, make_lines(3, 1)) == 4
        assert store.append(attempt, make_lines(4, 2)) == 6
        assert read_all(reader, {job: 2}, 3) == {job: [b"3-0", b"4-0", b"5-0"]}
        cluster.end_move(slot, source, target)
        assert read_all(reader, {job: 4}) == {job: [b"5-0"]}
    assert store.append(attempt, make_lines(6, 1)) == 7
    found_job = store.require_job(job)
    assert (found_job.last, cluster.owner(job.workflow_id)) == (6, target)


@pytest.mark.parametrize("by", ["merge", "redaction"])
def test_a_chunk_is_replaced_while_its_slot_moves(
    store: Store, cluster: Cluster, prefix: str, tmp_path: Path, by: str
) -> None:
    """The server refuses writes to a key that has just become empty, even within a script."""
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, "moving chunk"), "job_1")
    store.append(store.open(job, "token"), make_lines(1, 4))
    assert store.chunks.acquire_lock(job, "sealer", 30)
    old, new = (ArchiveBuilder(FileObjectStore(tmp_path), job).add(store.page(job, count=to)) for to in (2, 4))
    store.chunks.begin_upload(job, "sealer", old.name)
    store.chunks.commit_chunk(job, "sealer", old)
    store.chunks.begin_upload(job, "sealer", new.name)
    cluster.ask("RPUSH", f"{prefix}:{{{job.workflow_id}}}:job_1:audit", "an earlier one")
    slot = cluster.begin_move(job.workflow_id, source, target)
    if by == "merge":
        store.chunks.commit_chunk(job, "sealer", new, old=old)
    else:
        store.chunks.redact(job, "sealer", new, {}, old=old)
    assert [each.name for each in store.chunks.chunks(job)] == [new.name]
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)


def test_a_job_is_imported_while_its_slot_moves(store: Store, cluster: Cluster, prefix: str, tmp_path: Path) -> None:
    """The store has an older state of the job: its first chunk, its log, and a lease that nobody holds."""
    source, target = cluster.masters()[:2]
    job, whole = (JobRef(cluster.workflow(source, "moving import"), name) for name in ("job_1", "job_2"))
    for each, last in ((job, 2), (whole, 4)):
        store.append(store.open(each, "token"), make_lines(1, last))
    assert store.chunks.acquire_lock(job, "sealer", 30)
    old, new = (ArchiveBuilder(FileObjectStore(tmp_path), job).add(store.page(each, count=9)) for each in (job, whole))
    store.chunks.begin_upload(job, "sealer", old.name)
    store.chunks.commit_chunk(job, "sealer", old)
    cluster.ask("SET", f"{prefix}:{{{job.workflow_id}}}:job_1:lease", "next")
    fields = {"created_at": store.require_job(job).created_at}
    slot = cluster.begin_move(job.workflow_id, source, target)
    assert store.chunks.import_job(job, [(new, 0, 0)], fields, created_ms=0, wait_seconds=60, redactions=0)
    assert [each.name for each in store.chunks.chunks(job)] == [new.name]
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)
    assert (store.require_job(job).last, store.open(job, "another").next) == (4, 5)


def test_a_log_that_is_new_after_its_slot_has_moved(store: Store, cluster: Cluster, prefix: str) -> None:
    """The node that was asked reports nothing. The next check of the job finds its new node."""
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, "not yet"), "job_1")
    with reading(store, SHORT) as reader:
        reader.watch(job, 0)
        assert reader.read(100) == []
        slot = cluster.begin_move(job.workflow_id, source, target)
        cluster.end_move(slot, source, target)
        cluster.ask("XADD", f"{prefix}:{{{job.workflow_id}}}:job_1:log", "1-0", "message", "a line")
        assert isinstance(store.get_jobs([job])[0], Job)
        assert read_all(reader, {job: 0}) == {job: [b"1-0"]}


def test_a_tombstone_moves_with_its_slot(store: Store, cluster: Cluster, prefix: str) -> None:
    """The id stays deleted during the move, and the workflow's other jobs can be read."""
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, "moving tombstone"), "job_1")
    other = JobRef(job.workflow_id, "job_2")
    store.finish(store.open(job, "token"), Status.COMPLETED, 0, 0, 1)
    store.append(store.open(other, "token"), make_lines(1, 1))
    delete_job(store, None, job, tombstone_ms=60_000)

    def stays_deleted() -> None:
        with pytest.raises((Deleted, KeysMoving)):
            store.open(job, "another")
        with pytest.raises((Deleted, KeysMoving)):
            store.register(job)

    stays_deleted()
    slot = cluster.begin_move(job.workflow_id, source, target)
    stays_deleted()
    assert isinstance(store.get_job(other), Job)
    cluster.move_keys(slot, source, target, f"{prefix}:{{{job.workflow_id}}}:job_1:deleted")
    stays_deleted()
    assert isinstance(store.get_job(other), Job)
    cluster.move_keys(slot, source, target)
    stays_deleted()
    cluster.end_move(slot, source, target)
    with pytest.raises(Deleted):
        store.open(job, "another")
    with pytest.raises(Deleted):
        store.register(job)
    assert (store.get_job(job), store.is_deleted(job)) == (None, True)


def test_a_cluster_without_a_responsive_node(prefix: str) -> None:
    """Each call raises soon."""
    store = Store("redis+cluster://127.0.0.1:1,127.0.0.1:2", prefix=prefix)
    job = JobRef("wf_1", "job_1")
    began = time.monotonic()
    with reading(store, SHORT) as reader:
        reader.watch(job, 0)
        for operation in (store.ping, lambda: store.get_jobs([job])):
            with pytest.raises(StoreUnavailable):
                operation()
        # It raises once every node's thread has failed.
        with pytest.raises(StoreUnavailable):
            wait_until(lambda: reader.read(1), 10, "the first read has failed")
    assert time.monotonic() - began < 10


@pytest.mark.long
def test_the_changes_of_workflows_on_each_master(store: Store, jobs: list[JobRef]) -> None:
    """Each is on its workflow's server. One call gets every newest number, and one reader reads them all."""
    changes = [JobRef(job.workflow_id, "") for job in jobs]
    with reading(store, LONG) as reader:
        for each in changes:
            reader.watch(each, 0)
        for job in jobs:
            store.finish(Attempt(job, "token", 1, 3), Status.FAILED, 3, 0, 3)
        found: dict[str, list[Change]] = {each.workflow_id: [] for each in changes}
        in_time = deadline(LONG, "all changes are read")
        while any(len(each) < 2 for each in found.values()) and in_time():
            for ref, _, entries in reader.read(10):
                assert not isinstance(entries, StoreError)
                found[ref.workflow_id] += [read_change(ref.workflow_id, entry) for entry in entries]
        states = store.get_jobs(changes)
    ended = store.get_jobs(jobs)
    newest = [found[job.workflow_id][-1].number for job in jobs]
    assert [state.last for state in states if isinstance(state, Job)] == newest
    assert [found[job.workflow_id][-1].job for job in jobs] == ended
    assert [found[job.workflow_id][0].number + 1 for job in jobs] == newest
