"""The replay throttle: many replays of a worker share a rate, a few are never throttled, and pauses are bounded."""

import pytest

from chronoverse import metrics
from chronoverse.web.guards.rates import FEW_REPLAYS, MAX_PAUSE_SECONDS, ReplayThrottle

#: Bytes per segment, and bytes per second.
SEGMENT = 65_536
RATE = 10_000_000
#: Seconds to read and write one segment.
WORK_SECONDS = 0.0005


class Worker:
    """A worker with ``replays``, on a fake clock that their work and pauses advance.

    The replay that is due first writes the next segment.
    """

    def __init__(self, replays: int, rate: int = RATE) -> None:
        self.now = 100.0
        #: When each replay can continue.
        self.replays = dict.fromkeys([object() for _ in range(replays)], self.now)
        self.pauses: list[float] = []
        self.current = next(iter(self.replays))
        self.throttle = ReplayThrottle(
            rate, clock=lambda: self.now, sleep=self.sleep, current_replay=lambda: self.current
        )

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.replays[self.current] = self.now + seconds

    def replay(self, seconds: float) -> float:
        """Replays for ``seconds``. Returns the average bytes per second."""
        began, size = self.now, 0
        while self.now < began + seconds:
            self.current = min(self.replays, key=lambda replay: self.replays[replay])
            self.now = max(self.now, self.replays[self.current]) + WORK_SECONDS
            self.replays[self.current] = self.now
            size += SEGMENT
            self.throttle(SEGMENT)
        return size / (self.now - began)


@pytest.mark.parametrize("replays", [1, FEW_REPLAYS - 1])
def test_a_few_replays_never_pause(replays: int) -> None:
    worker = Worker(replays)

    assert worker.replay(3) > 10 * RATE
    assert not worker.pauses


@pytest.mark.parametrize("replays", [FEW_REPLAYS, 100])
def test_many_replays_share_the_rate(replays: int) -> None:
    """Even if each of them writes only a few segments per second."""
    worker = Worker(replays)
    worker.replay(1)

    assert worker.replay(5) == pytest.approx(RATE, rel=0.02)


def test_the_rate_applies_from_the_start() -> None:
    """Beyond it, only a burst: one segment per replay before its first pause, and the few unthrottled replays."""
    worker = Worker(100)

    assert worker.replay(0.5) * 0.5 < (100 + FEW_REPLAYS) * SEGMENT + 0.505 * RATE


def test_below_the_rate_no_replay_pauses() -> None:
    worker = Worker(100, rate=2 * int(SEGMENT / WORK_SECONDS))
    worker.replay(2)

    assert not worker.pauses


def test_a_pause_is_bounded_for_any_number_of_replays() -> None:
    """Here all of them write at the same moment. The debt is bounded too: later replays do not pause longer."""
    worker = Worker(1)
    for worker.current in [object() for _ in range(10_000)]:
        worker.throttle(SEGMENT)

    assert max(worker.pauses) == pytest.approx(MAX_PAUSE_SECONDS)
    assert sorted(worker.pauses) == worker.pauses
    worker.now += MAX_PAUSE_SECONDS
    worker.throttle(SEGMENT)
    assert worker.pauses[-1] == pytest.approx(SEGMENT / RATE)


def test_a_few_replays_after_many_do_not_pause() -> None:
    """Except until the earlier ones are no longer counted."""
    worker = Worker(100)
    worker.replay(3)
    worker.replays = dict(list(worker.replays.items())[:1])
    worker.replay(3 * MAX_PAUSE_SECONDS)
    worker.pauses.clear()
    worker.replay(1)

    assert not worker.pauses


def test_replays_after_idle_time_start_fresh() -> None:
    """The many earlier replays are no longer counted."""
    worker = Worker(100)
    worker.replay(3)
    worker.pauses.clear()
    worker.now += 600
    worker.throttle(SEGMENT)

    assert not worker.pauses


def test_the_metric_counts_all_seconds_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is counted when it begins."""
    counted: list[float] = []
    monkeypatch.setattr(metrics.REPLAY_RESTS, "inc", counted.append)
    worker = Worker(100)
    worker.replay(2)

    assert counted == worker.pauses != []
