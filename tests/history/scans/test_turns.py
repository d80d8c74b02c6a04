"""Each subject has one scan at a time, across processes; a killed process blocks nobody."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest

from chronoverse.errors import ShareExceeded
from chronoverse.history.scans.endpoint import ScanTurns
from tests.support.waiting import wait_until

#: Seconds for something that happens, and for something that does not.
PATIENCE_SECONDS: Final = 10.0
SHORT_SECONDS: Final = 0.1


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("turns")
    yield descriptor
    os.close(descriptor)


def is_free(turns: ScanTurns, subject: str) -> bool:
    """Whether ``subject`` gets a turn soon."""
    try:
        with turns.hold(subject, time.monotonic() + SHORT_SECONDS):
            return True
    except ShareExceeded:
        return False


def test_a_subject_has_one_turn_and_others_have_theirs(file: int) -> None:
    """A subject that gets no turn in time is told why. A turn is free after an error, for all processes."""
    turns = ScanTurns(file)
    with turns.hold("a", time.monotonic() + PATIENCE_SECONDS):
        assert not is_free(turns, "a")
        assert is_free(turns, "b")
    assert is_free(turns, "a")
    with pytest.raises(ZeroDivisionError), turns.hold("a", time.monotonic() + PATIENCE_SECONDS):
        raise ZeroDivisionError
    assert is_free(turns, "a")
    other = os.fork()
    if not other:
        os._exit(not is_free(ScanTurns(file), "a"))
    assert os.waitpid(other, 0)[1] == 0


def test_all_of_many_come_to_their_turns_one_at_a_time(file: int) -> None:
    turns, under_way, most, done = ScanTurns(file), list[int](), list[int](), list[int]()

    def scan(number: int) -> None:
        with turns.hold("a", time.monotonic() + PATIENCE_SECONDS):
            under_way.append(number)
            most.append(len(under_way))
            time.sleep(0.005)
            under_way.remove(number)
        done.append(number)

    threads = [threading.Thread(target=scan, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert (sorted(done), max(most)) == ([*range(8)], 1)


def test_a_killed_process_leaves_no_turn_taken(file: int) -> None:
    """The other process has its own file descriptor, like gunicorn's workers."""
    turns = ScanTurns(file)
    told, tell = os.pipe()
    holder = os.fork()
    if not holder:
        with ScanTurns(file).hold("a", time.monotonic() + PATIENCE_SECONDS):
            os.write(tell, b"x")
            signal.pause()
    assert os.read(told, 1)
    assert not is_free(turns, "a")
    assert is_free(turns, "b")
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    wait_until(lambda: is_free(turns, "a"), PATIENCE_SECONDS, "the turn is free")
    os.close(told)
    os.close(tell)
