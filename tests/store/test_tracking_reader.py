"""Readers that are told what has changed: they ask for nothing else, and miss nothing, whatever is done to them."""

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
from chronoverse.store.driver import new_connection, on_changed_keys
from chronoverse.store.live_reader import LiveReader
from chronoverse.store.tracking_reader import EMPTY_READ_SECONDS
from chronoverse.store.watchlist import Watchlist
from tests.support.examples import examples
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Always told, and told from five jobs on until there are three.
ALWAYS, SOME = (1, 1), (3, 5)
#: Seconds a read waits, and those after which a test would give up.
BLOCK, SOON = 0.05, 20.0


class World:
    """A server's store with a reader, what was written, and where each job has been read to."""

    def __init__(
        self, server: RedisServer, prefix: str, tracked_jobs: tuple[int, int] = ALWAYS, options: str = ""
    ) -> None:
        self.server = server
        self.prefix = prefix
        self.store = Store(server.url + options, prefix=prefix)
        reader = self.store.live_reader(BLOCK, tracked_jobs)
        assert isinstance(reader, LiveReader)
        self.reader = reader
        self.cursors: dict[JobRef, int] = {}
        #: The same, as the tail has it, which says what has moved; None to hand the reader all each time.
        self.watchlist: Watchlist | None = Watchlist()

    def key(self, job: JobRef) -> str:
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:log"

    def write(self, job: JobRef, *numbers: int) -> None:
        for number in numbers:
            self.server.ask("XADD", self.key(job), f"{number}-0", "message", "a")

    def watch(self, *jobs: JobRef) -> None:
        self.cursors |= dict.fromkeys(jobs, 0)

    def read(self, count: int = 100) -> dict[JobRef, list[int]]:
        """The numbers that one read brings. The jobs go on behind them."""
        asked = self.cursors if self.watchlist is None else self.brought_up_to_date(self.watchlist)
        found = {job: [entry_number(id) for id, _ in entries] for job, entries in self.reader.read(asked, count)}
        self.cursors |= {job: numbers[-1] for job, numbers in found.items()}
        return found

    def brought_up_to_date(self, watchlist: Watchlist) -> Watchlist:
        for gone in watchlist.keys() - self.cursors.keys():
            del watchlist[gone]
        for job, cursor in self.cursors.items():
            if watchlist.get(job) != cursor:
                watchlist.set_cursor(job, cursor)
        return watchlist

    def asked(self) -> int:
        """How often the server has looked a key up so far. XREAD does that twice for each."""
        stats = self.server.ask("INFO", "stats")
        return sum(int(number) for number in re.findall(rb"keyspace_(?:hits|misses):(\d+)", stats))

    def close(self) -> None:
        self.reader.close()
        self.store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that nobody else asks for anything."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def world(server: RedisServer) -> Iterator[World]:
    """A world whose reader is always told."""
    world = World(server, "tracked")
    yield world
    world.close()


def job(number: int) -> JobRef:
    return JobRef(f"wf_{number % 3}", f"job_{number}")


JOBS: Final = [job(number) for number in range(300)]


def test_only_jobs_that_have_changed_are_asked_for(world: World) -> None:
    """Once each has been read, a line of one of three hundred costs a read of one."""
    world.watch(*JOBS)
    assert world.read() == {}
    world.write(JOBS[7], 1)
    world.write(JOBS[8], 1, 2)
    before = world.asked()

    assert world.read() == {JOBS[7]: [1], JOBS[8]: [1, 2]}
    assert world.read() == {}
    assert world.asked() - before <= 4


def test_what_did_not_fit_comes_with_the_next_read(world: World) -> None:
    """Of a job with more lines than are read at once, though nothing has changed since."""
    world.write(JOBS[0], *range(1, 8))
    world.watch(*JOBS[:3])

    assert [world.read(3)[JOBS[0]] for _ in range(3)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert world.read(3) == {}


def test_what_was_not_taken_comes_again(world: World) -> None:
    """Whoever stands elsewhere than behind what was found, since somebody moved it on or back, is read from there."""
    world.write(JOBS[0], *range(1, 8))
    world.watch(JOBS[0])
    assert world.read() == {JOBS[0]: [1, 2, 3, 4, 5, 6, 7]}

    world.cursors[JOBS[0]] = 5
    assert world.read() == {JOBS[0]: [6, 7]}


def test_a_job_that_comes_back_is_read(world: World) -> None:
    """Lines that came while nobody watched it are there."""
    world.watch(*JOBS)
    world.read()
    world.cursors = {JOBS[0]: 0}
    world.read()
    world.write(JOBS[1], 1)
    world.read()
    world.watch(JOBS[1])

    assert world.read() == {JOBS[1]: [1]}


@pytest.mark.parametrize("gone", [("FLUSHALL",), ("DEL",), ("PEXPIRE", "1")], ids=lambda gone: gone[0])
def test_a_log_that_goes_and_comes_again(world: World, gone: tuple[str, ...]) -> None:
    """However it went, the lines of its next life are read."""
    world.write(JOBS[0], 1, 2)
    world.watch(*JOBS[:9])
    world.read()
    name, *rest = gone
    world.server.ask(name, *([] if name == "FLUSHALL" else [world.key(JOBS[0])]), *rest)
    wait_until(lambda: not world.server.ask("EXISTS", world.key(JOBS[0])), SOON, "it is gone")
    world.read()
    world.write(JOBS[0], 3)

    assert world.read() == {JOBS[0]: [3]}


def test_a_server_that_remembers_few_keys(server: RedisServer, world: World) -> None:
    """Those that it forgets it tells of, and they are read again."""
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


def test_thousands_that_change_while_the_server_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one script, say. It tells of each of them before it answers, and all are read."""
    jobs = [job(number) for number in range(3000)]
    world.watch(*jobs)
    assert world.read() == {}
    script = "for _, key in ipairs(KEYS) do redis.call('XADD', key, '1-0', 'message', 'a') end"

    def change(bell: socket.socket) -> bool:
        monkeypatch.undo()
        world.server.ask("EVAL", script, len(jobs), *map(world.key, jobs))
        return True

    monkeypatch.setattr("chronoverse.store.tracking_reader._was_interrupted", change)
    assert world.read() == {}
    assert world.read() == {each: [1] for each in jobs}


def test_an_answer_that_nobody_asked_for(world: World) -> None:
    """From then on each answer would be taken for the next one's: the connection is given up, and nothing is lost."""
    world.watch(*JOBS)
    world.read()
    connection = world.reader._tracking._connection
    assert connection
    connection.send_command("XREAD", "STREAMS", world.key(JOBS[0]), "0")
    world.write(JOBS[0], 1)
    wait_until(connection.can_read, SOON, "it has answered")
    with pytest.raises(StoreUnavailable):
        world.read()

    assert world.read() == {JOBS[0]: [1]}


def test_changes_that_are_no_lines_are_gathered(world: World) -> None:
    """Of a log that somebody changes all the time, without appending to it, the server is not asked each time."""
    world.write(JOBS[0], 1)
    world.watch(*JOBS)
    world.read()
    stop = threading.Event()
    other = threading.Thread(target=keep_changing, args=(world, JOBS[0], stop))
    other.start()
    try:
        wait_until(
            lambda: b"calls=" in world.server.ask("INFO", "commandstats").partition(b"_pexpire:")[2], SOON, "it is"
        )
        before = world.asked()
        assert world.read() == {}
    finally:
        stop.set()
        other.join(SOON)

    assert world.asked() - before <= 2 * (BLOCK / EMPTY_READ_SECONDS + 4)


def keep_changing(world: World, job: JobRef, stop: threading.Event) -> None:
    """Puts off the end of the job's log as fast as it can."""
    with redis.Redis.from_url(world.server.url) as client:
        while not stop.is_set():
            client.execute_command("PEXPIRE", world.key(job), 1_000_000)


def test_a_connection_that_is_cut_loses_nothing(server: RedisServer, world: World) -> None:
    """One read fails, and the next is of all jobs, on a connection that is told again."""
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


def test_a_server_that_says_nothing_is_noticed(
    server: RedisServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silence is no quiet log: a read that was told of nothing asks whether it lives."""
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
    wait_until(lambda: JOBS[5] in safely(world), SOON, "it reads again")


def safely(world: World) -> dict[JobRef, list[int]]:
    """A read, and nothing where it failed."""
    try:
        return world.read()
    except StoreError:
        return {}


def test_a_key_of_another_type_does_not_keep_the_others_from_being_told_of(world: World) -> None:
    """Without it they are read, and then only when they change."""
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
def test_a_server_that_may_not_tell_is_read_as_ever(
    server: RedisServer, caplog: pytest.LogCaptureFixture, options: str, rules: list[str]
) -> None:
    """It is said once, and every line comes."""
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


def test_a_parser_of_resp2_alone_hears_nothing(server: RedisServer) -> None:
    """It is the driver's own, where hiredis is not installed."""
    assert not on_changed_keys(new_connection(f"{server.url}?protocol=2", parser_class=_RESP2Parser), print)


def test_a_server_busy_with_a_script_is_asked_again(server: RedisServer, world: World) -> None:
    """That it does not tell of changes while it is so is no refusal."""
    world.watch(*JOBS)
    server.ask("CONFIG", "SET", "busy-reply-threshold", "1")
    script = threading.Thread(target=suppressing(server.ask), args=("EVAL", "while true do end", 0))
    script.start()
    try:
        wait_until(lambda: busy(server), SOON, "the script runs")
        with pytest.raises(StoreError, match="BUSY"):
            world.read()
    finally:
        server.ask("SCRIPT", "KILL")
        script.join(SOON)
    world.write(JOBS[1], 1)

    assert world.read() == {JOBS[1]: [1]}
    assert world.reader.tracks_changes


def suppressing(ask: Callable[..., object]) -> Callable[..., None]:
    """The same without errors: the script's end is one."""

    def asked(*command: object) -> None:
        with contextlib.suppress(redis.RedisError):
            ask(*command)

    return asked


def busy(server: RedisServer) -> bool:
    """Whether it refuses commands for a script's sake."""
    try:
        return not server.ask("PING")
    except redis.ResponseError as error:
        return "BUSY" in str(error)


def test_it_is_told_while_there_are_many(server: RedisServer) -> None:
    """With as many as are enough it begins, and with less than are needed it stops; every line comes through both."""
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
    ("says", "rounds"), [(True, examples(500)), (False, examples(100))], ids=["what has moved", "all"]
)
def test_hundreds_of_jobs_through_whatever_happens(server: RedisServer, world: World, says: bool, rounds: int) -> None:
    """Lines, jobs that come and go, cut connections, forgotten keys, interrupts: each watched job gets every number."""
    if not says:
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
        for job, numbers in safely(world).items():
            assert numbers == list(range(before[job] + 1, before[job] + len(numbers) + 1))
    until = time.monotonic() + SOON
    while any(written[job] > cursor for job, cursor in world.cursors.items()):
        safely(world)
        assert time.monotonic() < until, "lines are missing"
