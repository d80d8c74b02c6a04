"""The tail with its threads on real servers: one connection, low delay, order, and recovery from failures."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.model import JobRef, Line, iso_timestamp
from chronoverse.live.feed import WAKES_PER_YIELD, Feed
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import (
    BLOCK_SECONDS,
    RING_BYTES,
    RINGS_BYTES,
    ROUND_JOBS,
    Tail,
    check_seconds,
    count_store_error,
    ring_bytes,
)
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store, live_reader
from chronoverse.store.driver import set_changed_keys_handler
from tests.support.reading import Bystander, ControlledStore, StreamCheck
from tests.support.servers import RedisServer, running
from tests.support.waiting import wait_until

#: Time limit of events whose delay depends only on the machine's load, in seconds.
SOON: Final = 20.0
#: The maximum median delay from a line's append until a viewer that joined while the reader waited has it, in seconds.
#: A reader that is not woken waits for almost a second.
PROMPT: Final = 0.25

STAMP: Final = "2026-03-03T10:00:05.123Z"


class WatchedJob:
    """A viewer in its own thread, and a check of everything that it has sent."""

    def __init__(self, job: JobRef, cache: ReplayCache, tail: Tail, written: dict[int, Line]) -> None:
        self.check = StreamCheck(0, None, written, lambda first, last: False)
        self.arrived: dict[int, float] = {}
        self.failure: AssertionError | None = None
        self.viewer = Viewer(cache, tail, job, cache.store.get_job(job), wait=SOON)
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        try:
            for chunk in self.viewer.chunks():
                self.check.feed(chunk)
                self.arrived[self.check.cursor] = time.monotonic()
        except AssertionError as failure:
            self.failure = failure
        self.viewer.close()

    def has(self, number: int) -> bool:
        """Whether the viewer has sent every line up to that number, or a gap for it."""
        if self.failure:
            raise self.failure
        return self.check.cursor >= number

    def leave(self) -> None:
        """Disconnects the viewer, like a client that leaves."""
        self.viewer.close_with_retry(1000)
        self.thread.join(SOON)
        assert not self.thread.is_alive()
        if self.failure:
            raise self.failure


class World:
    """A worker's tail on one server, and a store through which a runner writes."""

    def __init__(
        self, server: RedisServer, prefix: str, source: Any = lambda store: store, block_seconds: float = BLOCK_SECONDS
    ) -> None:
        self.server = server
        self.prefix = prefix
        self.store = Store(server.url, prefix=prefix)
        self.runner = Store(server.url, prefix=prefix)
        self.tail = Tail(source(self.store), block_seconds=block_seconds)
        self.cache = ReplayCache(self.store)
        self.written: dict[JobRef, dict[int, Line]] = {}
        self.watched: list[WatchedJob] = []
        self._others: Final = {*threading.enumerate()}

    def threads(self) -> list[str]:
        """The names of this tail's threads. Applications of other tests in this process can have a tail, too."""
        started = {*threading.enumerate()} - self._others
        return sorted(thread.name for thread in started if thread.name.startswith("tail-"))

    def write(self, job: JobRef, lines: int = 1, message: str = "") -> None:
        """Appends the job's next lines through our own runner. All calls share one attempt."""
        written = self.written.setdefault(job, {})
        attempt = self.runner.open(job, "token")
        batch = [Line(len(written) + 1 + index, STAMP, message or f"{job} {index}", "stdout") for index in range(lines)]
        written |= {line.sequence_num: line for line in batch}
        self.runner.append(attempt, batch)

    def foreign(self, job: JobRef, id: str, *fields: str) -> None:
        """Adds an entry like a foreign runner, with a plain XADD."""
        self.server.ask("XADD", f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:log", id, *fields)

    def watch(self, job: JobRef) -> WatchedJob:
        """Starts a viewer of the job from its first line."""
        self.tail.start()
        self.watched.append(WatchedJob(job, self.cache, self.tail, self.written.setdefault(job, {})))
        return self.watched[-1]

    def waiting(self) -> list[bytes]:
        """The connections to which the server reports changes, as lines of CLIENT LIST."""
        return [line for line in self.server.ask("CLIENT", "LIST").splitlines() if b" flags=t" in line]

    def close(self) -> None:
        for watched in self.watched:
            watched.leave()
        self.tail.stop()
        self.store.close()
        self.runner.close()


def job(number: int = 1) -> JobRef:
    return JobRef(f"wf_{number % 7}", f"job_{number}")


@pytest.fixture
def world(server: RedisServer, prefix: str) -> Iterator[World]:
    """A world without jobs, whose tail stops soon."""
    world = World(server, prefix, block_seconds=0.25)
    yield world
    world.close()


def test_one_connection_waits_for_all_jobs(world: World) -> None:
    """It serves 40 watched jobs, and the store opens at most 8 connections."""
    before = len(world.server.ask("CLIENT", "LIST").splitlines())
    for number in range(40):
        world.write(job(number))
        world.watch(job(number))
    wait_until(lambda: all(watched.has(1) for watched in world.watched), SOON, "each viewer has its line")
    wait_until(lambda: len(world.waiting()) == 1, SOON, "one connection waits")
    assert len(world.server.ask("CLIENT", "LIST").splitlines()) - before <= 8
    for _ in range(2):
        for number in range(40):
            world.write(job(number))
    wait_until(lambda: all(watched.has(3) for watched in world.watched), SOON, "each viewer has three lines")
    assert all(watched.check.lines == [1, 2, 3] for watched in world.watched), "of its own job"


def test_a_line_whose_report_was_lost_arrives_with_the_next_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some proxies lose the server's reports, which are not repeated until the log is read."""
    is_lost = threading.Event()

    def lose(connection: Any, handler: Callable[[Any], object]) -> bool:
        return set_changed_keys_handler(connection, lambda message: is_lost.is_set() or handler(message))

    monkeypatch.setattr(live_reader, "set_changed_keys_handler", lose)
    world.write(job())
    watched = world.watch(job())
    wait_until(lambda: watched.has(1) and world.waiting(), SOON, "the reader waits for reports")
    is_lost.set()
    for number in (2, 3):
        world.write(job())
        wait_until(lambda: watched.has(number), SOON, "the viewer has the line")  # noqa: B023


def test_a_new_job_does_not_wait_for_other_jobs(server: RedisServer, prefix: str) -> None:
    """It wakes a reader that waits for another job."""
    with contextlib.closing(World(server, prefix)) as world:
        world.write(job(1))
        world.watch(job(1))
        delays = []
        for number in range(2, 12):
            wait_until(lambda: len(world.waiting()) == 1, SOON, "the tail waits")
            watched = world.watch(job(number))
            started = time.monotonic()
            world.write(job(number))
            wait_until(lambda watched=watched: watched.has(1), SOON, "the line is there")  # type: ignore[misc]
            delays.append(watched.arrived[1] - started)
    assert sorted(delays)[len(delays) // 2] < PROMPT, delays


def test_an_unwatched_job_is_not_read(world: World) -> None:
    """The tail stops reading when the last viewer leaves, and reads again when a viewer joins."""
    world.write(job())
    leaver, watched = world.watch(job()), world.watch(job())
    wait_until(lambda: leaver.has(1) and watched.has(1), SOON, "the line is there")
    # The line may have come from the replay, before the tail has begun to read.
    wait_until(world.waiting, SOON, "the job is read")
    leaver.leave()
    world.write(job())
    wait_until(lambda: watched.has(2), SOON, "the next line is there")
    assert not leaver.has(2)
    watched.leave()
    assert world.tail.watched == 0
    wait_until(lambda: not world.waiting(), SOON, "nothing is read")
    world.write(job())
    assert world.waiting() == []
    again = world.watch(job())
    wait_until(lambda: again.has(3), SOON, "all lines are there")


def test_a_stalled_viewer_of_an_ended_job_costs_nothing(world: World) -> None:
    """The tail sleeps when all watched jobs have ended. Under gevent, a busy tail would block the whole worker."""
    world.foreign(job(), "1-0", "message", "x")
    world.tail.start()
    stalled = Viewer(ReplayCache(world.store), world.tail, job(), world.store.get_job(job()))
    chunks = stalled.chunks()
    next(chunks)
    world.foreign(job(), "2-0", "event", "end")
    assert any(b"event: end" in chunk for chunk in chunks)
    before, started = time.process_time(), time.monotonic()
    wait_until(lambda: time.monotonic() > started + 0.5, SOON, "half a second")
    assert time.process_time() - before < 0.25


def test_many_and_long_lines(world: World) -> None:
    """They reach a viewer that follows and one that joins halfway, complete and in order.

    Entries of one read beyond the publish limit are read again: the first read requests 32 lines, here 12 MiB.
    """
    world.write(job())
    viewers = [world.watch(job())]
    wait_until(lambda: viewers[0].has(1), SOON, "the first line is there")
    world.write(job(), 40, "\x01" * 65_536)
    viewers.append(world.watch(job()))
    for _ in range(8):
        world.write(job(), 500)
    wait_until(lambda: all(each.has(4_041) for each in viewers), SOON, "both viewers have all lines")
    assert [each.check.lines for each in viewers] == [[*range(1, 4_042)]] * 2


@pytest.mark.parametrize("method", ["block", "get_jobs"])
def test_a_thread_continues_after_an_unexpected_error(server: RedisServer, prefix: str, method: str) -> None:
    """The tail's reader and its housekeeper log it. No viewer misses a line."""
    sources: list[ControlledStore] = []
    failed = threading.Event()

    def controlled(store: Store) -> ControlledStore:
        sources.append(ControlledStore(store))
        return sources[-1]

    def fail() -> None:
        failed.set()
        raise RuntimeError("an unexpected error")

    world = World(server, prefix, controlled)
    try:
        world.write(job())
        watched = world.watch(job())
        wait_until(lambda: watched.has(1), SOON, "the line is there")
        sources[-1].before[method] = fail
        wait_until(failed.is_set, SOON, "a thread has failed")
        world.write(job())
        wait_until(lambda: watched.has(2), SOON, "the next line is there")
        wait_until(lambda: world.threads() == ["tail-housekeeper", "tail-reader"], SOON, "both threads live")
    finally:
        world.close()


def test_a_viewer_that_left_is_not_woken(world: World) -> None:
    """Other viewers of the job are, and the feed stays until the last has left."""
    world.write(job())
    state = world.store.get_job(job())
    first, second = (Viewer(world.cache, world.tail, job(), state) for _ in range(2))
    feed = first.feed
    assert feed is not None
    assert (feed is second.feed, feed.waiters, feed.viewer_count) == (True, {first, second}, 2)
    for _ in range(2):
        first.close()
        assert (feed.waiters, feed.viewer_count, world.tail.watched) == ({second}, 1, 1)
    second.close()
    assert (feed.waiters, feed.viewer_count, world.tail.watched) == (set(), 0, 0)


def test_a_job_is_not_known_while_reads_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line may be outdated. New viewers ask the store."""
    world.write(job(), 3)
    watched = world.watch(job())
    wait_until(lambda: watched.has(3), SOON, "the lines are there")
    wait_until(lambda: (known := world.tail.known_job(job())) and known.last == 3, SOON, "its last line is known")

    def fail() -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(world.tail, "read_once", fail)
        patch.setattr(world.tail, "healthy", lambda ref: True)  # the last answer was a moment ago
        wait_until(lambda: world.tail.known_job(job()) is None, 3, "the job is not known")
    wait_until(lambda: world.tail.known_job(job()) is not None, SOON, "it is known again")


def test_a_stopped_tail_ends_its_threads(world: World) -> None:
    """Both threads have ended, the connection is closed, and another start has no effect."""
    world.watch(job()).leave()
    world.tail.stop()
    world.tail.start()
    assert world.threads() == []
    assert world.waiting() == []


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    """It is killed twice while lines are appended. The viewer gets each line once, in order."""
    with running(tmp_path / "server", None, "--appendonly", "yes", "--appendfsync", "always") as server:
        world = World(server, "killed")
        try:
            watched = world.watch(job())
            stop = threading.Event()
            writer = threading.Thread(target=keep_writing, args=(world, job(), stop))
            writer.start()
            for _ in range(2):
                goal = len(world.written[job()]) + 50
                wait_until(lambda goal=goal: watched.has(goal), SOON, "lines arrive")  # type: ignore[misc]
                server.kill()
                server.start()
            goal = len(world.written[job()]) + 50
            wait_until(lambda: watched.has(goal), SOON, "lines arrive again")
            stop.set()
            writer.join(SOON)
            last = len(world.written[job()])
            wait_until(lambda: watched.has(last), SOON, "the last line is there")
            assert watched.check.lines == list(range(1, last + 1))
        finally:
            stop.set()
            world.close()


def keep_writing(world: World, job: JobRef, stop: threading.Event) -> None:
    """Appends lines one by one, and retries each until the store has it."""
    while not stop.is_set():
        following = len(world.written[job]) + 1
        world.written[job][following] = Line(following, STAMP, f"line {following}", "stdout")
        while not stop.is_set():
            try:
                world.runner.append(world.runner.open(job, "token"), [world.written[job][following]])
                break
            except StoreError:
                stop.wait(0.01)


def test_many_lines_after_a_foreign_end_do_not_undo_it(world: World) -> None:
    """A live viewer's stream ends without an error, although reading the job does not find its end."""
    world.write(job())
    watched = world.watch(job())
    wait_until(lambda: watched.has(1), SOON, "the viewer waits")
    key = f"{world.prefix}:{{{job().workflow_id}}}:{job().job_id}:log"
    script = "for n = 3, 30 do redis.call('XADD', KEYS[1], n .. '-0', 'message', 'x') end"
    world.server.ask("EVAL", f"redis.call('XADD', KEYS[1], '2-0', 'event', 'end') {script}", 1, key)
    wait_until(lambda: watched.viewer.done, SOON, "the stream ends")
    assert watched.viewer.reason == "end"


def test_the_end_of_a_log_waits_for_its_last_lines(world: World) -> None:
    """Lines and the end were read, but the feed has advanced before they are published. They are read again."""
    busy, ended = job(1), job(2)
    world.write(busy)
    world.foreign(ended, "1-0", "message", "x")
    feeds: list[Feed] = []
    tail = Tail(ControlledStore(world.store), sleep=lambda _: feeds[-1].skip(2))
    try:
        crowd = [Bystander() for _ in range(WAKES_PER_YIELD)]
        feeds += [tail.join(busy, world.store.get_job(busy), each) for each in crowd]
        feeds.append(feed := tail.join(ended, world.store.get_job(ended), Bystander()))
        tail.housekeep_once()
        world.write(busy)
        for number in (2, 3):
            world.foreign(ended, f"{number}-0", "message", "x")
        world.foreign(ended, "4-0", "event", "end")

        tail.read_once()
        assert (feed.cursor, feed.final) == (2, None)
        for _ in range(100):
            if feed.final is None:
                tail.read_once()
        assert feed.final
        assert feed.cursor == 3
    finally:
        tail.stop()


@pytest.mark.parametrize(("jobs", "check"), [(0, 1.0), (1, 1.0), (1000, 2.0), (4000, 8.0)])
def test_many_jobs_are_checked_less_often(jobs: int, check: float) -> None:
    """The work per second is bounded."""
    assert check_seconds(jobs) == check


def test_jobs_that_joined_together_are_checked_in_several_rounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking thousands of jobs in one round, or hundreds in one request, would delay all lines. No job is checked
    twice before another.
    """
    feeds = [world.tail.join(job(number), None, Bystander()) for number in range(2 * ROUND_JOBS + 1)]
    requests = Mock(wraps=world.store.get_jobs)
    monkeypatch.setattr(world.store, "get_jobs", requests)

    def checked() -> int:
        world.tail.housekeep_once()
        return sum(feed.check_at > 0 for feed in feeds)

    assert [checked() for _ in range(3)] == [ROUND_JOBS, 2 * ROUND_JOBS, len(feeds)]
    sizes = [len(each.args[0]) for each in requests.call_args_list]
    assert sum(sizes) == len(feeds)
    assert max(sizes) <= ROUND_JOBS / 5


@pytest.mark.parametrize("jobs", [0, 1, 32, 100, 4096, 100_000])
def test_rings_share_a_workers_memory(jobs: int) -> None:
    """Each ring stays within its limits, and all rings within the worker's, unless their minimum exceeds it."""
    least, most = RING_BYTES
    assert least <= ring_bytes(jobs) <= most
    assert ring_bytes(jobs) * jobs <= max(RINGS_BYTES, least * jobs)


def test_deliveries_are_counted_once(store: Store) -> None:
    """Lines and changes separately, per viewer, including lines that viewers read by themselves; errors by kind."""
    names = ["lines_delivered", "changes_delivered", "bytes_delivered", "replay_reads", "delivery_delay_seconds_count"]
    names = [f"chronoverse_{name}" + "_total" * (not name.endswith("count")) for name in names]
    kinds = [("tail", "unavailable"), ("replay", "refused"), ("request", "unexpected")]

    def counted() -> list[float]:
        errors = [{"during": during, "kind": kind} for during, kind in kinds]
        found = [*map(REGISTRY.get_sample_value, names)]
        found += [REGISTRY.get_sample_value("chronoverse_store_errors_total", labels) for labels in errors]
        return [each or 0.0 for each in found]

    tail, job, workflow = Tail(store), JobRef("wf_1", "job_1"), JobRef("wf_1", "")
    before = counted()
    tail.count_delivered(job, 2, 10, 3)
    tail.count_delivered(workflow, 1, 7)
    tail.count_replayed(job, 4, 5)
    tail.count_replayed(workflow, -1, 3)
    tail.report_metrics()
    tail.report_metrics()
    for (during, _), error in zip(kinds, (StoreUnavailable("x"), StoreRefused("x"), StoreError("x")), strict=True):
        count_store_error(during, error)
    store.append(store.open(job, "token"), [Line(n, iso_timestamp(time.time()), "x", "stdout") for n in (1, 2)])
    tail.join(job, None, Viewer(ReplayCache(store), tail, job, None))
    tail.read_once()
    tail.stop()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [10, 1, 45, 2, 1, 1, 1, 1]
