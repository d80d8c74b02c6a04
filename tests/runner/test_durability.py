"""The thread that asks which lines are durable."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from chronoverse.errors import (
    Closed,
    Fenced,
    ForeignLines,
    QuotaReached,
    SequenceGap,
    SpoolNotInLog,
    StoreUnavailable,
    TooFast,
)
from chronoverse.joblog.comparing import Comparison
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Attempt, JobRef, LineRun, Status
from chronoverse.runner.publisher import JobResult, Publisher
from chronoverse.runner.resend import resend_spool
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from tests.support.jobs import JOB
from tests.support.waiting import wait_until


class _ClosedStore:
    """Accepts lines, and is closed during the first durability query, so the driver raises an arbitrary error."""

    batch_lines, appends_ahead = 500, 1

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.publisher: Publisher

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        self.asked.set()
        self.publisher.stop()
        raise AttributeError("'NoneType' object has no attribute 'sendall'")

    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        return Attempt(job, token, 1, 1)

    def durability_probe(self) -> "_ClosedStore":
        return self

    def append_ahead(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> Callable[[], int]:
        return lambda: first + sum(len(run.messages) for run in runs)

    def job_warnings(self, job: JobRef) -> list[str]:
        return []


class _ForgetfulStore(_ClosedStore):
    """Loses acknowledged lines: answers the durability query with the next of ``answers``."""

    def __init__(self, *answers: int | None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.calls: list[Any] = []

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        return self.answers.pop(0) if may_sync else None

    def append_ahead(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> Callable[[], int]:
        self.calls.append((first, [line for run in runs for line in run.messages]))
        return super().append_ahead(attempt, first, runs)

    def finish(
        self, attempt: Attempt, status: Status, exit_code: int, dropped: int, next_number: int, **_: Any
    ) -> None:
        self.calls.append(next_number)


@pytest.mark.parametrize(
    ("answers", "again"),
    [
        ([4], []),
        ([None, 4], []),
        ([3, 4], [3]),
        ([2, 4], [(2, [b"two"]), 3]),
        ([1, 4], [(1, [b"one", b"two"]), 3]),
    ],
    ids=str,
)
def test_lost_lines_are_resent_before_the_job_is_reported_as_ended(answers: list[int | None], again: list[Any]) -> None:
    """Only the end, or lines and the end: two lines have the numbers 1 and 2, the end 3."""
    spool, store = Spool(), _ForgetfulStore(*answers)
    publisher = Publisher(lambda: cast("Any", store), JOB, spool, list[str]().append)
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"one\ntwo", 2))
    publisher.end(JobResult(Status.COMPLETED, 0))

    publisher.start(10)

    assert publisher.join(20)
    assert (publisher.ended, store.calls, store.answers) == (True, [(1, [b"one", b"two"]), 3, *again], [])


class _ScriptedStore(_ForgetfulStore):
    """Opens attempts with the next of ``nexts`` (attempt, next number), and answers appends with the next of
    ``appends``, or as a store that has all lines.
    """

    batch_lines, appends_ahead = 1, 2

    def __init__(self, nexts: list[tuple[int, int]], appends: list[Any]) -> None:
        super().__init__()
        self.nexts, self.appends = nexts, appends

    def durability_probe(self) -> Any:
        return None

    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        return Attempt(job, token, *self.nexts.pop(0))

    def append_ahead(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> Callable[[], int]:
        receive = super().append_ahead(attempt, first, runs)

        def answer() -> int:
            found = self.appends.pop(0) if self.appends else receive()
            if isinstance(found, Exception):
                raise found
            return int(found)

        return answer


ONE, TWO = (1, [b"one"]), (2, [b"two"])


@pytest.mark.parametrize(
    ("nexts", "appends", "calls"),
    [
        ([(1, 1)], [SequenceGap(2)], [ONE, TWO, TWO, 3]),
        ([(1, 1)], [SequenceGap(3)], [ONE, TWO, 3]),
        ([(1, 1)], [SequenceGap(4)], [ONE, TWO]),
        ([(1, 1)], [1], [ONE, TWO]),
        ([(1, 1)], [3], [ONE, TWO, 3]),
        ([(1, 1)], [4], [ONE, TWO]),
        ([(1, 1)], [QuotaReached(2), QuotaReached(3)], [ONE, TWO, 3]),
        ([(1, 1)], [QuotaReached(4)], [ONE, TWO]),
        ([(1, 1)], [StoreUnavailable("away"), TooFast("busy", 0.01)], [ONE, TWO, ONE, TWO, ONE, TWO, 3]),
        ([(1, 1)], [2, StoreUnavailable("away")], [ONE, TWO, TWO, 3]),
        ([(1, 1), (2, 1)], [Fenced()], [ONE, TWO, ONE, TWO, 3]),
        ([(1, 1), (2, 2)], [Fenced()], [ONE, TWO, TWO, 3]),
        ([(1, 1), (2, 3)], [Fenced()], [ONE, TWO, 3]),
        ([(1, 1), (2, 4)], [Fenced()], [ONE, TWO]),
        ([(1, 1), (3, 1)], [Fenced()], [ONE, TWO, ONE, TWO, 3]),
        ([(1, 1), (3, 3)], [Fenced()], [ONE, TWO]),
    ],
    ids=str,
)
def test_lines_are_resent_unless_they_can_be_another_writers(
    nexts: list[tuple[int, int]], appends: list[Any], calls: list[Any]
) -> None:
    """No number is written twice or skipped: a log with more lines than were sent has another writer."""
    spool, said, store = Spool(), list[str](), _ScriptedStore([*nexts], [*appends])
    publisher = Publisher(lambda: cast("Any", store), JOB, spool, said.append)
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"one\ntwo", 2))
    publisher.end(JobResult(Status.COMPLETED, 0))

    with contextlib.suppress(ForeignLines):
        publisher.start(60)

    assert publisher.join(60)
    is_whole = calls[-1] == 3
    assert (store.calls, publisher.ended, publisher.refusal is None) == (calls, is_whole, is_whole)
    assert sum("quota" in each for each in said) == isinstance(appends[0], QuotaReached)


class _EndedStore(_ForgetfulStore):
    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        raise Closed("the job has already ended")

    def finish(self, *_: Any, **options: Any) -> None:
        raise Fenced


@pytest.mark.parametrize("next_number", [1, 2, 3])
def test_a_file_is_removed_only_if_the_ended_log_has_all_of_it(next_number: int, tmp_path: Path) -> None:
    """Two lines with the numbers 1 and 2. The log was read up to ``next_number``."""
    spool, store = Spool(SpoolRoom(tmp_path, "job_1")), cast("Any", _EndedStore())
    spool.save_state(workflow=JOB.workflow_id, job=JOB.job_id, token="0" * 32, attempt=1, base=1)
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"one\ntwo", 2))
    path = spool.preserve()
    assert path

    with contextlib.ExitStack() as stack:
        if next_number < 3:
            stack.enter_context(pytest.raises(SpoolNotInLog, match=f"without lines {next_number} to 2"))
        compared = Comparison(next_number, differs=False)
        assert resend_spool(path, lambda _: store, list[str]().append, comparer_for=lambda _: lambda *_: compared)
    assert path.exists() == (next_number < 3)


def test_a_store_closed_during_a_query_ends_the_thread_quietly() -> None:
    """The runner exits without waiting for the answer. An exception in the thread would fail this test."""
    spool, said, store = Spool(), list[str](), _ClosedStore()
    store.publisher = Publisher(lambda: cast("Any", store), JOB, spool, said.append)
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"a line", 1))

    store.publisher.start(10)

    wait_until(store.asked.is_set, 10, "the store was asked")
    spool.close()  # Otherwise, the publisher waits for lines until it has to renew the lease.
    ours = {"chronoverse-durability", "chronoverse-publisher"}
    wait_until(lambda: not ours & {thread.name for thread in threading.enumerate()}, 10, "the threads have ended")
    assert (said, spool.acked, spool.safe) == ([], 1, 0)
