"""A fair lock serves its callers one at a time, in the order of their requests, and yields to others in between."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from chronoverse.fair_lock import FairLock
from tests.support.waiting import wait_until

LONG: Final = 20.0
#: Timeout of callers that often give up, in seconds.
PATIENCE: Final = 0.0002


class Missed(Exception):
    """Raised by these turns."""


class Askers:
    """Threads that request a turn one after the other; ``came`` has their numbers in the order of their turns."""

    def __init__(self, turns: FairLock) -> None:
        self.turns = turns
        self.came: list[int] = []
        self.missed: list[int] = []
        self._threads: list[threading.Thread] = []

    def ask(self, subject: str = "") -> None:
        """Adds one, which is waiting or done when this returns."""
        number, waiting = len(self._threads), self.turns.waiting
        thread = threading.Thread(target=self._ask, args=(number, subject))
        self._threads.append(thread)
        thread.start()
        wait_until(lambda: self.turns.waiting > waiting or not thread.is_alive(), LONG, "it waits")

    def _ask(self, number: int, subject: str) -> None:
        try:
            with self.turns.hold(subject):
                self.came.append(number)
        except Missed:
            self.missed.append(number)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LONG)


@pytest.fixture
def askers() -> Iterator[Askers]:
    askers = Askers(FairLock(LONG, Missed))
    yield askers
    askers.join()


def test_turns_come_in_the_order_of_requests(askers: Askers) -> None:
    """A holder that immediately requests another one is last."""
    with askers.turns.hold():
        askers.ask()
        askers.ask()
    with askers.turns.hold():
        assert askers.came == [0, 1]


def test_each_subject_has_its_turn(askers: Askers) -> None:
    """However many requests of one subject wait, another waits for only one of its turns. Each one's are in order."""
    with askers.turns.hold():
        for subject in ("many", "many", "many", "few", "few", "one"):
            askers.ask(subject)
    askers.join()
    assert askers.came == [0, 3, 5, 1, 4, 2]


def test_several_have_concurrent_turns() -> None:
    """Up to the limit; others wait."""
    askers = Askers(FairLock(LONG, Missed, at_once=2))
    with askers.turns.hold():
        askers.ask()
        assert askers.came == [0]
        with askers.turns.hold():
            askers.ask()
            assert askers.turns.waiting == 1
        askers.join()
    assert askers.came == [0, 1]


def test_one_subject_has_some_concurrent_turns_but_not_all() -> None:
    """Another subject gets a free one without waiting; the first continues when one of its own turns ends."""
    askers = Askers(FairLock(LONG, Missed, at_once=3, each=2))
    turns = askers.turns
    with turns.hold("many"):
        with turns.hold("many"):
            askers.ask("many")
            assert turns.waiting == 1
            askers.ask("few")
            assert askers.came == [1]
        askers.join()
    assert askers.came == [1, 0]


def test_a_subject_at_its_limit_is_skipped() -> None:
    """The next turn goes to the subject after it, and it stays at the head of the queue."""
    askers = Askers(FairLock(LONG, Missed, at_once=2, each=1))
    turns = askers.turns
    with turns.hold("many"):
        with turns.hold("other"):
            askers.ask("many")
            askers.ask("few")
        wait_until(lambda: askers.came == [1], LONG, "the subject behind it has a turn")
        assert turns.waiting == 1
    askers.join()
    assert askers.came == [1, 0]


def test_a_turn_that_does_not_come_raises_an_error() -> None:
    """And does not delay later requests."""
    askers = Askers(FairLock(0.01, Missed))
    with askers.turns.hold():
        askers.ask()
        askers.join()
        assert askers.missed == [0]
    askers.ask()
    assert askers.came == [1]


def test_a_subject_at_its_limit_gets_its_own_error() -> None:
    """Not that of waiting for others, and others do not get the error of a used-up limit."""
    turns = FairLock(0.01, Missed, at_once=2, each=1, used_up=ValueError)
    with turns.hold("many"):
        with pytest.raises(ValueError, match="timed out"), turns.hold("many"):
            pass
        with turns.hold("other"), pytest.raises(Missed), turns.hold("few"):
            pass


def test_a_turn_that_came_too_late_is_passed_on() -> None:
    """A turn can be granted between a caller's timeout and its leaving the queue.

    Each turn takes about as long as the others' timeout. If one were lost, nobody would get another.
    """
    turns = FairLock(PATIENCE, Missed)

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            with contextlib.suppress(Missed), turns.hold():
                until = time.perf_counter() + chance.uniform(0, 2 * PATIENCE)
                while time.perf_counter() < until:
                    pass

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join(LONG)
    with turns.hold():
        pass


@pytest.mark.parametrize("is_granted", [False, True], ids=["waiting", "just granted"])
def test_a_caller_killed_while_waiting_takes_no_turn(monkeypatch: pytest.MonkeyPatch, is_granted: bool) -> None:
    """It leaves the queue, and a turn granted at the last moment goes to the next caller."""
    turns = FairLock(PATIENCE, Missed)

    class Killed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if is_granted:
                first.close()
            raise KeyboardInterrupt

    first = contextlib.ExitStack()
    first.enter_context(turns.hold("first"))
    with monkeypatch.context() as patch:
        patch.setattr("chronoverse.fair_lock.threading.Event", Killed)
        with pytest.raises(KeyboardInterrupt), turns.hold("second"):
            pass
    assert turns.waiting == 0
    first.close()
    for subject in ("second", "third"):
        with turns.hold(subject):
            assert turns.waiting == 0


def test_a_turn_ends_whatever_happens_in_it(askers: Askers) -> None:
    """Even during the pause."""
    with pytest.raises(ZeroDivisionError), askers.turns.hold():
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), FairLock(LONG, Missed, lambda: 1 // 0).hold():
        pass
    askers.ask()
    assert askers.came == [0]


def test_others_run_before_each_turn() -> None:
    """Once, within the turn, so that no two start without a pause."""
    rested: list[int] = []
    turns = FairLock(LONG, Missed, lambda: rested.append(len(rested)))
    for expected in (1, 2):
        with turns.hold():
            assert len(rested) == expected
