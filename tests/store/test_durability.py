"""Whether the store can still undo a write: servers with an append-only file, with a replica, with neither."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.archive.job_objects import CollectedGarbage, JobObjects, archive_lock
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.archive.retention import delete_job
from chronoverse.errors import NotPermanent, SearchTooExpensive
from chronoverse.joblog.model import REDACTED_MESSAGE, JobRef, Line
from chronoverse.store import Store
from tests.conftest import EVERY_KIND, binary
from tests.support.archivers import all_entries
from tests.support.archives import archive_up_to
from tests.support.bench import make_lines
from tests.support.faultproxy import FaultProxy
from tests.support.fleets import node
from tests.support.ports import free_ports
from tests.support.servers import RedisServer, running
from tests.support.waiting import wait_until

JOB: Final = JobRef("wf_1", "job_1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for this module: other tests take snapshots of the shared one, which it may go back to."""
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def is_permanent(store: Store) -> bool | None:
    with archive_lock(store, JOB):
        return store.chunks.is_permanent(JOB, 10)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., bool | None]]:
    """Asks a new server with these options."""
    stores: list[Store] = []
    servers: list[RedisServer] = []

    def start_and_ask(kind: str, *options: str, before: tuple[str, ...] = ()) -> bool | None:
        servers.append(RedisServer(tmp_path / f"{len(servers)}", binary(kind), *options).start())
        stores.append(Store(servers[-1].url))
        if before:
            servers[-1].ask(*before)
        return is_permanent(stores[-1])

    yield start_and_ask
    for store in stores:
        store.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_append_only_file_makes_writes_permanent(ask: Callable[..., bool | None], kind: str) -> None:
    """A server without append-only file and snapshots has no older state; one with a snapshot cannot tell."""
    assert ask(kind, "--appendonly", "yes") is True
    assert ask(kind, "--appendonly", "yes", "--appendfsync", "always") is True
    assert ask(kind) is True
    assert ask(kind, before=("SAVE",)) is None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master and its replica, with append-only files."""
    ports = free_ports(2)
    file = ("--appendonly", "yes")
    follows = ("--replicaof", "127.0.0.1", str(ports[0]))
    with node(tmp_path / "a", ports[0], *file) as master, node(tmp_path / "b", ports[1], *file, *follows) as replica:
        wait_until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"), 10, "the replica follows")
        yield master, replica
        os.kill(replica.pid, signal.SIGCONT)


def test_a_replica_that_lacks_writes_may_take_over(pair: tuple[RedisServer, RedisServer]) -> None:
    """Writes are not permanent while the replica is stopped, and are permanent once it has caught up."""
    master, replica = pair
    store = Store(master.url)
    assert is_permanent(store) is True
    os.kill(replica.pid, signal.SIGSTOP)
    assert is_permanent(store) is False
    os.kill(replica.pid, signal.SIGCONT)
    assert is_permanent(store) is True
    store.close()


def test_a_failover_to_a_replica_that_lacks_writes_loses_no_line(
    pair: tuple[RedisServer, RedisServer], tmp_path: Path
) -> None:
    """The replica has the old record, whose object still exists. Repeating the redaction does all of its work again."""
    master, replica = pair
    store, objects = Store(master.url), FileObjectStore(tmp_path / "archive")
    store.append(store.open(JOB, "token"), make_lines(1, 100))
    archive_up_to(store, objects, JOB, 60, trim=True)
    assert is_permanent(store) is True
    request = RedactionRequest(1, 99, lambda line: True, {}, exact=True)
    os.kill(replica.pid, signal.SIGSTOP)
    master.ask("CLIENT", "KILL", "TYPE", "replica")
    assert Redaction(store, objects, JOB, request).run() == RedactionResult(99, 99, complete=True, pending=True)
    store.close()
    master.kill()
    os.kill(replica.pid, signal.SIGCONT)
    replica.ask("REPLICAOF", "NO", "ONE")
    store = Store(replica.url)

    messages = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
    assert messages == [f"line {number}" for number in range(1, 101)]
    assert Redaction(store, objects, JOB, request).run().lines == 99
    messages = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
    assert messages == [REDACTED_MESSAGE] * 99 + ["line 100"]
    store.close()


def test_a_deletion_succeeds_once_it_is_permanent(pair: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    """Until then its objects remain, and it can be repeated. The job is already hidden."""
    master, replica = pair
    store, objects = Store(master.url), FileObjectStore(tmp_path / "archive")
    store.append(store.open(JOB, "token"), make_lines(1, 100))
    archive_up_to(store, objects, JOB, 60, trim=True)
    master.ask("DEL", "chronoverse:{wf_1}:job_1:lease")
    os.kill(replica.pid, signal.SIGSTOP)
    with pytest.raises(NotPermanent):
        delete_job(store, objects, JOB, tombstone_ms=60_000)
    assert (store.get_job(JOB), len(list(objects.list("")))) == (None, 1)
    os.kill(replica.pid, signal.SIGCONT)
    delete_job(store, objects, JOB, tombstone_ms=60_000)
    assert list(objects.list("")) == []
    store.close()


def test_a_redaction_whose_reply_is_lost_is_counted(server: RedisServer, tmp_path: Path, prefix: str) -> None:
    """The store executed the script, but both replies were lost. Lines are counted, and their object is kept."""
    with FaultProxy(server.socket) as proxy:
        store, objects = Store(proxy.redis_url, prefix=prefix), FileObjectStore(tmp_path)
        store.append(store.open(JOB, "token"), make_lines(1, 100))
        archive_up_to(store, objects, JOB, 60, trim=True)
        request = RedactionRequest(1, 1, lambda line: True, {"reason": "to load the script"}, exact=True)
        assert Redaction(store, objects, JOB, request).run().lines == 1
        proxy.drop_reply(request=b"a reason", times=2)
        request = RedactionRequest(1, 60, lambda line: True, {"reason": "a reason"}, exact=True)
        assert Redaction(store, objects, JOB, request).run() == RedactionResult(59, 60, complete=True, pending=False)
        messages = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
        assert messages == [*[REDACTED_MESSAGE] * 60, *(f"line {number}" for number in range(61, 101))]
        assert len(list(objects.list(""))) == 1
        store.close()


def test_a_line_that_is_too_long_for_the_expression_ends_the_redaction_before_it(
    server: RedisServer, tmp_path: Path, prefix: str
) -> None:
    """The lines before it are counted, and their old object is deleted. The next request fails at that line."""

    def wanted(line: Line) -> bool:
        if line.sequence_num == 80:
            raise SearchTooExpensive("line 80 is too long for this expression")
        return True

    store, objects = Store(server.url, prefix=prefix), FileObjectStore(tmp_path)
    store.append(store.open(JOB, "token"), make_lines(1, 100))
    archive_up_to(store, objects, JOB, 60, trim=True)
    done = Redaction(store, objects, JOB, RedactionRequest(1, 99, wanted, {}, exact=False)).run()
    assert done == RedactionResult(60, 60, complete=False, pending=False)
    assert len(list(objects.list(""))) == 1
    with pytest.raises(SearchTooExpensive):
        Redaction(store, objects, JOB, RedactionRequest(61, 99, wanted, {}, exact=False)).run()
    store.close()


def test_objects_are_deleted_when_old_where_permanence_is_unknown(tmp_path: Path) -> None:
    """A server with snapshots only: after an hour, one of them contains the mark."""
    objects = FileObjectStore(tmp_path / "archive")
    with RedisServer(tmp_path / "server") as server, archive_lock(store := Store(server.url), JOB) as token:
        server.ask("SAVE")
        objects.put("wf_1/job_1/old", b"")
        store.chunks.mark_garbage(JOB, token, ["wf_1/job_1/old"])
        job_objects = JobObjects(store, objects, JOB, token)
        assert job_objects.collect_garbage(0, min_age=0) == CollectedGarbage(deleted=0, remaining=1, permanent=None)
        server.ask("HSET", "chronoverse:{wf_1}:job_1:garbage", "wf_1/job_1/old", int(server.ask("TIME")[0]) - 3_601)
        assert job_objects.collect_garbage(0, min_age=0) == CollectedGarbage(deleted=1, remaining=0, permanent=None)
        assert list(objects.list("")) == []
        assert store.chunks.garbage(JOB) == set()
    store.close()


def test_durability_needs_the_archive_lock(store: Store) -> None:
    """Without the lock nothing is written, so the answer would be about another write."""
    assert store.chunks.is_permanent(JOB, 10) is False
