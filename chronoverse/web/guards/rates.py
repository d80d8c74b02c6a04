"""Rate limits: bytes and new jobs per second for each subject, and bytes per second for all replays together."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import gevent

from chronoverse import metrics
from chronoverse.errors import TooFast
from chronoverse.token_bucket import TokenBucket

#: Capacity of a subject's bucket, in seconds at the rate. Builds print in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes charged per line besides its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Jobs that one subject can begin with log records: in one burst, and then per second. A job takes at least 5 KB of the
#: store and some milliseconds. The first burst of a Collector can include all pods of a cluster.
MAX_NEW_JOBS: Final = 5_000
NEW_JOBS_PER_SECOND: Final = 10
#: Maximum buckets. If there are more, full ones are dropped: a new bucket is full anyway.
MAX_SUBJECTS: Final = 1_000
#: Fewer concurrent replays are not throttled. One replay uses one processor, and leaves another for live lines.
FEW_REPLAYS: Final = 8
#: The longest pause of a replay, in seconds. It makes each replay read at least one segment per second, so that a
#: segment stays cached until the last of several replays reaches it.
MAX_PAUSE_SECONDS: Final = 1.0


@dataclass(eq=False)
class Throttle:
    """Token buckets, one per subject, that refill at ``rate`` per second. Without ``rate``, there is no limit.

    An empty bucket refills in ``burst_seconds``. A refusal states ``reason``, and asks the client to wait at least
    ``least_wait`` seconds. ``clock`` is monotonic.
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
        """Takes the sum of ``amounts`` from the bucket, which can go into debt."""
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
    """Limits the bytes each subject publishes per second. An append is accepted whole if the bucket is not empty."""
    return Throttle(
        rate, BURST_SECONDS, f"publish rate exceeded: this token may publish {rate} bytes a second", clock=clock
    )


def bytes_of(messages: Iterable[bytes]) -> Iterator[int]:
    """The cost of each message in a bucket of :func:`publish_throttle`."""
    return (len(message) + LINE_OVERHEAD_BYTES for message in messages)


def new_job_throttle(clock: Callable[[], float] = time.monotonic) -> Throttle:
    """Limits the jobs that each subject begins with log records. One request can name thousands of jobs."""
    burst_seconds = MAX_NEW_JOBS / NEW_JOBS_PER_SECOND
    reason = "rate limit exceeded: this token starts too many jobs"
    # Clients wait at least 10 s, because a retry sends the whole request again.
    return Throttle(NEW_JOBS_PER_SECOND, burst_seconds, reason, least_wait=10, clock=clock)


@dataclass(eq=False)
class ReplayThrottle:
    """A token bucket of ``rate`` bytes per second for all replays of a worker, to leave time for live lines.

    Each replay calls this with the number of bytes it has written. ``current_replay`` identifies the calling replay.
    """

    rate: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = gevent.sleep
    current_replay: Callable[[], object] = gevent.getcurrent
    #: Time of each replay's last call, oldest first.
    _called_at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A full bucket lasts 5 ms. Reading and writing a segment takes less.
        self._bucket = TokenBucket(self.rate, 0.005)

    def __call__(self, size: int) -> None:
        """Records that the calling replay has written ``size`` bytes, and pauses it if necessary."""
        now, calls, replay = self.clock(), self._called_at, id(self.current_replay())
        calls.pop(replay, None)
        calls[replay] = now
        # A replay counts as concurrent for longer than the longest pause, so that paused replays are included.
        while calls[longest_ago := next(iter(calls))] < now - 2 * MAX_PAUSE_SECONDS:
            del calls[longest_ago]
        if len(calls) < FEW_REPLAYS:
            return
        self._bucket.take(size, now, MAX_PAUSE_SECONDS)
        # Skips pauses that are shorter than the resolution of the event loop's clock.
        if (seconds := self._bucket.debt_seconds(now)) >= 0.001:
            metrics.REPLAY_RESTS.inc(seconds)
            self.sleep(seconds)
