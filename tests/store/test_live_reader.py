"""The live reader on one server reads only changed logs, and misses no line."""

import contextlib
import logging
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from chronoverse.errors import NotALog, StoreError, StoreUnavailable
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from chronoverse.store.live_reader import GATHER_SECONDS, READ_LOGS, LiveReader, NodeReader
from chronoverse.store.topology import Topology
from tests.support.examples import examples
from tests.support.servers import RedisServer
from tests.support.waiting import deadline, wait_until

#: A connection on which the server cannot report changes.
POLLING: Final = "?protocol=2"
#: A script that writes a line to each key.
WRITE_EACH: Final = "for _, key in ipairs(KEYS) do redis.call('XADD', key, '1-0', 'message', 'a') end"
#: A read's maximum wait, the polling interval, and a failing test's timeout, in seconds.
BLOCK, POLL, SOON = 0.05, 0.005, 20.0


class World:
    """A store with a reader, and the cursor of each watched job."""

    def __init__(self, server: RedisServer, prefix: str, options: str = "", block_seconds: float = BLOCK) -> None:
        self.server = server
        self.prefix = prefix
        self.store = Store(server.url + options, prefix=prefix)
        self.reader = self.store.live_reader(block_seconds, POLL)
        self.cursors: dict[JobRef, int] = {}
        #: The last read's errors about single jobs.
        self.errors: dict[JobRef, StoreError] = {}

    def key(self, job: JobRef) -> str:
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:log"

    def write(self, job: JobRef, *numbers: int) -> None:
        for number in numbers:
            self.server.ask("XADD", self.key(job), f"{number}-0", "message", "a")

    def watch(self, *jobs: JobRef, cursor: int = 0) -> None:
        for job in jobs:
            self.cursors[job] = cursor
            self.reader.watch(job, cursor)

    def unwatch(self, *jobs: JobRef) -> None:
        for job in jobs:
            del self.cursors[job]
            self.reader.unwatch(job)

    def read(self, count: int = 100) -> dict[JobRef, list[int]]:
        """The line numbers of one read, which continues after the previous one."""
        found, self.errors = {}, {}
        for job, cursor, entries in self.reader.read(count):
            assert cursor == self.cursors[job]
            if isinstance(entries, StoreError):
                self.errors[job] = entries
            else:
                found[job] = [entry_number(id) for id, _ in entries]
                self.cursors[job] = found[job][-1]
        return found

    def read_safely(self) -> dict[JobRef, list[int]] | None:
        """A read. None if the store is unavailable."""
        with contextlib.suppress(StoreError):
            return self.read()
        return None

    def read_all(self) -> dict[JobRef, list[int]]:
        everything: dict[JobRef, list[int]] = {}
        in_time = deadline(SOON, "a read brings nothing")
        while in_time() and (found := self.read()):
            for job, numbers in found.items():
                everything.setdefault(job, []).extend(numbers)
        return everything

    def asked(self) -> int:
        """Number of key lookups on the server so far. XREAD looks up each key twice."""
        stats = self.server.ask("INFO", "stats")
        return sum(int(number) for number in re.findall(rb"keyspace_(?:hits|misses):(\d+)", stats))

    def close(self) -> None:
        self.reader.close()
        self.store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for this test alone."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def world(server: RedisServer) -> Iterator[World]:
    """A reader on a server that reports changes."""
    world = World(server, "tracked")
    yield world
    world.close()


@pytest.fixture(params=["", POLLING], ids=["reported", "polled"])
def either(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[World]:
    """Readers with and without reported changes."""
    world = World(server, "either", request.param)
    yield world
    world.close()


def job(number: int) -> JobRef:
    return JobRef(f"wf_{number % 3}", f"job_{number}")


JOBS: Final = [job(number) for number in range(300)]


def test_lines_beyond_the_count_come_with_the_next_read(either: World) -> None:
    """The next read returns the rest, even without further changes. A cursor that is set back is honoured."""
    either.write(JOBS[0], *range(1, 8))
    either.watch(*JOBS[:3])

    assert [either.read(3)[JOBS[0]] for _ in range(3)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert either.read(3) == {}
    either.watch(JOBS[0], cursor=5)
    assert either.read() == {JOBS[0]: [6, 7]}


def test_more_logs_than_fit_one_round_trip_are_all_read(either: World) -> None:
    jobs = [job(number) for number in range(2 * READ_LOGS + 1)]
    either.server.ask("EVAL", WRITE_EACH, len(jobs), *map(either.key, jobs))
    either.watch(*jobs)

    assert either.read_all() == {each: [1] for each in jobs}


def test_a_cursor_that_is_moved_during_a_read_is_honoured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(JOBS[0], 1, 2)
    world.watch(JOBS[0])
    request = NodeReader._request

    def move(node: NodeReader, connection: Any, commands: Any) -> Any:
        answers = request(node, connection, commands)
        if commands[0][0] == "XREAD" and world.cursors[JOBS[0]] == 0:
            world.reader.watch(JOBS[0], 5)
        return answers

    monkeypatch.setattr(NodeReader, "_request", move)
    assert world.read() == {JOBS[0]: [1, 2]}
    world.cursors[JOBS[0]] = 5
    world.write(JOBS[0], *range(3, 8))
    assert world.read_all() == {JOBS[0]: [6, 7]}


def test_a_job_that_is_watched_again_is_read(either: World) -> None:
    """Including the lines that arrived while it was not watched."""
    either.watch(*JOBS)
    either.read()
    either.unwatch(*JOBS[1:])
    either.read()
    either.write(JOBS[1], 1)
    assert either.read() == {}
    either.watch(JOBS[1])

    assert either.read() == {JOBS[1]: [1]}


def test_a_read_without_watched_jobs_waits_and_returns_nothing(either: World) -> None:
    """It keeps no connection. Returning immediately would be a busy loop, which blocks a whole worker under gevent."""
    assert either.read() == {}
    either.watch(JOBS[0])
    either.read()
    either.watch(JOBS[1])
    either.unwatch(*JOBS[:2])
    began = time.monotonic()
    assert either.read() == {}
    assert time.monotonic() - began > BLOCK / 2
    clients = either.server.ask("CLIENT", "LIST").splitlines()
    assert [line for line in clients if b" cmd=xread " in line or b" cmd=ping " in line] == []


def wake(world: World, act: Callable[[], object]) -> list[dict[JobRef, list[int]]]:
    """The result of a read that ``act`` interrupts."""
    found: list[dict[JobRef, list[int]]] = []
    thread = threading.Thread(target=lambda: found.append(world.read()))
    thread.start()
    try:
        wait_until(lambda: b" cmd=xread " in world.server.ask("CLIENT", "LIST"), SOON, "the read waits")
        acted_at = time.monotonic()
        act()
    finally:
        thread.join(SOON)
    assert time.monotonic() - acted_at < SOON / 4
    return found


@pytest.mark.parametrize("options", ["", POLLING], ids=["reported", "polled"])
def test_a_waiting_reader_is_woken(server: RedisServer, options: str) -> None:
    """By the first line of a watched job, and by a newly watched job."""
    world = World(server, "woken", options, block_seconds=SOON)
    world.watch(*JOBS[:2])
    try:
        assert wake(world, lambda: world.write(JOBS[1], 1)) == [{JOBS[1]: [1]}]
        world.write(JOBS[2], 1, 2)
        assert wake(world, lambda: world.watch(JOBS[2], cursor=1)) == [{JOBS[2]: [2]}]
    finally:
        world.close()


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL",), ("PEXPIRE", "1")], ids=lambda command: command[0])
def test_a_log_that_was_deleted_and_written_again(world: World, command: tuple[str, ...]) -> None:
    """Its new lines are read, however it was deleted."""
    world.write(JOBS[0], 1, 2)
    world.watch(*JOBS[:9])
    world.read()
    name, *rest = command
    world.server.ask(name, *([] if name == "FLUSHALL" else [world.key(JOBS[0])]), *rest)
    wait_until(lambda: not world.server.ask("EXISTS", world.key(JOBS[0])), SOON, "the log is gone")
    world.read()
    world.write(JOBS[0], 3)

    assert world.read() == {JOBS[0]: [3]}


def test_a_server_that_tracks_few_keys(server: RedisServer, world: World) -> None:
    """The server invalidates keys that it stops tracking, and the reader reads them again."""
    server.ask("CONFIG", "SET", "tracking-table-max-keys", "10")
    world.watch(*JOBS)
    world.read()
    for number, job in enumerate(JOBS[:100]):
        world.write(job, 1)
        if number % 10 == 9:
            wait_until(world.read, SOON, "lines are read")
    world.read_all()

    assert [world.cursors[job] for job in JOBS] == [1] * 100 + [0] * 200


def test_thousands_of_changes_before_a_reply(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script changes 1,000 keys; all invalidation messages precede the next reply, and all keys are read."""
    world = World(server, "thousands", block_seconds=1.0)
    jobs = [job(number) for number in range(1000)]
    world.watch(*jobs)
    assert world.read() == {}

    def change(connection: object) -> bool:
        monkeypatch.undo()
        world.server.ask("EVAL", WRITE_EACH, len(jobs), *map(world.key, jobs))
        return False

    monkeypatch.setattr("chronoverse.store.live_reader.has_buffered", change)
    assert world.read_all() == {each: [1] for each in jobs}
    world.close()


class KeptConnection(Topology):
    """Keeps the reader's last connection in ``connection``."""

    def new_connection_to(self, server: Hashable) -> redis.Connection:
        self.connection = super().new_connection_to(server)
        return self.connection


def test_an_unexpected_reply(world: World) -> None:
    """The connection is closed, since replies would no longer match commands. No line is lost."""
    topology = KeptConnection(world.server.url)
    world.reader.close()
    world.reader = LiveReader(topology, world.key, world.store.read, BLOCK)
    world.watch(*JOBS)
    world.read()
    connection = topology.connection
    connection.send_command("XREAD", "STREAMS", world.key(JOBS[0]), "0")
    world.write(JOBS[0], 1)
    wait_until(connection.can_read, SOON, "the reply has arrived")
    with pytest.raises(StoreUnavailable):
        world.read()

    assert world.read() == {JOBS[0]: [1]}


def test_changes_without_lines_are_collected(world: World) -> None:
    """A log that changes constantly without an append costs no query per change."""
    world.write(JOBS[0], 1)
    world.watch(*JOBS)
    world.read()
    stop = threading.Event()
    other = threading.Thread(target=keep_changing, args=(world, JOBS[0], stop))
    other.start()
    try:
        wait_until(
            lambda: b"calls=" in world.server.ask("INFO", "commandstats").partition(b"_pexpire:")[2],
            SOON,
            "the log is being changed",
        )
        before = world.asked()
        assert world.read() == {}
    finally:
        stop.set()
        other.join(SOON)

    assert world.asked() - before <= 2 * (2 * BLOCK / GATHER_SECONDS + 4)


def keep_changing(world: World, job: JobRef, stop: threading.Event) -> None:
    """Sets the log's time to live in a busy loop."""
    with redis.Redis.from_url(world.server.url) as client:
        while not stop.is_set():
            client.execute_command("PEXPIRE", world.key(job), 1_000_000)


def test_lines_in_quick_succession_are_read_together(world: World) -> None:
    """Each read costs as much as several lines, so a read soon after another starts 4 ms later."""
    lines = 300
    world.watch(*JOBS[:lines])
    world.read()

    def write() -> None:
        for job in JOBS[:lines]:
            world.write(job, 1)

    writer = threading.Thread(target=write)
    began, reads, found = time.monotonic(), 0, 0
    writer.start()
    in_time = deadline(SOON, "every line is read")
    while in_time() and found < lines:
        found += len(world.read())
        reads += 1
    took = time.monotonic() - began
    writer.join(SOON)

    assert reads <= took / (GATHER_SECONDS / 2) + 2


def test_a_line_after_a_pause_is_read_immediately(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the delay that gathers further lines."""
    world.watch(*JOBS[:3])
    world.read()
    pauses: list[float] = []
    monkeypatch.setattr("chronoverse.store.live_reader.time.sleep", pauses.append)
    world.write(JOBS[1], 1)

    assert world.read() == {JOBS[1]: [1]}
    assert pauses == []


def test_a_closed_connection_loses_no_line(server: RedisServer, world: World) -> None:
    """One read fails. The next reads all jobs on a new connection, with tracking enabled again."""
    world.watch(*JOBS)
    world.read()
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    world.write(JOBS[3], 1)
    with pytest.raises(StoreUnavailable):
        world.read()

    assert world.read() == {JOBS[3]: [1]}
    assert world.read() == {}
    world.write(JOBS[4], 1)
    before = world.asked()
    assert world.read() == {JOBS[4]: [1]}
    assert world.asked() - before <= 2


def test_an_unresponsive_server_is_noticed(server: RedisServer) -> None:
    """A read that receives nothing sends a PING."""
    world = World(server, "still", "?socket_timeout=0.2")
    world.watch(*JOBS)
    wait_until(lambda: world.read_safely() is not None, SOON, "the server answers")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            world.read()
        assert world.reader.silent_seconds(JOBS[5]) > 0.1
    finally:
        os.kill(server.pid, signal.SIGCONT)
    world.write(JOBS[5], 1)
    wait_until(lambda: JOBS[5] in (world.read_safely() or ()), SOON, "it reads again")
    assert world.reader.silent_seconds(JOBS[5]) == 0
    world.close()


def test_a_key_of_another_type_affects_only_its_job(either: World) -> None:
    """The read reports that job's error and returns the lines of the others."""
    either.server.ask("SET", either.key(JOBS[0]), "no stream")
    either.write(JOBS[1], 1)
    either.watch(*JOBS[:9])

    assert either.read() == {JOBS[1]: [1]}
    assert {job: type(error) for job, error in either.errors.items()} == {JOBS[0]: NotALog}
    either.unwatch(JOBS[0])
    either.write(JOBS[2], 1)
    wait_until(lambda: either.read() == {JOBS[2]: [1]}, SOON, "the new line is read")
    assert either.errors == {}


@pytest.mark.parametrize(("options", "rules"), [(POLLING, []), ("", ["-client|tracking"])], ids=["RESP2", "forbidden"])
def test_a_server_that_does_not_report_changes_is_polled(
    server: RedisServer, caplog: pytest.LogCaptureFixture, options: str, rules: list[str]
) -> None:
    """Every line is read, and there is one warning, even after a reconnect."""
    if rules:
        server.ask("ACL", "SETUSER", "default", *rules)
    world = World(server, "polled", options)
    world.watch(*JOBS[:10])
    with caplog.at_level(logging.WARNING):
        for number in range(1, 4):
            world.write(JOBS[9], number)
            # A read may end before the next poll.
            wait_until(lambda: world.read() == {JOBS[9]: [number]}, SOON, f"line {number}")  # noqa: B023
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: world.read_safely() is not None, SOON, "it reads again")
        world.write(JOBS[9], 4)
        wait_until(lambda: world.read() == {JOBS[9]: [4]}, SOON, "line 4")
    world.close()

    assert len([record for record in caplog.records if "does not report" in record.message]) == 1


def test_a_server_is_not_polled_all_the_time(server: RedisServer) -> None:
    """Reading thousands of logs takes a quarter of the time. The pauses do not grow."""
    world = World(server, "steady", POLLING)
    world.watch(*[job(number) for number in range(100)])
    asked = world.asked()
    wait_until(lambda: world.read() == {} and world.asked() - asked > 130 * 200, SOON, "130 polls of 100 logs")
    world.close()
    world = World(server, "polled", POLLING, block_seconds=0.5)
    world.watch(*[job(number) for number in range(3000)])
    world.read()
    before, began = time.thread_time(), time.monotonic()
    assert world.read() == {}
    assert time.thread_time() - before < (time.monotonic() - began) / 2
    world.close()


def run_until_killed(server: RedisServer) -> None:
    with contextlib.suppress(redis.RedisError):
        server.ask("EVAL", "while true do end", 0)


def test_tracking_is_retried_on_a_busy_server(server: RedisServer, world: World) -> None:
    """A BUSY error, while the server runs a script, is temporary: no refusal to track, and no fault of a log."""
    world.watch(*JOBS)
    server.ask("CONFIG", "SET", "busy-reply-threshold", "1")
    script = threading.Thread(target=run_until_killed, args=(server,))
    script.start()
    try:
        wait_until(lambda: not server.answers(), SOON, "the script runs")
        for ask in (world.read, lambda: world.store.get_jobs(JOBS[:2])):
            with pytest.raises(StoreUnavailable, match="BUSY"):
                ask()
    finally:
        server.ask("SCRIPT", "KILL")
        script.join(SOON)
    world.write(JOBS[1], 1)
    wait_until(lambda: world.read_safely() == {JOBS[1]: [1]}, SOON, "it reads again")
    world.write(JOBS[2], 1)
    before = world.asked()
    assert world.read() == {JOBS[2]: [1]}
    assert world.asked() - before <= 2, "changes are reported"


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "rounds"), [("", examples(150)), (POLLING, examples(60))], ids=["reported", "polled"]
)
def test_random_events_lose_no_line(server: RedisServer, options: str, rounds: int) -> None:
    """New lines, watched and unwatched jobs, closed connections, invalidated keys: every line of every job is read."""
    world, chance = World(server, "random", options), random.Random(4)
    written = dict.fromkeys(JOBS, 0)
    world.watch(*JOBS[:150])
    for _ in range(rounds):
        for job in chance.sample(JOBS, chance.choice([0, 1, 1, 5, 40])):
            lines = chance.choice([1, 1, 2, 9])
            world.write(job, *range(written[job] + 1, written[job] + lines + 1))
            written[job] += lines
        match chance.randrange(20):
            case 0:
                server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            case 1:
                server.ask("CONFIG", "SET", "tracking-table-max-keys", str(chance.choice([0, 5, 1000])))
            case 2:
                moving = chance.choice(list(world.cursors))
                world.watch(moving, cursor=chance.randint(0, written[moving]))
            case 3:
                joining = chance.choice(JOBS)
                world.watch(joining, cursor=world.cursors.get(joining, chance.randint(0, written[joining])))
            case 4 if len(world.cursors) > 2:
                world.unwatch(chance.choice(list(world.cursors)))
            case 5:
                cursors, sample = dict(world.cursors), chance.sample(JOBS, 100)
                world.unwatch(*cursors)
                for job in sample:
                    world.watch(job, cursor=cursors.get(job, 0))
        before = dict(world.cursors)
        for job, numbers in (world.read_safely() or {}).items():
            assert numbers == list(range(before[job] + 1, before[job] + len(numbers) + 1))
    until = time.monotonic() + SOON
    while any(written[job] > cursor for job, cursor in world.cursors.items()):
        world.read_safely()
        assert time.monotonic() < until, "lines are missing"
    world.close()
