"""Lines that the store has lost and the runner no longer has: the log names them and continues."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.errors import BadRequest, CorruptLog, Fenced, SequenceGap
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
    """The request is atomic and idempotent."""
    attempt = writer.open(JOB, TOKEN)
    writer.append(attempt, lines(1, 3))
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
    assert entries == [1, 2, 3, Gap(4, 9, "lost"), 10, 11]
    assert isinstance(end, End)
    assert end.lines == 11


def test_a_log_that_lost_everything_is_continued(server: RedisServer, store: Store) -> None:
    """The store asks for line 1, while the runner only has lines from 1,001 on."""
    attempt = store.open(JOB, TOKEN)
    store.append_lost(attempt, 1, 1000)
    store.append(attempt, lines(1001, 1002))
    assert shape(server) == [Gap(1, 1000, "lost"), 1001, 1002]


@pytest.mark.long
def test_a_gap_at_the_end_of_the_numbers_is_rejected(service: Service) -> None:
    """A log that has used all its numbers could never end."""
    with contextlib.closing(HttpLogWriter(service.url, service.token())) as writer:
        attempt = writer.open(JOB, TOKEN)
        for first, last in ((1, 6 * 10**11), (6 * 10**11, 6 * 10**11), (3, 2)):
            with pytest.raises(BadRequest):
                writer.append_lost(attempt, first, last)


@pytest.mark.parametrize(
    ("fields", "after", "expected"),
    [
        (["event", "lost", "from", "3"], 2, [Gap(3, 9, "lost")]),
        (["event", "lost", "from", "3"], 6, [Gap(7, 9, "lost")]),
        (["event", "lost", "from", "5"], 2, [Gap(3, 4, "missing"), Gap(5, 9, "lost")]),
        (["event", "lost", "from", "12"], 2, [Gap(3, 8, "missing"), Gap(9, 9, "lost")]),
        (["event", "lost", "from", "0"], 2, [Gap(3, 8, "missing"), Gap(9, 9, "lost")]),
        (["event", "lost", "from", "\0"], 8, [Gap(9, 9, "lost")]),
        (["event", "lost"], 8, [Gap(9, 9, "lost")]),
    ],
)
def test_every_number_is_reported_once_whoever_wrote_the_entry(
    fields: list[str], after: int, expected: list[Gap]
) -> None:
    """An entry with lost numbers applies only to numbers that have not been read yet."""
    assert list(read_entries([(b"9-0", [field.encode() for field in fields])], after)) == expected


@pytest.mark.long
def test_every_reader_gets_the_gap(server: RedisServer, service: Service, store: Store, tmp_path: Path) -> None:
    """Live viewers, later viewers, viewers of the archive, and pages."""
    attempt = store.open(JOB, TOKEN)
    store.append(attempt, lines(1, 3))
    url = f"{service.url}/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}"
    gap = 'event: gap\ndata: {"from":4,"to":9,"reason":"lost"}\n'
    with httpx.Client(headers={"Authorization": f"Bearer {service.token()}"}, timeout=SOON, verify=False) as client:
        with client.stream("GET", f"{url}/events") as live:
            received = ""
            for text in live.iter_text():
                received += text
                if "line 3" in received and gap not in received:
                    store.append_lost(attempt, 4, 9)
                    store.append(attempt, lines(10, 11))
                    store.finish(attempt, Status.COMPLETED, 0, 0, 12)
                if "stream_ended" in received:
                    break
        assert received.count(gap) == 1
        assert received.index(gap) < received.index("line 10")
        assert client.get(f"{url}/events?offset=6").text.count('{"from":7,"to":9,"reason":"lost"}') == 1
        for order, numbers in (("asc", [1, 2, 3, 10, 11]), ("desc", [11, 10, 3, 2, 1])):
            page = client.get(f"{url}/logs", params={"order": order}).json()
            assert [line["sequence_num"] for line in page["logs"]] == numbers
    objects = FileObjectStore(tmp_path / "archive")
    Archiver(store, objects, RetentionPolicy(1, 0, 1000), stop=threading.Event()).run_once()
    entries = ArchiveReader(objects, store.chunks.chunk).entries(JOB, 0, 100)
    assert [entry.sequence_num if isinstance(entry, Line) else entry for entry in entries] == [
        1,
        2,
        3,
        Gap(4, 9, "lost"),
        10,
        11,
    ]


def test_only_a_valid_log_can_lose_numbers(server: RedisServer, store: Store) -> None:
    """Like appending lines."""
    attempt = store.open(JOB, TOKEN)
    server.ask("XADD", key("log"), "7-1", "message", "foreign")
    with pytest.raises(CorruptLog):
        store.append_lost(attempt, 8, 9)
