"""Replays hold back while workers wait for a processor for long, and only then."""

import math
import mmap
import os
import time

import pytest

from chronoverse.web import restraint
from chronoverse.web.restraint import (
    AIM,
    CROWDED,
    FREE_BYTES,
    LEAST_BYTES,
    LOOK_SECONDS,
    REST_SECONDS,
    SCHEDSTAT,
    STALE_SECONDS,
    TOLD,
    Restraint,
    all_wait,
    changed,
    processor_seconds,
)

#: Bytes of a piece.
PIECE = 65_536
#: Seconds until a processor has been had for a moment.
PATIENCE_SECONDS = 5.0


class Machine:
    """A clock that a rest lets go on, and a scheduler that has a running worker wait for ``waits`` times as long."""

    def __init__(self) -> None:
        self.now, self.ran, self.waited, self.waits = 100.0, 0.0, 0.0, 0.0
        self.rests: list[float] = []
        self.restraint = Restraint(
            lambda: self.now, lambda: (self.ran, self.waited), self.rest, lambda _, ran, waited: waited / ran
        )

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds

    def replay(self, seconds: float) -> float:
        """One replay that reads as fast as it may, half a millisecond for a piece; returns its bytes a second."""
        began, size = self.now, 0
        while self.now < began + seconds:
            self.now, self.ran, self.waited = self.now + 0.0005, self.ran + 0.0005, self.waited + 0.0005 * self.waits
            size += PIECE
            self.restraint(PIECE)
        return size / (self.now - began)


def test_nobody_rests_where_the_worker_has_a_processor() -> None:
    """Nor where it waits for one less than it runs, as beside a few busy neighbours."""
    machine = Machine()
    for machine.waits in (0.0, CROWDED):
        machine.replay(3)
    assert not machine.rests


def test_on_a_crowded_machine_replays_rest_and_have_the_least_that_they_always_have() -> None:
    """However long that lasts."""
    machine = Machine()
    machine.waits = 3 * CROWDED
    machine.replay(5)
    assert machine.replay(2) == pytest.approx(LEAST_BYTES, rel=0.05)


def test_when_there_is_room_again_nobody_rests() -> None:
    """Within seconds."""
    machine = Machine()
    machine.waits = 3 * CROWDED
    machine.replay(5)
    machine.waits = 0.0
    machine.replay(3)
    machine.rests.clear()
    machine.replay(1)
    assert not machine.rests


def test_looks_that_are_far_apart_say_nothing() -> None:
    """The first replay after a while is not held back for what was before it."""
    machine = Machine()
    machine.waits = 3 * CROWDED
    machine.replay(1)
    machine.now += STALE_SECONDS + LOOK_SECONDS
    machine.restraint(PIECE)
    assert machine.restraint.rate == math.inf


def test_one_rest_has_an_end_however_many_replays_there_are() -> None:
    """Each calls once, and all rest at the same time."""
    rests: list[float] = []
    crowd = Restraint(lambda: 1.0, lambda: (0.0, 0.0), rests.append)
    crowd(PIECE)
    crowd.rate = LEAST_BYTES
    for _ in range(10_000):
        crowd(PIECE)
    assert max(rests) == pytest.approx(REST_SECONDS)
    assert sorted(rests) == rests


def test_a_rate_stays_between_its_bounds() -> None:
    """Of which the upper one is none."""
    assert changed(math.inf, 0.0, 100.0) == LEAST_BYTES
    assert changed(LEAST_BYTES, 0.0, 100.0) == LEAST_BYTES
    assert changed(FREE_BYTES - 1, 0.0, 0.0) == math.inf
    assert changed(2 * LEAST_BYTES, 0.0, AIM) == 2 * LEAST_BYTES
    assert changed(2 * LEAST_BYTES, 0.0, 1.5 * AIM) < 2 * LEAST_BYTES < changed(2 * LEAST_BYTES, 0.0, 0.5 * AIM)


def test_all_workers_look_at_what_all_of_them_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits little holds back with one that waits long; what was said a while ago does not count."""
    monkeypatch.setattr(restraint, "BOARD", mmap.mmap(-1, mmap.PAGESIZE))
    child = os.fork()
    if child == 0:  # pragma: no cover
        all_wait(100.0, 1.0, 3.0)
        os._exit(0)
    os.waitpid(child, 0)
    assert all_wait(100.5, 1.0, 0.0) == 1.5
    assert all_wait(100.0 + STALE_SECONDS, 1.0, 0.0) == 0.0


def test_nothing_said_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the machine does not say."""
    monkeypatch.setattr(restraint, "BOARD", mmap.mmap(-1, mmap.PAGESIZE))
    monkeypatch.setattr(restraint, "SCHEDSTAT", SCHEDSTAT.with_name("no such file"))
    assert processor_seconds() == (0.0, 0.0)
    assert all_wait(1.0, 0.0, 0.0) == 0.0
    assert TOLD.size * restraint.PLACES <= mmap.PAGESIZE


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="this kernel says nothing of its scheduling")
def test_the_scheduler_says_for_how_long_the_process_ran() -> None:
    """In seconds."""
    began, (ran, _) = time.monotonic(), processor_seconds()
    while processor_seconds()[0] == ran:
        assert time.monotonic() < began + PATIENCE_SECONDS
    assert 0 < processor_seconds()[0] - ran <= time.monotonic() - began + 0.1
