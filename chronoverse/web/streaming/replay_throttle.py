"""Slows replays down while the machine has no processor time to spare for viewers who watch live.

A live line needs a processor several times on its way: in the store, in a worker, in nginx and in its reader. Each time
it may have to wait for one. Where nobody watches live, no replay is slowed down, and a few replays never are.

The throttle measures how busy the processors are, and adjusts a rate in bytes a second that all replays of a worker
share. The measurements that led to it are in ``docs/adr/0012-replays-hold-back.md``.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import gevent

from chronoverse import metrics

#: Where Linux reports the time that each processor has spent on what, in hundredths of a second. On other systems there
#: is no such file, and no replay is slowed down. https://docs.kernel.org/filesystems/proc.html, section 1.8
PROC_STAT: Final = Path("/proc/stat")
#: Seconds between two samples. A sample takes 30 µs with two processors. In a shorter time, hundredths of a second say
#: too little.
SAMPLE_SECONDS: Final = 0.2
#: Seconds after which the previous sample says nothing about now. Its replays have ended, and these are others.
STALE_SECONDS: Final = 1.0
#: The factor by which a sample reduces the weight of those before it. The last two samples are half of the average.
SAMPLE_DECAY: Final = 0.7
#: Fewer replays than this, between two samples of a worker, are never slowed down. One replay fills a processor. Slowed
#: down, on two processors, it took 3.8 s for a million lines instead of 1.5, and live lines have the other processor.
FEW_REPLAYS: Final = 8
#: How many processors the replays leave unused. Measured with a thousand replays through nginx, on two cores with the
#: store and all viewers: with 1.1 unused, live lines came within 4 ms (99th percentile, and 2 ms without replays), with
#: 0.7 within 42 ms, and with none within 52 ms.
FREE_PROCESSORS: Final = 1.1
#: The target share on a machine with one processor, where :data:`FREE_PROCESSORS` would leave nothing.
MIN_TARGET: Final = 0.4
#: Replays that are not slowed down are when the processors are busier than this factor times the target.
OVERLOAD_FACTOR: Final = 1.2
#: How strongly a sample changes the rate, for its distance from the target, and the largest raise and reduction.
STEP_GAIN: Final = 0.4
MAX_STEP: Final = 0.1
MIN_STEP: Final = -0.5
#: Below this factor times the target, a sample raises the rate by :data:`IDLE_STEP` instead.
IDLE_FACTOR: Final = 0.6
IDLE_STEP: Final = 0.5
#: The lowest rate in bytes a second, for all replays of a worker together: some 400,000 lines. Slowing down begins with
#: it, because a thousand viewers that connect need all processors. With half of it, live lines were no faster.
MIN_RATE: Final = 50_000_000
#: A rate in bytes a second that no worker reaches. From there on, replays are not slowed down.
MAX_RATE: Final = 2_000_000_000
#: The longest pause of one replay, in seconds. So each replay, however many there are, reads at least one segment a
#: second, and a segment is still in the replay cache when the last of the replays comes to it
#: (``chronoverse.live.replay_cache``).
MAX_PAUSE_SECONDS: Final = 1.0
#: Seconds of reading and writing that are not counted as a pause. A segment takes less.
MAX_CREDIT_SECONDS: Final = 0.005
#: A shorter pause than this, in seconds, is left out. The event loop's clock is no finer.
MIN_PAUSE_SECONDS: Final = 0.001


class CpuTime(NamedTuple):
    """Time of processors in any unit. ``busy`` is what was used, ``all`` is busy and idle time together."""

    busy: float
    all: float

    @property
    def busy_share(self) -> float:
        """The part of the time that was used."""
        return self.busy / self.all if self.all > 0 else 0.0


#: What :func:`read_cpu_time` returns where it cannot read anything.
UNKNOWN: Final = CpuTime(0.0, 0.0)


def read_cpu_time() -> CpuTime:
    """The time of the processors that this process may run on, since the machine was started.

    Returns :data:`UNKNOWN` where the system does not say. The time of programs with a ``nice`` value counts as idle,
    because they give way to others.
    """
    try:
        rows = [line.split() for line in PROC_STAT.read_bytes().splitlines() if line.startswith(b"cpu")]
        ours = {b"cpu%d" % number for number in os.sched_getaffinity(0)}
        times = [[int(time) for time in row[1:9]] for row in rows if row[0] in ours]
        return CpuTime(
            sum(user + system + irq + softirq + steal for user, _, system, _, _, irq, softirq, steal in times),
            sum(map(sum, times)),
        )
    except (OSError, ValueError, AttributeError):
        return UNKNOWN


def target_share() -> float:
    """The share of the processors' time that may be busy."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1 - FREE_PROCESSORS / count, MIN_TARGET)


class ReplayThrottle:
    """Bounds how fast all replays of a worker write together. Each replay calls it with the bytes that it has written.

    ``somebody_is_live`` is true while somebody watches live. The other arguments are for tests: ``clock`` is monotonic,
    in seconds; ``read_cpu_time`` and ``target_share`` are the functions of this module; ``sleep`` pauses the replay for
    so many seconds; ``current_replay`` returns an object that identifies the replay that calls.
    """

    def __init__(
        self,
        somebody_is_live: object,
        clock: Callable[[], float] = time.monotonic,
        read_cpu_time: Callable[[], CpuTime] = read_cpu_time,
        target_share: Callable[[], float] = target_share,
        sleep: Callable[[float], object] = gevent.sleep,
        current_replay: Callable[[], object] = gevent.getcurrent,
    ) -> None:
        self._somebody_is_live: Final = somebody_is_live
        self._clock: Final = clock
        self._read_cpu_time: Final = read_cpu_time
        self._target_share: Final = target_share
        self._sleep: Final = sleep
        self._current_replay: Final = current_replay
        #: The replays that called since the last sample.
        self._replays: set[int] = set()
        #: Bytes a second. Infinite when replays are not slowed down.
        self.rate = math.inf
        self._sampled_at = -math.inf
        self._last_sample = self._average = UNKNOWN
        #: Seconds of pauses that the metrics do not have yet.
        self._paused = 0.0
        #: When all bytes so far would be written at this rate.
        self._busy_until = 0.0

    def __call__(self, size: int) -> None:
        """The calling replay has written ``size`` bytes. Pauses it before it reads on, if necessary."""
        now = self._clock()
        self._replays.add(id(self._current_replay()))
        if now >= self._sampled_at + SAMPLE_SECONDS:
            self._sample(now)
        if self.rate == math.inf:
            return
        began = max(self._busy_until, now - MAX_CREDIT_SECONDS)
        self._busy_until = min(began + size / self.rate, now + MAX_PAUSE_SECONDS)
        if (seconds := self._busy_until - now) >= MIN_PAUSE_SECONDS:
            self._paused += seconds
            self._sleep(seconds)

    def _sample(self, now: float) -> None:
        is_stale = now - self._sampled_at > STALE_SECONDS
        before, self._last_sample, self._sampled_at = self._last_sample, self._read_cpu_time(), now
        metrics.REPLAY_RESTS.inc(self._paused)
        self._paused = 0.0
        are_few, self._replays = len(self._replays) < FEW_REPLAYS, set()
        if is_stale or UNKNOWN in (before, self._last_sample):
            # The difference of these two samples would say nothing about now.
            self._average, self.rate = UNKNOWN, math.inf
            return
        newest = CpuTime(self._last_sample.busy - before.busy, self._last_sample.all - before.all)
        self._average = CpuTime(
            SAMPLE_DECAY * self._average.busy + newest.busy, SAMPLE_DECAY * self._average.all + newest.all
        )
        if are_few or not self._somebody_is_live:
            self.rate = math.inf
        else:
            self.rate = next_rate(self.rate, newest.busy_share, self._average.busy_share, self._target_share())


def next_rate(rate: float, newest: float, average: float, target: float) -> float:
    """The rate that follows ``rate``.

    The other arguments are shares of the processors' time: busy since the last sample, busy on average, and the target.
    """
    if rate == math.inf:
        return MIN_RATE if min(newest, average) > OVERLOAD_FACTOR * target else rate
    # A load that has just begun counts at once. A load that has just ended still counts for a while.
    busy = max(newest, average)
    step = IDLE_STEP if busy < IDLE_FACTOR * target else min(STEP_GAIN * (1 - busy / target), MAX_STEP)
    rate = max(rate * (1 + max(step, MIN_STEP)), MIN_RATE)
    return rate if rate < MAX_RATE else math.inf
