"""Many replays hold back while somebody watches something live and the processors have no room, and only then."""

import math
import time
from pathlib import Path

import pytest

from chronoverse import metrics
from chronoverse.web.streaming import replay_throttle
from chronoverse.web.streaming.replay_throttle import (
    FEW_REPLAYS,
    FREE_PROCESSORS,
    IDLE_FACTOR,
    IDLE_STEP,
    MAX_PAUSE_SECONDS,
    MAX_RATE,
    MAX_STEP,
    MIN_RATE,
    MIN_TARGET,
    OVERLOAD_FACTOR,
    PROC_STAT,
    SAMPLE_SECONDS,
    UNKNOWN,
    CpuTime,
    ReplayThrottle,
    next_rate,
    read_cpu_time,
    target_share,
)

#: Bytes of a piece.
PIECE = 65_536
#: Seconds until a processor has been used for a moment.
PATIENCE_SECONDS = 5.0
AIM = 0.5


class Machine:
    """A clock that a rest lets go on, and processors of which replays and others need some of the time.

    A crowd of replays has one call after the other, each half a millisecond of one of two processors.
    """

    def __init__(self, replays: int = 2 * FEW_REPLAYS, live: bool = True, others: float = 0.0) -> None:
        self.now, self.busy, self.others = 100.0, 0.0, others
        self.live = [None] if live else []
        self.rests: list[float] = []
        self.replays = [object() for _ in range(replays)]
        self.calls = 0
        self.hidden = False
        self.restraint = ReplayThrottle(self.live, lambda: self.now, self.processors, lambda: AIM, self.rest, self.who)

    def processors(self) -> CpuTime:
        """Two processors' seconds, unless they are hidden."""
        return UNKNOWN if self.hidden else CpuTime(self.busy + self.others * 2 * (self.now - 100), 2 * self.now)

    def calm(self) -> None:
        """Others need nothing from now on; what they have had, they have had."""
        self.busy += self.others * 2 * (self.now - 100)
        self.others = 0.0

    def who(self) -> object:
        return self.replays[self.calls % len(self.replays)]

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds

    def replay(self, seconds: float) -> float:
        """They read as fast as they may; returns their bytes a second."""
        began, size = self.now, 0
        while self.now < began + seconds:
            self.now, self.busy = self.now + 0.0005, self.busy + 0.0005
            size += PIECE
            self.calls += 1
            self.restraint(PIECE)
        return size / (self.now - began)


def test_nobody_rests_where_there_is_room() -> None:
    """Others need nothing, and the replays no more than is aimed at."""
    machine = Machine()
    machine.replay(3)
    assert not machine.rests


@pytest.mark.parametrize("machine", [Machine(live=False, others=1.0), Machine(FEW_REPLAYS - 1, others=1.0)])
def test_nobody_rests_for_nobody_and_few_never_do(machine: Machine) -> None:
    """However busy the processors are."""
    machine.replay(3)
    assert not machine.rests


def test_the_metrics_are_told_for_how_long_replays_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but what was since the last look."""
    told: list[float] = []
    monkeypatch.setattr(metrics.REPLAY_RESTS, "inc", told.append)
    machine = Machine(others=1.0)
    machine.replay(5)
    assert 0 < sum(machine.rests) - sum(told) < 2 * SAMPLE_SECONDS


def test_on_a_crowded_machine_replays_have_the_least_that_they_always_have() -> None:
    """However long that lasts."""
    machine = Machine(others=1.0)
    machine.replay(5)
    assert machine.replay(2) == pytest.approx(MIN_RATE, rel=0.05)


def test_they_come_to_what_leaves_the_room_that_is_aimed_at() -> None:
    """Here three tenths of the processors' time for the replays: three fifths of what one alone would do."""
    machine = Machine(others=0.2)
    machine.replay(20)
    assert machine.replay(10) == pytest.approx(0.6 * PIECE / 0.0005, rel=0.15)


def test_when_there_is_room_again_nobody_rests() -> None:
    """Within seconds: what others needed until now is known to them."""
    machine = Machine(others=1.0)
    machine.replay(5)
    machine.calm()
    machine.replay(8)
    machine.rests.clear()
    machine.replay(1)
    assert not machine.rests


def test_when_nobody_watches_any_more_nobody_rests() -> None:
    """From the next look on."""
    machine = Machine(others=1.0)
    machine.replay(5)
    machine.live.clear()
    machine.replay(MAX_PAUSE_SECONDS + SAMPLE_SECONDS)
    machine.rests.clear()
    machine.replay(1)
    assert not machine.rests


def test_looks_that_are_far_apart_say_nothing() -> None:
    """Those who replay after a while are not held back for what was before it."""
    machine = Machine(others=1.0)
    machine.replay(1)
    assert machine.restraint.rate < math.inf
    machine.now += 600
    machine.restraint(PIECE)
    assert machine.restraint.rate == math.inf
    machine.calm()
    machine.rests.clear()
    machine.replay(3)
    assert not machine.rests


def test_one_look_that_fails_lets_all_go_on() -> None:
    """And nothing is made up of what was before it."""
    machine = Machine(others=1.0)
    machine.replay(3)
    machine.hidden = True
    machine.replay(MAX_PAUSE_SECONDS + SAMPLE_SECONDS)
    assert machine.restraint.rate == math.inf
    machine.hidden = False
    machine.calm()
    machine.rests.clear()
    machine.replay(3)
    assert not machine.rests


def test_one_rest_has_an_end_however_many_replays_there_are() -> None:
    """Each calls once, and all rest at the same time."""
    rests: list[float] = []
    crowd = ReplayThrottle([None], lambda: 1.0, lambda: UNKNOWN, rest=rests.append)
    crowd(PIECE)
    crowd.rate = MIN_RATE
    for _ in range(10_000):
        crowd(PIECE)
    assert max(rests) == pytest.approx(MAX_PAUSE_SECONDS)
    assert sorted(rests) == rests


def test_a_rate_stays_between_its_bounds() -> None:
    """Of which the upper one is none."""
    assert (
        next_rate(math.inf, 1.0, OVERLOAD_FACTOR * AIM, AIM)
        == next_rate(math.inf, OVERLOAD_FACTOR * AIM, 1.0, AIM)
        == math.inf
    )
    assert next_rate(math.inf, 1.0, 1.0, AIM) == next_rate(MIN_RATE, 1.0, 1.0, AIM) == MIN_RATE
    assert next_rate(MAX_RATE - 1, 0.0, 0.0, AIM) == math.inf
    assert next_rate(2 * MIN_RATE, 0.0, 0.0, AIM) == 2 * MIN_RATE * (1 + IDLE_STEP)
    assert next_rate(2 * MIN_RATE, 0.0, IDLE_FACTOR * AIM, AIM) == pytest.approx(2 * MIN_RATE * (1 + MAX_STEP))
    assert next_rate(2 * MIN_RATE, AIM, 0.0, AIM) == next_rate(2 * MIN_RATE, 0.0, AIM, AIM) == 2 * MIN_RATE
    assert next_rate(9 * MIN_RATE, 1.0, 0.0, 0.4) == 4.5 * MIN_RATE


def test_of_many_processors_a_larger_share_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one and a bit; where there is but one, less than half of it."""
    shares = []
    for count in (1, 2, 8):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=count: set(range(count)))
        shares.append(target_share())
    assert shares == [MIN_TARGET, 1 - FREE_PROCESSORS / 2, 1 - FREE_PROCESSORS / 8]


def test_who_gives_way_needs_nothing_and_other_processors_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the fields user, system, irq, softirq and steal are needs; guests are in user already."""
    (tmp_path / "stat").write_text(
        "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 20 300 4000 50000 600000 7000000 80000000 9 9\n"
        "cpu1 9 9 9 9 9 9 9 9 9 9\ncpu10 1 0 0 0 0 0 0 0 0 0\nintr 5 cpu0\n"
    )
    monkeypatch.setattr(replay_throttle, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 10})
    assert read_cpu_time() == CpuTime(87_600_302, 87_654_322)


@pytest.mark.parametrize("text", [None, "", "nonsense", "cpu0 1 2 x 4 5 6 7 8\n", "cpu0 1\n"])
def test_where_nothing_is_said_nothing_is_held_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """No such file, or none that is understood."""
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(replay_throttle, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert read_cpu_time() == UNKNOWN


@pytest.mark.skipif(not PROC_STAT.exists(), reason="this kernel says nothing of its processors")
def test_the_kernel_says_what_its_processors_did() -> None:
    """All of them at least what this process did meanwhile."""
    began, before = time.monotonic(), read_cpu_time()
    while read_cpu_time().busy <= before.busy:
        assert time.monotonic() < began + PATIENCE_SECONDS
    assert 0 < CpuTime(read_cpu_time().busy - before.busy, read_cpu_time().all - before.all).share <= 1.05
