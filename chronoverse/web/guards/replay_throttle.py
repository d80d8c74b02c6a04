"""Slows many replays down, so that they leave processor time for viewers who watch live.

A live line needs a processor several times on its way: in the store, in a worker, in nginx and in its reader. While
many replays run as fast as they can, it waits for one each time. The measurements are in
``docs/adr/0014-replays-share-a-rate.md``.
"""

import time
from collections.abc import Callable
from typing import Final

import gevent

from chronoverse import metrics
from chronoverse.web.guards.rates import TokenBucket

#: Fewer replays of a worker than this are never slowed down. One replay fills a processor, and live lines have another.
FEW_REPLAYS: Final = 8
#: The longest pause of one replay, in seconds. So each replay, however many there are, reads at least one segment a
#: second, and a segment is still in the replay cache when the last of the replays comes to it
#: (``chronoverse.live.replay_cache``).
MAX_PAUSE_SECONDS: Final = 1.0
#: Replays are counted for so many seconds. It is the longest pause, so a replay that pauses is counted, too.
COUNT_SECONDS: Final = MAX_PAUSE_SECONDS
#: Size of a full bucket, in seconds at the rate. A segment takes less to read and to write.
BURST_SECONDS: Final = 0.005


class ReplayThrottle:
    """A token bucket for what all replays of a worker write. Each replay calls it with the bytes that it has written.

    ``rate`` is in bytes a second. ``clock`` is monotonic, in seconds. ``sleep`` pauses the replay that calls for so
    many seconds. ``current_replay`` returns an object that identifies it.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
        current_replay: Callable[[], object] = gevent.getcurrent,
    ) -> None:
        self._clock: Final = clock
        self._sleep: Final = sleep
        self._current_replay: Final = current_replay
        self._bucket = TokenBucket(rate, rate * BURST_SECONDS)
        #: The replays that have called since ``_counting_since``, and how many called in the time before that.
        self._replays: set[int] = set()
        self._counting_since = 0.0
        self._counted_before = 0

    def __call__(self, size: int) -> None:
        """The calling replay has written ``size`` bytes. Pauses it before it reads on, if necessary."""
        now = self._clock()
        if self._count(now) < FEW_REPLAYS:
            return
        self._bucket = self._bucket.filled_until(now).spend(size, self._bucket.rate * MAX_PAUSE_SECONDS)
        # A shorter pause than this, in seconds, is left out. The event loop's clock is no finer.
        if (seconds := self._bucket.seconds_to_wait) >= 0.001:
            metrics.REPLAY_RESTS.inc(seconds)
            self._sleep(seconds)

    def _count(self, now: float) -> int:
        """How many replays run now, with the one that calls."""
        elapsed = now - self._counting_since
        if elapsed >= COUNT_SECONDS:
            self._counted_before = len(self._replays) if elapsed < 2 * COUNT_SECONDS else 0
            self._replays, self._counting_since = set(), now
        self._replays.add(id(self._current_replay()))
        return max(self._counted_before, len(self._replays))
