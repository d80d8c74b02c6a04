"""Waiting for something to become true, with a deadline instead of a guess."""

import time
from collections.abc import Callable
from typing import Final

#: Seconds between looks.
POLL_SECONDS: Final = 0.005


def wait_until(predicate: Callable[[], object], timeout: float, what: str) -> None:
    """Return once ``predicate()`` is true; fail with ``what`` when it is not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL_SECONDS)
