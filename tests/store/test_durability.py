"""Whether the store can go back to what it had before: asked of servers with a file, with a replica, with neither."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.archive.file_store import FileObjectStore
from chronoverse.archive.job_objects import CollectedGarbage, JobObjects, archive_lock
from chronoverse.archive.redaction import REDACTED_MESSAGE, Redaction, RedactionRequest, RedactionResult
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.values import JobRef, Line
from chronoverse.store import Store
from tests.conftest import EVERY_KIND, binary
from tests.support.archivers import all_entries
from tests.support.bench import make_lines
from tests.support.faultproxy import FaultProxy
from tests.support.fleets import free_ports, node
from tests.support.sealing import archive_up_to
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOB: Final = JobRef("wf_1", "job_1")


def is_permanent(store: Store) -> bool | None:
    with archive_lock(store, JOB):
        return store.chunks.is_permanent(JOB, 10)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., bool | None]]:
    """Asks a server that is started with these options."""
    stores: list[Store] = []
    servers: list[RedisServer] = []

    def asked(kind: str, *options: str, before: tuple[str, ...] = ()) -> bool | None:
        servers.append(RedisServer(tmp_path / f"{len(servers)}", binary(kind), *options).start())
        stores.append(Store(servers[-1].url))
        if before:
            servers[-1].ask(*before)
        return is_permanent(stores[-1])

    yield asked
    for store in stores:
        store.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_a_server_says(ask: Callable[..., bool | None], kind: str) -> None:
    """An append-only file is waited for; a server that has never had a file has nothing to go back to."""
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


def test_a_replica_that_is_behind_may_take_over(pair: tuple[RedisServer, RedisServer]) -> None:
    """It is asked as well; and once it has caught up all is well."""
    master, replica = pair
    store = Store(master.url)
    assert is_permanent(store) is True
    os.kill(replica.pid, signal.SIGSTOP)
    assert is_permanent(store) is False
    os.kill(replica.pid, signal.SIGCONT)
    assert is_permanent(store) is True
    store.close()


def test_a_failover_to_a_replica_that_is_behind_loses_no_line(
    pair: tuple[RedisServer, RedisServer], tmp_path: Path
) -> None:
    """The old record is back, its object is there, and whoever redacts again is done."""
    master, replica = pair
    store, objects = Store(master.url), FileObjectStore(tmp_path / "archive")
    store.append(store.open(JOB, "token"), make_lines(1, 100))
    archive_up_to(store, objects, JOB, 60, trim=True)
    assert is_permanent(store) is True
    wish = RedactionRequest(1, 99, lambda line: True, {}, exact=True)
    os.kill(replica.pid, signal.SIGSTOP)
    master.ask("CLIENT", "KILL", "TYPE", "replica")
    assert Redaction(store, objects, JOB, wish).run() == RedactionResult(99, 99, complete=True, pending=True)
    store.close()
    master.kill()
    os.kill(replica.pid, signal.SIGCONT)
    replica.ask("REPLICAOF", "NO", "ONE")
    store = Store(replica.url)

    said = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
    assert said == [f"line {number}" for number in range(1, 101)]
    assert Redaction(store, objects, JOB, wish).run().lines == 99
    said = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
    assert said == [REDACTED_MESSAGE] * 99 + ["line 100"]
    store.close()


def test_an_answer_that_is_lost_is_no_redaction_that_is_lost(server: RedisServer, tmp_path: Path, prefix: str) -> None:
    """The store has done what it was asked, and could not say so twice: the lines are counted, their object stays."""
    with FaultProxy(server.socket) as proxy:
        store, objects = Store(proxy.redis_url, prefix=prefix), FileObjectStore(tmp_path)
        store.append(store.open(JOB, "token"), make_lines(1, 100))
        archive_up_to(store, objects, JOB, 60, trim=True)
        wish = RedactionRequest(1, 1, lambda line: True, {"reason": "so that the server knows the script"}, exact=True)
        assert Redaction(store, objects, JOB, wish).run().lines == 1
        proxy.drop_reply(asked=b"a reason", times=2)
        wish = RedactionRequest(1, 60, lambda line: True, {"reason": "a reason"}, exact=True)
        assert Redaction(store, objects, JOB, wish).run() == RedactionResult(59, 60, complete=True, pending=False)
        said = [entry.message for entry in all_entries(store, objects, JOB) if isinstance(entry, Line)]
        assert said == [*[REDACTED_MESSAGE] * 60, *(f"line {number}" for number in range(61, 101))]
        assert len(list(objects.list(""))) == 1
        store.close()


def test_a_line_that_is_too_long_for_the_expression_does_not_hide_what_was_redacted(
    server: RedisServer, tmp_path: Path, prefix: str
) -> None:
    """The lines before it are counted, and their old object goes. Who goes on hears of the line."""

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


def test_where_it_cannot_be_known_objects_go_when_they_are_old(tmp_path: Path) -> None:
    """A server that makes snapshots alone: by then it has made one."""
    objects = FileObjectStore(tmp_path / "archive")
    with RedisServer(tmp_path / "server") as server, archive_lock(store := Store(server.url), JOB) as token:
        server.ask("SAVE")
        objects.put("wf_1/job_1/old", b"")
        store.chunks.mark_garbage(JOB, token, ["wf_1/job_1/old"])
        ours = JobObjects(store, objects, JOB, token)
        assert ours.collect_garbage(0, min_age=0) == CollectedGarbage(deleted=0, remaining=1, permanent=None)
        server.ask("HSET", "chronoverse:{wf_1}:job_1:garbage", "wf_1/job_1/old", int(server.ask("TIME")[0]) - 3_601)
        assert ours.collect_garbage(0, min_age=0) == CollectedGarbage(deleted=1, remaining=0, permanent=None)
        assert list(objects.list("")) == []
        assert store.chunks.garbage(JOB) == set()
    store.close()


def test_a_question_that_nothing_was_written_behind_is_not_answered(store: Store) -> None:
    """The lease is gone: the answer would be about another write."""
    assert store.chunks.is_permanent(JOB, 10) is False
