"""The publisher, with a real server that goes down, is full, loses lines, or hands the lease to another runner.

``test_durability.py`` has the order of requests, and what follows each answer.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from chronoverse.archive.retention import delete_job
from chronoverse.errors import Fenced, Held, StoreRefused, StoreUnavailable, TooFast
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, Line, Status
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Durability, Store
from tests.support.jobs import JOB, RunningJob, key, read_lines
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON = 30.0
TAKER = "the token of another runner"

NUMBERS = "def say(first, last):\n    for number in range(first, last): print(number)\n    sys.stdout.flush()\n"


def numbers(stop: int) -> list[str]:
    return [str(number) for number in range(stop)]


def wait_for_published(server: RedisServer, count: int) -> None:
    """Waits until that many lines are in the stream and the server has answered their runner."""
    wait_until(lambda: server.ask("XLEN", key("log")) >= count, SOON, f"{count} lines in the stream")
    # The server runs this command after answering all earlier ones.
    server.ask("PING")


def test_a_server_out_of_memory_gets_every_line_later(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """A rejected batch is stored as a whole later. Meanwhile, the lease is renewed."""
    code = NUMBERS + "say(0, 700); wait(); say(700, 9_000); wait()"
    with RunningJob(code, store, tmp_path, lease_seconds=1) as job:
        wait_for_published(server, 700)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        job.release()
        wait_until(lambda: "the store rejects writes" in job.stderr_text, SOON, "it was refused")
        server.ask("PEXPIRE", key("lease"), 5_000)
        wait_until(lambda: server.ask("PTTL", key("lease")) > 20_000, SOON, "the lease was renewed")
        assert server.ask("XLEN", key("log")) == 700
        server.ask("CONFIG", "SET", "maxmemory", "0")
        job.release()
        assert job.result() == 0
    assert read_lines(server) == numbers(9_000)
    assert job.stderr_text.count("the store is back") == 1


def test_pending_lines_of_a_deleted_job_are_dropped(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """Whoever deletes a job wants them gone. The command keeps running, and no spool file contains any of its lines."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 9_000); wait()", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("DEL", key("lease"))
        delete_job(store, None, JOB, tombstone_ms=60_000)
        job.release()
        wait_until(lambda: "was deleted" in job.stderr_text, SOON, "the runner was refused")
        job.release()
        assert job.result() == 0
    assert job.stderr_text.count("publishing stopped: ") == job.stderr_text.count("its waiting lines are dropped") == 1
    assert [*tmp_path.rglob("*.sqlite*")] == []


@pytest.mark.parametrize(
    "error", [StoreUnavailable("a"), StoreRefused("b"), Held("c"), Fenced("d"), TooFast("e", 0.0)], ids=repr
)
def test_a_refused_runner_pauses_before_it_tries_again(error: Exception) -> None:
    """Whatever the reason: otherwise many runners would keep a server busy."""
    times: list[float] = []

    class Refusing:
        durability_probe = staticmethod(lambda: None)

        def open(self, *_: object) -> None:
            times.append(time.monotonic())
            raise error

    connect: Any = Refusing
    publisher = Publisher(connect, JOB, Spool(), lambda text: None, wait_for_lease=True)
    publisher.start(0)
    wait_until(lambda: len(times) > 4, SOON, "it has tried again")
    publisher.stop()
    assert publisher.join(SOON)
    assert times[4] - times[0] > 0.1


@pytest.mark.parametrize("is_signalled", [False, True], ids=["timeout", "signal"])
def test_delivery_ends_in_time(is_signalled: bool, server: RedisServer, store: Store, tmp_path: Path) -> None:
    """At the timeout, or at a signal: the command has ended, so it is meant for the runner."""
    code, seconds = NUMBERS + "say(0, 10); wait(); say(10, 30); sys.exit(9)", 60 if is_signalled else 1
    with RunningJob(code, store, tmp_path, deliver_seconds=seconds) as job:
        wait_for_published(server, 10)
        server.kill()
        job.release()
        started = time.monotonic()
        if is_signalled:
            wait_until(lambda: "delivering 20 lines" in job.stderr_text, SOON, "the command has ended")
            job.signals.send(2)
        assert job.result() == 9
        assert (0 if is_signalled else 1) <= time.monotonic() - started < SOON
    assert job.stderr_text.endswith("chronoverse: 20 lines were not delivered to the store\n")


@pytest.fixture
def everysec(server: RedisServer) -> Iterator[Store]:
    """A store whose runners keep lines until they are on its disk."""
    server.ask("CONFIG", "SET", "appendfsync", "everysec")
    with closing(Store(server.url, durability=Durability.FSYNCED)) as store:
        yield store
    server.ask("CONFIG", "SET", "appendfsync", "always")


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "released"])
def test_lines_that_a_power_loss_drops(is_kept: bool, server: RedisServer, everysec: Store, tmp_path: Path) -> None:
    """The runner keeps lines until they are on the store's disk. A failover can lose more: the log then names them.

    An earlier version never sent any later line.
    """
    code = NUMBERS + "say(0, 102); wait(); say(102, 20_000); wait(); say(20_000, 20_100)"
    room = SpoolRoom(tmp_path / "spool", "job_1", 40_000, 10**8, keep_bytes=0)
    with RunningJob(code, everysec, tmp_path, room=room) as job:
        wait_for_published(server, 102)
        with redis.Redis.from_url(server.url) as client:
            client.set("mark", 1)
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        if is_kept:
            # From now on, nothing is written to disk or confirmed.
            server.ask("CONFIG", "SET", "appendfsync", "no")
        old = {path: path.stat().st_size for path in (server.directory / "appendonlydir").glob("*.incr.aof")}
        job.release()
        wait_for_published(server, 20_000)
        if not is_kept:
            wait_until(lambda: not list((tmp_path / "spool").iterdir()), SOON, "they are safe")
        server.kill()
        for path, size in old.items():
            os.truncate(path, size)
        server.start()
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        assert server.ask("XLEN", key("log")) < 20_000
        job.release()
        assert job.result() == 0
    *entries, end = read_entries(server.ask("XRANGE", key("log"), "-", "+"), 0)
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    lost = range(103, gaps[0].last + 1) if gaps else range(0)
    assert gaps == [Gap(103, lost.stop - 1, "lost")] * (not is_kept)
    found = [(line.sequence_num, int(line.message)) for line in entries if isinstance(line, Line)]
    assert found == [(number, number - 1) for number in range(1, 20_101) if number not in lost]
    assert isinstance(end, End)
    assert (end.status, end.lines) == (Status.COMPLETED, 20_100)
    said = f"lines 103 to {lost.stop - 1} are lost from both store and spool: the log"
    assert (said in job.stderr_text) == (not is_kept)
    assert list((tmp_path / "spool").iterdir()) == []
