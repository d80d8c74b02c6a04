"""The publisher, with a real server that goes down, is full, loses lines, or hands the lease to another runner.

``test_durability.py`` has the order of requests, and what follows each answer.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from chronoverse.archive.retention import delete_job
from chronoverse.errors import Fenced, Held, StoreRefused, StoreUnavailable, TooFast
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, Line
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Durability, Store
from tests.support.jobs import JOB, RunningJob, key, read_lines, read_log
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


def test_a_server_that_is_killed_and_restarted_loses_no_line(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The job does not notice. Lines printed meanwhile wait, and the log is complete in the end."""
    code = NUMBERS + "say(0, 1000); wait(); say(1000, 10_000); print('unhindered', file=sys.stderr, flush=True); wait()"
    with RunningJob(code, store, tmp_path) as job:
        wait_for_published(server, 1000)
        server.kill()
        job.release()
        wait_until(lambda: "unhindered" in job.stderr_text, SOON, "the job printed on")
        server.start()
        job.release()
        assert job.result() == 0
    lines, end = read_log(server)
    assert [line["message"] for line in lines if line["stream"] == "stdout"] == numbers(10_000)
    assert end is not None
    assert (end["status"], end["lines"], end["dropped"]) == ("COMPLETED", "10001", "0")
    assert "lines wait here, the job continues" in job.stderr_text
    assert job.stderr_text.count("chronoverse: the store is back\n") == 1


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


def test_the_lease_of_a_quiet_job_is_renewed(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """Three times per lease lifetime."""
    with RunningJob("wait()", store, tmp_path, lease_seconds=0.9) as job:
        wait_until(lambda: server.ask("EXISTS", key("lease")), SOON, "the lease is taken")
        for _ in range(3):
            server.ask("PEXPIRE", key("lease"), 5_000)
            wait_until(lambda: server.ask("PTTL", key("lease")) > 20_000, SOON, "the lease was renewed")
        job.release()
        assert job.result() == 0
    assert server.ask("EXISTS", key("lease")) == 0


def test_a_runner_leaves_a_job_that_was_taken_over(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The old runner stops writing and reports it once. Its command ends as usual."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 2_000); wait(); sys.exit(5)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("DEL", key("lease"))
        taker = store.open(JOB, TAKER)
        job.release()
        wait_until(lambda: "publishing stopped" in job.stderr_text, SOON, "it stopped")
        store.append(taker, [Line(11, "2026-03-03T10:00:05.123Z", "the taker's", "stdout")])
        job.release()
        assert job.result() == 5
    assert read_lines(server) == [*numbers(10), "the taker's"]
    assert job.stderr_text.count("publishing stopped: another live runner holds this job") == 1
    assert "1990 lines were not delivered" in job.stderr_text
    assert server.ask("GET", key("lease")) == TAKER.encode()


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
    assert "its waiting lines are dropped" in job.stderr_text
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


class FailingOnce:
    """A store whose operations each fail once, before or after taking effect. While it is down, appends fail."""

    def __init__(self, store: Store, lost: str) -> None:
        self._store = store
        self._lost = lost
        self.is_away = False
        self.failed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return partial(self._call, name, value) if name in ("open", "append_lost", "finish", "renew") else value

    def append_ahead(self, *args: Any) -> Callable[[], int]:
        return partial(self._call, "append", self._store.append_runs, *args)

    def _call(self, name: str, operation: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.is_away and name == "append":
            raise StoreUnavailable("away")
        if name in self.failed:
            return operation(*args, **options)
        self.failed.add(name)
        if self._lost == "answer":
            operation(*args, **options)
        raise StoreUnavailable(f"the {self._lost} is lost")


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_operations_that_fail_once_take_effect_once(
    lost: str, server: RedisServer, store: Store, tmp_path: Path
) -> None:
    """Opening, appending, naming dropped lines and ending, each in turn. Each number is of a line, or in a gap."""
    failing: Any = FailingOnce(store, lost)
    # More than two reads of the pipe, and than the spool holds: it has to drop lines, however late they are read.
    code = NUMBERS + "say(0, 100); wait(); say(100, 100_000); print('unhindered', file=sys.stderr, flush=True); wait()"
    with RunningJob(code, failing, tmp_path, room=SpoolRoom(memory_bytes=120_000)) as job:
        wait_for_published(server, 100)
        failing.is_away = True
        job.release()
        wait_until(lambda: "unhindered" in job.stderr_text, SOON, "the job printed on")
        failing.is_away = False
        job.release()
        assert job.result() == 0
    assert failing.failed >= {"open", "append", "append_lost", "finish"}
    *entries, end = read_entries(server.ask("XRANGE", key("log"), "-", "+"), 0)
    gaps = [entry.last - entry.first + 1 for entry in entries if isinstance(entry, Gap)]
    lines = [entry for entry in entries if isinstance(entry, Line)]
    assert isinstance(end, End)
    assert (sum(gaps), end.lines, len(lines) + end.dropped) == (end.dropped, 100_001, 100_001)
    assert end.dropped > 0
    # One of them, near the end, is the line of stderr.
    assert all(line.sequence_num - int(line.message) in (1, 2) for line in lines if line.message.isdigit())


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


def small_room(tmp_path: Path) -> SpoolRoom:
    """Capacity of a spool that does not keep durable lines."""
    return SpoolRoom(tmp_path / "spool", "job_1", 40_000, 10**8, keep_bytes=0)


@pytest.fixture
def everysec(server: RedisServer) -> Iterator[Store]:
    """A store whose runners keep lines until they are on its disk."""
    server.ask("CONFIG", "SET", "appendfsync", "everysec")
    with closing(Store(server.url, durability=Durability.FSYNCED)) as store:
        yield store
    server.ask("CONFIG", "SET", "appendfsync", "always")


def test_lines_are_kept_until_they_are_on_the_stores_disk(server: RedisServer, everysec: Store, tmp_path: Path) -> None:
    """A power loss drops lines that were acknowledged but not yet durable. The runner still has all of them."""
    code = NUMBERS + "say(0, 50); wait(); say(50, 20_000); wait()"
    with RunningJob(code, everysec, tmp_path, room=small_room(tmp_path)) as job:
        wait_for_published(server, 50)
        with redis.Redis.from_url(server.url) as client:
            client.set("mark", 1)
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        # From now on, nothing is written to disk or confirmed.
        server.ask("CONFIG", "SET", "appendfsync", "no")
        safe = {path: path.stat().st_size for path in (server.directory / "appendonlydir").glob("*.incr.aof")}
        job.release()
        wait_for_published(server, 20_000)
        server.kill()
        for path, size in safe.items():
            os.truncate(path, size)
        server.start()
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        assert server.ask("XLEN", key("log")) < 20_000
        job.release()
        assert job.result() == 0
    lines, end = read_log(server)
    assert [line["message"] for line in lines] == numbers(20_000)
    assert end is not None
    assert list((tmp_path / "spool").iterdir()) == []
