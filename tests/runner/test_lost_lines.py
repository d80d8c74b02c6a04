"""Lines that the store has lost and the runner no longer has: the log names them and continues."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from chronoverse.errors import CorruptLog, Fenced, SequenceGap
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, Line, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Durability, Store
from tests.support.jobs import JOB, RunningJob, key
from tests.support.servers import RedisServer, running
from tests.support.service import Service
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 15.0
NOW: Final = "2026-03-03T10:00:05.123Z"
TOKEN: Final = "a" * 32
OTHER: Final = JOB._replace(job_id="other")
NUMBERS: Final = "def say(first, last):\n    for number in range(first, last): print(number)\n    sys.stdout.flush()\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("server")
    with running(directory, None, "--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server


@pytest.fixture(scope="module")
def service(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), server.url) as service:
        yield service


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    """Each test starts with an empty store."""
    server.ask("FLUSHALL")


@pytest.fixture(params=["store", "service"])
def writer(request: pytest.FixtureRequest) -> Iterator[Store | HttpLogWriter]:
    """The store, or the service."""
    if request.param == "store":
        yield request.getfixturevalue("store")
        return
    service: Service = request.getfixturevalue("service")
    with contextlib.closing(HttpLogWriter(service.url, service.token())) as http_writer:
        yield http_writer


def lines(first: int, last: int) -> list[Line]:
    return [Line(number, NOW, f"line {number}", "stdout") for number in range(first, last + 1)]


def raw(server: RedisServer) -> Any:
    return server.ask("XRANGE", key("log"), "-", "+")


def shape(server: RedisServer) -> list[Any]:
    """The whole log as a reader gets it: its line numbers and all other entries."""
    entries = read_entries(raw(server), 0)
    return [entry.sequence_num if isinstance(entry, Line) else entry for entry in entries]


def test_a_runner_continues_after_lost_lines(server: RedisServer, tmp_path: Path) -> None:
    """A failover can lose more lines than the runner has kept. An earlier version never sent any later line."""
    kept = server.directory / "appendonlydir"
    room = SpoolRoom(tmp_path / "spool", "job_1", 40_000, 10**8, keep_bytes=0)
    code = NUMBERS + "say(0, 102); wait(); say(102, 20_000); wait(); say(20_000, 20_100)"
    with (
        contextlib.closing(Store(server.url, durability=Durability.FSYNCED)) as store,
        RunningJob(code, store, tmp_path, room=room) as job,
    ):
        wait_until(lambda: server.ask("XLEN", key("log")) == 102, SOON, "the first lines are there")
        with redis.Redis.from_url(server.url) as client:
            client.set("mark", 1)
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        old = {path: path.stat().st_size for path in kept.glob("*.incr.aof")}
        job.release()
        wait_until(lambda: server.ask("XLEN", key("log")) == 20_000, SOON, "all lines are there")
        wait_until(lambda: not list((tmp_path / "spool").iterdir()), SOON, "they are safe")
        server.kill()
        for path, size in old.items():
            os.truncate(path, size)
        server.start()
        job.release()
        assert job.result() == 0
    *entries, end = read_entries(raw(server), 0)
    gap = entries[102]
    assert isinstance(gap, Gap)
    assert (gap.first, gap.reason) == (103, "lost")
    assert [entry.message for entry in entries if isinstance(entry, Line)] == [
        str(number) for number in (*range(102), *range(gap.last, 20_100))
    ]
    assert isinstance(end, End)
    assert (end.status, end.lines) == (Status.COMPLETED, 20_100)
    assert f"lines 103 to {gap.last} are lost from both store and spool: the log" in job.stderr_text


def test_the_log_reports_lost_numbers_and_continues(server: RedisServer, writer: Store | HttpLogWriter) -> None:
    """The request is atomic and idempotent. A log that lost everything begins with lost lines."""
    attempt = writer.open(JOB, TOKEN)
    writer.append_lost(attempt, 1, 2)
    writer.append(attempt, lines(3, 3))
    with pytest.raises(SequenceGap) as gap:
        writer.append_lost(attempt, 6, 9)
    assert gap.value.expected == 4
    assert writer.append_lost(attempt, 4, 9) == writer.append_lost(attempt, 4, 9) == 10
    with pytest.raises(SequenceGap):
        writer.append(attempt, lines(11, 12))
    assert writer.append(attempt, lines(8, 11)) == 12
    with pytest.raises(Fenced):
        writer.append_lost(attempt._replace(token="b" * 32), 12, 13)
    writer.finish(attempt, Status.COMPLETED, 0, 0, 12)
    *entries, end = shape(server)
    assert entries == [Gap(1, 2, "lost"), 3, Gap(4, 9, "lost"), 10, 11]
    assert isinstance(end, End)
    assert end.lines == 11
    server.ask("XADD", key("log", OTHER), "7-1", "message", "foreign")
    with pytest.raises(CorruptLog):
        writer.append_lost(writer.open(OTHER, TOKEN), 8, 9)
