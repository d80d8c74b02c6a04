"""How fast each token's subject may publish over HTTP: a bucket of bytes for each, which fills as time goes by."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from chronoverse.errors import TooFast

#: Seconds' worth of bytes that may come at once after as long a silence: a build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that a line counts beside its message: its time, stream and number, about as the store keeps them.
LINE_OVERHEAD_BYTES: Final = 48
#: Subjects remembered before those are forgotten whose buckets are full, like those of anybody new.
MAX_SUBJECTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Bytes that may be published at the monotonic time ``at``, in seconds. Below zero they are a debt."""

    level: float
    updated_at: float

    def filled_until(self, rate: int, now: float) -> "TokenBucket":
        """As it is at ``now`` when ``rate`` bytes come in each second, up to those of :data:`BURST_SECONDS`."""
        return TokenBucket(min(self.level + rate * (now - self.updated_at), rate * BURST_SECONDS), now)

    def seconds_to_wait(self, rate: int) -> int:
        """Whole seconds until something may be published again; 0 when it may be now."""
        return 0 if self.level > 0 else math.floor(-self.level / rate) + 1


#: Of who has published nothing yet.
_NEW: Final = TokenBucket(math.inf, 0)


class TokenBuckets:
    """What this worker has taken of each subject, who may publish ``rate`` bytes a second; None is no bound.

    An append is taken as a whole when there is anything left, and what it is too long is paid for by those behind it.
    ``clock`` is monotonic, in seconds.
    """

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, subject: str) -> None:
        """Raises :class:`TooFast` when ``subject`` must wait."""
        if self._rate and (seconds := self._bucket(subject, self._rate).seconds_to_wait(self._rate)):
            raise TooFast(f"this token may publish {self._rate} bytes a second", seconds)

    def spend(self, subject: str, messages: Iterable[str]) -> None:
        """Lines with these ``messages`` were taken."""
        if self._rate:
            size = sum(len(message.encode()) + LINE_OVERHEAD_BYTES for message in messages)
            bucket = self._bucket(subject, self._rate)
            self._buckets[subject] = TokenBucket(bucket.level - size, bucket.updated_at)
            if len(self._buckets) > MAX_SUBJECTS:
                self._forget_full_buckets(self._rate)

    def _bucket(self, subject: str, rate: int) -> TokenBucket:
        return self._buckets.get(subject, _NEW).filled_until(rate, self._clock())

    def _forget_full_buckets(self, rate: int) -> None:
        now, full = self._clock(), rate * BURST_SECONDS
        self._buckets = {
            subject: bucket for subject, bucket in self._buckets.items() if bucket.filled_until(rate, now).level < full
        }
