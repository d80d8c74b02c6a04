"""``chronoverse deliver`` for a job that ended before its runner's spool file was delivered."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import pytest

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.errors import BadRequest, JobNotFound, StoreUnavailable
from chronoverse.joblog.comparing import Comparison
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, JobRef, Line, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.resend import resend_spool
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import orphaned_spools
from chronoverse.store import Store
from tests.support.commands import call_main
from tests.support.jobs import JOB, key, read_lines, read_log
from tests.support.servers import RedisServer, running
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import ask_all

ROOT: Final = Path(__file__).parents[2]
#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 15.0
#: ``deliver``'s exit code when the job has ended without the file's lines.
ENDED: Final = 76
#: Lines that the store received before it was killed, and all lines that the job printed.
BEFORE: Final = 311
ALL: Final = 2730
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
OTHER: Final = JobRef(JOB.workflow_id, "job_2")

PRINTER: Final = f"""
import sys
for number in range({BEFORE}): print(number)
sys.stdout.flush()
sys.stdin.readline()
for number in range({BEFORE}, {ALL}): print(number, file=sys.stderr)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that loses nothing when killed."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(tmp_path_factory.mktemp("server"), None, *options) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """The server, empty."""
    shared_server.ask("FLUSHALL")
    return shared_server


def environ(server: RedisServer, tmp_path: Path, **settings: Any) -> dict[str, str]:
    """The environment of a runner that uses ``server``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
    ours = {"redis_url": server.url, "data_dir": tmp_path / "data", "lease_seconds": 1, **settings}
    return (
        clean | {"PYTHONPATH": str(ROOT)} | {f"CHRONOVERSE_{name.upper()}": str(value) for name, value in ours.items()}
    )


def deliver(
    server: RedisServer, tmp_path: Path, *arguments: Any, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs ``chronoverse deliver …`` to completion."""
    return call_main("deliver", *map(str, arguments), environ=environ(server, tmp_path, **settings))


class Killed(NamedTuple):
    """What a runner leaves that was killed while the store was down."""

    #: Its spool file: name and content.
    name: str
    content: bytes
    #: The store's keys: name, milliseconds to live or -1, and value as returned by DUMP.
    keys: list[tuple[bytes, int, bytes]]


class KillRunner(Protocol):
    """Returns what a killed runner leaves: see :func:`kill_runner`."""

    def __call__(self, **settings: Any) -> Path: ...


@pytest.fixture(scope="module")
def killed() -> dict[str, Killed]:
    """What killed runners left, by their settings."""
    return {}


@pytest.fixture
def kill_runner(server: RedisServer, tmp_path: Path, killed: dict[str, Killed]) -> KillRunner:
    """The file of a runner that was killed while the store was down. The store is up again.

    Runners with the same settings leave the same, so each is killed only once and shared by the tests.
    """

    def kill(**settings: Any) -> Path:
        settings = {"durability": "fsynced", "lease_seconds": 1, **settings}
        if (name := str(settings)) not in killed:
            path = _kill_runner(server, tmp_path, settings)
            keys = [(each, server.ask("PTTL", each), server.ask("DUMP", each)) for each in server.ask("KEYS", "*")]
            # The lease can expire meanwhile.
            killed[name] = Killed(path.name, path.read_bytes(), [each for each in keys if each[1] and each[2]])
            return path
        left = killed[name]
        for each, milliseconds, value in left.keys:
            server.ask("RESTORE", each, max(0, milliseconds), value)
        path = tmp_path / "data" / "spool" / left.name
        path.parent.mkdir(parents=True)
        path.write_bytes(left.content)
        return path

    return kill


def _kill_runner(server: RedisServer, tmp_path: Path, settings: dict[str, Any]) -> Path:
    command = [sys.executable, "-m", "chronoverse", "run", "--workflow", JOB.workflow_id, "--job", JOB.job_id]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-c", PRINTER],
        env=environ(server, tmp_path, **settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as runner:
        assert runner.stdin is not None
        assert runner.stderr is not None
        wait_until(lambda: server.ask("XLEN", key("log")) == BEFORE, SOON, "the first lines are in the store")
        server.kill()
        runner.stdin.write(b"\n")
        runner.stdin.flush()
        while (line := runner.stderr.readline()) != b"%d\n" % (ALL - 1):
            assert line, "the runner is gone"
        time.sleep(0.5)  # until its last lines are in the file
        runner.kill()
    server.start()
    (path,) = orphaned_spools(tmp_path / "data" / "spool")
    return path


def wait_until_lost(server: RedisServer) -> None:
    """Waits until the job is declared LOST, which one of its readers does."""
    with contextlib.closing(Store(server.url, lease_seconds=1)) as store:
        wait_until(
            lambda: (job := store.get_job(JOB)) is not None and job.status is Status.LOST, SOON, "the job is LOST"
        )


@pytest.mark.parametrize("durability", ["acked", "fsynced"])
def test_lines_that_a_lost_job_did_not_receive_stay_in_the_file(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path, durability: str
) -> None:
    """An earlier version reported all of them as stored, and removed their only copy."""
    path = kill_runner(durability=durability)
    wait_until_lost(server)
    started = time.monotonic()
    done = deliver(server, tmp_path, path, durability=durability)
    assert time.monotonic() - started < SOON
    assert done.returncode == ENDED
    assert f"lines {BEFORE + 1} to {ALL}" in done.stderr
    assert f"chronoverse deliver --retry {path}" in done.stderr
    assert path.exists()
    assert read_lines(server) == [str(number) for number in range(BEFORE)]


@pytest.mark.parametrize("durability", ["acked", "fsynced"])
def test_after_a_kill_a_complete_log_is_recognised_immediately(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path, durability: str
) -> None:
    """The job is LOST. An earlier version took that for another runner's lease, and retried until the timeout."""
    path = kill_runner(durability=durability, lease_seconds=30)
    started = time.monotonic()
    done = deliver(server, tmp_path, path, durability=durability, lease_seconds=30)
    assert time.monotonic() - started < SOON
    assert (done.returncode, done.stderr) == (
        0,
        f"chronoverse: {ALL} lines of {JOB} are in the store; removed {path}\n",
    )
    assert not path.exists()
    lines, end = read_log(server)
    assert len(lines) == ALL
    assert end is not None
    assert end["status"] == "LOST"


@pytest.mark.long
def test_the_lines_can_be_published_under_another_id(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """They start at number 1 and keep their times and streams. The command's outcome is unknown."""
    path = kill_runner()
    wait_until_lost(server)
    spool = Spool.recover(path)
    held = list(spool.entries())
    spool.preserve()
    done = deliver(server, tmp_path, "--as", OTHER.job_id, path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        f"chronoverse: {len(held)} lines of {OTHER} are in the store; removed {path}",
    )
    lines, end = read_log(server, OTHER)
    assert [(line["timestamp"], line["message"], line["stream"]) for line in lines] == [line[1:4] for line in held]
    assert lines[-1]["message"] == str(ALL - 1)
    assert end is not None
    assert (end["status"], end["lines"]) == ("LOST", str(len(held)))
    assert len(read_log(server)[0]) == BEFORE


def test_lines_are_not_published_as_a_job_that_has_lines(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """Another runner's job can have no lease. It is unchanged, and the file still belongs to its own job."""
    path = kill_runner()
    wait_until_lost(server)
    server.ask("XADD", key("log", OTHER), "1-0", "timestamp", "t", "message", "theirs", "stream", "stdout")
    content = path.read_bytes()
    done = deliver(server, tmp_path, "--as", OTHER.job_id, path)
    assert done.returncode == 73
    assert f"{OTHER} has 1 line already" in done.stderr
    assert path.read_bytes() == content
    assert server.ask("KEYS", f"chronoverse:{{{OTHER.workflow_id}}}:{OTHER.job_id}:*") == [key("log", OTHER).encode()]
    assert deliver(server, tmp_path, path).returncode == ENDED


def test_a_file_can_be_printed(server: RedisServer, kill_runner: KillRunner, tmp_path: Path) -> None:
    """All of its lines go to stdout. The store is not contacted, and the file is unchanged."""
    path = kill_runner()
    server.kill()
    content = path.read_bytes()
    done = deliver(server, tmp_path, "--print", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, done.stdout.split()))[-(ALL - BEFORE) :] == list(range(BEFORE, ALL))
    assert path.read_bytes() == content
    assert deliver(server, tmp_path, "--print", "--as", "x", path).returncode == 64
    server.start()


def deliver_copy(server: RedisServer, tmp_path: Path, path: Path) -> None:
    """Delivers the file, then restores it."""
    content = path.read_bytes()
    assert deliver(server, tmp_path, path, lease_seconds=30).returncode == 0
    path.write_bytes(content)


@pytest.mark.long
def test_a_file_with_the_jobs_outcome_is_kept(server: RedisServer, kill_runner: KillRunner, tmp_path: Path) -> None:
    """The log has all lines, and the job was declared LOST. Only the file has the command's outcome."""
    path = kill_runner(lease_seconds=30)
    deliver_copy(server, tmp_path, path)
    spool = Spool.recover(path, keep_all=True)
    spool.save_state(ending=["COMPLETED", 0])
    assert spool.preserve() == path
    done = deliver(server, tmp_path, path)
    assert done.returncode == ENDED
    assert f"{JOB} has all lines of {path}, but a different end: COMPLETED with exit code 0" in done.stderr
    assert path.exists()


@pytest.mark.long
def test_a_file_is_kept_if_the_log_has_other_lines(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """The log has all numbers, but one message is another writer's."""
    path = kill_runner(lease_seconds=30)
    deliver_copy(server, tmp_path, path)
    entries = server.ask("XRANGE", key("log"), "-", "+")
    server.ask("DEL", key("log"))
    changed = [[b"theirs" if field == b"2000" else field for field in fields] for _, fields in entries]
    ask_all(server.url, [("XADD", key("log"), f"{number}-0", *fields) for number, fields in enumerate(changed, 1)])
    done = deliver(server, tmp_path, path)
    assert done.returncode == ENDED
    assert f"line 2001 of {JOB} differs from {path}" in done.stderr
    assert path.exists()


FLOOD: Final = """
import sys
print("first", flush=True)
sys.stdin.readline()
for number in range(30_000): print(f"{number:01000}")
"""


@pytest.mark.long
def test_dropped_lines_are_reported_everywhere(server: RedisServer, tmp_path: Path) -> None:
    """On stderr when a lost job's runner ends and when its file is delivered, and in the log among its lines."""
    command = [sys.executable, "-m", "chronoverse", "run", "--workflow", JOB.workflow_id, "--job", JOB.job_id]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-c", FLOOD],
        env=environ(server, tmp_path, spool_max_bytes=16_777_216),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as runner:
        wait_until(lambda: server.ask("XLEN", key("log")) == 1, SOON, "the first line is in the store")
        runner.send_signal(signal.SIGSTOP)
        wait_until_lost(server)
        runner.send_signal(signal.SIGCONT)
        _, said = runner.communicate(b"\n", timeout=60)
    assert runner.returncode == 0
    (dropped,) = re.findall(r"^chronoverse: (\d+) lines were dropped: the spool was full$", said.decode(), re.M)
    assert int(dropped) > 10_000
    (path,) = orphaned_spools(tmp_path / "data" / "spool")
    assert f"{dropped} lines were dropped" in deliver(server, tmp_path, path).stderr
    done = deliver(server, tmp_path, "--as", OTHER.job_id, path)
    assert done.returncode == 0
    assert f"{dropped} lines were dropped" in done.stderr
    *entries, end = read_entries(server.ask("XRANGE", key("log", OTHER), "-", "+"), 0)
    assert isinstance(end, End)
    assert (end.status, end.dropped) == (Status.COMPLETED, int(dropped))
    gaps = [entry.last - entry.first + 1 for entry in entries if isinstance(entry, Gap)]
    assert sum(gaps) == end.dropped
    printed = [entry.message for entry in entries if isinstance(entry, Line) and entry.message.isdigit()]
    assert len(printed) + end.dropped == 30_000


@pytest.fixture(scope="module")
def service(shared_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service next to the server."""
    with Service(tmp_path_factory.mktemp("service"), shared_server.url, lease_seconds=1) as service:
        yield service


@pytest.mark.long
def test_delivery_works_through_a_service(
    server: RedisServer, kill_runner: KillRunner, service: Service, tmp_path: Path
) -> None:
    """With a write-only token: a runner can still ask whether the log has its lines."""
    path = kill_runner()
    wait_until_lost(server)
    token = service.token(scopes=["logs:write"])
    done = deliver(server, tmp_path, "--server", service.url, path, token=token)
    assert done.returncode == ENDED
    assert f"lines {BEFORE + 1} to {ALL}" in done.stderr
    assert path.exists()
    done = deliver(server, tmp_path, "--server", service.url, "--as", OTHER.job_id, path, token=token)
    assert (done.returncode, path.exists()) == (0, False)
    assert read_log(server, OTHER)[0][-1]["message"] == str(ALL - 1)


@pytest.mark.long
def test_a_service_reports_how_far_a_log_has_the_same_lines(server: RedisServer, service: Service) -> None:
    """It compares digests, up to the first missing or different line."""
    lines = [Line(number, TIMESTAMP, f"line {number}", "stdout") for number in range(1, 401)]
    with contextlib.closing(HttpLogWriter(service.url, service.token(scopes=["logs:write"]))) as writer:
        attempt = writer.open(JOB, "a" * 32)
        writer.append(attempt, lines[:300])
        assert writer.compare(JOB, lines) == Comparison(301, differs=False)
        assert writer.compare(JOB, lines[300:]) == Comparison(301, differs=False)
        other = lines[250]._replace(timestamp=TIMESTAMP.replace("5.123", "5.124"))
        assert writer.compare(JOB, [*lines[100:250], other, *lines[251:300]]) == Comparison(251, differs=True)
        with pytest.raises(BadRequest):
            writer.compare(JOB, [*lines, *lines])
        with pytest.raises(JobNotFound):
            writer.compare(OTHER, lines)


@pytest.mark.long
def test_archived_lines_are_verified_against_the_archive(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """The log has left the store. Without access to the archive, the file is kept."""
    path = kill_runner(lease_seconds=30)
    deliver_copy(server, tmp_path, path)
    with contextlib.closing(Store(server.url)) as store:
        Archiver(
            store, FileObjectStore(tmp_path / "archive"), RetentionPolicy(1, 0, 1000), stop=threading.Event()
        ).run_once()
    wait_until(lambda: not server.ask("EXISTS", key("log")), SOON, "the store has let the log go")
    done = deliver(server, tmp_path, path, archive_url=(tmp_path / "none").as_uri())
    assert done.returncode == ENDED
    assert "cannot be read from the log of" in done.stderr
    assert path.exists()
    done = deliver(server, tmp_path, path, archive_url=(tmp_path / "archive").as_uri())
    assert (done.returncode, path.exists()) == (0, False), done.stderr


def _away(job: JobRef, lines: Sequence[Line]) -> Comparison:
    """The store has just gone down."""
    raise StoreUnavailable("the store does not answer")


@pytest.mark.long
def test_lines_that_cannot_be_verified_now_can_be_delivered_later(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """The store goes down after the job's end, before the lines are read back."""
    path = kill_runner(lease_seconds=30)
    said: list[str] = []
    with contextlib.closing(Store(server.url)) as store:
        with pytest.raises(StoreUnavailable):
            resend_spool(path, lambda _: store, said.append, comparer_for=lambda _: _away)
        assert said == [
            "the store acknowledged all lines, but they were not verified",
            f"deliver later: chronoverse deliver {path}",
        ]
        assert resend_spool(path, lambda _: store, said.append)
    assert not path.exists()


@pytest.mark.long
def test_an_ended_job_that_cannot_be_verified_is_not_published_again(
    server: RedisServer, kill_runner: KillRunner, tmp_path: Path
) -> None:
    """Its log may be complete, so no message suggests another id, which would store the lines twice."""
    path = kill_runner()
    wait_until_lost(server)
    said: list[str] = []
    with contextlib.closing(Store(server.url)) as store, pytest.raises(StoreUnavailable):
        resend_spool(path, lambda _: store, said.append, comparer_for=lambda _: _away)
    assert said[-1] == f"deliver later: chronoverse deliver {path}"
    assert not any("--retry" in text for text in said)
