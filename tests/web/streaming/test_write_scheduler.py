"""Sockets that were full: written to when they have room, given up when they have had none for too long."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import gevent
import pytest

from chronoverse.web.http.event_loop import yield_to_loop
from chronoverse.web.streaming.connection import SEND_SECONDS
from chronoverse.web.streaming.write_scheduler import PendingWrite, WriteScheduler

#: Seconds that anything here may take.
PATIENCE_SECONDS: Final = 5.0
#: Turns of the loop, each with a look at every socket, after which all that was pending has happened.
TURNS: Final = 10


class Full:
    """A socket that takes no more, and a watch on it. What was called is kept in ``calls``."""

    def __init__(self, pump: WriteScheduler) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.ours.send(bytes(65536))
        self.calls: list[str] = []
        self.room: PendingWrite = pump.watch(self.ours.fileno(), self.fill, self.give_up)

    def fill(self) -> None:
        self.calls.append("fill")

    def give_up(self) -> None:
        self.calls.append("give up")
        self.room.close()

    def drain(self) -> None:
        """The peer reads all there is."""
        self.theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.theirs.recv(1 << 20):
                pass

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def full(clock: Clock) -> Iterator[tuple[Full, Full]]:
    """Two of one pump."""
    pump = WriteScheduler(clock)
    both = Full(pump), Full(pump)
    yield both
    for each in both:
        each.room.close()
        each.close()


def wait(each: Full, call: str) -> None:
    """Until it has been called."""
    with gevent.Timeout(PATIENCE_SECONDS):
        while call not in each.calls:
            gevent.sleep(0.01)


def turn() -> None:
    """Lets the loop look at its sockets a few times."""
    for _ in range(TURNS):
        yield_to_loop()


def test_who_has_room_is_filled(full: tuple[Full, Full]) -> None:
    """And nobody else."""
    full[1].drain()
    wait(full[1], "fill")

    assert full[0].calls == []


def test_it_is_filled_until_it_is_closed(full: tuple[Full, Full]) -> None:
    """Again and again while it has room, and not once more, though it has."""
    full[0].drain()
    wait(full[0], "fill")
    full[0].calls.clear()
    wait(full[0], "fill")
    full[0].room.close()
    full[0].calls.clear()
    turn()

    assert full[0].calls == []


def test_one_that_is_closed_by_another_is_not_filled(full: tuple[Full, Full]) -> None:
    """Though both had room at the same time, and its turn was next."""
    for each, other in (full, full[::-1]):

        def fill(each: Full = each, other: Full = other) -> None:
            each.fill()
            other.room.close()

        each.room.fill = fill
        each.drain()
    with gevent.Timeout(PATIENCE_SECONDS):
        while not full[0].calls + full[1].calls:
            gevent.sleep(0.01)
    turn()

    assert [] in (full[0].calls, full[1].calls)


def test_who_has_no_room_for_too_long_is_given_up(full: tuple[Full, Full], clock: Clock) -> None:
    """But not one of which a write was done meanwhile: the next one has its own time."""
    turn()
    clock.now = SEND_SECONDS - 1
    full[1].room.renew()
    clock.now = SEND_SECONDS + 1
    wait(full[0], "give up")
    turn()

    assert full[1].calls == []


def test_one_that_fails_fails_alone(full: tuple[Full, Full]) -> None:
    """It is not asked again, and the other is written to as before."""

    def fail() -> None:
        full[0].fill()
        raise ZeroDivisionError

    full[0].room.fill = fail
    full[0].drain()
    wait(full[0], "fill")
    full[1].drain()
    wait(full[1], "fill")

    assert full[0].calls == ["fill"]


def test_a_pump_that_ran_dry_runs_again(clock: Clock) -> None:
    """Its greenlet ends with the last full socket, and another begins with the next."""
    pump = WriteScheduler(clock)
    for _ in range(2):
        full = Full(pump)
        full.drain()
        wait(full, "fill")
        full.room.close()
        full.close()
        turn()
