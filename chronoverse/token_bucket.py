"""A token bucket: https://en.wikipedia.org/wiki/Token_bucket."""

import math
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class TokenBucket:
    """Fills at ``rate`` a second; an empty one is full after ``burst_seconds``. Full at first.

    ``now`` is a time on one clock, in seconds.
    """

    rate: float
    burst_seconds: float
    _empty_at: float = -math.inf

    def debt_seconds(self, now: float) -> float:
        """Seconds until it has no debt. Negative when there is something in it: ``-burst_seconds`` when it is full."""
        seconds, least = self._empty_at - now, -self.burst_seconds
        return seconds if seconds > least else least

    def take(self, amount: float, now: float, most_debt_seconds: float = math.inf) -> None:
        """Takes ``amount`` out of it. It goes into debt when it has less."""
        seconds = self.debt_seconds(now) + amount / self.rate
        self._empty_at = now + (seconds if seconds < most_debt_seconds else most_debt_seconds)
