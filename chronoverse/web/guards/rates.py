"""A token bucket, and the limit on how fast each token's subject may publish over HTTP.

https://en.wikipedia.org/wiki/Token_bucket
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from chronoverse.errors import TooFast

#: Size of a subject's full bucket, in seconds at the rate. A build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that each line costs beside its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Buckets that are stored. When there are more, full ones are dropped: the bucket of a new subject is full anyway.
MAX_SUBJECTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket that fills by ``rate`` bytes a second, up to ``capacity`` bytes. A new one is full.

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
