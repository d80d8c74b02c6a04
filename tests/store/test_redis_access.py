"""What those may do who reach the store: the rights of docs/redis.md."""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import redis

from chronoverse.archive.file_store import FileObjectStore
from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.retention import apply_retention
from chronoverse.errors import StoreError
from chronoverse.joblog.values import JobRef, LineRun, Status
from chronoverse.store import Durability, Store
from tests.support.archivers import DAY, append, archive
from tests.support.bench import JOB, NOW, NOW_SECONDS, make_lines
from tests.support.fleets import Cluster, Watched
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
#: Jobs: half archived, its log lost, and once more with its runner; too large; ended long ago.
#: Deleted, and a foreign runner has written on.
HALF, LOST, LARGE, ENDED, DELETED = (JobRef("wf_1", name) for name in ("half", "lost", "large", "ended", "deleted"))
#: The users of the document, in its order: the service, a runner, the service to a Sentinel, an archiver.
RULES: Final = [line.split()[2:] for line in DOCUMENT.splitlines() if line.startswith("ACL SETUSER ")]


def used(server: RedisServer) -> set[str]:
    """The commands that the server has run since its statistics were reset."""
    names = re.findall(rb"cmdstat_(\S+?):", server.ask("INFO", "commandstats"))
    return {name.decode() for name in names}


def granted(rules: list[str]) -> set[str]:
    return {rule[1:] for rule in rules if rule.startswith("+")}


def go_on(store: Store) -> None:
    """A log that was lost goes on behind its archive."""
    assert store.append(store.open(HALF, "token"), make_lines(6, 1)) == 7


def serve(store: Store) -> None:
    """All that a service does."""
    store.ping()
    assert store.warnings() == []
    assert store.evicted_keys() == 0
    store.chunks.chunk(JOB, 1)
    store.redactions(JOB, 1)
    store.register(JOB)
    attempt = store.open(JOB, "token")
    store.append(attempt, make_lines(1, 2))
    store.renew(attempt)
    for tracked_jobs in ((9, 9), (1, 1)):
        reader = store.live_reader(0.01, tracked_jobs)
        reader.read({JOB: 0}, 10)
        reader.interrupt()
        reader.close()
    store.read(JOB, 0, 10)
    store.page(JOB, count=10)
    store.page(JOB, before=3, count=10)
    store.get_jobs([JOB, JobRef("wf_1", "job_2")])
    store.listing.page("wf_1", None, 10)
    store.listing.unlist("wf_1", ["unknown"])
    store.finish(attempt, Status.COMPLETED, 0, 0, 3)
    store.get_job(JOB)
    store.get_job(LOST)
    # A foreign runner has written on under the id of a deleted job.
    assert store.is_deleted(DELETED)
    assert store.get_job(DELETED) is None


def run(store: Store) -> None:
    """All that a runner does, whatever it takes for safe."""
    attempt = store.open(JOB, "token")
    appends = store.append_connection()
    appends.send(attempt, 1, [LineRun(NOW, "stdout", False, [b"a line"])])
    appends.receive()
    appends.reset()
    store.renew(attempt)
    for durability in (Durability.FSYNCED, Durability.REPLICATED):
        store._durability = durability
        probe = store.durability_probe()
        assert probe
        probe.confirm(attempt)
    assert store.eviction_warnings(JOB) == []
    store.finish(attempt, Status.COMPLETED, 0, 0, 2)


def archive_all(store: Store) -> None:
    """All that an archiver does: a large log, an ended one, one whose time is over, a lost runner's, garbage."""
    assert store.warnings() == []
    with tempfile.TemporaryDirectory() as directory:
        objects = FileObjectStore(Path(directory))
        with archive_lock(store, LARGE) as token:
            store.chunks.begin_upload(LARGE, token, f"{LARGE.workflow_id}/{LARGE.job_id}/left")
        for days in (30, 7):
            assert archive(store, objects, retention_seconds=days * DAY) == 0
        assert store.catalog.archive_state(ENDED).ended_seconds is None
        chunk = store.chunks.chunks(LARGE)[-1]
        with archive_lock(store, LARGE) as token:
            store.chunks.commit_chunk(LARGE, token, chunk)
    found = store.get_job(LOST)
    assert found
    assert found.status is Status.LOST


def prepare(store: Store) -> None:
    """What is there before."""
    store.open(LOST, "token")
    append(store, store.open(LARGE, "token"), 1, 5_000)
    store.append(attempt := store.open(ENDED, "token"), make_lines(1, 3))
    store.finish(attempt, Status.COMPLETED, 0, 0, 4)
    with archive_lock(store, DELETED) as token:
        store.chunks.mark_deleting(DELETED, token, 60_000)


@pytest.mark.parametrize(
    ("rules", "work"),
    [(RULES[0], serve), (RULES[1], run), (RULES[3], archive_all)],
    ids=["service", "runner", "archiver"],
)
def test_the_documented_rights_are_enough_and_none_is_too_much(
    tmp_path: Path, rules: list[str], work: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All works, every command that is granted is used, and nothing else is allowed."""
    # No replica will come.
    monkeypatch.setattr("chronoverse.store.durability.WAIT_MS", 10)
    user = rules[0]
    with RedisServer(tmp_path, None, "--appendonly", "yes", "--min-replicas-to-write", "0") as server:
        server.ask("ACL", "SETUSER", *rules)
        for job in (HALF, LOST):
            server.ask("HSET", f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:job", "archived", 5)
        with contextlib.closing(Store(server.url, clock=lambda: NOW_SECONDS)) as theirs:
            prepare(theirs)
        end_seen_ms = round((time.time() - 8 * DAY) * 1000)
        server.ask("HSET", f"chronoverse:{{{ENDED.workflow_id}}}:{ENDED.job_id}:job", "end_seen_ms", end_seen_ms)
        lose(server)
        server.ask("XADD", f"chronoverse:{{{DELETED.workflow_id}}}:{DELETED.job_id}:log", "1-0", "message", "a line")
        server.ask("CONFIG", "RESETSTAT")
        store = Store(
            server.url.replace("unix://", f"unix://{user}:secret@"), lease_seconds=30 if user == "runner" else 1
        )
        if user != "archiver":
            go_on(store)
        work(store)
        ours = used(server) - {"config|resetstat", "info", "hello", "auth", "client|setinfo"}
        with redis.Redis.from_url(server.url, protocol=2, username=user, password="secret") as client:
            for command in (
                ["KEYS", "*"],
                ["FLUSHALL"],
                ["CONFIG", "GET", "*"],
                ["XREAD", "STREAMS", "other:{a}:b:log", "0"],
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
        store.close()

    assert ours == granted(rules) - {"info"}


def lose(server: RedisServer) -> None:
    """The runner of a job is gone, and so is its log."""
    server.ask("DEL", f"chronoverse:{{{LOST.workflow_id}}}:{LOST.job_id}:lease")
    wait_until(lambda: b"uptime_in_seconds:0\r" not in server.ask("INFO", "server"), 5, "the server is a second old")


def test_a_runner_may_be_kept_to_a_workflow(tmp_path: Path) -> None:
    """By the pattern of its keys."""
    rules = [rule.replace("~chronoverse:*", "~chronoverse:{wf_1}:*") for rule in RULES[1]]
    with RedisServer(tmp_path) as server:
        server.ask("ACL", "SETUSER", *rules)
        store = Store(server.url.replace("unix://", "unix://runner:secret@"))
        assert store.open(JOB, "token").next == 1
        with pytest.raises(StoreError, match="permission"):
            store.open(JobRef("wf_2", "job_1"), "token")
        store.close()


def test_the_rights_to_change_a_retention(tmp_path: Path) -> None:
    """An archiver's and what the document names besides, which the archiver's alone are not enough for."""
    (besides,) = re.findall(r"`chronoverse retention` needs `([^`]*)` besides", DOCUMENT)
    with RedisServer(tmp_path) as server:
        with contextlib.closing(Store(server.url)) as theirs:
            theirs.finish(theirs.open(JOB, "token"), Status.COMPLETED, 0, 0, 1)
        server.ask("ACL", "SETUSER", *RULES[3])
        with contextlib.closing(Store(server.url.replace("unix://", "unix://archiver:secret@"))) as store:
            store.catalog.set_retention(JOB.workflow_id, 5)
            for right in besides.split():
                with pytest.raises(StoreError, match="permission"):
                    change_retention(store)
                server.ask("ACL", "SETUSER", "archiver", right)
            assert change_retention(store) == 1


def change_retention(store: Store) -> int:
    """As the command does."""
    store.catalog.set_retention(JOB.workflow_id, None)
    return apply_retention(store, JOB.workflow_id, None, 9)


def further(sign: str) -> list[str]:
    """What the document says a form needs "as well": the rights beside ``sign``."""
    (line,) = re.findall(rf"both need `([^`]*\{sign}[^`]*)` as well", DOCUMENT)
    return str(line).split()


@pytest.mark.parametrize("rules", RULES[:2], ids=["service", "runner"])
def test_the_rights_behind_sentinels(watched: Watched, prefix: str, rules: list[str]) -> None:
    """A little more on the servers, and next to nothing on the Sentinels."""
    user = f"{prefix}-{rules[0]}"
    for server in watched.servers[:2]:
        server.ask("ACL", "SETUSER", user, *rules[1:], f"~{prefix}:*", *further("+role"))
    for sentinel in watched.servers[2:]:
        sentinel.ask("ACL", "SETUSER", user, *RULES[2][1:])
    url = watched.url.replace("://", f"://{user}:secret@")
    store = Store(f"{url}?sentinel_username={user}&sentinel_password=secret", prefix=prefix)
    store.finish(store.open(JOB, "token"), Status.COMPLETED, 0, 0, 1)
    store.close()


@pytest.mark.parametrize("rules", RULES[:2], ids=["service", "runner"])
def test_the_rights_in_a_cluster(cluster: Cluster, prefix: str, rules: list[str]) -> None:
    """Enough to find the job, also while it moves."""
    user = f"{prefix}-{rules[0]}"
    for server in cluster.servers:
        server.ask("ACL", "SETUSER", user, *rules[1:], f"~{prefix}:*", *further("+cluster"))
    store = Store(cluster.url.replace("://", f"://{user}:secret@"), prefix=prefix)
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, prefix), "job_1")
    attempt = store.open(job, "token")
    store.append(attempt, make_lines(1, 1))
    slot = cluster.begin_move(job.workflow_id, source, target)
    cluster.move_keys(slot, source, target)
    assert store.append(attempt, make_lines(2, 1)) == 3
    cluster.end_move(slot, source, target)
    assert store.append(attempt, make_lines(3, 1)) == 4
    store.close()
