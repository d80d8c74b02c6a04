"""Many replays of a worker share a rate, a few are never slowed down, and no pause is long."""

import pytest

from chronoverse import metrics
from chronoverse.web.guards.rates import FEW_REPLAYS, MAX_PAUSE_SECONDS, ReplayThrottle

#: Bytes of a segment, and bytes a second.
SEGMENT = 65_536
RATE = 10_000_000
#: Seconds that it takes to read and to write a segment.
WORK_SECONDS = 0.0005


class Worker:
    """A worker with ``replays``, on a clock that their work and their pauses move on.

    The replay that may go on first writes a segment next.
    """

    def __init__(self, replays: int, rate: int = RATE) -> None:
        self.now = 100.0
        #: When each replay may go on.
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
        """Replays for that many seconds. Returns the bytes per second."""
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
    """However fast they are."""
    worker = Worker(replays)

    assert worker.replay(3) > 10 * RATE
    assert not worker.pauses


@pytest.mark.parametrize("replays", [FEW_REPLAYS, 100])
def test_many_replays_share_the_rate(replays: int) -> None:
    """Also when each of them writes only a few segments a second."""
    worker = Worker(replays)
    worker.replay(1)

    assert worker.replay(5) == pytest.approx(RATE, rel=0.02)


def test_the_rate_holds_from_the_beginning() -> None:
    """Each replay writes a segment before it pauses, and the first few do not count. Else there is only the burst."""
    worker = Worker(100)

    assert worker.replay(0.5) * 0.5 < (100 + FEW_REPLAYS) * SEGMENT + 0.505 * RATE


def test_below_the_rate_no_replay_pauses() -> None:
    """However many they are."""
    worker = Worker(100, rate=2 * int(SEGMENT / WORK_SECONDS))
    worker.replay(2)

    assert not worker.pauses


def test_a_pause_is_bounded_however_many_replays_there_are() -> None:
    """Here all replays write at the same moment. The debt is bounded too: later replays pause no longer."""
    worker = Worker(1)
    for worker.current in [object() for _ in range(10_000)]:
        worker.throttle(SEGMENT)

    assert max(worker.pauses) == pytest.approx(MAX_PAUSE_SECONDS)
    assert sorted(worker.pauses) == worker.pauses
    worker.now += MAX_PAUSE_SECONDS
    worker.throttle(SEGMENT)
    assert worker.pauses[-1] == pytest.approx(SEGMENT / RATE)


def test_a_few_replays_after_many_do_not_pause() -> None:
    """They may still pause until the others are no longer counted."""
    worker = Worker(100)
    worker.replay(3)
    worker.replays = dict(list(worker.replays.items())[:1])
    worker.replay(3 * MAX_PAUSE_SECONDS)
    worker.pauses.clear()
    worker.replay(1)

    assert not worker.pauses


def test_replays_after_a_silence_begin_anew() -> None:
    """The many that were counted long ago do not count any more."""
    worker = Worker(100)
    worker.replay(3)
    worker.pauses.clear()
    worker.now += 600
    worker.throttle(SEGMENT)

    assert not worker.pauses


def test_the_metrics_count_the_seconds_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, when they begin."""
    counted: list[float] = []
    monkeypatch.setattr(metrics.REPLAY_RESTS, "inc", counted.append)
    worker = Worker(100)
    worker.replay(2)

    assert counted == worker.pauses != []
