"""Replays hold back on a machine that has no room for them beside those who watch something live.

A worker learns of that from the scheduler: for how long it had a processor, and for how long it was ready and had none.
All of a master's look at what all of them say: one that holds back would leave the others without a reason to.
"""

import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import gevent

#: What Linux says of a process's first thread, the one with the event loop: nanoseconds that it ran, and that it waited
#: to run. Elsewhere there is no such file, and nothing is held back.
SCHEDSTAT: Final = Path("/proc/self/schedstat")
#: Seconds between two looks. One takes 20 µs; in less time a worker waits too few times to say how much it does.
LOOK_SECONDS: Final = 0.2
#: Seconds after which a look says nothing of now: replays have ended and others begin.
STALE_SECONDS: Final = 1.0
#: What a look leaves of those before it: half of what counts has been in the last two.
MEMORY: Final = 0.7
#: Seconds of waiting in one of running from which on replays hold back. A thousand of them on two cores with nginx and
#: the viewers have their workers wait for 1.5, without nginx for 0.4: there holding back makes nobody else faster.
CROWDED: Final = 0.75
#: What they hold back for. At 0.45 live lines took 9 ms through nginx, at 0.95 75 ms.
AIM: Final = 0.5
#: The share of what they wrote that they begin to hold back with: at 0.7 of it the machine had room again.
BEGINNING: Final = 0.5
#: The share by which a look changes the rate where nobody waits at all; and the most that it raises it by.
STEP, MOST_STEP = 0.1, 0.05
#: As much waiting as none, and the share by which a look raises the rate then.
ROOMY, ROOMY_STEP = 0.1, 0.5
#: Bytes a second that a worker's replays always have together: some 400,000 lines. Live lines took 5.4 ms then, and no
#: less than 4 ms with a fifth of it.
LEAST_BYTES: Final = 50_000_000
#: Bytes a second that no worker comes to: nothing is held back any more.
FREE_BYTES: Final = 2_000_000_000
#: Seconds that one replay rests at most before it goes on: so however many there are, none has less than a piece a
#: second, and what one has read is still there when the last of those beside it comes by (``pieces.KEPT_SECONDS``).
REST_SECONDS: Final = 1.0
#: Seconds that reading and writing took and that are no rest: a piece takes less.
ARREARS_SECONDS: Final = 0.005
#: Seconds not worth a rest: the event loop's clock is no finer.
LEAST_REST_SECONDS: Final = 0.001


#: What a worker tells the others: when, on a clock that all have, and seconds of running and of waiting.
TOLD: Final = struct.Struct("ddd")
#: One page between the processes that are forked from the one that imports this, as gunicorn's master does. Of more
#: workers than have a place there, or two at the same one, some are not heard.
BOARD: Final = mmap.mmap(-1, mmap.PAGESIZE)
PLACES: Final = mmap.PAGESIZE // TOLD.size


class Looked(NamedTuple):
    """When, and seconds that had been run and waited for by then."""

    at: float
    ran: float
    waited: float


def processor_seconds() -> tuple[float, float]:
    """Seconds for which this process ran, and for which it waited to; both 0 where nobody says."""
    try:
        ran, waited = SCHEDSTAT.read_bytes().split()[:2]
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def all_wait(now: float, ran: float, waited: float) -> float:
    """Tells the other workers, and returns for how long all wait in one second of running."""
    TOLD.pack_into(BOARD, os.getpid() % PLACES * TOLD.size, now, ran, waited)
    told = [each for each in TOLD.iter_unpack(BOARD[: PLACES * TOLD.size]) if now - each[0] < STALE_SECONDS]
    ran = sum(each[1] for each in told)
    return sum(each[2] for each in told) / ran if ran > 0 else 0.0


class Restraint:
    """What all replays of a worker may write in a second, as the machine has room.

    ``clock`` is monotonic, in seconds; ``rest`` waits for so many; ``together`` says how long all workers wait for a
    second of running.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], tuple[float, float]] = processor_seconds,
        rest: Callable[[float], object] = gevent.sleep,
        together: Callable[[float, float, float], float] = all_wait,
    ) -> None:
        self._clock: Final = clock
        self._processor: Final = processor
        self._rest: Final = rest
        self._together: Final = together
        #: Bytes a second.
        self.rate = math.inf
        self._look_at = 0.0
        self._looked = Looked(-math.inf, 0.0, 0.0)
        self._size = 0
        self._ran = self._waited = 0.0
        #: When all is written that was asked for, at this rate.
        self._until = 0.0

    def __call__(self, size: int) -> None:
        """To be called by a replay that has had ``size`` bytes, before it reads on."""
        now = self._clock()
        self._size += size
        if now >= self._look_at:
            self._look(now)
        if self.rate == math.inf:
            return
        self._until = min(max(self._until, now - ARREARS_SECONDS) + size / self.rate, now + REST_SECONDS)
        if (seconds := self._until - now) >= LEAST_REST_SECONDS:
            self._rest(seconds)

    def _look(self, now: float) -> None:
        before, self._looked = self._looked, Looked(now, *self._processor())
        size, self._size = self._size, 0
        self._look_at = now + LOOK_SECONDS
        span = now - before.at
        if span > STALE_SECONDS:
            self._ran = self._waited = 0.0
            self.rate = math.inf
            return
        self._ran = MEMORY * self._ran + self._looked.ran - before.ran
        self._waited = MEMORY * self._waited + self._looked.waited - before.waited
        self.rate = changed(self.rate, size / span, self._together(now, self._ran, self._waited))


def changed(rate: float, had: float, waits: float) -> float:
    """The rate from now on, where ``had`` bytes a second were written at ``rate``, and for a second of running the
    workers wait for ``waits``."""
    if rate == math.inf:
        return max(BEGINNING * had, LEAST_BYTES) if waits > CROWDED else rate
    step = ROOMY_STEP if waits < ROOMY else min(STEP * (1 - waits / AIM), MOST_STEP)
    # Twice what is waited for is far too much, a hundredfold no more so.
    rate = max(rate * max(1 + step, 0.5), LEAST_BYTES)
    return rate if rate < FREE_BYTES else math.inf
