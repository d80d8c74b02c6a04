"""The tracking reader: it reads only logs that have changed, and misses no line."""

import contextlib
import logging
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import redis
from redis._parsers import _RESP2Parser

from chronoverse.errors import NotALog, StoreError, StoreUnavailable
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.values import JobRef
from chronoverse.store import Store
from chronoverse.store.driver import new_connection, set_changed_keys_handler
from chronoverse.store.live_reader import LiveReader
from chronoverse.store.tracking_reader import EMPTY_READ_SECONDS
from chronoverse.store.watchlist import Watchlist
from tests.support.examples import examples
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Thresholds: tracking always, and tracking from five jobs on until there are fewer than three.
ALWAYS, SOME = (1, 1), (3, 5)
#: Seconds that a read waits, and those after which a test fails.
BLOCK, SOON = 0.05, 20.0


class World:
    """A store with a reader, and the cursor of each job that is watched."""

    def __init__(
        self, server: RedisServer, prefix: str, thresholds: tuple[int, int] = ALWAYS, options: str = ""
    ) -> None:
        self.server = server
        self.prefix = prefix
        self.store = Store(server.url + options, prefix=prefix)
        reader = self.store.live_reader(BLOCK, thresholds)
        assert isinstance(reader, LiveReader)
        self.reader = reader
        self.cursors: dict[JobRef, int] = {}
        #: The same as the tail reader has them. With None the reader gets a plain dict, and compares all jobs.
        self.watchlist: Watchlist | None = Watchlist()

    def key(self, job: JobRef) -> str:
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:log"

    def write(self, job: JobRef, *numbers: int) -> None:
        for number in numbers:
            self.server.ask("XADD", self.key(job), f"{number}-0", "message", "a")

    def watch(self, *jobs: JobRef) -> None:
        self.cursors |= dict.fromkeys(jobs, 0)

    def read(self, count: int = 100) -> dict[JobRef, list[int]]:
        """The numbers that one read brings. Moves the cursors past them."""
        asked = self.cursors if self.watchlist is None else self._updated(self.watchlist)
        found = {job: [entry_number(id) for id, _ in entries] for job, entries in self.reader.read(asked, count)}
        self.cursors |= {job: numbers[-1] for job, numbers in found.items()}
        return found

    def _updated(self, watchlist: Watchlist) -> Watchlist:
        for job in watchlist.keys() - self.cursors.keys():
            del watchlist[job]
        for job, cursor in self.cursors.items():
            if watchlist.get(job) != cursor:
                watchlist.set_cursor(job, cursor)
        return watchlist

    def asked(self) -> int:
        """How many keys the server has looked up so far. XREAD looks up each key twice."""
        stats = self.server.ask("INFO", "stats")
        return sum(int(number) for number in re.findall(rb"keyspace_(?:hits|misses):(\d+)", stats))

    def close(self) -> None:
        self.reader.close()
        self.store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that no other test uses."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def world(server: RedisServer) -> Iterator[World]:
    """A world whose reader always tracks changes."""
    world = World(server, "tracked")
    yield world
    world.close()


def job(number: int) -> JobRef:
    return JobRef(f"wf_{number % 3}", f"job_{number}")


JOBS: Final = [job(number) for number in range(300)]


def test_only_jobs_that_have_changed_are_asked_for(world: World) -> None:
    """When all have been read once, new lines of two of 300 jobs cost a read of those two."""
    world.watch(*JOBS)
    assert world.read() == {}
    world.write(JOBS[7], 1)
    world.write(JOBS[8], 1, 2)
    before = world.asked()

    assert world.read() == {JOBS[7]: [1], JOBS[8]: [1, 2]}
    assert world.read() == {}
    assert world.asked() - before <= 4


def test_lines_beyond_the_count_come_with_the_next_read(world: World) -> None:
    """A job has more lines than one read brings. The next read brings the rest, although nothing has changed."""
    world.write(JOBS[0], *range(1, 8))
    world.watch(*JOBS[:3])

    assert [world.read(3)[JOBS[0]] for _ in range(3)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert world.read(3) == {}


def test_a_cursor_that_was_set_back_is_read_again(world: World) -> None:
    """A job whose cursor is elsewhere than after the lines that were found is read from its cursor."""
    world.write(JOBS[0], *range(1, 8))
    world.watch(JOBS[0])
    assert world.read() == {JOBS[0]: [1, 2, 3, 4, 5, 6, 7]}

    world.cursors[JOBS[0]] = 5
    assert world.read() == {JOBS[0]: [6, 7]}


def test_a_job_that_is_watched_again_is_read(world: World) -> None:
    """Lines that came while the job was not watched are read."""
    world.watch(*JOBS)
    world.read()
    world.cursors = {JOBS[0]: 0}
    world.read()
    world.write(JOBS[1], 1)
    world.read()
    world.watch(JOBS[1])

    assert world.read() == {JOBS[1]: [1]}


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL",), ("PEXPIRE", "1")], ids=lambda command: command[0])
def test_a_log_that_was_deleted_and_is_written_again(world: World, command: tuple[str, ...]) -> None:
    """However it was deleted, its new lines are read."""
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
    """The server sends a message about each key that it forgets, and the reader reads that key again."""
    server.ask("CONFIG", "SET", "tracking-table-max-keys", "10")
    world.watch(*JOBS)
    world.read()
    for number, job in enumerate(JOBS[:100]):
        world.write(job, 1)
        if number % 10 == 9:
            while not world.read():
                pass
    while world.read():
        pass

    assert [world.cursors[job] for job in JOBS] == [1] * 100 + [0] * 200


def test_thousands_of_changes_before_a_reply(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One script changes 3,000 keys. The server sends a message about each before its next reply, and all are read."""
    jobs = [job(number) for number in range(3000)]
    world.watch(*jobs)
    assert world.read() == {}
    script = "for _, key in ipairs(KEYS) do redis.call('XADD', key, '1-0', 'message', 'a') end"

    def change(wakeup: socket.socket) -> bool:
        monkeypatch.undo()
        world.server.ask("EVAL", script, len(jobs), *map(world.key, jobs))
        return True

    monkeypatch.setattr("chronoverse.store.tracking_reader._was_interrupted", change)
    assert world.read() == {}
    assert world.read() == {each: [1] for each in jobs}


def test_an_unexpected_reply(world: World) -> None:
    """The next reply would be taken for that of another command. So the connection is closed, and no line is lost."""
    world.watch(*JOBS)
    world.read()
    connection = world.reader._tracking._connection
    assert connection
    connection.send_command("XREAD", "STREAMS", world.key(JOBS[0]), "0")
    world.write(JOBS[0], 1)
    wait_until(connection.can_read, SOON, "the reply has arrived")
    with pytest.raises(StoreUnavailable):
        world.read()

    assert world.read() == {JOBS[0]: [1]}


def test_changes_without_lines_are_collected(world: World) -> None:
    """A log changes all the time without an append. The reader does not ask the server after each change."""
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

    assert world.asked() - before <= 2 * (BLOCK / EMPTY_READ_SECONDS + 4)


def keep_changing(world: World, job: JobRef, stop: threading.Event) -> None:
    """Sets the log's time to live as fast as it can."""
    with redis.Redis.from_url(world.server.url) as client:
        while not stop.is_set():
            client.execute_command("PEXPIRE", world.key(job), 1_000_000)


def test_a_closed_connection_loses_no_line(server: RedisServer, world: World) -> None:
    """One read fails. The next reads all jobs on a new connection, on which changes are tracked again."""
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


@pytest.mark.long
def test_a_server_that_stands_still_is_noticed(
    server: RedisServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read without any message asks the server with PING whether it still answers."""
    monkeypatch.setattr("chronoverse.store.topology.COMMAND_TIMEOUT_SECONDS", 0.2)
    world.watch(*JOBS)
    world.read()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            world.read()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    world.write(JOBS[5], 1)
    wait_until(lambda: JOBS[5] in read_safely(world), SOON, "it reads again")


def read_safely(world: World) -> dict[JobRef, list[int]]:
    """A read; empty when it fails."""
    try:
        return world.read()
    except StoreError:
        return {}


def test_a_key_of_another_type_does_not_stop_the_tracking_of_others(world: World) -> None:
    """When the bad job is no longer watched, the others are read, each only when it changes."""
    world.watch(*JOBS)
    world.server.ask("SET", world.key(JOBS[0]), "no stream")
    world.write(JOBS[1], 1)
    with pytest.raises(NotALog):
        world.read()
    del world.cursors[JOBS[0]]

    assert world.read() == {JOBS[1]: [1]}
    world.write(JOBS[2], 1)
    before = world.asked()
    assert world.read() == {JOBS[2]: [1]}
    assert world.asked() - before <= 2


@pytest.mark.parametrize(
    ("options", "rules"), [("?protocol=2", []), ("", ["-client|tracking"])], ids=["RESP2", "forbidden"]
)
def test_a_server_that_refuses_tracking_is_read_without_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture, options: str, rules: list[str]
) -> None:
    """There is one warning, and every line comes."""
    if rules:
        server.ask("ACL", "SETUSER", "default", *rules)
    world = World(server, "tracked", ALWAYS, options)
    world.watch(*JOBS)
    with caplog.at_level(logging.WARNING):
        for number in range(1, 4):
            world.write(JOBS[9], number)
            assert world.read() == {JOBS[9]: [number]}
    world.close()

    assert not world.reader.tracks_changes
    assert len([record for record in caplog.records if "does not tell" in record.message]) == 1


def test_the_parser_for_resp2_takes_no_handler(server: RedisServer) -> None:
    """Where hiredis is not installed, the driver uses this parser of its own."""
    assert not set_changed_keys_handler(new_connection(f"{server.url}?protocol=2", parser_class=_RESP2Parser), print)


def test_a_server_busy_with_a_script_is_asked_again(server: RedisServer, world: World) -> None:
    """The BUSY error of a server that runs a script is no refusal of tracking."""
    world.watch(*JOBS)
    server.ask("CONFIG", "SET", "busy-reply-threshold", "1")
    script = threading.Thread(target=suppressing(server.ask), args=("EVAL", "while true do end", 0))
    script.start()
    try:
        wait_until(lambda: is_busy(server), SOON, "the script runs")
        with pytest.raises(StoreError, match="BUSY"):
            world.read()
    finally:
        server.ask("SCRIPT", "KILL")
        script.join(SOON)
    world.write(JOBS[1], 1)

    assert world.read() == {JOBS[1]: [1]}
    assert world.reader.tracks_changes


def suppressing(ask: Callable[..., object]) -> Callable[..., None]:
    """The same function, but errors of the server are ignored: SCRIPT KILL makes EVAL fail."""

    def asked(*command: object) -> None:
        with contextlib.suppress(redis.RedisError):
            ask(*command)

    return asked


def is_busy(server: RedisServer) -> bool:
    """Whether the server refuses commands because it runs a script."""
    try:
        return not server.ask("PING")
    except redis.ResponseError as error:
        return "BUSY" in str(error)


def test_tracking_begins_and_ends_at_its_thresholds(server: RedisServer) -> None:
    """It begins with five jobs and ends with fewer than three. Every line comes before and after."""
    world = World(server, "tracked", SOME)
    seen = []
    for number, jobs in enumerate([4, 5, 4, 3, 2, 4, 5], 1):
        world.cursors = dict.fromkeys(JOBS[:jobs], number - 1)
        for job in JOBS[:9]:
            world.write(job, number)
        assert set(world.read()) <= set(JOBS[:jobs])
        while any(cursor < number for cursor in world.cursors.values()):
            world.read()
        seen.append(world.reader.tracks_changes)
    world.close()

    assert seen == [False, True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("has_watchlist", "rounds"), [(True, examples(500)), (False, examples(100))], ids=["watchlist", "dict"]
)
def test_random_events_lose_no_line(server: RedisServer, world: World, has_watchlist: bool, rounds: int) -> None:
    """New lines, jobs that come and go, closed connections, forgotten keys, interrupts: each job gets every number."""
    if not has_watchlist:
        world.watchlist = None
    chance = random.Random(4)
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
                world.reader.interrupt()
            case 3:
                joining = chance.choice(JOBS)
                world.cursors.setdefault(joining, chance.randint(0, written[joining]))
            case 4 if len(world.cursors) > 2:
                del world.cursors[chance.choice(list(world.cursors))]
            case 5:
                world.watchlist = world.watchlist and chance.choice([world.watchlist, Watchlist()])
                world.cursors = {job: world.cursors.get(job, 0) for job in chance.sample(JOBS, 100)}
        before = dict(world.cursors)
        for job, numbers in read_safely(world).items():
            assert numbers == list(range(before[job] + 1, before[job] + len(numbers) + 1))
    until = time.monotonic() + SOON
    while any(written[job] > cursor for job, cursor in world.cursors.items()):
        read_safely(world)
        assert time.monotonic() < until, "lines are missing"
