"""A token bucket: https://en.wikipedia.org/wiki/Token_bucket."""

import math
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class TokenBucket:
    """A bucket that fills at ``rate`` per second, and is full after ``burst_seconds``. Starts full.

    ``now`` is a time in seconds; all calls must use the same clock.
    """

    rate: float
    burst_seconds: float
    _empty_at: float = -math.inf

    def debt_seconds(self, now: float) -> float:
        """Seconds until the debt is paid. Negative if tokens are left; ``-burst_seconds`` if the bucket is full."""
        seconds, least = self._empty_at - now, -self.burst_seconds
        return seconds if seconds > least else least

    def take(self, amount: float, now: float, most_debt_seconds: float = math.inf) -> None:
        """Takes ``amount``. If there is less, the bucket goes into debt, of at most ``most_debt_seconds``."""
        seconds = self.debt_seconds(now) + amount / self.rate
        self._empty_at = now + (seconds if seconds < most_debt_seconds else most_debt_seconds)
