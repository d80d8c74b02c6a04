"""Waiting for a condition, with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import Final

#: Seconds between checks: a tenth of the wait so far, within these limits. Many conditions ask a server, and tests
#: spend most of their time waiting: checking every 5 ms took much of their CPU time.
POLL_SECONDS: Final = 0.005
SLOW_POLL_SECONDS: Final = 0.05


def deadline(timeout: float, what: str) -> Callable[[], bool]:
    """A deadline for a loop that waits for something: ``while in_time() and …``.

    Returns a function that returns True for ``timeout`` seconds, then raises AssertionError with ``what``.
    """
    end = time.monotonic() + timeout

    def in_time() -> bool:
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        return True

    return in_time


def wait_until(predicate: Callable[[], object], timeout: float, what: str, slowest: float = SLOW_POLL_SECONDS) -> None:
    """Returns once ``predicate()`` is true. Raises AssertionError with ``what`` after ``timeout`` seconds.

    Checks at least every ``slowest`` seconds.
    """
    in_time = deadline(timeout, what)
    began = time.monotonic()
    while not predicate() and in_time():
        time.sleep(min(max((time.monotonic() - began) / 10, POLL_SECONDS), slowest))


class NoDelay(threading.Event):
    """A stop event whose waits take no time. Records their timeouts. Set after ``limit`` waits."""

    def __init__(self, limit: int = 1_000) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.limit = limit

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        if len(self.waits) >= self.limit:
            self.set()
        return self.is_set()
