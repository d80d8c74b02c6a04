"""Rates in bytes a second: how fast each token's subject may publish over HTTP, and how fast all replays may write.

Many replays are slowed down, so that they leave processor time for viewers who watch live. A live line needs a
processor several times on its way: in the store, in a worker, in nginx and in its reader. While many replays run as
fast as they can, it waits for one each time. The measurements are in ``docs/adr/0014-replays-share-a-rate.md``.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import gevent

from chronoverse import metrics
from chronoverse.errors import TooFast

#: Size of a subject's full bucket, in seconds at the rate. A build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that each line costs beside its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Buckets that are stored. When there are more, full ones are dropped: the bucket of a new subject is full anyway.
MAX_SUBJECTS: Final = 1_000
#: Fewer replays of a worker than this are never slowed down. One replay fills a processor, and live lines have another.
FEW_REPLAYS: Final = 8
#: The longest pause of one replay, in seconds. So each replay, however many there are, reads at least one segment a
#: second, and a segment is still in the replay cache when the last of the replays comes to it
#: (``chronoverse.live.replay_cache``).
MAX_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket that fills by ``rate`` bytes a second, up to ``capacity`` bytes. A new one is full.

    https://en.wikipedia.org/wiki/Token_bucket

    ``level`` is how many bytes may be spent at ``updated_at``, in monotonic seconds. Below zero it is a debt.
    """

    rate: int
    capacity: float
    level: float = math.inf
    updated_at: float = 0.0

    def filled_until(self, now: float) -> "TokenBucket":
        """The bucket at ``now``."""
        return replace(self, level=min(self.level + self.rate * (now - self.updated_at), self.capacity), updated_at=now)

    def spend(self, size: int, max_debt: float = math.inf) -> "TokenBucket":
        """The bucket with ``size`` bytes less. Its debt grows to ``max_debt`` bytes at most."""
        return replace(self, level=max(self.level - size, -max_debt))

    @property
    def seconds_to_wait(self) -> float:
        """Seconds until the bucket has no debt any more."""
        return max(-self.level / self.rate, 0.0)


class TokenBuckets:
    """A worker's buckets, one for each subject. ``rate`` is bytes a second; None is no limit.

    An append is accepted as a whole when the bucket is not empty. If it is larger than what is left, the bucket goes
    into debt, and the next appends wait. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._full = TokenBucket(rate, rate * BURST_SECONDS) if rate else None
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, subject: str) -> None:
        """Raises :class:`TooFast` when ``subject`` must wait, with the seconds."""
        if self._full is None:
            return
        bucket = self._buckets.get(subject, self._full).filled_until(self._clock())
        if bucket.level <= 0:
            seconds = math.floor(bucket.seconds_to_wait) + 1
            raise TooFast(f"this token may publish {bucket.rate} bytes a second", seconds)

    def spend(self, subject: str, messages: Iterable[str]) -> None:
        """Takes lines with these ``messages`` out of the subject's bucket."""
        if self._full is None:
            return
        now, size = self._clock(), sum(len(message.encode()) + LINE_OVERHEAD_BYTES for message in messages)
        self._buckets[subject] = self._buckets.get(subject, self._full).filled_until(now).spend(size)
        if len(self._buckets) > MAX_SUBJECTS:
            filled = {each: bucket.filled_until(now) for each, bucket in self._buckets.items()}
            self._buckets = {each: bucket for each, bucket in filled.items() if bucket.level < bucket.capacity}


class ReplayThrottle:
    """A token bucket for what all replays of a worker write, at ``rate`` bytes a second.

    Each replay calls it with the bytes that it has written. ``current_replay`` identifies the one that calls.
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
        # A full bucket is this many seconds at the rate. A segment takes less to read and to write.
        self._bucket = TokenBucket(rate, rate * 0.005)
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
        # Replays are counted for as long as the longest pause, so that one that pauses is counted, too.
        elapsed = now - self._counting_since
        if elapsed >= MAX_PAUSE_SECONDS:
            self._counted_before = len(self._replays) if elapsed < 2 * MAX_PAUSE_SECONDS else 0
            self._replays, self._counting_since = set(), now
        self._replays.add(id(self._current_replay()))
        return max(self._counted_before, len(self._replays))
