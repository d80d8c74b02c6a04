"""The store's answers arrive late, twice or in another order, or come from a replaced master."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import pytest

from chronoverse.errors import StoreError
from chronoverse.joblog.model import Attempt, Job, JobRef, Line, Status
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail, redacted_since
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from tests.support.reading import SMALL_RING, Bystander, Clock, ControlledStore, StreamCheck, drain
from tests.support.servers import RedisServer

STAMP: Final = "2026-03-03T10:00:05.123Z"
#: Rounds of reading after its end in which every viewer must reach it.
ROUNDS: Final = 20


class World:
    """One job whose lines all stay in the store, its runner, the tail and some viewers.

    So no viewer may ever be told that lines or the log are gone. The ``poller``'s server does not report changes: each
    read finds everything.
    """

    def __init__(self, ask: Callable[..., Any], store: Store, poller: Store, prefix: str) -> None:
        self.ask, self.store, self.ref = ask, store, JobRef("wf", "late")
        self._prefix = prefix
        self.source = ControlledStore(store, reading=poller)
        self.clock = Clock()
        self.cache = ReplayCache(self.source, clock=self.clock)
        self.tail = Tail(self.source, ring_bytes=SMALL_RING, clock=self.clock)
        self.written: dict[int, Line] = {}
        self.attempts: list[Attempt] = []
        self.last = 0
        #: Which of the tail's two threads is active.
        self.busy: set[str] = set()
        self.viewers: list[tuple[Viewer, StreamCheck]] = []

    def _key(self, kind: str) -> str:
        return f"{self._prefix}:{{{self.ref.workflow_id}}}:{self.ref.job_id}:{kind}"

    def open(self) -> None:
        """A new attempt begins, which ends the previous one."""
        self.ask("DEL", self._key("lease"))
        self.attempts.append(self.store.open(self.ref, f"token-{len(self.attempts)}"))

    def append(self, lines: int = 1) -> None:
        if not self.attempts:
            self.open()
        for number in range(self.last + 1, self.last + lines + 1):
            self.written.setdefault(number, Line(number, STAMP, f"line {number}", "stdout"))
        batch = [self.written[number] for number in range(self.last + 1, self.last + lines + 1)]
        self.store.append(self.attempts[-1], batch)
        self.last += lines

    def delay(self, method: str, steps: str, step: str, *, twice: bool = False) -> None:
        """The answer of ``method`` in ``step`` is late: ``steps`` happen first.

        With ``twice``, both threads of the tail have asked, and one of them gets its answer immediately.
        """

        def deliver(answer: Any) -> Any:
            if twice:
                self.source.late[method] = lambda _: answer
                self.check()
                self.source.late.clear()
            for each in steps.split():
                getattr(self, each)()
            return answer

        self.source.late[method] = deliver
        getattr(self, step)()
        self.source.late.clear()

    def job_of_a_replaced_master(self, lines: int) -> Job | None:
        """Has lines that were never replicated. The runner later writes them to the new master."""
        keys = [self._key("log"), self._key("job")]
        dumps, last = [self.ask("DUMP", key) for key in keys], self.last
        self.append(lines)
        old, self.last = self.store.get_job(self.ref), last
        for key, dump in zip(keys, dumps, strict=True):
            self.ask("RESTORE", key, "0", dump, "REPLACE")
        return old

    def read(self) -> None:
        self._work("reader", self.tail.read_once)

    def check(self) -> None:
        self.clock.now += 1.125
        self._work("housekeeper", self.tail.housekeep_once)

    def _work(self, thread: str, step: Callable[[], object]) -> None:
        if thread not in self.busy:
            self.busy.add(thread)
            step()
            self.busy.remove(thread)

    def connect(self) -> None:
        job = self.source.get_job(self.ref)
        check = StreamCheck(0, None, self.written, lambda first, last: False)
        self.viewers.append((Viewer(self.cache, self.tail, self.ref, job, wait=1e9), check))

    def poll(self) -> None:
        for viewer, check in self.viewers:
            for chunk in drain(viewer):
                check.feed(chunk)
                assert check.closing is None or check.closing.event == "end", check.closing

    def end(self) -> None:
        """Ends the job, after which every viewer must have all lines and the end."""
        self.append(max(1, len(self.written) - self.last))
        self.open()
        self.store.finish(self.attempts[-1], Status.COMPLETED, 0, 0, self.last + 1)
        for _ in range(ROUNDS):
            self.read()
            self.check()
            self.poll()
        for viewer, check in self.viewers:
            assert viewer.done, "a viewer did not come to the end"
            assert check.cursor >= self.last, "a viewer was not sent all lines"


@pytest.fixture
def world(server: RedisServer, store: Store, prefix: str) -> Iterator[World]:
    with closing(Store(f"{server.url}?protocol=2", prefix=prefix)) as poller:
        world = World(server.ask, store, poller, prefix)
        yield world
        for viewer, _ in world.viewers:
            viewer.close()
        world.tail.stop()


@pytest.mark.parametrize(
    "steps", ["append", "append read", "append check read", "open append connect", "append open read append"]
)
@pytest.mark.parametrize(
    ("method", "step", "twice"),
    [
        ("get_jobs", "check", False),
        ("get_jobs", "check", True),
        ("get_jobs", "read", True),
        ("read", "poll", False),
        ("get_job", "connect", False),
    ],
)
def test_a_late_answer_changes_nothing(world: World, method: str, step: str, twice: bool, steps: str) -> None:
    """Whenever the store's answers arrive, each viewer gets each line once, and then the end.

    In the first round, the job does not exist yet.
    """
    world.connect()
    for _ in range(4):
        world.delay(method, steps, step, twice=twice)
        world.poll()
        world.append(2)
    world.end()


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "replay"])
def test_lines_reported_only_by_a_replaced_master_are_not_missing(world: World, is_live: bool) -> None:
    """Viewers get them once the new master has them."""
    if is_live:
        world.connect()
    world.append(2)
    if is_live:
        world.read()
    old = world.job_of_a_replaced_master(3)
    if is_live:
        world.source.late["get_jobs"] = lambda _: [old]
        world.check()
    else:
        world.source.late["get_job"] = lambda _: old
        world.connect()
        world.source.late["get_job"] = lambda _: old
    world.poll()
    assert [check.cursor for _, check in world.viewers] == [2]
    world.source.late.clear()
    world.end()


def test_no_redaction_is_hidden_by_a_later_one(store: Store, server: RedisServer, prefix: str) -> None:
    """Another redaction happens between the reads of the job and of its redactions."""
    ref = JobRef("wf", "redacted")
    store.append(store.open(ref, "token"), [Line(number, STAMP, "text", "stdout") for number in range(1, 9)])
    job = f"{prefix}:{{wf}}:redacted"

    def redact(number: int) -> Job:
        server.ask("RPUSH", f"{job}:audit", f'{{"from":{number},"to":{number},"count":1}}')
        server.ask("HINCRBY", f"{job}:job", "redactions", "1")
        return store.require_job(ref)

    before, now = redact(1), redact(2)
    redact(3)
    assert (2, 2) in redacted_since(store, before, now)


def test_lines_that_arrive_while_changes_are_read_hide_no_redaction(
    store: Store, server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a workflow's changes takes several round trips."""
    ref, workflow, source = JobRef("wf", "watched"), JobRef("wf", ""), ControlledStore(store)
    attempt = store.open(ref, "token")
    store.append(attempt, [Line(number, STAMP, "text", "stdout") for number in (1, 2)])
    tail = Tail(source, clock=Clock())
    jobs = [each for each in store.get_jobs([workflow, ref]) if isinstance(each, Job)]
    feeds = [tail.join(each.ref, each, Bystander()) for each in jobs]
    server.ask("RPUSH", f"{prefix}:{{wf}}:watched:audit", '{"from":1,"to":1,"count":1}')
    server.ask("HINCRBY", f"{prefix}:{{wf}}:watched:job", "redactions", "1")

    def get_jobs(refs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        found = store.get_jobs(refs)
        if workflow in refs:
            store.append(attempt, [Line(3, STAMP, "text", "stdout")])
            tail.read_once()
        return found

    monkeypatch.setattr(source, "get_jobs", get_jobs)
    tail.check_jobs(feeds)
    assert feeds[1].cursor == 3
    assert len(feeds[1].redactions) == 1
    tail.stop()


def test_an_outdated_answer_does_not_prove_that_a_ring_is_current(world: World) -> None:
    """Its lines may have been redacted since: only an answer about the feed's state moves the time to drop it."""
    world.append()
    world.connect()
    feed = world.viewers[0][0].feed
    world.check()
    before = feed.fresh_until
    world.delay("get_jobs", "append read", "check")
    assert (feed.fresh_until, feed.cursor) == (before, 2)
    world.check()
    assert feed.fresh_until > before
