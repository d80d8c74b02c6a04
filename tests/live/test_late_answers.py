"""An adversary delays, reorders and repeats the store's answers, and lets a replaced master answer."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from chronoverse.errors import StoreError
from chronoverse.joblog.model import Attempt, Job, JobRef, Line, Status
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail, redacted_since
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from tests.support.examples import examples
from tests.support.reading import SMALL_RING, Bystander, Clock, ControlledStore, StreamCheck, drain
from tests.support.servers import RedisServer

STAMP: Final = "2026-03-03T10:00:05.123Z"
#: Steps before which the job does not end.
YOUNG_STEPS: Final = 10
MAX_VIEWERS: Final = 3
#: Rounds of reading after its end in which every viewer must reach it.
ROUNDS: Final = 20

#: What can happen between the creation of an answer and its arrival at the caller.
meanwhile = st.lists(st.sampled_from(["append", "append", "read", "check", "open", "connect"]), max_size=6)


class Answers(RuleBasedStateMachine):
    """One job whose lines all stay in the store, its runner, the tail and some viewers.

    So no viewer may ever be told that lines or the log are gone.
    """

    ask: ClassVar[Callable[..., Any]]
    store: ClassVar[Store]
    #: Its server does not report changes: each read finds everything.
    poller: ClassVar[Store]
    prefix: ClassVar[str]
    runs: ClassVar[Iterator[int]]

    def __init__(self) -> None:
        super().__init__()
        self.ref = JobRef("wf", f"late-{next(self.runs)}")
        self.source = ControlledStore(self.store, reading=self.poller)
        self.clock = Clock()
        self.cache = ReplayCache(self.source, clock=self.clock)
        self.tail = Tail(self.source, ring_bytes=SMALL_RING, clock=self.clock)
        self.written: dict[int, Line] = {}
        self.attempt: Attempt | None = None
        self.last, self.steps, self.ended = 0, 0, False
        #: Which of the tail's two threads is active.
        self.busy: set[str] = set()
        self.viewers: list[tuple[Viewer, StreamCheck]] = []

    def _key(self, kind: str) -> str:
        return f"{self.prefix}:{{{self.ref.workflow_id}}}:{self.ref.job_id}:{kind}"

    def _do(self, step: str) -> None:
        if step == "append" and not self.ended:
            self.append(1)
        elif step == "open" and not self.ended:
            self.open()
        elif step == "connect" and len(self.viewers) < MAX_VIEWERS:
            self.connect(0)
        elif step in ("read", "check", "poll"):
            getattr(self, step)()

    # The runner

    @rule()
    @precondition(lambda self: not self.ended)
    def open(self) -> None:
        """A new attempt begins, which ends the previous one."""
        self.ask("DEL", self._key("lease"))
        self.attempt = self.store.open(self.ref, f"token-{self.steps}")

    @rule(lines=st.integers(1, 4))
    @precondition(lambda self: not self.ended)
    def append(self, lines: int) -> None:
        self.steps += 1
        if self.attempt is None:
            self.open()
        assert self.attempt
        for number in range(self.last + 1, self.last + lines + 1):
            self.written.setdefault(number, Line(number, STAMP, f"line {number}", "stdout"))
        batch = [self.written[number] for number in range(self.last + 1, self.last + lines + 1)]
        self.store.append(self.attempt, batch)
        self.last += lines

    @rule()
    @precondition(lambda self: self.attempt and not self.ended and self.steps > YOUNG_STEPS)
    def finish(self) -> None:
        if unreplicated := len(self.written) - self.last:
            self.append(unreplicated)
        assert self.attempt
        self.store.finish(self.attempt, Status.COMPLETED, 0, 0, self.last + 1)
        self.ended = True

    # The store

    @rule(
        method=st.sampled_from(["get_jobs", "get_jobs", "get_job", "read"]),
        steps=meanwhile,
        thread=st.sampled_from(["check", "check", "read", "poll", "connect"]),
        twice=st.booleans(),
    )
    def delay(self, method: str, steps: list[str], thread: str, twice: bool = False) -> None:
        """The next answer is late: other things happen first. With ``twice``, both threads of the tail have asked.

        One of them gets its answer immediately.
        """

        def deliver(answer: Any) -> Any:
            if twice and method == "get_jobs" and "housekeeper" not in self.busy:
                self.source.late[method] = lambda _: answer
                self.check()
                self.source.late.clear()
            for step in steps:
                self._do(step)
            return answer

        self.source.late[method] = deliver
        self._do(thread)
        self.source.late.clear()

    @rule(thread=st.sampled_from(["check", "check", "poll", "connect"]), lines=st.integers(1, 4))
    @precondition(lambda self: self.last and not self.ended)
    def let_a_replaced_master_answer(self, thread: str, lines: int) -> None:
        """It reports lines that were never replicated. The runner later writes them to the new master."""
        old = self.job_of_a_replaced_master(lines)
        self.source.late = {"get_jobs": lambda _: [old]} if thread == "check" else {"get_job": lambda _: old}
        self._do(thread)
        self.source.late.clear()

    def job_of_a_replaced_master(self, lines: int) -> Job | None:
        keys = [self._key("log"), self._key("job")]
        dumps, last = [self.ask("DUMP", key) for key in keys], self.last
        self.append(lines)
        old, self.last = self.store.get_job(self.ref), last
        for key, dump in zip(keys, dumps, strict=True):
            self.ask("RESTORE", key, "0", dump, "REPLACE")
        return old

    # The tail

    @rule()
    def read(self) -> None:
        self._work("reader", self.tail.read_once)

    @rule()
    def check(self) -> None:
        # After 30 seconds without a read, viewers get an error.
        self.clock.now += 1.125 if self.tail.silent_seconds() < 25 else 0
        self._work("housekeeper", self.tail.housekeep_once)

    def _work(self, thread: str, step: Callable[[], object]) -> None:
        if thread not in self.busy:
            self.busy.add(thread)
            step()
            self.busy.remove(thread)

    # The viewers

    @initialize(steps=meanwhile)
    def connect_before_the_job_begins(self, steps: list[str]) -> None:
        self.connect(0)
        self.delay("get_jobs", steps, "check")

    @rule(back=st.integers(0, 12))
    @precondition(lambda self: len(self.viewers) < MAX_VIEWERS)
    def connect(self, back: int) -> None:
        after = max(self.last - back, 0)
        job = self.source.get_job(self.ref)
        check = StreamCheck(after, None, self.written, lambda first, last: False)
        self.viewers.append((Viewer(self.cache, self.tail, self.ref, job, after=after, wait=1e9), check))

    @rule()
    def poll(self) -> None:
        for viewer, check in self.viewers:
            for chunk in drain(viewer):
                check.feed(chunk)
                assert check.closing is None or check.closing.event == "end", check.closing

    def teardown(self) -> None:
        try:
            self.source.late.clear()
            self.steps = YOUNG_STEPS + 1
            if not self.ended:
                self.append(1)
                self.open()
                self.finish()
            for _ in range(ROUNDS):
                self.read()
                self.check()
                self.poll()
            for viewer, check in self.viewers:
                assert viewer.done, "a viewer did not come to the end"
                assert check.cursor >= self.last, "a viewer was not sent all lines"
        finally:
            for viewer, _ in self.viewers:
                viewer.close()
            self.tail.stop()


@pytest.fixture
def answers(server: RedisServer, store: Store, prefix: str) -> Iterator[type[Answers]]:
    Answers.ask, Answers.store, Answers.prefix, Answers.runs = server.ask, store, prefix, itertools.count()
    Answers.poller = Store(f"{server.url}?protocol=2", prefix=prefix)
    yield Answers
    Answers.poller.close()


@pytest.mark.timeout(400)  # Hypothesis shrinks a failure for up to 300 s; a passing run takes a hundredth of that
def test_a_late_answer_changes_nothing(answers: type[Answers]) -> None:
    """Whenever the store's answers arrive, each viewer gets each line once, and then the end."""
    run_state_machine_as_test(
        answers,
        settings=settings(
            max_examples=examples(16),
            stateful_step_count=40,
            deadline=None,
            derandomize=False,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_job_that_begins_during_a_request_is_not_gone(answers: type[Answers]) -> None:
    """The answer "no such job" arrives after the job's first line. Its viewer gets the line, and no error."""
    world = answers()
    world.connect(0)
    world.delay("get_jobs", ["append", "read"], "check")
    world.poll()
    assert [check.lines for _, check in world.viewers] == [[1]]
    world.teardown()


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "replay"])
def test_lines_reported_only_by_a_replaced_master_are_not_missing(answers: type[Answers], is_live: bool) -> None:
    """Viewers get them once the new master has them."""
    world = answers()
    if is_live:
        world.connect(0)
    world.append(2)
    if is_live:
        world.read()
        world.let_a_replaced_master_answer("check", 3)
    else:
        old = world.job_of_a_replaced_master(3)
        world.source.late["get_job"] = lambda _: old
        world.connect(0)
        world.source.late["get_job"] = lambda _: old
    world.poll()
    assert [check.cursor for _, check in world.viewers] == [2]
    world.teardown()


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
