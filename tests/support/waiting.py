"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import Final

#: Seconds between two checks of the condition: a tenth of the wait so far, within these bounds. Many conditions ask a
#: server, and the tests wait for most of their time: with 5 ms all the time, that was much of their CPU.
POLL_SECONDS: Final = 0.005
SLOW_POLL_SECONDS: Final = 0.05


def deadline(timeout: float, what: str) -> Callable[[], bool]:
    """An end for a loop that waits for something: ``while in_time() and …``.

    Returns a function that is true for ``timeout`` seconds, and then raises AssertionError with ``what``.
    """
    end = time.monotonic() + timeout

    def in_time() -> bool:
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        return True

    return in_time


def wait_until(predicate: Callable[[], object], timeout: float, what: str, slowest: float = SLOW_POLL_SECONDS) -> None:
    """Returns once ``predicate()`` is true. Raises AssertionError with ``what`` after ``timeout`` seconds.

    It is called every ``slowest`` seconds at least.
    """
    in_time = deadline(timeout, what)
    began = time.monotonic()
    while not predicate() and in_time():
        time.sleep(min(max((time.monotonic() - began) / 10, POLL_SECONDS), slowest))
