"""Replays hold back on a machine that has no room for them beside those who watch something live.

A live line takes turns at a processor, in the store, a worker, nginx and its reader, and is as late as they wait for
one. Where nobody watches anything live, nothing is held back, and a few replays never are.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import gevent

from chronoverse import metrics

#: What Linux says of its processors: the time that each spent on what, in hundredths of a second. Elsewhere there is no
#: such file, and nothing is held back. https://docs.kernel.org/filesystems/proc.html, section 1.8
PROC_STAT: Final = Path("/proc/stat")
#: Seconds between two looks. One takes 30 µs with two processors; in less time their hundredths say too little.
SAMPLE_SECONDS: Final = 0.2
#: Seconds after which a look says nothing of now: replays have ended and others begin.
STALE_SECONDS: Final = 1.0
#: What a look leaves of those before it: half of what counts has been in the last two.
SAMPLE_DECAY: Final = 0.7
#: Replays of a worker, between two looks, from which on they hold back. One fills a processor; held back on two of them
#: it took 3.8 s for a million lines, not 1.5, and live lines have the other one.
FEW_REPLAYS: Final = 8
#: The processors whose time replays leave unused. A thousand replays through nginx, on two cores with the store and all
#: viewers: with 1.1 left live lines came within 4 ms (99th percentile; 2 where nothing is replayed), with 0.7 within 42
#: and with none within 52.
FREE_PROCESSORS: Final = 1.1
#: The share of the processors' time that may be used all the same where there is one of them.
MIN_TARGET: Final = 0.4
#: How many times what is aimed at the processors must be busy before replays hold back that were free.
OVERLOAD_FACTOR: Final = 1.2
#: How much a look changes the rate, for how far it is from the aim; and the most that it raises and lowers it by.
STEP_GAIN: Final = 0.4
MAX_STEP: Final = 0.1
MIN_STEP: Final = -0.5
#: The share of the aim below which a look raises the rate by this much instead.
IDLE_FACTOR: Final = 0.6
IDLE_STEP: Final = 0.5
#: Bytes a second that a worker's replays always have together, some 400,000 lines, and that many begin with: while a
#: thousand viewers come there is no room, and with half of it live lines were no faster.
MIN_RATE: Final = 50_000_000
#: Bytes a second that no worker comes to: nothing is held back any more.
MAX_RATE: Final = 2_000_000_000
#: Seconds that one replay rests at most before it goes on: so however many there are, none has less than a piece a
#: second, and what one has read is still there when the last of those beside it comes by (``pieces.KEPT_SECONDS``).
MAX_PAUSE_SECONDS: Final = 1.0
#: Seconds that reading and writing took and that are no rest: a piece takes less.
MAX_CREDIT_SECONDS: Final = 0.005
#: Seconds not worth a rest: the event loop's clock is no finer.
MIN_PAUSE_SECONDS: Final = 0.001


class CpuTime(NamedTuple):
    """The processors' time, in any unit: what was needed, and all."""

    busy: float
    all: float

    @property
    def share(self) -> float:
        """What was needed of all."""
        return self.busy / self.all if self.all > 0 else 0.0


#: Before anything is known.
UNKNOWN: Final = CpuTime(0.0, 0.0)


def read_cpu_time() -> CpuTime:
    """What this process's processors have spent so far; nothing where nobody says.

    What programs had for themselves that are ``nice`` was not needed: they give way.
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
    """The share of the processors' time that may be used."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1 - FREE_PROCESSORS / count, MIN_TARGET)


class ReplayThrottle:
    """What all replays of a worker may write in a second, as the machine has room.

    ``live`` is true while somebody watches something live. ``clock`` is monotonic, in seconds; ``processors`` says what
    they have spent and ``aim`` which share of it is aimed at; ``rest`` waits for so many seconds; ``who`` is the replay
    that calls.
    """

    def __init__(
        self,
        live: object,
        clock: Callable[[], float] = time.monotonic,
        processors: Callable[[], CpuTime] = read_cpu_time,
        aim: Callable[[], float] = target_share,
        rest: Callable[[float], object] = gevent.sleep,
        who: Callable[[], object] = gevent.getcurrent,
    ) -> None:
        self._live: Final = live
        self._clock: Final = clock
        self._processors: Final = processors
        self._aim: Final = aim
        self._rest: Final = rest
        self._who: Final = who
        #: Those that came since the last look.
        self._replays: set[int] = set()
        #: Bytes a second.
        self.rate = math.inf
        self._looked_at = -math.inf
        #: By now, and of that what counts.
        self._spent = self._lately = UNKNOWN
        #: Seconds of rest that the metrics have not been told of.
        self._rested = 0.0
        #: When all is written that was asked for, at this rate.
        self._until = 0.0

    def __call__(self, size: int) -> None:
        """To be called by a replay that has had ``size`` bytes, before it reads on."""
        now = self._clock()
        self._replays.add(id(self._who()))
        if now >= self._looked_at + SAMPLE_SECONDS:
            self._look(now)
        if self.rate == math.inf:
            return
        self._until = min(max(self._until, now - MAX_CREDIT_SECONDS) + size / self.rate, now + MAX_PAUSE_SECONDS)
        if (seconds := self._until - now) >= MIN_PAUSE_SECONDS:
            self._rested += seconds
            self._rest(seconds)

    def _look(self, now: float) -> None:
        fresh = now - self._looked_at > STALE_SECONDS
        before, self._spent, self._looked_at = self._spent, self._processors(), now
        metrics.REPLAY_RESTS.inc(self._rested)
        self._rested = 0.0
        few, self._replays = len(self._replays) < FEW_REPLAYS, set()
        if fresh or UNKNOWN in (before, self._spent):
            # All that has been spent since the last look, or since the machine was started, says nothing of now.
            self._lately, self.rate = UNKNOWN, math.inf
            return
        newest = CpuTime(self._spent.busy - before.busy, self._spent.all - before.all)
        self._lately = CpuTime(
            SAMPLE_DECAY * self._lately.busy + newest.busy, SAMPLE_DECAY * self._lately.all + newest.all
        )
        if few or not self._live:
            self.rate = math.inf
        else:
            self.rate = next_rate(self.rate, newest.share, self._lately.share, self._aim())


def next_rate(rate: float, newest: float, lately: float, aim: float) -> float:
    """The rate from now on, where it was ``rate``: the shares that the processors were busy since the last look and
    lately, and the one that is aimed at."""
    if rate == math.inf:
        return MIN_RATE if min(newest, lately) > OVERLOAD_FACTOR * aim else rate
    # What has just begun counts at once, what has ended is believed after a while.
    busy = max(newest, lately)
    step = IDLE_STEP if busy < IDLE_FACTOR * aim else min(STEP_GAIN * (1 - busy / aim), MAX_STEP)
    rate = max(rate * (1 + max(step, MIN_STEP)), MIN_RATE)
    return rate if rate < MAX_RATE else math.inf
