"""The thread that asks which lines are safe."""

import threading
from collections.abc import Callable

from chronoverse.joblog.model import Attempt
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.durability import AttemptNumbering, DurabilityTracker
from chronoverse.runner.spool.spool import Spool
from tests.support.jobs import JOB
from tests.support.waiting import wait_until


class _ClosedStore:
    """A probe whose store is closed during a question: the driver then raises whatever it happens to meet."""

    def __init__(self) -> None:
        self.stop: Callable[[], object] = list

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        self.stop()
        raise AttributeError("'NoneType' object has no attribute 'sendall'")


def test_a_store_that_is_closed_during_a_question_ends_the_thread_quietly() -> None:
    """The runner exits without waiting for the answer. An exception of the thread would fail this test."""
    spool, said, probe = Spool(), list[str](), _ClosedStore()
    tracker = DurabilityTracker(spool, said.append, lambda: AttemptNumbering(Attempt(JOB, "a" * 32, 1, 1), 1))
    probe.stop = tracker.stop
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"a line", 1))
    spool.acknowledge(1)

    tracker.start(probe)

    names = {"chronoverse-durability"}
    wait_until(lambda: not names & {thread.name for thread in threading.enumerate()}, 10, "the thread has ended")
    assert (said, spool.safe) == ([], 0)
