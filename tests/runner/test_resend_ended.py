"""``chronoverse deliver`` for a job that ended before its runner's spool file was delivered."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.errors import BadRequest, JobNotFound, StoreUnavailable
from chronoverse.joblog.comparing import Comparison
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.resend import resend_spool
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.commands import call_main
from tests.support.jobs import JOB, key, read_end, read_lines, read_log
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import ask_all

#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 15.0
#: ``deliver``'s exit code when the job has ended without the file's lines.
ENDED: Final = 76
#: Lines that the store received before it was killed, and all lines that the job printed.
BEFORE: Final = 311
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
ALL: Final = 2730
OTHER: Final = JobRef(JOB.workflow_id, "job_2")


def environ(server: RedisServer, tmp_path: Path, **settings: Any) -> dict[str, str]:
    """The environment of a runner that uses ``server``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
    ours = {"redis_url": server.url, "data_dir": tmp_path / "data", "lease_seconds": 1, **settings}
    return clean | {f"CHRONOVERSE_{name.upper()}": str(value) for name, value in ours.items()}


def deliver(
    server: RedisServer, tmp_path: Path, *arguments: Any, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs ``chronoverse deliver …`` to completion."""
    return call_main("deliver", *map(str, arguments), environ=environ(server, tmp_path, **settings))


@pytest.fixture
def left(server: RedisServer, tmp_path: Path) -> Path:
    """The spool file of a runner that was killed during an outage, when its first lines were published."""
    lines = [Line(number, TIMESTAMP, str(number), "stdout") for number in range(1, BEFORE + 1)]
    with contextlib.closing(Store(server.url, lease_seconds=1)) as store:
        attempt = store.open(JOB, "a" * 32)
        store.append(attempt, lines)
    spool = Spool(SpoolRoom(tmp_path / "spool", JOB.job_id))
    spool.save_state(workflow=JOB.workflow_id, job=JOB.job_id, token="a" * 32, attempt=1, base=1)
    for number in range(1, ALL + 1):
        stream = "stdout" if number <= BEFORE else "stderr"
        spool.put(LineBatch(stream, TIMESTAMP, str(number).encode(), 1))
    path = spool.preserve()
    assert path
    return path


def wait_until_lost(server: RedisServer) -> None:
    """Waits until the job is declared LOST, which one of its readers does."""
    with contextlib.closing(Store(server.url, lease_seconds=1)) as store:
        wait_until(
            lambda: (job := store.get_job(JOB)) is not None and job.status is Status.LOST, SOON, "the job is LOST"
        )


@pytest.mark.parametrize("durability", ["acked", "fsynced"])
def test_lines_that_a_lost_job_did_not_receive_stay_in_the_file(
    server: RedisServer, left: Path, tmp_path: Path, durability: str
) -> None:
    """They can be published under another id, unless a job with that id has lines. Or they can be printed."""
    wait_until_lost(server)
    done = deliver(server, tmp_path, left, durability=durability)
    assert done.returncode == ENDED
    assert f"without lines {BEFORE + 1} to {ALL} of {left}" in done.stderr
    assert f"{ALL - BEFORE} lines were not delivered to the store\n" in done.stderr
    assert f"chronoverse deliver --retry {left}" in done.stderr
    assert read_lines(server) == [str(number) for number in range(1, BEFORE + 1)]

    content = left.read_bytes()
    printed = deliver(server, tmp_path, "--print", left, redis_url="unix:///nowhere")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.split() == [str(number) for number in range(1, ALL + 1)]
    assert deliver(server, tmp_path, "--print", "--as", "x", left).returncode == 64
    server.ask("XADD", key("log", OTHER), "1-0", "timestamp", "t", "message", "theirs", "stream", "stdout")
    taken = deliver(server, tmp_path, "--as", OTHER.job_id, left)
    assert (taken.returncode, f"{OTHER} has 1 line already" in taken.stderr) == (73, True)
    assert left.read_bytes() == content
    assert server.ask("KEYS", f"chronoverse:{{{OTHER.workflow_id}}}:{OTHER.job_id}:*") == [key("log", OTHER).encode()]

    other = OTHER._replace(job_id="job_3")
    done = deliver(server, tmp_path, "--as", other.job_id, left, durability=durability)
    said = f"chronoverse: {ALL} lines of {other} are in the store; removed {left}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, said)
    lines, end = read_log(server, other)[0], read_end(server, other)
    assert [line["message"] for line in lines] == [str(number) for number in range(1, ALL + 1)]
    assert [lines[0]["stream"], lines[-1]["stream"], lines[-1]["timestamp"]] == ["stdout", "stderr", TIMESTAMP]
    assert (end["status"], end["lines"]) == ("LOST", str(ALL))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (None, ""),
        ("ending", f"{JOB} has all lines of {{path}}, but a different end: COMPLETED with exit code 0"),
        ("line", f"line 2000 of {JOB} differs from {{path}}"),
        ("more", f"{JOB} has ended without lines {ALL + 1} to {ALL + 1} of {{path}}"),
        ("archived", ""),
        ("no archive", "cannot be read from the log of"),
    ],
)
def test_a_complete_log_is_recognised_immediately(
    server: RedisServer, left: Path, tmp_path: Path, changed: str | None, said: str
) -> None:
    """A file that was delivered is removed, but not if its runner's outcome or lines differ from the log's."""
    content = left.read_bytes()
    assert deliver(server, tmp_path, left, lease_seconds=30).returncode == 0
    left.write_bytes(content)
    settings: dict[str, Any] = {}
    if changed in ("ending", "more"):
        spool = Spool.recover(left, keep_all=True)
        if changed == "more":
            spool.put(LineBatch("stdout", TIMESTAMP, b"more", 1))
        else:
            spool.save_state(ending=["COMPLETED", 0])
        assert spool.preserve() == left
    elif changed == "line":
        entries = server.ask("XRANGE", key("log"), "-", "+")
        server.ask("DEL", key("log"))
        entries = [[b"theirs" if field == b"2000" else field for field in fields] for _, fields in entries]
        ask_all(server.url, [("XADD", key("log"), f"{number}-0", *fields) for number, fields in enumerate(entries, 1)])
    elif changed:
        settings["archive_url"] = (tmp_path / ("archive" if changed == "archived" else "none")).as_uri()
        with contextlib.closing(Store(server.url)) as store:
            limits = RetentionPolicy(1, 0, 1000)
            Archiver(store, FileObjectStore(tmp_path / "archive"), limits, stop=threading.Event()).run_once()
        wait_until(lambda: not server.ask("EXISTS", key("log")), SOON, "the store has let the log go")
    started = time.monotonic()
    done = deliver(server, tmp_path, left, lease_seconds=30, **settings)
    assert time.monotonic() - started < SOON
    assert (done.returncode, left.exists()) == ((ENDED, True) if said else (0, False)), done.stderr
    assert said.format(path=left) in done.stderr


@pytest.fixture(scope="module")
def service(durable_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service next to the server."""
    with Service(tmp_path_factory.mktemp("service"), durable_server.url, lease_seconds=1) as service:
        yield service


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


@pytest.mark.parametrize("is_ended", [False, True])
def test_lines_that_cannot_be_verified_now_can_be_delivered_later(
    server: RedisServer, left: Path, is_ended: bool
) -> None:
    """The store goes down before the lines are read back. No message suggests another id: the log may be complete."""

    def away(job: JobRef, lines: Sequence[Line]) -> Comparison:
        raise StoreUnavailable("the store does not answer")

    if is_ended:
        wait_until_lost(server)
    said: list[str] = []
    with contextlib.closing(Store(server.url)) as store:
        with pytest.raises(StoreUnavailable):
            resend_spool(left, lambda _: store, said.append, comparer_for=lambda _: away)
        assert said[-1] == f"deliver later: chronoverse deliver {left}"
        if not is_ended:
            assert said[0] == "the store acknowledged all lines, but they were not verified"
            assert resend_spool(left, lambda _: store, said.append)
    assert left.exists() == is_ended
