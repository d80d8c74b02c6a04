"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import Final

#: Seconds between two checks of the condition.
POLL_SECONDS: Final = 0.005


def wait_until(predicate: Callable[[], object], timeout: float, what: str) -> None:
    """Returns once ``predicate()`` is true. Raises AssertionError with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL_SECONDS)
