"""Limits how fast each token's subject may publish over HTTP, by a token bucket of bytes for each subject.

https://en.wikipedia.org/wiki/Token_bucket
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from chronoverse.errors import TooFast

#: Size of a full bucket, in seconds at the rate. A build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that each line costs beside its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Buckets that are stored. When there are more, full ones are dropped: a new subject's bucket is full, too.
MAX_SUBJECTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """``level`` is how many bytes may be published at ``updated_at``, in monotonic seconds. Below zero it is a debt."""

    level: float
    updated_at: float

    def filled_until(self, rate: int, now: float) -> "TokenBucket":
        """The bucket at ``now``. It fills by ``rate`` bytes a second, up to :data:`BURST_SECONDS` of them."""
        return TokenBucket(min(self.level + rate * (now - self.updated_at), rate * BURST_SECONDS), now)

    def seconds_to_wait(self, rate: int) -> int:
        """Whole seconds until its subject may publish again. 0 when it may now."""
        return 0 if self.level > 0 else math.floor(-self.level / rate) + 1


#: The bucket of a subject that has published nothing yet.
_NEW: Final = TokenBucket(math.inf, 0)


class TokenBuckets:
    """A worker's buckets, one for each subject. ``rate`` is bytes a second; None is no limit.

    An append is accepted as a whole when the bucket is not empty. If it is larger than what is left, the bucket goes
    into debt, and the next appends wait. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, subject: str) -> None:
        """Raises :class:`TooFast` when ``subject`` must wait, with the seconds."""
        if self._rate and (seconds := self._bucket(subject, self._rate).seconds_to_wait(self._rate)):
            raise TooFast(f"this token may publish {self._rate} bytes a second", seconds)

    def spend(self, subject: str, messages: Iterable[str]) -> None:
        """Takes lines with these ``messages`` out of the subject's bucket."""
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
