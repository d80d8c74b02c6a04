"""The store as a Cluster: every operation wherever its keys are, one reader for all of them, and slots that move."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.errors import Deleted, KeysMoving, StoreUnavailable
from chronoverse.joblog.values import Job, JobRef, LineRun, Status
from chronoverse.settings.redis_url import RedisUrl
from chronoverse.store import Durability, Store
from chronoverse.store.cluster import MAP_SECONDS, ClusterTopology, slot_of
from chronoverse.store.driver import CommandTimedOut, Moved
from chronoverse.store.slot_readers import MAX_SLOT_READERS, SlotReaders
from tests.support.bench import NOW, make_lines
from tests.support.fleets import Cluster
from tests.support.waiting import wait_until

#: Seconds a read blocks: where nothing is to come, and where something is.
SHORT: Final = 0.1
LONG: Final = 5.0


@pytest.fixture
def store(cluster: Cluster, prefix: str) -> Iterator[Store]:
    """A store with nothing under its prefix."""
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
def reading(store: Store, block_seconds: float, most: int = MAX_SLOT_READERS) -> Iterator[SlotReaders]:
    """The store's reader, with ``most`` slots in a lane of their own."""
    reader = store.live_reader(block_seconds)
    assert isinstance(reader, SlotReaders)
    reader._max_slot_readers = most
    yield reader
    reader.close()


def lanes() -> int:
    """How many lanes there are in this process."""
    return len([each for each in threading.enumerate() if each.name == "tail-slot"])


def numbers(found: object) -> dict[JobRef, list[bytes]]:
    assert isinstance(found, list)
    return {job: [entry_id for entry_id, _ in entries] for job, entries in found}


def all_of(reader: SlotReaders, cursors: dict[JobRef, int]) -> dict[JobRef, list[bytes]]:
    """What comes for each of the jobs."""
    found: dict[JobRef, list[bytes]] = {}
    wait_until(lambda: found.update(numbers(reader.read(cursors, 100))) or len(found) == len(cursors), 5, "all is read")
    return found


def test_every_operation_finds_its_server(store: Store, cluster: Cluster, prefix: str) -> None:
    """A job on each master, from its registration to its end."""
    for number in cluster.masters():
        job = JobRef(cluster.workflow(number), "job_1")
        assert store.register(job)
        attempt = store.open(job, "token")
        store.append(attempt, make_lines(1, 2))
        pipeline = store.append_connection()
        for first in (3, 4):
            pipeline.send(attempt, first, [LineRun(NOW, "stdout", False, [b"a line"])])
        assert [pipeline.receive(), pipeline.receive()] == [4, 5]
        pipeline.reset()
        store.renew(attempt)
        assert [entry_id for entry_id, _ in store.read(job, 1, 2)] == [b"2-0", b"3-0"]
        assert [entry_id for entry_id, _ in store.page(job, before=4, count=1)] == [b"3-0"]
        store.finish(attempt, Status.COMPLETED, 0, 0, 5)
        looked = store.get_job(job)
        assert looked
        assert (looked.status, looked.last) == (Status.COMPLETED, 4)
        assert [job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)] == ["job_1"]
        foreign = JobRef(job.workflow_id, "job_2")
        cluster.ask("XADD", f"{prefix}:{{{job.workflow_id}}}:job_2:log", "1-0", "message", "a line")
        assert store.get_jobs([foreign, job])[0] == store.get_job(foreign)
        cluster.ask("UNLINK", f"{prefix}:{{{job.workflow_id}}}:job_2:log")
        assert {job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)} == {"job_1", "job_2"}
        store.listing.unlist(job.workflow_id, ["job_1", "job_2"])
        assert [job_id for _, job_id in store.listing.page(job.workflow_id, None, 10)] == ["job_1"]
    store.ping()


def test_looks_at_many_jobs_come_in_their_order(store: Store, jobs: list[JobRef]) -> None:
    """Whichever server each is on, those that are not there too."""
    unknown = JobRef(jobs[1].workflow_id, "unknown")
    found = store.get_jobs([*jobs, unknown, *reversed(jobs)])

    assert [job.ref if isinstance(job, Job) else job for job in found] == [*jobs, None, *reversed(jobs)]


def test_what_is_safe_is_asked_where_the_job_is(cluster: Cluster, prefix: str) -> None:
    """By the master that has a replica."""
    store = Store(cluster.url, prefix=prefix, durability=Durability.REPLICATED)
    attempt = store.open(JobRef(cluster.workflow(cluster.pair[0]), "job_1"), "token")
    store.append(attempt, make_lines(1, 2))
    probe = store.durability_probe()
    assert probe
    assert probe.confirm(attempt) == 3
    store.close()


def test_one_reader_reads_jobs_of_all_slots(store: Store, jobs: list[JobRef]) -> None:
    """What has come, and what comes."""
    with reading(store, SHORT) as reader:
        assert all_of(reader, dict.fromkeys(jobs, 1)) == {job: [b"2-0"] for job in jobs}
        assert reader.read(dict.fromkeys(jobs, 2), 100) == []
        assert all(reader.silent_seconds(job) < 1 for job in jobs)


def test_slots_beyond_the_bound_share_a_lane(store: Store, jobs: list[JobRef], cluster: Cluster) -> None:
    """One for each server. It does not block, and so finds them a little later."""
    beside = JobRef(cluster.workflow(cluster.masters()[1], "beside"), "job_1")
    store.append(store.open(beside, "token"), make_lines(1, 2))
    jobs = [*jobs, beside]
    with reading(store, SHORT, most=1) as reader:
        assert all_of(reader, dict.fromkeys(jobs, 0)) == {job: [b"1-0", b"2-0"] for job in jobs}
        assert lanes() == 3
        # A server's lane goes with the last job that needs it, or each server that ever was would keep its thread.
        wait_until(lambda: reader.read({jobs[0]: 2}, 100) == [] and lanes() == 1, 5, "the shared lanes are gone")


def test_a_job_that_joins_is_read_at_once(store: Store, jobs: list[JobRef]) -> None:
    """In a slot that is being waited for already, and in another."""
    first, other = jobs[0], jobs[1]
    beside = JobRef(first.workflow_id, "job_2")
    attempts = {job: store.open(job, "token") for job in (beside,)}
    with reading(store, LONG) as reader:
        threading.Timer(0.2, reader.interrupt).start()
        assert reader.read({first: 2}, 100) == []
        began = time.monotonic()
        threading.Timer(0.2, store.append, (attempts[beside], make_lines(1, 1))).start()
        assert numbers(reader.read({first: 2, beside: 0}, 100)) == {beside: [b"1-0"]}
        assert numbers(reader.read({first: 2, beside: 1, other: 1}, 100)) == {other: [b"2-0"]}
        assert time.monotonic() - began < LONG / 2
    assert slot_of(first.workflow_id) != slot_of(other.workflow_id)


@pytest.mark.parametrize("most", [MAX_SLOT_READERS, 1], ids=["lanes", "shared lanes"])
def test_a_server_that_stands_still_silences_only_its_own_jobs(
    store: Store, jobs: list[JobRef], cluster: Cluster, most: int
) -> None:
    """The others are read on, and it is known whose server says nothing."""
    number = next(each for each in cluster.masters() if each not in cluster.pair)
    (silent,) = [job for job in jobs if cluster.owner(job.workflow_id) == number]
    others = [job for job in jobs if job != silent]
    with reading(store, SHORT, most) as reader:
        all_of(reader, dict.fromkeys(jobs, 1))
        os.kill(cluster.servers[number].pid, signal.SIGSTOP)
        try:
            wait_until(
                lambda: reader.read(dict.fromkeys(jobs, 2), 100) or reader.silent_seconds(silent) > 0.4,
                5,
                "it is noticed",
            )
            assert all(reader.silent_seconds(job) < 0.4 for job in others)
        finally:
            os.kill(cluster.servers[number].pid, signal.SIGCONT)
        wait_until(
            lambda: reader.read(dict.fromkeys(jobs, 2), 100) or reader.silent_seconds(silent) < 0.4, 5, "it is back"
        )


def test_a_server_that_stands_still_is_the_last_to_be_asked_for_the_map(cluster: Cluster) -> None:
    """Each command to it that fails has the map asked for, and everybody waits for the answer.

    It is the node that the last moved slot went to, which is asked first while it answers.
    """
    now = [0.0]
    place = ClusterTopology(RedisUrl.parse(cluster.url), clock=lambda: now[0])
    number = next(each for each in cluster.masters() if each not in cluster.pair)
    sick, healthy = cluster.workflow(number), cluster.workflow(cluster.pair[0])
    place.run(healthy, lambda client: client.execute_command("PING"))
    place.report_error(sick, Moved(f"{slot_of(sick)} 127.0.0.1:{cluster.ports[number]}"))
    os.kill(cluster.servers[number].pid, signal.SIGSTOP)
    try:
        slowest = 0.0
        for now[0] in range(1, 21):
            place.report_error(sick, CommandTimedOut())
            began = time.monotonic()
            place.run(healthy, lambda client: client.execute_command("PING"))
            slowest = max(slowest, time.monotonic() - began)
    finally:
        os.kill(cluster.servers[number].pid, signal.SIGCONT)
    place.close()

    assert slowest < MAP_SECONDS / 2


def test_a_slot_moves_under_a_store(store: Store, cluster: Cluster, prefix: str) -> None:
    """While its keys are here and there what needs several of them has to wait; what needs one has not."""
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, "moving"), "job_1")
    attempt = store.open(job, "token")
    store.append(attempt, make_lines(1, 1))
    appends = store.append_connection()
    run = [LineRun(NOW, "stdout", False, [b"a line"])]
    with reading(store, SHORT) as reader:
        all_of(reader, {job: 0})
        slot = cluster.begin_move(job.workflow_id, source, target)
        assert store.append(attempt, make_lines(2, 1)) == 3
        cluster.move_keys(slot, source, target, f"{prefix}:{{{job.workflow_id}}}:job_1:lease")
        with pytest.raises(KeysMoving):
            store.get_jobs([job])
        with pytest.raises(KeysMoving):
            store.append(attempt, make_lines(3, 1))
        assert all_of(reader, {job: 1}) == {job: [b"2-0"]}
        cluster.move_keys(slot, source, target)
        assert store.append(attempt, make_lines(3, 1)) == 4
        appends.send(attempt, 4, run)
        with pytest.raises(KeysMoving):
            appends.receive()
        for number in (4, 5):
            appends.send(attempt, number, run)
            assert appends.receive() == number + 1
        assert all_of(reader, {job: 2}) == {job: [b"3-0", b"4-0", b"5-0"]}
        cluster.end_move(slot, source, target)
        assert all_of(reader, {job: 4}) == {job: [b"5-0"]}
    appends.send(attempt, 6, run)
    assert appends.receive() == 7
    appends.reset()
    looked = store.get_job(job)
    assert looked
    assert (looked.last, cluster.owner(job.workflow_id)) == (6, target)


def test_a_tombstone_moves_with_its_slot(store: Store, cluster: Cluster, prefix: str) -> None:
    """Its id stays deleted meanwhile, and looks at the workflow's other jobs do not wait for a tombstone they lack."""
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


def test_a_cluster_without_a_node_that_answers(prefix: str) -> None:
    """Each call says so, and none of them takes long."""
    store = Store("redis+cluster://127.0.0.1:1,127.0.0.1:2", prefix=prefix)
    job = JobRef("wf_1", "job_1")
    began = time.monotonic()
    with reading(store, SHORT) as reader:
        for operation in (store.ping, lambda: store.get_jobs([job]), lambda: reader.read({job: 0}, 1)):
            with pytest.raises(StoreUnavailable):
                operation()
    assert time.monotonic() - began < 2
