"""The throttle slows replays down while somebody watches live and the processors are busy, and only then."""

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

#: Bytes of a segment.
SEGMENT = 65_536
#: Seconds within which a processor is used for a moment.
MAX_WAIT_SECONDS = 5.0
TARGET = 0.5


class Machine:
    """A machine with two processors, on a clock that a pause moves on.

    ``others`` is the share of the processors that other programs use. The replays write one segment after the other,
    each for half a millisecond of one processor.
    """

    def __init__(self, replays: int = 2 * FEW_REPLAYS, live: bool = True, others: float = 0.0) -> None:
        self.now, self.busy, self.others = 100.0, 0.0, others
        self.live = [None] if live else []
        self.pauses: list[float] = []
        self.replays = [object() for _ in range(replays)]
        self.calls = 0
        self.hidden = False
        self.throttle = ReplayThrottle(
            self.live, lambda: self.now, self.read_cpu_time, lambda: TARGET, self.sleep, self.current_replay
        )

    def read_cpu_time(self) -> CpuTime:
        """The time of both processors, in seconds. Unknown while ``hidden`` is set."""
        return UNKNOWN if self.hidden else CpuTime(self.busy + self.others * 2 * (self.now - 100), 2 * self.now)

    def stop_others(self) -> None:
        """Other programs use nothing from now on. What they have used so far stays counted."""
        self.busy += self.others * 2 * (self.now - 100)
        self.others = 0.0

    def current_replay(self) -> object:
        return self.replays[self.calls % len(self.replays)]

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def replay(self, seconds: float) -> float:
        """Replays as fast as it is allowed, for so many seconds. Returns the bytes per second."""
        began, size = self.now, 0
        while self.now < began + seconds:
            self.now, self.busy = self.now + 0.0005, self.busy + 0.0005
            size += SEGMENT
            self.calls += 1
            self.throttle(SEGMENT)
        return size / (self.now - began)


def test_no_replay_pauses_when_the_processors_have_time() -> None:
    """Other programs use nothing, and the replays stay below the target."""
    machine = Machine()
    machine.replay(3)
    assert not machine.pauses


@pytest.mark.parametrize("machine", [Machine(live=False, others=1.0), Machine(FEW_REPLAYS - 1, others=1.0)])
def test_no_replay_pauses_without_live_viewers_or_with_few_replays(machine: Machine) -> None:
    """That holds however busy the processors are."""
    machine.replay(3)
    assert not machine.pauses


def test_the_metrics_count_the_seconds_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All seconds are counted but those since the last sample."""
    counted: list[float] = []
    monkeypatch.setattr(metrics.REPLAY_RESTS, "inc", counted.append)
    machine = Machine(others=1.0)
    machine.replay(5)
    assert 0 < sum(machine.pauses) - sum(counted) < 2 * SAMPLE_SECONDS


def test_on_an_overloaded_machine_replays_have_the_lowest_rate() -> None:
    """The rate does not fall further, however long the overload lasts."""
    machine = Machine(others=1.0)
    machine.replay(5)
    assert machine.replay(2) == pytest.approx(MIN_RATE, rel=0.05)


def test_the_rate_settles_at_the_target() -> None:
    """Here three tenths of the processors' time are left for the replays, which is 0.6 of one processor."""
    machine = Machine(others=0.2)
    machine.replay(20)
    assert machine.replay(10) == pytest.approx(0.6 * SEGMENT / 0.0005, rel=0.15)


def test_no_replay_pauses_after_an_overload_has_ended() -> None:
    """It takes some seconds, because the average still holds the time before."""
    machine = Machine(others=1.0)
    machine.replay(5)
    machine.stop_others()
    machine.replay(8)
    machine.pauses.clear()
    machine.replay(1)
    assert not machine.pauses


def test_no_replay_pauses_after_the_last_live_viewer_has_left() -> None:
    """That holds from the next sample on."""
    machine = Machine(others=1.0)
    machine.replay(5)
    machine.live.clear()
    machine.replay(MAX_PAUSE_SECONDS + SAMPLE_SECONDS)
    machine.pauses.clear()
    machine.replay(1)
    assert not machine.pauses


def test_a_stale_sample_is_ignored() -> None:
    """Replays after a long silence are not slowed down because of the load before it."""
    machine = Machine(others=1.0)
    machine.replay(1)
    assert machine.throttle.rate < math.inf
    machine.now += 600
    machine.throttle(SEGMENT)
    assert machine.throttle.rate == math.inf
    machine.stop_others()
    machine.pauses.clear()
    machine.replay(3)
    assert not machine.pauses


def test_a_failed_sample_ends_the_slowing_down() -> None:
    """The samples before it are ignored afterwards."""
    machine = Machine(others=1.0)
    machine.replay(3)
    machine.hidden = True
    machine.replay(MAX_PAUSE_SECONDS + SAMPLE_SECONDS)
    assert machine.throttle.rate == math.inf
    machine.hidden = False
    machine.stop_others()
    machine.pauses.clear()
    machine.replay(3)
    assert not machine.pauses


def test_a_pause_is_bounded_however_many_replays_there_are() -> None:
    """Here each replay calls once, and all pause at the same time."""
    pauses: list[float] = []
    throttle = ReplayThrottle([None], lambda: 1.0, lambda: UNKNOWN, sleep=pauses.append)
    throttle(SEGMENT)
    throttle.rate = MIN_RATE
    for _ in range(10_000):
        throttle(SEGMENT)
    assert max(pauses) == pytest.approx(MAX_PAUSE_SECONDS)
    assert sorted(pauses) == pauses


def test_a_rate_stays_between_its_bounds() -> None:
    """Above the upper bound, replays are not slowed down at all."""
    assert (
        next_rate(math.inf, 1.0, OVERLOAD_FACTOR * TARGET, TARGET)
        == next_rate(math.inf, OVERLOAD_FACTOR * TARGET, 1.0, TARGET)
        == math.inf
    )
    assert next_rate(math.inf, 1.0, 1.0, TARGET) == next_rate(MIN_RATE, 1.0, 1.0, TARGET) == MIN_RATE
    assert next_rate(MAX_RATE - 1, 0.0, 0.0, TARGET) == math.inf
    assert next_rate(2 * MIN_RATE, 0.0, 0.0, TARGET) == 2 * MIN_RATE * (1 + IDLE_STEP)
    assert next_rate(2 * MIN_RATE, 0.0, IDLE_FACTOR * TARGET, TARGET) == pytest.approx(2 * MIN_RATE * (1 + MAX_STEP))
    assert next_rate(2 * MIN_RATE, TARGET, 0.0, TARGET) == next_rate(2 * MIN_RATE, 0.0, TARGET, TARGET) == 2 * MIN_RATE
    assert next_rate(9 * MIN_RATE, 1.0, 0.0, 0.4) == 4.5 * MIN_RATE


def test_more_processors_mean_a_higher_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but :data:`FREE_PROCESSORS` may be busy. With one processor, it is :data:`MIN_TARGET` of it."""
    shares = []
    for count in (1, 2, 8):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, count=count: set(range(count)))
        shares.append(target_share())
    assert shares == [MIN_TARGET, 1 - FREE_PROCESSORS / 2, 1 - FREE_PROCESSORS / 8]


def test_only_our_processors_and_no_nice_programs_count_as_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The busy fields are user, system, irq, softirq and steal. The time of guests is part of user already."""
    (tmp_path / "stat").write_text(
        "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 20 300 4000 50000 600000 7000000 80000000 9 9\n"
        "cpu1 9 9 9 9 9 9 9 9 9 9\ncpu10 1 0 0 0 0 0 0 0 0 0\nintr 5 cpu0\n"
    )
    monkeypatch.setattr(replay_throttle, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 10})
    assert read_cpu_time() == CpuTime(87_600_302, 87_654_322)


@pytest.mark.parametrize("text", [None, "", "nonsense", "cpu0 1 2 x 4 5 6 7 8\n", "cpu0 1\n"])
def test_an_unreadable_report_of_the_kernel_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """There is no such file, or its text is not understood."""
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(replay_throttle, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert read_cpu_time() == UNKNOWN


@pytest.mark.skipif(not PROC_STAT.exists(), reason="this system does not report the time of its processors")
def test_the_kernel_reports_the_time_of_its_processors() -> None:
    """It is at least the time that this process used meanwhile."""
    began, before = time.monotonic(), read_cpu_time()
    while read_cpu_time().busy <= before.busy:
        assert time.monotonic() < began + MAX_WAIT_SECONDS
    assert 0 < CpuTime(read_cpu_time().busy - before.busy, read_cpu_time().all - before.all).busy_share <= 1.05
