"""The publisher with a scripted store: which lines it sends again, which it leaves to other writers, what is safe."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chronoverse.errors import (
    Closed,
    CorruptLog,
    Deleted,
    Fenced,
    ForeignLines,
    Held,
    LabelSet,
    NotDurable,
    QuotaReached,
    SequenceGap,
    StoreUnavailable,
    TooFast,
)
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Attempt, JobRef, LineRun, Status, count_lines
from chronoverse.runner.outage import Outage
from chronoverse.runner.publisher import JobResult, Publisher
from chronoverse.runner.run import wait_delivered
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.jobs import JOB
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON = 30.0
NOW = "2026-03-03T10:00:05.123Z"
DONE = JobResult(Status.COMPLETED, 0)


class ScriptedWriter:
    """Gives the next of ``answers`` to a call of that name, or raises it; then the usual answer. Records its calls.

    The answers of an append come as ``answer``; those to the thread that asks what is safe, as ``probe``.
    """

    batch_lines, appends_ahead = 1, 2

    def __init__(self, *, durable: bool = False, **answers: Sequence[Any]) -> None:
        self.answers = {name: [*given] for name, given in answers.items()}
        self.durable = durable
        #: The names of the calls, and when they were made, in monotonic seconds.
        self.calls: list[str] = []
        self.times: list[float] = []
        #: The number and texts of each append; the next number at each end.
        self.writes: list[Any] = []
        #: The arguments of each call that opens or ends the job.
        self.opened: list[tuple[str, int | None, Labels]] = []
        self.finished: list[Any] = []
        self.attempts = 0
        self.next = 1

    def _answer(self, name: str, usual: Any = None) -> Any:
        self.calls.append(name)
        self.times.append(time.monotonic())
        answer = self.answers[name].pop(0) if self.answers.get(name) else usual
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        self.opened.append((job.job_id, first, labels))
        attempt, number = self._answer("open") or (self.attempts + 1, self.next)
        self.attempts = attempt
        return Attempt(job, token, attempt, number)

    def append_ahead(self, attempt: Attempt, first: int, runs: list[LineRun]) -> Callable[[], int]:
        self._answer("append")
        self.writes.append((first, [line for run in runs for line in run.messages]))

        def receive() -> int:
            self.next = self._answer("answer", first + count_lines(runs))
            return self.next

        return receive

    def append_lost(self, attempt: Attempt, first: int, last: int, reason: str) -> None:
        self._answer("lost")

    def renew(self, attempt: Attempt) -> None:
        self._answer("renew")

    def finish(self, attempt: Attempt, *end: Any, counts: bool = False) -> None:
        self._answer("finish")
        self.writes.append(end[-1])
        self.finished.append((*end, counts))

    def durability_probe(self) -> "ScriptedWriter | None":
        return self if self.durable else None

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        if may_sync:
            return cast("int | None", self._answer("confirm", self.next + 1))
        answer = self.answers["probe"].pop(0) if self.answers.get("probe") else None
        if isinstance(answer, Exception):
            raise answer
        return cast("int | None", answer)

    def job_warnings(self, job: JobRef) -> list[str]:
        return []


class Published:
    """Publishes lines, each in a batch of its own, and ends the job. A negative number is of lost lines.

    With ``state``, the spool is one that an earlier process left.
    """

    def __init__(self, writer: ScriptedWriter, *lines: str | int, result: JobResult = DONE, **options: Any) -> None:
        self.said: list[str] = []
        self.spool = Spool()
        self.spool.save_state(**options.pop("state", {}))
        for each in lines:
            if isinstance(each, int):
                self.spool.skip(-each)
            else:
                self.spool.put(LineBatch("stdout", NOW, each.encode(), each.count("\n") + 1))
        labels = options.pop("last_labels", ())
        connect = cast(Callable[[], Store], lambda: writer)
        self.publisher = Publisher(connect, JOB, self.spool, self.said.append, **{"lease_seconds": 600, **options})
        self.publisher.end(result, labels)
        with contextlib.suppress(Closed, CorruptLog, Held, Deleted):
            self.publisher.start(SOON)
        assert self.publisher.join(SOON)


ONE, TWO = (1, [b"one"]), (2, [b"two"])


@pytest.mark.parametrize(
    ("opens", "answers", "writes", "refusal"),
    [
        ([], [SequenceGap(2)], [ONE, TWO, TWO, 3], None),
        ([], [SequenceGap(3)], [ONE, TWO, 3], None),
        ([], [SequenceGap(4)], [ONE, TWO], ForeignLines),
        ([], [2, SequenceGap(1)], [ONE, TWO, ONE, TWO, 3], None),
        ([], [1], [ONE, TWO], ForeignLines),
        ([], [3], [ONE, TWO, 3], None),
        ([], [4], [ONE, TWO], ForeignLines),
        ([], [QuotaReached(2), QuotaReached(3)], [ONE, TWO, 3], None),
        ([], [QuotaReached(4)], [ONE, TWO], ForeignLines),
        ([], [StoreUnavailable("away"), TooFast("busy", 0.01)], [ONE, TWO, ONE, TWO, ONE, TWO, 3], None),
        ([], [2, StoreUnavailable("away")], [ONE, TWO, TWO, 3], None),
        ([], [CorruptLog("stray")], [ONE, TWO], CorruptLog),
        ([(1, 1), (2, 1)], [Fenced()], [ONE, TWO, ONE, TWO, 3], None),
        ([(1, 1), (2, 2)], [Fenced()], [ONE, TWO, TWO, 3], None),
        ([(1, 1), (2, 3)], [Fenced()], [ONE, TWO, 3], None),
        ([(1, 1), (2, 4)], [Fenced()], [ONE, TWO], ForeignLines),
        ([(1, 1), (3, 1)], [Fenced()], [ONE, TWO, ONE, TWO, 3], None),
        ([(1, 1), (3, 3)], [Fenced()], [ONE, TWO], ForeignLines),
        ([(1, 1), Held("other")], [Fenced()], [ONE, TWO], Held),
        ([(1, 1), Deleted("gone")], [Fenced()], [ONE, TWO], Deleted),
        ([Held("other")], [], [], Held),
    ],
    ids=str,
)
def test_lines_are_resent_unless_they_can_be_another_writers(
    opens: list[Any], answers: list[Any], writes: list[Any], refusal: type[Exception] | None
) -> None:
    """No number is written twice or skipped: a log with more lines than were sent has another writer."""
    writer = ScriptedWriter(open=opens, answer=answers)
    found = Published(writer, "one", "two")
    assert (writer.writes, found.publisher.ended) == (writes, refusal is None)
    assert type(found.publisher.refusal) is (refusal or type(None))
    assert sum("quota" in each for each in found.said) == any(isinstance(each, QuotaReached) for each in answers)


@pytest.mark.parametrize(("attempt", "refusal"), [(1, None), (2, None), (3, ForeignLines)])
def test_a_log_with_more_lines_than_an_earlier_process_left(attempt: int, refusal: type[Exception] | None) -> None:
    """That process had sent them, unless there was another attempt in between."""
    writer = ScriptedWriter(open=[(attempt, 4)])
    found = Published(writer, "one", "two", state={"attempt": 1, "base": 1})
    assert (writer.writes, type(found.publisher.refusal)) == ([4] * (not refusal), refusal or type(None))


@pytest.mark.parametrize(("finishes", "refusal"), [([Fenced()], None), ([Fenced(), Fenced()], Closed)])
def test_an_end_whose_answer_was_lost_is_not_another_runners(finishes: list[Any], refusal: Any) -> None:
    """The job has ended: as this runner would end it, or not."""
    writer = ScriptedWriter(open=[(1, 1), Closed("it has already ended")], finish=finishes)
    found = Published(writer, "one")
    assert (found.publisher.ended, type(found.publisher.refusal)) == (refusal is None, refusal or type(None))


def test_a_job_that_another_runner_holds_can_be_waited_for() -> None:
    writer = ScriptedWriter(open=[Held("other"), StoreUnavailable("away")])
    found = Published(writer, "one", wait_for_lease=True)
    assert (found.publisher.ended, found.said[-1]) == (True, "the store is back")


def test_a_new_job_must_be_new_only_once() -> None:
    """A free id is opened before its first line. After a lost lease, the job has lines of this runner."""
    taken = [Closed("it has already ended"), Deleted("gone"), (1, 1), (2, 2)]
    writer = ScriptedWriter(open=taken, answer=[Fenced()])
    found = Published(writer, "one", find_free_id=True)
    assert [each[:2] for each in writer.opened] == [("job_1", 1), ("job_1.2", 1), ("job_1.3", 1), ("job_1.3", None)]
    assert found.publisher.ended
    assert found.said == ["it has already ended: this run is published as job job_1.3"]


def test_a_retry_of_a_job_with_many_ids_tries_few_of_them() -> None:
    """The others are Unix times."""
    writer = ScriptedWriter(open=[Closed("it has already ended")] * 21)
    before = int(time.time())
    found = Published(writer, "one", find_free_id=True)
    ids = [name for name, *_ in writer.opened]
    assert ids[:20] == ["job_1", *(f"job_1.{number}" for number in range(2, 21))]
    first, second = (int(name.removeprefix("job_1.")) for name in ids[20:])
    assert before <= first == second - 1
    assert (found.publisher.job.job_id, found.publisher.ended) == (ids[-1], True)


def test_a_job_that_was_opened_under_a_free_id_keeps_it() -> None:
    """When it is declared LOST, its remaining lines do not go to yet another id."""
    opens, ends = [(1, 1), Closed("it has already ended")], [Fenced()]
    writer = ScriptedWriter(open=opens, answer=[Fenced()], finish=ends)
    found = Published(writer, "one", find_free_id=True)
    assert (found.publisher.job, type(found.publisher.refusal)) == (JOB, Closed)


@pytest.mark.parametrize(
    ("is_unreached", "seconds", "lines", "shown"),
    [
        (True, 60, 3, [f"delivering 3 lines, for up to {n} s; Ctrl-C keeps them in a file" for n in (4, 3, 2, 1)]),
        (False, 2.5, 1, [f"delivering 1 line, for up to {n} s; Ctrl-C keeps it in a file" for n in (2, 1)]),
        (False, 1.5, 0, ["delivering the job's end, for up to 1 s; Ctrl-C keeps it in a file"]),
    ],
    ids=["never reached", "line", "end"],
)
def test_the_end_waits_less_long_for_a_store_that_was_never_reached(
    is_unreached: bool, seconds: float, lines: int, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows how long once a second, and stops early if asked."""
    now, said = [100.0], list[str]()

    def join(pause: float) -> bool:
        now[0] += pause
        return False

    monkeypatch.setattr("chronoverse.runner.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    spool = SimpleNamespace(undelivered=lines, path=None)
    publisher = cast("Any", SimpleNamespace(join=join, spool=spool, is_unreached=is_unreached))
    wait_delivered(publisher, seconds, said.append)
    assert (abs(now[0] - 100 - min(seconds, 5)) < 0.3, said) == (True, shown)
    began = now[0]
    wait_delivered(publisher, seconds, said.append, lambda: now[0] > began + 0.45)
    assert round(now[0] - began, 1) == 0.5


def test_refused_labels_are_omitted() -> None:
    """At the start each is reported. Those known at the end come before it."""
    given, last = (("branch", "main"), ("step", "test")), (("reason", "Error"),)
    writer = ScriptedWriter(open=[LabelSet("label branch", ["branch"]), (1, 1), LabelSet("label reason", ["reason"])])
    found = Published(writer, "one", labels=given, last_labels=last)
    assert [each[2] for each in writer.opened] == [given, given[1:], last]
    assert (found.said, found.publisher.ended) == (["label branch; continuing without it"], True)
    assert writer.calls[-2:] == ["open", "finish"]


@pytest.mark.parametrize(
    ("result", "counts"),
    [
        (JobResult(Status.PENDING, 3), True),
        (JobResult(Status.PENDING, None), False),
        (JobResult(Status.FAILED, 3), False),
    ],
)
def test_an_attempts_exit_code_counts_if_others_follow(result: JobResult, counts: bool) -> None:
    """The end also has the number of dropped lines, and the next number."""
    writer = ScriptedWriter()
    Published(writer, -2, "one", result=result)
    assert writer.finished == [(*result, 0, 4, counts)]


@pytest.mark.parametrize(
    ("answers", "appends", "again"),
    [
        ([4], [], []),
        ([None, 4], [], []),
        ([3, 4], [], [3]),
        ([2, 4], [], [TWO, 3]),
        ([1, 4], [], [ONE, TWO, 3]),
        # The next attempt writes the end again, even if the store can no longer tell what is safe.
        ([Fenced(), NotDurable("cannot tell")], [], [3]),
        # A node still reads the old master, where the job has ended.
        ([2, 4], [2, 3, Closed("it has already ended")], [TWO, TWO, 3]),
    ],
    ids=str,
)
def test_lost_lines_are_resent_before_the_job_is_reported_as_ended(
    answers: list[int | None], appends: list[Any], again: list[Any]
) -> None:
    """Only the end, or lines and the end: two lines have the numbers 1 and 2, the end 3."""
    writer = ScriptedWriter(durable=True, confirm=answers, answer=appends, open=[(1, 1), (1, 2)] * bool(appends))
    found = Published(writer, "one", "two")
    assert (found.publisher.ended, writer.writes) == (True, [ONE, TWO, 3, *again])
    assert writer.answers["confirm"] == []


@pytest.mark.parametrize(
    ("answers", "safe", "said"),
    [
        ([StoreUnavailable("away"), 2], 1, []),
        ([None] * 6, 0, ["the store does not confirm that lines are safe; keeping a copy here"]),
        ([NotDurable("no disk")], 2, ["no disk; lines count as safe once the store acknowledges them"]),
    ],
    ids=["confirmed", "unconfirmed", "impossible"],
)
def test_lines_are_kept_until_the_store_confirms_them(answers: list[Any], safe: int, said: list[str]) -> None:
    """Asked by a second thread, while the job runs. A store that cannot tell is reported once."""
    writer, spool, told = ScriptedWriter(durable=True, probe=answers), Spool(), list[str]()
    publisher = Publisher(cast(Callable[[], Store], lambda: writer), JOB, spool, told.append)
    publisher.start(SOON)
    for text in ("one", "two"):
        spool.put(LineBatch("stdout", NOW, text.encode(), 1))
    wait_until(lambda: not writer.answers["probe"] and spool.safe == safe, SOON, "the lines are safe")
    wait_until(lambda: told == said, SOON, "the message")
    publisher.end(DONE)
    assert publisher.join(SOON)
    assert (spool.acked, told) == (2, said)


def test_a_store_closed_during_a_query_ends_the_thread_quietly() -> None:
    """The runner exits without waiting for the answer. An exception in the thread would fail this test."""
    asked, spool, said = threading.Event(), Spool(), list[str]()

    class ClosedWriter(ScriptedWriter):
        def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
            asked.set()
            publisher.stop()
            raise AttributeError("'NoneType' object has no attribute 'sendall'")

    writer = ClosedWriter(durable=True)
    publisher = Publisher(cast(Callable[[], Store], lambda: writer), JOB, spool, said.append)
    spool.put(LineBatch("stdout", NOW, b"a line", 1))
    publisher.start(10)
    assert asked.wait(SOON)
    spool.close()  # Otherwise, the publisher waits for lines until it has to renew the lease.
    ours = {"chronoverse-durability", "chronoverse-publisher"}
    wait_until(lambda: not ours & {thread.name for thread in threading.enumerate()}, SOON, "the threads have ended")
    assert (said, spool.acked, spool.safe) == ([], 1, 0)


def test_an_idle_runner_does_not_wake_up_to_look_for_safe_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread waits until the lease's renewal, unless the job ends."""
    spool, waits = Spool(), list[float]()

    def waits_for(seconds: float, stop: threading.Event) -> bool:
        waits.append(seconds)
        return Spool.wait_for_unsafe(spool, seconds, stop)

    monkeypatch.setattr(spool, "wait_for_unsafe", waits_for)

    class SlowWriter(ScriptedWriter):
        def finish(self, *_: Any, **__: Any) -> None:
            wait_until(lambda: spool._changed._waiters, SOON, "the thread waits again")  # type: ignore[attr-defined]

    writer = SlowWriter(durable=True)
    publisher = Publisher(cast(Callable[[], Store], lambda: writer), JOB, spool, print, lease_seconds=3_600)
    publisher.start(10)
    wait_until(lambda: waits, SOON, "the thread waits")
    publisher.end(DONE)
    assert publisher.join(SOON)
    name = "chronoverse-durability"
    wait_until(lambda: name not in {thread.name for thread in threading.enumerate()}, SOON, "the thread has ended")
    assert waits == [1_200]


def test_lost_lines_are_declared_after_the_answers_to_earlier_appends() -> None:
    """Sent ahead of them, they would be a gap for the store. Here, the first declaration's answer is lost."""
    writer = ScriptedWriter(open=[(1, 1), (2, 5)], lost=[Fenced()])
    Published(writer, "one", -3, "five", -2, "eight")
    assert " ".join(writer.calls) == "open append answer lost open append answer lost append answer finish"


def test_nothing_is_sent_to_a_busy_service_before_the_time_it_asked_for() -> None:
    """Except renewals of the lease."""
    writer = ScriptedWriter(answer=[TooFast("busy", 0.6)])
    Published(writer, "one", lease_seconds=0.15)
    refused, again = (at for at, name in enumerate(writer.calls) if name == "append")
    assert writer.times[again] - writer.times[refused] >= 0.6
    assert {*writer.calls[refused + 2 : again]} == {"renew"}
    # One at the end would be too late.
    assert writer.calls[refused + 2 : again].count("renew") > 1


def test_a_file_that_cannot_be_written_is_reported_in_each_outage() -> None:
    spool, said = Spool(SpoolRoom(Path("/data/spool"))), list[str]()
    spool.file_error = OSError("no space")
    outage = Outage(spool, said.append, threading.Event(), 0)
    for _ in range(2):
        for _ in range(2):
            outage.wait_after(StoreUnavailable("away"))
        outage.end()
    away = "away; lines wait here, the job continues"
    file = "the spool's file in /data/spool cannot be written (no space)"
    found = [text.removesuffix(": the newest lines stay in memory") for text in said]
    assert found == [away, file, "the store is back"] * 2
