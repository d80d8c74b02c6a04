"""Rates: how fast each subject may publish over HTTP and begin jobs, and how fast all replays together may write."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import gevent

from chronoverse import metrics
from chronoverse.errors import TooFast
from chronoverse.token_bucket import TokenBucket

#: Size of a subject's full bucket, in seconds at the rate. A build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that each line costs beside its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Jobs that log records of one subject may begin at once, and in each second after that. A job takes 5 KB of the store
#: at least, and some milliseconds of the request. The Collector may meet the pods of a whole cluster at once.
MAX_NEW_JOBS: Final = 5_000
NEW_JOBS_PER_SECOND: Final = 10
#: Buckets that are stored. When there are more, full ones are dropped: the bucket of a new subject is full anyway.
MAX_SUBJECTS: Final = 1_000
#: Fewer replays of a worker than this are never slowed down. One replay fills a processor, and live lines have another.
FEW_REPLAYS: Final = 8
#: The longest pause of one replay, in seconds. So each reads at least one segment a second, and a segment is still in
#: the replay cache when the last of the replays comes to it.
MAX_PAUSE_SECONDS: Final = 1.0


@dataclass(eq=False)
class Throttle:
    """Token buckets, one for each subject. ``clock`` is monotonic.

    A bucket fills at ``rate`` a second; an empty one is full after ``burst_seconds``. Without ``rate``, nothing is
    bounded. Clients refused for ``reason`` should wait for at least ``least_wait`` seconds.
    """

    rate: float | None
    burst_seconds: float
    reason: str
    least_wait: int = 1
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, subject: str) -> None:
        """Raises :class:`TooFast` if the bucket is empty."""
        bucket = self._buckets.get(subject)
        if bucket is not None and (seconds := bucket.debt_seconds(self.clock())) >= 0:
            raise TooFast(self.reason, max(math.floor(seconds) + 1, self.least_wait))

    def take(self, subject: str, amounts: Iterable[float]) -> None:
        """Takes ``amounts`` out of the bucket, which can go into debt."""
        if self.rate is None:
            return
        now, bucket = self.clock(), self._buckets.get(subject)
        if bucket is None:
            bucket = self._buckets[subject] = TokenBucket(self.rate, self.burst_seconds)
        bucket.take(sum(amounts), now)
        if len(self._buckets) > MAX_SUBJECTS:
            full = -self.burst_seconds
            self._buckets = {who: each for who, each in self._buckets.items() if each.debt_seconds(now) > full}


def publish_throttle(rate: int | None, clock: Callable[[], float] = time.monotonic) -> Throttle:
    """Bytes a second that each subject can publish. An append is accepted as a whole if the bucket is not empty."""
    return Throttle(
        rate, BURST_SECONDS, f"publish rate exceeded: this token may publish {rate} bytes a second", clock=clock
    )


def bytes_of(messages: Iterable[bytes]) -> Iterator[int]:
    """What each message costs in a bucket of :func:`publish_throttle`."""
    return (len(message) + LINE_OVERHEAD_BYTES for message in messages)


def new_job_throttle(clock: Callable[[], float] = time.monotonic) -> Throttle:
    """Jobs that each subject can begin by log records. A request can name thousands of jobs."""
    burst_seconds = MAX_NEW_JOBS / NEW_JOBS_PER_SECOND
    reason = "rate limit exceeded: this token starts too many jobs"
    # A refused request should wait for 10 s: all of it is read again.
    return Throttle(NEW_JOBS_PER_SECOND, burst_seconds, reason, least_wait=10, clock=clock)


@dataclass(eq=False)
class ReplayThrottle:
    """A token bucket of ``rate`` bytes a second for all of a worker's replays, to leave time for live lines.

    Each replay calls it with the bytes that it has written. ``current_replay`` identifies the calling replay.
    """

    rate: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = gevent.sleep
    current_replay: Callable[[], object] = gevent.getcurrent
    #: When each replay has called last, the latest at the end.
    _called_at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A full bucket is 5 ms at the rate. A segment takes less to read and to write.
        self._bucket = TokenBucket(self.rate, 0.005)

    def __call__(self, size: int) -> None:
        """Notes that the calling replay has written ``size`` bytes. Pauses it if necessary."""
        now, calls, replay = self.clock(), self._called_at, id(self.current_replay())
        calls.pop(replay, None)
        calls[replay] = now
        # Replays are counted for longer than the longest pause, so that one that pauses is counted, too.
        while calls[longest_ago := next(iter(calls))] < now - 2 * MAX_PAUSE_SECONDS:
            del calls[longest_ago]
        if len(calls) < FEW_REPLAYS:
            return
        self._bucket.take(size, now, MAX_PAUSE_SECONDS)
        # A shorter pause than this, in seconds, is left out. The event loop's clock is no finer.
        if (seconds := self._bucket.debt_seconds(now)) >= 0.001:
            metrics.REPLAY_RESTS.inc(seconds)
            self.sleep(seconds)
