"""The publisher, with a real server that goes down, is full, loses lines, or hands the lease to another runner."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from chronoverse.archive.retention import delete_job
from chronoverse.errors import Fenced, NotDurable, StoreUnavailable, TooFast
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Attempt, End, Gap, JobRef, Line, LineRun, Status, count_lines
from chronoverse.runner.outage import RETRY, Outage
from chronoverse.runner.publisher import JobResult, Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Durability, Store
from tests.support.jobs import JOB, RunningJob, key, read_lines, read_log
from tests.support.servers import RedisServer, running
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


def test_an_unavailable_server_delays_the_start_only_briefly(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The command starts after a second at most, and its lines are delivered once the server is back."""
    server.stop()
    with RunningJob(NUMBERS + "say(0, 100); wait()", store, tmp_path) as job:
        wait_until(lambda: len(job.out.getvalue().split()) == 100, SOON, "the job has begun")
        server.start()
        job.release()
        assert job.result() == 0
    assert read_lines(server) == numbers(100)


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


def test_an_expired_lease_is_reacquired(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """For a new attempt, which continues the numbering."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 2_000)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("DEL", key("lease"))
        job.release()
        assert job.result() == 0
    lines, end = read_log(server)
    assert [line["message"] for line in lines] == numbers(2_000)
    assert end is not None
    assert server.ask("HMGET", key("job"), "attempt", "status") == [b"2", b"COMPLETED"]


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


def test_lines_of_another_attempt_are_not_overwritten(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The other runner is gone, and the lease is free again."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 100)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("DEL", key("lease"))
        taker = store.open(JOB, TAKER)
        store.append(taker, [Line(11, "2026-03-03T10:00:05.123Z", "the taker's", "stdout")])
        server.ask("DEL", key("lease"))
        job.release()
        assert job.result() == 0
    assert read_lines(server) == [*numbers(10), "the taker's"]
    assert "another runner wrote to this job" in job.stderr_text


def test_a_job_declared_lost_stays_lost(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """Nothing follows the terminal entry."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 100)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("HSET", key("job"), "status", "LOST")
        server.ask("XADD", key("log"), "11-0", "event", "end", "status", "LOST", "lines", "10", "dropped", "0")
        server.ask("DEL", key("lease"))
        job.release()
        assert job.result() == 0
    lines, end = read_log(server)
    assert len(lines) == 10
    assert end is not None
    assert end["status"] == "LOST"
    assert "publishing stopped: the job has already ended" in job.stderr_text


def test_a_foreign_entry_is_detected(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """An invalid id makes the log corrupt, and nothing is appended to it."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 100)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.ask("XADD", key("log"), "99-0", "message", "stray")
        job.release()
        assert job.result() == 0
    assert server.ask("XLEN", key("log")) == 11
    assert "publishing stopped" in job.stderr_text


def test_lines_that_the_server_lost_are_sent_again(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """After a power loss, the log is shorter than what was acknowledged, and the runner goes back."""
    with RunningJob(NUMBERS + "say(0, 50); wait(); say(50, 3_000); wait(); say(3_000, 4_000)", store, tmp_path) as job:
        wait_for_published(server, 50)
        with losing_power(server):
            job.release()
            wait_for_published(server, 3_000)
        assert server.ask("XLEN", key("log")) == 50
        job.release()
        assert job.result() == 0
    assert read_lines(server) == numbers(4_000)


def assert_all_named(server: RedisServer) -> None:
    """Each of 20,001 lines is present or in a gap, and the end has the number of lines in gaps."""
    *entries, end = read_entries(server.ask("XRANGE", key("log"), "-", "+"), 0)
    gaps = [entry.last - entry.first + 1 for entry in entries if isinstance(entry, Gap)]
    lines = [entry for entry in entries if isinstance(entry, Line)]
    assert isinstance(end, End)
    assert (sum(gaps), end.lines) == (end.dropped, 20_001)
    assert len(lines) + end.dropped == 20_001
    assert end.dropped > 0
    # One of them, near the end, is the line of stderr.
    assert all(line.sequence_num - int(line.message) in (1, 2) for line in lines if line.message.isdigit())


def test_a_full_spool_drops_lines_and_the_log_reports_how_many(
    server: RedisServer, store: Store, tmp_path: Path
) -> None:
    """Every line has its own number. Gaps name the missing numbers, and the end counts them."""
    code = NUMBERS + "say(0, 100); wait(); say(100, 20_000); print('unhindered', file=sys.stderr, flush=True); wait()"
    with RunningJob(code, store, tmp_path, room=SpoolRoom(memory_bytes=120_000)) as job:
        wait_for_published(server, 100)
        server.kill()
        job.release()
        wait_until(lambda: "unhindered" in job.stderr_text, SOON, "the job printed on")
        server.start()
        job.release()
        assert job.result() == 0
    assert_all_named(server)


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
    """Opening, appending, naming dropped lines and ending, each in turn."""
    failing: Any = FailingOnce(store, lost)
    code = NUMBERS + "say(0, 100); wait(); say(100, 20_000); print('unhindered', file=sys.stderr, flush=True); wait()"
    with RunningJob(code, failing, tmp_path, room=SpoolRoom(memory_bytes=120_000)) as job:
        wait_for_published(server, 100)
        failing.is_away = True
        job.release()
        wait_until(lambda: "unhindered" in job.stderr_text, SOON, "the job printed on")
        failing.is_away = False
        job.release()
        assert job.result() == 0
    assert failing.failed >= {"open", "append", "append_lost", "finish"}
    assert_all_named(server)


def test_a_spool_file_that_cannot_be_written_is_reported(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The lines wait in memory and are delivered from there."""
    (tmp_path / "spool").write_text("in the way")
    with RunningJob(
        NUMBERS + "say(0, 10); wait(); say(10, 30); wait()", store, tmp_path, room=small_room(tmp_path)
    ) as job:
        wait_for_published(server, 10)
        server.kill()
        job.release()
        wait_until(
            lambda: "the spool's file cannot be written ([Errno 17] File exists" in job.stderr_text, SOON, "the report"
        )
        server.start()
        job.release()
        assert job.result() == 0
    assert read_lines(server) == numbers(30)
    assert job.stderr_text.count("the spool's file cannot be written") == 1


def test_delivery_ends_after_the_deliver_timeout(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The exit code is still the command's, and stderr names what is missing."""
    with RunningJob(
        NUMBERS + "say(0, 10); wait(); say(10, 30); sys.exit(9)", store, tmp_path, deliver_seconds=1
    ) as job:
        wait_for_published(server, 10)
        server.kill()
        started = time.monotonic()
        job.release()
        assert job.result() == 9
        assert 1 <= time.monotonic() - started < SOON
    assert job.stderr_text.endswith("chronoverse: 20 lines were not delivered to the store\n")


def test_a_signal_ends_the_delivery(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The command has ended, so a Ctrl-C is meant for the runner."""
    with RunningJob(NUMBERS + "say(0, 10); wait(); say(10, 30)", store, tmp_path) as job:
        wait_for_published(server, 10)
        server.kill()
        job.release()
        wait_until(lambda: "delivering 20 lines" in job.stderr_text, SOON, "the command has ended")
        started = time.monotonic()
        job.signals.send(2)
        assert job.result() is not None
        assert time.monotonic() - started < SOON
    assert "were not delivered" in job.stderr_text


def test_retry_delays_grow_to_a_bound_and_are_random() -> None:
    """A thousand runners that lost the store at the same time do not reconnect together."""
    assert max(RETRY.delay(failures) for failures in range(1, 100)) <= RETRY.longest == 0.75
    assert min(RETRY.delay(9) for _ in range(100)) >= RETRY.longest / 2
    assert len({RETRY.delay(5) for _ in range(20)}) > 1
    assert RETRY.delay(1) < 0.2


def everysec(server: RedisServer) -> Store:
    """A store whose runners keep lines until they are on its disk."""
    server.ask("CONFIG", "SET", "appendfsync", "everysec")
    return Store(server.url, durability=Durability.FSYNCED)


def small_room(tmp_path: Path) -> SpoolRoom:
    """Capacity of a spool that does not keep durable lines."""
    return SpoolRoom(tmp_path / "spool", "job_1", 40_000, 10**8, keep_bytes=0)


@contextmanager
def losing_power(server: RedisServer) -> Iterator[None]:
    """Finally restarts the server without anything received meanwhile: nothing is written to disk or confirmed."""
    server.ask("CONFIG", "SET", "appendfsync", "no")
    safe = {path: path.stat().st_size for path in (server.directory / "appendonlydir").glob("*.incr.aof")}
    yield
    server.kill()
    for path, size in safe.items():
        os.truncate(path, size)
    server.start()
    server.ask("CONFIG", "SET", "appendfsync", "everysec")


def test_lines_are_kept_until_they_are_on_the_stores_disk(server: RedisServer, tmp_path: Path) -> None:
    """A power loss drops lines that were acknowledged but not yet durable. The runner still has all of them."""
    store = everysec(server)
    with RunningJob(
        NUMBERS + "say(0, 50); wait(); say(50, 20_000); wait()", store, tmp_path, room=small_room(tmp_path)
    ) as job:
        wait_for_published(server, 50)
        with redis.Redis.from_url(server.url) as client:
            client.set("mark", 1)
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        with losing_power(server):
            job.release()
            wait_for_published(server, 20_000)
        assert server.ask("XLEN", key("log")) < 20_000
        job.release()
        assert job.result() == 0
    store.close()
    lines, end = read_log(server)
    assert [line["message"] for line in lines] == numbers(20_000)
    assert end is not None
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_end_that_the_server_lost_is_written_again(server: RedisServer, tmp_path: Path) -> None:
    """The runner waits until the end is durable."""
    store = everysec(server)
    with RunningJob(NUMBERS + "say(0, 50); wait(); say(50, 100)", store, tmp_path, room=small_room(tmp_path)) as job:
        wait_for_published(server, 50)
        with losing_power(server):
            job.release()
            wait_for_published(server, 101)
        assert job.result() == 0
    store.close()
    lines, end = read_log(server)
    assert [line["message"] for line in lines] == numbers(100)
    assert end is not None
    assert end["status"] == "COMPLETED"


def test_durable_lines_are_removed_from_the_spool(server: RedisServer, tmp_path: Path) -> None:
    """Also while the job runs and prints nothing."""
    store = everysec(server)
    with RunningJob(NUMBERS + "say(0, 20_000); wait()", store, tmp_path, room=small_room(tmp_path)) as job:
        wait_for_published(server, 20_000)
        wait_until(lambda: not list((tmp_path / "spool").iterdir()), SOON, "the spool's file is gone")
        job.release()
        assert job.result() == 0
    store.close()


def test_a_server_without_a_disk_is_reported_once(tmp_path: Path) -> None:
    """A line then counts as durable once acknowledged."""
    with running(tmp_path / "memory") as server:
        store = Store(server.url, durability=Durability.FSYNCED)
        with RunningJob(NUMBERS + "say(0, 2_000); time.sleep(0.5); say(2_000, 3_000)", store, tmp_path) as job:
            assert job.result() == 0
        store.close()
        assert read_lines(server) == numbers(3_000)
    assert job.stderr_text.count("cannot report what is on its disk") == 1


def test_a_line_is_durable_once_a_replica_has_it(server: RedisServer, tmp_path: Path) -> None:
    """If requested. Without a replica, the lines are left in a file."""
    store = Store(server.url, durability=Durability.REPLICATED)
    with RunningJob(NUMBERS + "say(0, 10)", store, tmp_path, room=small_room(tmp_path), deliver_seconds=0.5) as job:
        assert job.result() == 0
    store.close()
    assert "the job's end was not delivered to the store\nchronoverse: deliver later: " in job.stderr_text


def test_a_server_that_cannot_save_receives_every_line_later(server: RedisServer, tmp_path: Path) -> None:
    """MISCONF after a real snapshot failure: the store answers reads and rejects every write."""
    with running(tmp_path / "rdb") as server:
        server.ask("CONFIG", "SET", "save", "3600 1")
        server.ask("SET", "junk", os.urandom(3_000_000))
        store = Store(server.url)
        with RunningJob(NUMBERS + "say(0, 100); wait(); say(100, 9_000); wait()", store, tmp_path) as job:
            wait_for_published(server, 100)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            server.ask("BGSAVE")
            wait_until(
                lambda: b"rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"), SOON, "the snapshot failed"
            )
            job.release()
            wait_until(lambda: "MISCONF" in job.stderr_text, SOON, "it was refused")
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            server.ask("BGSAVE")
            job.release()
            assert job.result() == 0
        store.close()
        assert read_lines(server) == numbers(9_000)


class ScriptedWriter:
    """Gives the next of ``answers`` to a call of that name, or raises it; then the usual answer. Records its calls."""

    batch_lines = appends_ahead = 2

    def __init__(self, *, durable: bool = False, **answers: list[Any]) -> None:
        self.answers = answers
        self.durable = durable
        #: The names of the calls, and when they were made, in monotonic seconds.
        self.calls: list[str] = []
        self.times: list[float] = []
        self.attempts = 0
        self.next = 1

    def _answer(self, name: str, usual: Any = None) -> Any:
        self.calls.append(name)
        self.times.append(time.monotonic())
        given = self.answers.get(name)
        answer = given.pop(0) if given else usual
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open(self, job: JobRef, token: str, *_: Any) -> Attempt:
        self._answer("open")
        self.attempts += 1
        return Attempt(job, token, self.attempts, self.next)

    def append_ahead(self, attempt: Attempt, first: int, runs: list[LineRun]) -> Callable[[], int]:
        self._answer("append")

        def receive() -> int:
            self._answer("answer")
            self.next = first + count_lines(runs)
            return self.next

        return receive

    def append_lost(self, attempt: Attempt, first: int, last: int, reason: str) -> None:
        self._answer("lost")

    def renew(self, attempt: Attempt) -> None:
        self._answer("renew")

    def finish(self, *_: Any, **__: Any) -> None:
        self._answer("finish")

    def durability_probe(self) -> "ScriptedWriter | None":
        return self if self.durable else None

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        """None for the second thread, whose calls come at any time."""
        return self._answer("confirm", self.next + 1) if may_sync else None

    def job_warnings(self, job: JobRef) -> list[str]:
        return []


def publish(writer: ScriptedWriter, *lines: int, lease_seconds: float = 600) -> list[str]:
    """Publishes batches of so many lines, ends the job, and returns the calls. A negative number is of lost lines."""
    spool = Spool()
    for count in lines:
        if count < 0:
            spool.skip(-count)
        else:
            spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"\n" * (count - 1), count))
    connect = cast(Callable[[], Store], lambda: writer)
    publisher = Publisher(connect, JOB, spool, lambda text: None, lease_seconds=lease_seconds)
    publisher.end(JobResult(Status.COMPLETED, 0))
    publisher.start(SOON)
    assert publisher.join(SOON)
    assert publisher.ended
    return writer.calls


def test_lost_lines_are_declared_after_the_answers_to_earlier_appends() -> None:
    """Sent ahead of them, they would be a gap for the store."""
    calls = publish(ScriptedWriter(), 2, -3, 1)
    assert calls == ["open", "append", "answer", "lost", "append", "answer", "finish"]


def test_nothing_is_sent_to_a_busy_service_before_the_time_it_asked_for() -> None:
    """Except renewals of the lease."""
    writer = ScriptedWriter(answer=[TooFast("busy", 0.3)])
    calls = publish(writer, 1, lease_seconds=0.15)
    refused, again = (at for at, name in enumerate(calls) if name == "append")
    assert writer.times[again] - writer.times[refused] >= 0.3
    assert {*calls[refused + 2 : again]} == {"renew"}


def test_an_end_that_the_store_lost_is_written_again_by_the_next_attempt() -> None:
    """Even if the store can no longer tell what is safe."""
    writer = ScriptedWriter(durable=True, confirm=[Fenced("lost"), NotDurable("cannot tell")])
    assert publish(writer, 1) == ["open", "append", "answer", *["finish", "confirm", "open"], "finish", "confirm"]


def test_a_file_that_cannot_be_written_is_reported_in_each_outage() -> None:
    spool, said, stop = Spool(), list[str](), threading.Event()
    spool.file_error = OSError("no space")
    outage = Outage(spool, said.append, stop, 0)
    for _ in range(2):
        for _ in range(2):
            outage.wait_after(StoreUnavailable("away"))
        outage.end()
    away, file = "away; lines wait here, the job continues", "the spool's file cannot be written (no space)"
    assert [text.removesuffix(": the newest lines stay in memory") for text in said] == [
        away,
        file,
        "the store is back",
    ] * 2
