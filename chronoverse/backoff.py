"""Retry delays of all loops that retry, except ``embedded/supervisor.py``, which runs without this package."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Delays in seconds: ``first``, then doubled each time up to ``longest``.

    ``jitter`` is the random part: with 0.5, a delay is from 50 % to 100 % of its full length, so that clients do not
    retry together.
    """

    first: float
    longest: float
    jitter: float = 0.5

    def delay(self, failures: int, chance: Callable[[], float] = random.random) -> float:
        """Seconds to wait after ``failures`` in a row (at least one). ``chance`` returns numbers from 0 to 1."""
        # Every policy reaches its longest delay before 16 doublings.
        full = min(self.first * 2.0 ** min(failures - 1, 16), self.longest)
        return full * (1 - self.jitter + self.jitter * chance()) if self.jitter else full


@dataclass(slots=True, eq=False)
class Backoff:
    """Counts a loop's consecutive failures, and returns its delays. ``clock`` returns monotonic seconds."""

    policy: RetryPolicy
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    failures: int = 0
    _failing_since: float | None = None

    def record_failure(self) -> None:
        """Counts a failure. Can be called before each attempt, if :meth:`record_success` is called after a success."""
        self.failures += 1

    def record_success(self) -> None:
        """Resets the count, so that the next failure is the first."""
        self.failures, self._failing_since = 0, None

    def delay(self) -> float:
        """Seconds to wait before the next attempt. After a success: the policy's first delay, without jitter."""
        if not self.failures:
            return min(self.policy.first, self.policy.longest)
        return self.policy.delay(self.failures, self.chance)

    def seconds_failing(self) -> float:
        """Seconds since the first call after the last success. Call this after each failed attempt."""
        if self._failing_since is None:
            self._failing_since = self.clock()
        return self.clock() - self._failing_since
