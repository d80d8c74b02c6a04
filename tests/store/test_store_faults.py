"""The store under failure: dead runners, and servers that refuse writes, restart or hang."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from chronoverse.errors import CorruptLog, Fenced, StoreRefused, StoreUnavailable
from chronoverse.joblog.model import Attempt, End, Job, JobRef, Status
from chronoverse.store import Durability, Store
from chronoverse.store.catalog import JobCatalog
from chronoverse.store.commands import Commands
from chronoverse.store.driver import COMMAND_CONNECTIONS, new_client
from chronoverse.store.keys import KeyMap
from chronoverse.store.topology import Topology
from tests.conftest import EVERY_KIND, binary, server_of_each_kind
from tests.support.bench import JOB, NOW, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Time limit of any event on a busy machine, in seconds.
TIMEOUT_SECONDS: Final = 10.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """One server of each kind, not shared with other tests.

    For an hour after it was a replica, a server reports that its writes may be undone, and archives delete no garbage.
    """
    with server_of_each_kind(tmp_path_factory) as servers:
        yield servers


# Lost runners


def test_a_job_whose_lease_has_expired_is_lost(bench: Bench, judge: Store) -> None:
    """The read that detects it writes the terminal entry and the hash."""
    judge.append(bench.store.open(JOB, "token-1"), make_lines(1, 2))
    wait_until(lambda: bench.ttl("lease") == -2, TIMEOUT_SECONDS, "the lease expires")
    bench.expire_lease()

    end = End(3, Status.LOST, None, 2, 0, NOW)
    assert judge.get_job(JOB) == Job(JOB, Status.LOST, 1, NOW, NOW, NOW, None, 2, 0, 1, 2, end)
    assert bench.log()[2:] == [
        ("3-0", {"event": "end", "status": "LOST", "lines": "2", "dropped": "0", "timestamp": NOW})
    ]
    fields = bench.hash()
    del fields["end_seen_ms"], fields["told"]
    assert fields == {
        "status": "LOST",
        "attempt": "1",
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": NOW,
        "lines": "2",
        "dropped": "0",
    }
    for kind in ("log", "job"):
        assert RETENTION_MS - TTL_TOLERANCE_MS < bench.ttl(kind) <= RETENTION_MS


FOREIGN_LINE: Final = ("XADD", "log", "1-0", "message", "a")


@pytest.mark.parametrize(
    ("is_open", "before", "after", "status", "ids"),
    [
        # Lost before its first line: only the terminal entry. A corrupt log ends too, or viewers would wait forever.
        (True, [], [], Status.LOST, ["1-0"]),
        (True, [("XADD", "log", "5-1", "message", "a")], [], Status.LOST, ["5-1", "6-0"]),
        # A runner renewed the lease or took the job over, or the job waits for its next attempt.
        *((True, [], [("SET", "lease", holder)], Status.RUNNING, []) for holder in ("token-1", "next")),
        # Foreign runners have no lease, even if they write a hash. A log has only one end.
        (False, [FOREIGN_LINE], [], Status.RUNNING, ["1-0"]),
        (False, [FOREIGN_LINE, ("HSET", "job", "status", "RUNNING", "started_at", NOW)], [], Status.RUNNING, ["1-0"]),
        (False, [FOREIGN_LINE, ("HSET", "job", "status", "PENDING", "started_at", NOW)], [], Status.RUNNING, ["1-0"]),
        (True, [("XADD", "log", "1-0", "event", "end", "exit_code", "0")], [], Status.COMPLETED, ["1-0"]),
    ],
)
def test_which_jobs_are_lost_without_a_lease(
    bench: Bench,
    judge: Store,
    is_open: bool,
    before: list[tuple[str, ...]],
    after: list[tuple[str, ...]],
    status: Status,
    ids: list[str],
) -> None:
    if is_open:
        judge.open(JOB, "token-1")
    for command, kind, *values in before:
        bench.ask(command, bench.key(kind), *values)
    bench.expire_lease()
    for command, kind, *values in after:
        bench.ask(command, bench.key(kind), *values)
    job = judge.require_job(JOB)
    assert (job.status, bench.ids()) == (status, ids)


def test_no_job_is_lost_while_the_server_is_up_for_less_than_a_lease(bench: Bench, attempt: Attempt) -> None:
    """Runners had no time to renew their leases."""
    bench.expire_lease()
    job = bench.new_store(lease_seconds=365 * 86_400).require_job(JOB)
    assert (job.status, bench.ids()) == (Status.RUNNING, [])


# Servers that refuse to write


#: Commands that make a server refuse writes, and those that end this. A replica of a nonexistent master is read-only.
REFUSALS: Final = {
    "no memory": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "no disk": (("CONFIG", "SET", "save", "86400 1000000"), ("CONFIG", "SET", "save", "")),
    "no replica": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    "read only": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


@contextlib.contextmanager
def refusing(bench: Bench, reason: str) -> Iterator[None]:
    """Without disk, the last snapshot failed, because a directory has its file's name."""
    obstacle, (begin, end) = bench.server.directory / "dump.rdb", REFUSALS[reason]
    bench.ask(*begin)
    try:
        if reason == "no disk":
            obstacle.mkdir()
            bench.ask("BGSAVE")
            wait_until(lambda: b"bgsave_in_progress:0" in bench.ask("INFO", "persistence"), TIMEOUT_SECONDS, "it ends")
            assert b"_bgsave_status:err" in bench.ask("INFO", "persistence")
        yield
    finally:
        bench.ask(*end)
        if reason == "no disk":
            obstacle.rmdir()


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_server_that_refuses_writes(bench: Bench, store: Store, judge: Store, reason: str) -> None:
    """No part of a batch is stored, and a retry then stores all of it.

    No job is lost, because runners could not renew their leases. It stays readable, and is declared LOST afterwards.
    """
    attempt, other = store.open(JOB, "token-1"), JobRef("wf_1", "job_2")
    for each in (attempt, store.open(other, "token-2")):
        store.append(each, make_lines(1, 2))
    bench.expire_lease(other)
    with refusing(bench, reason):
        with pytest.raises(StoreRefused) as refused:
            store.append(attempt, make_lines(2, 500))
        assert "script" not in str(refused.value)
        with pytest.raises(StoreRefused):
            store.ping()
        running = judge.require_job(other)
        assert judge.get_jobs([other]) == [running]
        assert (running.status, running.last) == (Status.RUNNING, 2)
        assert bench.ids() == bench.ids(other) == ["1-0", "2-0"]

    assert store.append(attempt, make_lines(2, 500)) == 502
    assert bench.ids() == [f"{number}-0" for number in range(1, 502)]
    assert judge.require_job(other).status is Status.LOST


def test_an_operation_refused_for_memory_writes_nothing(bench: Bench, store: Store) -> None:
    """Operations are atomic. Leases are still renewed: otherwise a full server would cost every runner its job."""
    attempt = store.open(JOB, "token-1")
    bench.ask("PEXPIRE", bench.key("lease"), 1000)
    other = JobRef("wf_1", "job_2")
    before = bench.snapshot()
    with refusing(bench, "no memory"):
        for operation in (
            lambda: store.open(other, "token-2"),
            lambda: store.register(other),
            lambda: store.finish(attempt, Status.COMPLETED, 0, 0, 1),
        ):
            with pytest.raises(StoreRefused):
                operation()
        assert bench.snapshot() == before
        store.renew(attempt)
        assert bench.ttl("lease") > 1000

    store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert bench.hash()["status"] == "COMPLETED"


# Servers that restart


def test_every_operation_works_after_a_script_flush(bench: Bench, store: Store) -> None:
    """Scripts are loaded again."""

    def after_flush() -> Store:
        bench.ask("SCRIPT", "FLUSH")
        return store

    assert after_flush().register(JOB)
    attempt = after_flush().open(JOB, "token-1")
    assert after_flush().append(attempt, make_lines(1, 2)) == 3
    after_flush().renew(attempt)
    assert after_flush().get_job(JOB)
    after_flush().finish(attempt, Status.COMPLETED, 0, 0, 3)
    assert bench.ids() == ["1-0", "2-0", "3-0"]


# Unresponsive servers


def read_live(store: Store, times: int = 1) -> None:
    """Reads from a live reader and closes it. In a Cluster, several reads: a node's thread must hit the error first."""
    with contextlib.closing(store.live_reader(0.01)) as reader:
        reader.watch(JOB, 0)
        for _ in range(times):
            reader.read(1)


LINES: Final = make_lines(1, 1)
ATTEMPT: Final = Attempt(JOB, "token-1", 1, 1)
OPERATIONS: Final[dict[str, Callable[[Store], Any]]] = {
    "ping": lambda store: store.ping(),
    "get_job": lambda store: store.get_job(JOB),
    "get_jobs": lambda store: store.get_jobs([JOB]),
    "register": lambda store: store.register(JOB),
    "jobs": lambda store: store.listing.page("wf_1", None, 1),
    "unlist": lambda store: store.listing.unlist("wf_1", ["job_1"]),
    "read": lambda store: store.read(JOB, 0, 1),
    "page": lambda store: store.page(JOB, count=1),
    "open": lambda store: store.open(JOB, "token-1"),
    "append": lambda store: store.append(ATTEMPT, LINES),
    "renew": lambda store: store.renew(ATTEMPT),
    "finish": lambda store: store.finish(ATTEMPT, Status.COMPLETED, 0, 0, 1),
    "reader": lambda store: read_live(store, 50),
}


#: Operations that work while readers use all command connections. ``ATTEMPT`` is a live attempt.
RESERVED: Final[dict[str, Callable[[Store], Any]]] = {
    "ping": lambda store: store.ping(),
    "open": lambda store: store.open(JOB, "token-1"),
    "renew": lambda store: store.renew(ATTEMPT),
    "append and finish": lambda store: store.finish(ATTEMPT, Status.COMPLETED, 0, 0, store.append(ATTEMPT, LINES)),
    "the tail's get_job": lambda store: store.for_tail().get_job(JOB),
    "the tail's get_jobs": lambda store: store.for_tail().get_jobs([JOB]),
    "the tail's read": lambda store: store.for_tail().read(JOB, 0, 1),
    "the tail's redactions": lambda store: store.for_tail().redactions(JOB, 1),
    "the tail's live reader": lambda store: read_live(store.for_tail()),
}


@pytest.fixture
def used_up(bench: Bench, store: Store) -> Iterator[Bench]:
    """A job with a runner, and a store whose command connections are all in use during the test."""
    store.open(JOB, "token-1")
    pool = store._commands.work(JOB.workflow_id, lambda client: client.connection_pool)
    taken = [pool.get_connection() for _ in range(COMMAND_CONNECTIONS)]
    yield bench
    for each in taken:
        pool.release(each)


@pytest.mark.parametrize("operation", RESERVED.values(), ids=RESERVED)
def test_readers_cannot_use_up_the_connections_of_others(used_up: Bench, operation: Callable[[Store], Any]) -> None:
    """The tail reader, health checks and runners have their own connections."""
    began = time.monotonic()
    operation(used_up.store)

    assert time.monotonic() - began < 2


NOWHERE: Final = (
    "unix:///nowhere/redis.sock",
    "redis://127.0.0.1:1",
    "redis+sentinel://127.0.0.1:1/logs",
    "redis+cluster://127.0.0.1:1",
)


@pytest.mark.parametrize("url", NOWHERE, ids=lambda url: url.partition(":")[0])
def test_no_server_at_the_address(url: str) -> None:
    """Every operation raises immediately."""
    for name, operation in OPERATIONS.items():
        store = Store(url)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            operation(store)
        store.close()
        assert time.monotonic() - began < 5, name


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that accepts connections and never answers."""
    with RedisServer(tmp_path_factory.mktemp("frozen")) as server:
        os.kill(server.pid, signal.SIGSTOP)
        yield server
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "reader"])
def test_a_frozen_server(frozen: RedisServer, operation: str) -> None:
    """Every operation raises after one or two timeouts."""
    store = Store(f"{frozen.url}?socket_timeout=0.1")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        OPERATIONS[operation](store)
    store.close()

    assert 0.1 <= time.monotonic() - began < 4.5


def test_the_jobs_of_an_unreachable_server_are_not_missed(bench: Bench, attempt: Attempt) -> None:
    """Those of other servers are listed, and then the error follows: an archiver would forget jobs it cannot see."""

    bench.store.append(attempt, make_lines(1, 1))

    class HalfDown(Topology):
        def masters(self) -> list[redis.Redis]:
            return [new_client("redis://127.0.0.1:1", retries=0), *super().masters()]

    catalog, found = JobCatalog(Commands(HalfDown(bench.url), KeyMap(bench.prefix)), time.time), list[JobRef]()
    with pytest.raises(StoreUnavailable):
        found.extend(job for page in catalog.jobs() for job in page.jobs)
    assert {*found} == {attempt.job}


def test_an_append_is_sent_only_once(frozen: RedisServer) -> None:
    """A timeout is not retried."""
    store = Store(f"{frozen.url}?socket_timeout=2")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.append(ATTEMPT, LINES)
    store.close()

    assert 2 <= time.monotonic() - began < 3.9


# Keys changed by other programs


@pytest.mark.parametrize("entry_id", ["999999999999999-0", "9007199254740993-0", "18446744073709551615-0"])
def test_a_log_with_exhausted_numbers_cannot_be_ended(bench: Bench, store: Store, entry_id: str) -> None:
    """No number is left for its end. The runner gets an error, and the job stays readable."""
    attempt = store.open(JOB, "token")
    bench.xadd(entry_id, "message", "x")
    with pytest.raises(CorruptLog):
        store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    bench.ask("DEL", bench.key("lease"))
    job = bench.new_store(lease_seconds=0.05).get_job(JOB)

    assert job
    assert job.status is Status.RUNNING


# Durability


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_probe_can_sync_the_files_of_this_machine(kind: str, tmp_path: Path, prefix: str) -> None:
    """With ``everysec``, the server's own sync takes half a second on average. The probe renews the lease."""
    synced: list[int] = []
    with RedisServer(tmp_path, binary(kind), "--appendonly", "yes", "--appendfsync", "everysec") as server:
        store = Store(
            server.url, prefix=prefix, durability=Durability.FSYNCED, sync=lambda: synced.append(1), clock=lambda: 0.0
        )
        attempt = store.open(JOB, "token-1")
        probe = store.durability_probe()
        assert probe is not None
        for number in range(1, 21):
            store.append(attempt, make_lines(number, 1))
            assert probe.confirm(attempt, may_sync=True) == number + 1
        lease = f"{prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:lease"
        server.ask("PEXPIRE", lease, 5_000)
        probe.confirm(attempt)
        assert server.ask("PTTL", lease) > 5_000
        # An ended job is confirmed only to its last attempt, even if only the archive still has the log.
        store.finish(attempt, Status.COMPLETED, 0, 0, 21)
        assert probe.confirm(attempt, may_sync=True) == 22
        with pytest.raises(Fenced):
            probe.confirm(attempt._replace(attempt=2), may_sync=True)
        server.ask("HSET", lease.replace("lease", "job"), "archived", 20, "archived_first", 1)
        server.ask("DEL", lease.replace("lease", "log"))
        assert probe.confirm(attempt, may_sync=True) == 22
        server.ask("HSET", lease.replace("lease", "job"), "archived", 19)
        with pytest.raises(Fenced):
            probe.confirm(attempt, may_sync=True)
        store.close()
    # During the server's own fsync, the probe asks the server instead.
    assert len(synced) > 10


def test_a_line_is_replicated_when_a_replica_has_it(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronoverse.store.durability.WAIT_MS", 100)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    options = ("--bind", "127.0.0.1", "--port", str(port), "--repl-diskless-sync-delay", "0")
    with RedisServer(tmp_path / "master", None, *options) as master:
        store = Store(master.url, prefix=prefix, durability=Durability.REPLICATED)
        attempt = store.open(JOB, "token-1")
        store.append(attempt, make_lines(1, 3))
        probe = store.durability_probe()
        assert probe is not None
        assert probe.confirm(attempt) is None

        with RedisServer(tmp_path / "replica", None, "--replicaof", "127.0.0.1", str(port)) as replica:
            wait_until(lambda: probe.confirm(attempt) == 4, TIMEOUT_SECONDS, "the replica has the lines")
            # Its first acknowledgement covers what it has received, and it may still be loading that.
            log = f"{prefix}:{{wf_1}}:job_1:log"
            wait_until(lambda: replica.ask("XLEN", log) == 3, TIMEOUT_SECONDS, "the replica has loaded them")
            store.append(attempt, make_lines(4, 2))
            assert probe.confirm(attempt) == 6
            assert replica.ask("XLEN", log) == 5
        store.close()
