"""A deleted job stays deleted, tested from outside.

Its runners and viewers get errors, and so does everybody who uses its id again.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from chronoverse.api import JobLog
from chronoverse.archive.retention import delete_job
from chronoverse.auth.tokens import ADMIN, READ, WRITE
from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.archivers import archive, stepped
from tests.support.bench import make_lines
from tests.support.commands import call_main, environ, start_chronoverse
from tests.support.servers import RedisServer
from tests.support.service import serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.test_publish import Runner
from tests.web.routes.test_tiers import Site

#: Lease of a runner: a frozen one loses its job after it.
LEASE_SECONDS: Final = 1
RETENTION_SECONDS: Final = 1_000
#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 10.0
GONE: Final = b"event: error\ndata: the log is gone from the store: it expired or was deleted\n\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Site]:
    """A service with a lease of one second and a token for deletion."""
    directory = tmp_path_factory.mktemp("deletion")
    folder = directory / "archive"
    store_settings: dict[str, Any] = {"lease_seconds": LEASE_SECONDS, "retention_seconds": RETENTION_SECONDS}
    settings: dict[str, Any] = {**store_settings, "archive_url": folder.as_uri(), "heartbeat_seconds": 1}
    store = Store(redis_server.url, **store_settings)
    with contextlib.closing(store), serving(directory, redis_server.url, **settings) as service:
        site = Site(service, folder, store, "deletion", (READ, WRITE, ADMIN))
        yield site
        site.client.close()


def reference(job: Foreign) -> JobRef:
    return JobRef(job.workflow_id, job.job_id)


def ask(site: Site, *command: Any) -> Any:
    """Sends one command to the store, without parsing the reply."""
    with redis.Redis.from_url(str(site.service.redis_url), protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


def tombstone(job: Foreign) -> str:
    return job.key.removesuffix("log") + "deleted"


def keys(site: Site, job: Foreign) -> set[str]:
    """The suffixes of all keys of the job in the store."""
    prefix = job.key.removesuffix("log")
    return {key.decode().removeprefix(prefix) for key in ask(site, "KEYS", prefix.replace("{", "\\{") + "*")}


def deleted(site: Site) -> Foreign:
    """A deleted job of three lines."""
    job = site.job().lines(["secret 1", "secret 2", "secret 3"]).end()
    assert site.client.delete(job.path).status_code == 204
    return job


def stays_deleted(site: Site, job: Foreign) -> None:
    """Fails unless only the tombstone remains under the id and no route returns the job."""
    assert keys(site, job) == {"deleted"}
    assert site.client.get(job.path).status_code == 404
    listed = site.client.get(f"/workflows/{job.workflow_id}/jobs?limit=1000").json()["jobs"]
    assert job.job_id not in [each["id"] for each in listed]


def noise() -> Iterator[bytes]:
    """More lines than a socket's buffer holds."""
    return (b"x" * 50_000 for _ in range(300))


@contextlib.contextmanager
def slow_stream(site: Site, job: Foreign) -> Iterator[Any]:
    """A stream of which only the head is read. Yields a function that reads the rest."""
    with site.service.connect(20) as sock:
        fields = "".join(f"{name}: {value}\r\n" for name, value in site.headers.items())
        sock.sendall(f"GET {job.path}/events HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
        assert b"200 OK" in sock.recv(1_000)

        def rest() -> bytes:
            body = b""
            while part := sock.recv(1 << 20):
                body += part
            return body

        yield rest


# Rejected requests


def test_nothing_can_be_written_under_a_deleted_id(site: Site) -> None:
    """Each of a runner's requests is rejected with DELETED, whatever its token, and changes nothing."""
    job = deleted(site)
    runner = Runner(site.client, job)

    answers = [
        site.client.put(job.path),
        runner.open(),
        runner.append(1, "secret 1"),
        runner.append(4, "secret 4"),
        runner.post("logs", runner.lines(1)),
        runner.end(1),
        runner.end(4),
    ]

    assert [(answer.status_code, answer.json().get("reason")) for answer in answers] == [(409, "DELETED")] * 7
    assert all("deleted" in answer.json()["detail"] for answer in answers)
    stays_deleted(site, job)


def test_a_deleted_job_reads_like_one_that_never_existed(site: Site) -> None:
    """Byte for byte, on every route. A stream with ``wait`` is rejected immediately."""
    job = deleted(site)
    never = job.sibling("never")
    routes = ("", "/logs", "/logs/search?q=secret", "/logs/raw", "/events", "/events?offset=1", "/logs/redactions")
    for route in routes:
        answers = [site.client.get(f"{path}{route}") for path in (job.path, never.path)]
        assert [answer.status_code for answer in answers] == [404, 404], route
        assert answers[0].content == answers[1].content, route
    began = time.monotonic()
    waiting = site.client.get(f"{job.path}/events?wait=30")
    assert (waiting.status_code, waiting.content) == (404, site.client.get(f"{never.path}/logs").content)
    assert time.monotonic() - began < 5
    assert site.client.delete(job.path).status_code == 404


@pytest.mark.long
@pytest.mark.parametrize("step", ["marked for deletion", "object deleted"])
def test_an_interrupted_deletion_leaves_the_tombstone(site: Site, step: str) -> None:
    """It is written before anything is deleted, and remains when the deletion resumes."""
    job = site.job().lines(["secret"]).end()
    site.archive_up_to(job, 1, trim=True)

    def fail(name: str) -> None:
        if name == step:
            raise StoreUnavailable("the server has gone")

    stores = stepped(site.store, site.objects, fail)
    with pytest.raises(StoreUnavailable):
        delete_job(*stores, reference(job), tombstone_ms=RETENTION_SECONDS * 1000)
    assert Runner(site.client, job).open().json()["reason"] == "DELETED"

    archive(site.store, site.objects)

    assert Runner(site.client, job).open().json()["reason"] == "DELETED"
    assert [*site.objects.list(f"{job.workflow_id}/{job.job_id}/")] == []
    stays_deleted(site, job)


def test_the_id_is_free_again_when_the_tombstone_has_expired(site: Site) -> None:
    """After the retention, the workflow's own if set. A new job then has nothing of the old one."""
    assert ask(site, "TTL", tombstone(deleted(site))) > RETENTION_SECONDS - 60
    job = Foreign(str(site.service.redis_url), "deletion-short", "job_1")
    site.store.catalog.change_settings(job.workflow_id, retention_seconds=1)
    job.lines(["secret 1", "secret 2"]).end()
    assert site.client.delete(job.path).status_code == 204
    runner = Runner(site.client, job)
    assert runner.open().status_code == 409

    wait_until(lambda: keys(site, job) == set(), SOON, "the tombstone has expired")

    assert runner.open().json()["next"] == 1
    assert runner.append(1, "new").status_code == 200
    assert [line["message"] for line in site.client.get(f"{job.path}/logs").json()["logs"]] == ["new"]


def test_a_rerun_is_not_mixed_with_the_deleted_job(site: Site) -> None:
    """Even a viewer with the old job's cursor does not see lines of a rerun."""
    job = site.job().lines(f"old {number}" for number in range(1, 51))
    with site.stream(job) as watching:
        watching.wait_for(b"id: 50\n")
        assert site.client.delete(job.path).status_code == 204
        rerun = Runner(site.client, job)
        refused = [rerun.open(), rerun.append(1, *(f"new {number}" for number in range(1, 61)))]
        assert {answer.json().get("reason") for answer in refused} == {"DELETED"}
        watching.wait_end()
        assert watching.body.endswith(GONE)
        assert b"new" not in watching.body
    with site.stream(job, **{"Last-Event-ID": "50"}) as again:
        assert again.wait_end().status == 404


# Foreign runners


def test_lines_of_a_foreign_runner_are_not_shown_and_are_deleted(site: Site) -> None:
    """A foreign runner ignores tombstones. The archiver deletes what it writes, and the job does not reappear."""
    job = deleted(site)
    job.last = 0
    job.lines(f"secret {number}" for number in range(1, 51))
    assert site.client.get(f"{job.path}/logs").status_code == 404
    job.lines(["more"])

    archive(site.store, site.objects)

    stays_deleted(site, job)
    ask(site, "DEL", tombstone(job))
    assert site.client.get(job.path).status_code == 404


def test_viewers_see_nothing_that_is_written_after_the_deletion(site: Site) -> None:
    """Even if the lines continue the viewer's sequence, and are so frequent that the job is rarely checked."""
    job = site.job().lines(["1", "2"])
    with site.stream(job) as watching:
        watching.wait_for(b"id: 2\n")
        assert site.client.delete(job.path).status_code == 204
        while not watching.ended and job.last < 500:
            job.line("secret")
            time.sleep(0.01)
        watching.wait_end()
    assert b"secret" not in watching.body
    assert watching.body.endswith(GONE)


def test_a_foreign_runner_cannot_delete_a_job(site: Site) -> None:
    """A stream with the tombstone's name is not a tombstone, and a foreign runner can only use XADD."""
    job = site.job().lines(["a line"])
    ask_all(str(site.service.redis_url), [("XADD", tombstone(job), "1-0", "a", "b")])

    assert site.client.get(job.path).json()["last_sequence_num"] == 1
    assert Runner(site.client, job).open().status_code == 200


# The job's own runners

TICKING: Final = """
import os, sys, time
for number in range(600):
    print("secret", number, flush=True)
    if os.path.exists(sys.argv[1]): sys.exit(7)
    time.sleep(0.1)
"""


@pytest.mark.long
@pytest.mark.parametrize("through", ["store", "service"])
def test_a_runner_that_was_frozen_writes_nothing(site: Site, tmp_path: Path, through: str) -> None:
    """It reports the deletion once and drops its lines. Its command is not affected."""
    job, gate, seen = site.job(), tmp_path / "gate", b""
    names = ("--workflow", job.workflow_id, "--job", job.job_id)
    server = ("--server", site.service.url) if through == "service" else ()
    runner = start_chronoverse(
        site.service,
        *("run", *names, *server, "--", sys.executable, "-c", TICKING, str(gate)),
        CHRONOVERSE_DATA_DIR=str(tmp_path),
        CHRONOVERSE_REDIS_URL=str(site.service.redis_url),
        CHRONOVERSE_LEASE_SECONDS=str(LEASE_SECONDS),
        CHRONOVERSE_TOKEN=site.service.token(),
    )
    with runner:
        wait_until(lambda: b"log" in {key.encode() for key in keys(site, job)}, 20, "the runner publishes")
        assert site.client.delete(job.path).json()["reason"] == "HELD"
        runner.send_signal(signal.SIGSTOP)
        wait_until(lambda: site.client.delete(job.path).status_code == 204, 20, "the job is deleted")
        runner.send_signal(signal.SIGCONT)
        assert runner.stderr is not None
        while b"deleted" not in seen:
            seen = runner.stderr.readline()
            assert seen, "the runner does not report the deletion"
        time.sleep(0.5)
        gate.touch()
        rest = runner.communicate(timeout=20)[1]
    assert seen.startswith(b"chronoverse: publishing stopped: the job was deleted")
    assert runner.returncode == 7
    assert b"chronoverse:" not in rest
    assert [*tmp_path.glob("spool/*")] == []
    stays_deleted(site, job)


@pytest.mark.long
@pytest.mark.parametrize("through", ["store", "service"])
def test_lines_in_the_spool_of_a_killed_runner_are_not_delivered(site: Site, tmp_path: Path, through: str) -> None:
    """``deliver`` reports the deletion and removes the spool, because its lines were to be deleted."""
    job = site.job()
    path = spool_of_killed_runner(site, job, tmp_path)
    assert site.client.delete(job.path).status_code == 204

    server = ("--server", site.service.url) if through == "service" else ()
    variables = environ(
        site.service,
        CHRONOVERSE_REDIS_URL=str(site.service.redis_url),
        CHRONOVERSE_TOKEN=site.service.token(),
    )
    done = call_main("deliver", *server, str(path), environ=variables)

    assert done.returncode == 73
    assert "was deleted" in done.stderr
    assert str(path) in done.stderr
    assert not path.exists()
    stays_deleted(site, job)


def spool_of_killed_runner(site: Site, job: Foreign, tmp_path: Path) -> Path:
    """The spool of the job's killed runner."""
    room = SpoolRoom(tmp_path / "spool", job.job_id)
    attempt = site.store.open(reference(job), "a" * 32)
    site.store.append(attempt, make_lines(1, 3))
    spool = Spool(room)
    spool.save_state(workflow=job.workflow_id, job=job.job_id, token="a" * 32, base=1, attempt=1, ending=["FAILED", 9])
    for line in make_lines(1, 10):
        spool.put(LineBatch("stdout", TIMESTAMP, line.message.encode(), 1))
    path = spool.preserve()
    assert path is not None
    wait_until(lambda: b"lease" not in {key.encode() for key in keys(site, job)}, SOON, "the lease is gone")
    return path


@pytest.mark.long
@pytest.mark.parametrize("through", ["store", "service"])
def test_a_publishing_program_gets_one_message(site: Site, tmp_path: Path, through: str) -> None:
    """No call raises. The lines are not stored, and ``finish`` returns false."""
    job, messages = site.job(), list[str]()
    with contextlib.ExitStack() as stack:
        log_writer: Any = site.store
        if through == "service":
            log_writer = stack.enter_context(contextlib.closing(HttpLogWriter(site.service.url, site.service.token())))
        log = JobLog.open(
            log_writer, *reference(job), room=SpoolRoom(tmp_path / "spool"), lease_seconds=3, say=messages.append
        )
        log.write("stdout", "secret")
        wait_until(lambda: log.undelivered == 0, SOON, "the line is in the store")
        ask(site, "DEL", job.key.removesuffix("log") + "lease")
        wait_until(lambda: site.client.delete(job.path).status_code == 204, SOON, "the job is deleted")
        log.write("stdout", "secret")
        wait_until(lambda: messages, SOON, "the program has the message")
        log.write("stdout", "secret\n" * 10_000)
        assert not log.finish()
    assert len(messages) == 1
    assert messages[0].startswith("publishing stopped: the job was deleted")
    assert [*tmp_path.glob("spool/*")] == []
    stays_deleted(site, job)


def run_again(site: Site, job: Foreign, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as the job, with its output shown."""
    redis_url = str(site.service.redis_url)
    variables = environ(site.service, CHRONOVERSE_DATA_DIR=str(data_dir), CHRONOVERSE_REDIS_URL=redis_url)
    arguments = ("run", "--workflow", job.workflow_id, "--job", job.job_id, "--", "echo", "shown")
    done = call_main(*arguments, environ=variables)
    assert (done.returncode, done.stdout) == (0, "shown\n")
    return done


def test_a_new_command_is_not_published_under_a_deleted_id(site: Site, tmp_path: Path) -> None:
    """It runs, and its lines stay in the spool: they are not the ones that were to be deleted."""
    job = deleted(site)
    done = run_again(site, job, tmp_path)
    assert "chronoverse: nothing is published: the job was deleted" in done.stderr
    assert len([*tmp_path.glob("spool/*.sqlite")]) == 1
    stays_deleted(site, job)


@pytest.mark.long
def test_another_run_of_a_deleted_job_drops_the_old_spool(site: Site, tmp_path: Path) -> None:
    """With a message, because an earlier one announced that the spool would be published."""
    job = site.job()
    path = spool_of_killed_runner(site, job, tmp_path)
    assert site.client.delete(job.path).status_code == 204
    done = run_again(site, job, tmp_path)
    assert "the job was deleted" in done.stderr
    assert "its waiting lines are dropped" in done.stderr
    assert not path.exists()
    (new,) = tmp_path.glob("spool/*.sqlite")
    assert b"line 10" not in new.read_bytes()
    stays_deleted(site, job)


# Viewers


def test_viewers_get_one_error(site: Site) -> None:
    """Live or during a replay: one error, the end of the stream, and 404 from then on."""
    running = site.job().lines(["1", "2"])
    ended = site.job().lines(noise()).end()
    with site.stream(running) as live, slow_stream(site, ended) as replaying:
        live.wait_for(b"id: 2\n")
        for job in (running, ended):
            assert site.client.delete(job.path).status_code == 204
        live.wait_end()
        body = replaying()
    assert live.body.endswith(GONE)
    assert live.body.count(b"event: error") == 1
    assert body.count(b"event: error") == 1
    assert GONE in body
    assert b"event: end" not in body
    for job in (running, ended):
        with site.stream(job, **{"Last-Event-ID": "2"}) as again:
            assert again.wait_end().status == 404


@pytest.mark.long
def test_a_follower_in_a_terminal_stops(site: Site) -> None:
    """It reports the deletion and does not reconnect."""
    job = site.job().lines(["a line"])
    follower = start_chronoverse(
        site.service, "logs", "-f", job.workflow_id, job.job_id, CHRONOVERSE_TOKEN=site.service.token()
    )
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"a line\n"
        assert site.client.delete(job.path).status_code == 204
        errors = follower.communicate(timeout=20)[1]
    assert b"was deleted" in errors
    assert follower.returncode == 66
