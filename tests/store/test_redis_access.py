"""The users of deploy/redis-users.acl have all the rights they need, and no others."""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import redis

from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import apply_retention, delete_job
from chronoverse.errors import QuotaReached, StoreError
from chronoverse.joblog.model import Attempt, JobRef, Line, LineRun, Status
from chronoverse.joblog.watches import Event, Watch
from chronoverse.runner.readback import comparer_for
from chronoverse.store import Durability, Store
from chronoverse.store.records import RecordBatch, RecordRun
from tests.support.archivers import DAY, append, archive
from tests.support.bench import JOB, NOW, NOW_SECONDS, make_lines
from tests.support.fleets import Cluster, SentinelFleet
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
#: Jobs. HALF is half archived, and its log is lost. LOST is the same without a runner. LARGE is too large, and ENDED
#: ended long ago. DELETED is deleted, and a foreign runner has written to it since.
HALF, LOST, LARGE, ENDED, DELETED = (JobRef("wf_1", name) for name in ("half", "lost", "large", "ended", "deleted"))
RECORDS: Final = JobRef("wf_1", "records")
CONFIRMED: Final = JobRef("wf_1", "confirmed")
#: A job without a runner, some of whose lines exceeded a quota.
OVER: Final = JobRef("wf_1", "over")
#: The rules of the file's users, by user name.
USERS: Final = {
    line.split()[1]: line.split()[2:]
    for line in (Path(__file__).parents[2] / "deploy" / "redis-users.acl").read_text("utf-8").splitlines()
}
#: The rules of the user on the Sentinels, from the document.
(SENTINEL_RULES,) = [line.split()[3:] for line in DOCUMENT.splitlines() if line.startswith("  ACL SETUSER ")]


def add_user(server: RedisServer, name: str, *more: str) -> str:
    """Gives the server one of the file's users, with ``more`` rules, and returns that user's URL."""
    server.ask("ACL", "SETUSER", name, *merge_selectors(USERS[name]), *more)
    return server.url.replace("unix://", f"unix://{name}:{password(name)}@")


def merge_selectors(rules: list[str]) -> list[str]:
    """The rules as arguments of ACL SETUSER: a selector, which contains spaces, is one argument."""
    return re.findall(r"\([^)]*\)|\S+", " ".join(rules))


def password(name: str) -> str:
    """The user's placeholder password in the file."""
    return f"PASSWORD-OF-{name.upper()}"


def used_commands(server: RedisServer) -> set[str]:
    """The commands that the server has run since CONFIG RESETSTAT."""
    names = re.findall(rb"cmdstat_(\S+?):", server.ask("INFO", "commandstats"))
    return {name.decode() for name in names}


#: The stored fields of a redaction.
AUDIT: Final = {"at": NOW, "subject": "ada", "request_id": None, "reason": None}


def granted_commands(rules: list[str]) -> set[str]:
    return set(re.findall(r"\+([\w|]+)", " ".join(rules)))


def continue_lost_log(store: Store) -> None:
    """Appends to a lost log. The next number is the one after the archive."""
    assert store.append(store.open(HALF, "token"), make_lines(6, 1)) == 7


def exceed_quota(store: Store, attempt: Attempt, number: int) -> None:
    """Appends two lines beyond the quota. At the job's end, one entry for both replaces that of the first."""
    for line in make_lines(number, 2, "a longer line"):
        with pytest.raises(QuotaReached):
            store.append(attempt, [line])


def append_records(store: Store) -> None:
    """Appends log records of both kinds, some missing and some omitted."""
    store.catalog.change_settings(RECORDS.workflow_id, job_bytes=1)
    run = RecordRun(NOW, "stdout", False, 1, 1, 1, [b"a", b"b"])
    store.records.append(RECORDS, RecordBatch([run, run._replace(number=9)], "1", [("file", "first")]))
    run = run._replace(source=0, number=0, step=0)
    store.records.append(RECORDS, RecordBatch([run], "2", end=(Status.COMPLETED, 0)))
    store.catalog.change_settings(RECORDS.workflow_id, job_bytes=0)


def serve(store: Store) -> None:
    """Does everything a service does, except redactions and deletions."""
    store.ping()
    assert store.warnings() == []
    assert [info["evicted_keys"] for info in store.server_infos()] == ["0"]
    store.chunks.chunk(JOB, 1)
    store.audit_trail.record("ada", "delete", JOB.workflow_id, JOB.job_id, "the job and its log")
    assert len(store.audit_trail.page(0, None, None, 10)) == 1
    store.redactions(JOB, 1)
    store.register(JOB)
    attempt = store.open(JOB, "token")
    store.append(attempt, make_lines(1, 2))
    exceed_quota(store, attempt, 3)
    store.renew(attempt)
    reader = store.live_reader(0.01)
    reader.watch(JOB, 0)
    wait_until(lambda: reader.read(10), 5, "the lines are read")
    wait_until(lambda: not reader.read(10), 5, "nothing more comes")
    reader.close()
    store.read(JOB, 0, 10)
    store.page(JOB, count=10)
    store.page(JOB, before=3, count=10)
    store.get_jobs([JOB, JobRef("wf_1", "job_2")])
    store.listing.page("wf_1", None, 10)
    store.listing.unlist("wf_1", ["unknown"])
    store.listing.ended_otherwise("wf_1", [JOB.job_id], Status.LOST)
    assert [workflow_id for _, workflow_id in store.workflows.page(None, 10)] == ["wf_1"]
    store.workflows.read(["wf_1"])
    store.finish(attempt, Status.COMPLETED, 0, 0, 5)
    append_records(store)
    store.get_job(JOB)
    store.get_job(LOST)
    # A foreign runner has written to the deleted job.
    assert store.is_deleted(DELETED)
    assert store.get_job(DELETED) is None


WATCHED: Final = JobRef("wf_1", "watched")
WATCH: Final = Watch(workflow_id="wf_1", id="main", on="end", url="https://hooks.example/", secret="whsec_")


def administrate(store: Store) -> None:
    """Does everything a service does, including redactions before and after archiving, and a deletion."""
    serve(store)
    store.watches.put(WATCH)
    for number in range(2):
        # There is room for one.
        store.watches.add(WATCH, Event(f"test.{number}", JOB.job_id, 1, "", 0))
    store.watches.retry(WATCH)
    # As a notifier does.
    assert store.watches.workflows() == ["wf_1"]
    attempt = store.open(WATCHED, "token")
    assert store.watches.running("wf_1", 1)
    store.finish(attempt, Status.FAILED, 1, 0, attempt.next)
    (_, entries, _), *_ = store.watches.changes(["wf_1"], {})
    assert entries
    list(store.watches.changes(["wf_1"], {}))
    store.watches.done("wf_1", entries)
    ((kept, event),) = store.watches.claim([JobRef("wf_1", "main")]).values()
    store.watches.settle(kept, event, 0)
    assert [(each.waiting, each.dropped) for each in store.watches.read("wf_1")] == [(1, 1)]
    assert store.watches.delete("wf_1", "main")
    with tempfile.TemporaryDirectory() as directory:
        objects = FileObjectStore(Path(directory))
        for number in (1, 2):
            request = RedactionRequest(number, number, lambda line: True, AUDIT, exact=True)
            assert Redaction(store, objects, JOB, request).run().lines == 1
        assert [(each["from"], each["to"]) for each in store.chunks.audit(JOB)] == [(1, 1), (2, 2)]
        delete_job(store, objects, JOB, tombstone_ms=60_000)
    assert store.get_job(JOB) is None


def confirm(store: Store) -> None:
    """Does what a runner does for a stronger durability."""
    attempt = store.open(CONFIRMED, "token")
    probe = store.durability_probe()
    assert probe
    probe.confirm(attempt)
    store.close()


def run(store: Store) -> None:
    """Does everything a runner does, then everything ``deliver`` does."""
    attempt = store.open(JOB, "token", labels=(("branch", "main"),))
    store.append_runs(attempt, 1, [LineRun(NOW, "stdout", False, [b"a line"])])
    exceed_quota(store, attempt, 2)
    store.renew(attempt)
    assert store.job_warnings(JOB) == []
    store.finish(attempt, Status.COMPLETED, 0, 0, 4)
    assert comparer_for(store)(JOB, [Line(1, NOW, "a line", "stdout")]).next_number == 2
    assert store.chunks.chunk(JOB, 1) is None


def archive_all(store: Store) -> None:
    """Does everything an archiver does: large, ended, expired and lost jobs, and garbage."""
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
    for ref in (LOST, OVER):
        found = store.require_job(ref)
        assert found.status is Status.LOST
    # As ``chronoverse retention`` does.
    store.audit_trail.record("os:ada@host", "retention", JOB.workflow_id, None, "5 s")
    store.catalog.change_settings(JOB.workflow_id, retention_seconds=5)
    store.catalog.change_settings(JOB.workflow_id, retention_seconds=None)
    apply_retention(store, JOB.workflow_id, None, 9)


def prepare(store: Store) -> None:
    store.open(LOST, "token")
    store.catalog.change_settings(JOB.workflow_id, job_bytes=12)
    exceed_quota(store, store.open(OVER, "token"), 1)
    store.catalog.change_settings(JOB.workflow_id, job_bytes=None)
    append(store, store.open(LARGE, "token"), 1, 5_000)
    store.append(attempt := store.open(ENDED, "token"), make_lines(1, 3))
    store.finish(attempt, Status.COMPLETED, 0, 0, 4)
    with archive_lock(store, DELETED) as token:
        store.chunks.mark_deleting(DELETED, token, 60_000)


#: Optional rights of a service that neither redacts nor deletes.
(_ADMINISTRATION,) = re.findall(r"deletions and watches\s+can omit\s+`([^`]*)`", DOCUMENT)


@pytest.mark.parametrize(
    ("user", "work", "unused"),
    [
        ("service", serve, granted_commands(_ADMINISTRATION.split())),
        ("service", administrate, set()),
        ("runner", run, set()),
        ("archiver", archive_all, set()),
    ],
    ids=["service", "service-for-administrators", "runner", "archiver"],
)
def test_the_rights_are_enough_and_all_are_needed(
    tmp_path: Path, user: str, work: Callable[[Store], None], unused: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation works, nothing is denied, every granted command is used, and other commands are refused."""
    # There is no replica to wait for.
    monkeypatch.setattr("chronoverse.store.durability.WAIT_MS", 10)
    monkeypatch.setattr("chronoverse.store.watches.MAX_WAITING", 0)
    with RedisServer(tmp_path, None, "--appendonly", "yes", "--min-replicas-to-write", "0") as server:
        url = add_user(server, user)
        for job in (HALF, LOST):
            server.ask("HSET", f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:job", "archived", 5)
        with contextlib.closing(Store(server.url, clock=lambda: NOW_SECONDS)) as other:
            prepare(other)
        end_seen_ms = round((time.time() - 8 * DAY) * 1000)
        server.ask("HSET", f"chronoverse:{{{ENDED.workflow_id}}}:{ENDED.job_id}:job", "end_seen_ms", end_seen_ms)
        server.ask("HSET", f"chronoverse:{{{JOB.workflow_id}}}:settings", "job_bytes", 12)
        delete_lease(server)
        server.ask("XADD", f"chronoverse:{{{DELETED.workflow_id}}}:{DELETED.job_id}:log", "1-0", "message", "a line")
        server.ask("XADD", f"chronoverse:{{{JOB.workflow_id}}}:foreign:log", "1-0", "message", "a line")
        server.ask("CONFIG", "RESETSTAT")
        store = Store(url, lease_seconds=30 if user == "runner" else 1)
        if user != "archiver":
            continue_lost_log(store)
        work(store)
        for durability in (Durability.FSYNCED, Durability.REPLICATED) if user == "runner" else ():
            confirm(Store(url, durability=durability))
        # The test's own connections send CLIENT SETINFO.
        used = used_commands(server) - {"config|resetstat", "info", "hello", "auth", "client|setinfo"}
        assert server.ask("ACL", "LOG") == []
        log = f"chronoverse:{{{JOB.workflow_id}}}:{JOB.job_id}:log"
        # A runner deletes its own lease, and nothing else.
        others = [["XADD", "chronoverse-audit", "*", "sub", "ada"], ["XTRIM", log, "MAXLEN", "0"], ["SCAN", "0"]]
        others += [["DEL", log], ["UNLINK", log], ["RENAME", log, "x"]]
        with redis.Redis.from_url(url, protocol=2) as client:
            for command in (
                ["KEYS", "*"],
                ["FLUSHALL"],
                ["CONFIG", "GET", "*"],
                ["XREAD", "STREAMS", "other:{a}:b:log", "0"],
                ["XDEL", "chronoverse-audit", "1-0"],
                *(others if user == "runner" else []),
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
        store.close()

    assert used == granted_commands(USERS[user]) - {"info"} - unused


def delete_lease(server: RedisServer) -> None:
    """Deletes two leases, and waits until the server's uptime exceeds a lease: then the jobs can be declared LOST."""
    for job in (LOST, OVER):
        server.ask("DEL", f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:lease")
    wait_until(lambda: b"uptime_in_seconds:0\r" not in server.ask("INFO", "server"), 5, "the server is a second old")


def test_a_runner_can_be_limited_to_a_workflow(tmp_path: Path) -> None:
    """By the pattern of its keys."""
    limited = [rule.replace("{*}", "{wf_1}") for rule in merge_selectors(USERS["runner"])]
    with RedisServer(tmp_path) as server:
        server.ask("ACL", "SETUSER", "runner", *limited)
        store = Store(server.url.replace("unix://", f"unix://runner:{password('runner')}@"))
        store.finish(store.open(JOB, "token"), Status.COMPLETED, 0, 0, 1)
        assert server.ask("ACL", "LOG") == []
        assert server.ask("ZRANGE", "chronoverse:workflows", 0, -1) == [JOB.workflow_id.encode()]
        with pytest.raises(StoreError, match="permission"):
            store.open(JobRef("wf_2", "job_1"), "token")
        store.close()


def additional_rights(right: str) -> list[str]:
    """The rights that the document names together with ``right``, for Sentinels or for a Cluster."""
    (line,) = re.findall(rf"all users also need `([^`]*\{right}[^`]*)`", DOCUMENT)
    return str(line).split()


def rules_under(prefix: str, name: str) -> list[str]:
    """The rules of one of the file's users, with another key prefix."""
    return [re.sub("~chronoverse(?=[:-])", f"~{prefix}", rule) for rule in merge_selectors(USERS[name])]


@pytest.mark.parametrize("name", ["service", "runner", "archiver"])
def test_the_rights_behind_sentinels(sentinels: SentinelFleet, prefix: str, name: str) -> None:
    """A few more rights on the servers, and very few on the Sentinels."""
    user = f"{prefix}-{name}"
    for server in sentinels.servers[:2]:
        server.ask("ACL", "SETUSER", user, *rules_under(prefix, name), *additional_rights("+role"))
    for sentinel in sentinels.servers[2:]:
        sentinel.ask("ACL", "SETUSER", user, *SENTINEL_RULES)
    url = sentinels.url.replace("://", f"://{user}:{password(name)}@")
    store = Store(f"{url}?sentinel_username={user}&sentinel_password=secret", prefix=prefix)
    store.finish(store.open(JOB, "token"), Status.COMPLETED, 0, 0, 1)
    store.close()


@pytest.mark.parametrize("name", ["service", "runner", "archiver"])
def test_the_rights_in_a_cluster(cluster: Cluster, prefix: str, name: str) -> None:
    """They suffice to find the job, even while its slot moves."""
    user = f"{prefix}-{name}"
    for server in cluster.servers:
        server.ask("ACL", "SETUSER", user, *rules_under(prefix, name), *additional_rights("+cluster"))
    store = Store(cluster.url.replace("://", f"://{user}:{password(name)}@"), prefix=prefix)
    source, target = cluster.masters()[:2]
    job = JobRef(cluster.workflow(source, prefix), "job_1")
    attempt = store.open(job, "token")
    store.append(attempt, make_lines(1, 1))
    slot = cluster.begin_move(job.workflow_id, source, target)
    cluster.move_keys(slot, source, target)
    assert store.append(attempt, make_lines(2, 1)) == 3
    cluster.end_move(slot, source, target)
    assert store.append(attempt, make_lines(3, 1)) == 4
    if name != "runner":
        store.audit_trail.record("ada", "delete", *job, "the job and its log")
    if name == "service":
        assert len(store.audit_trail.page(0, None, None, 10)) == 1
    store.close()
