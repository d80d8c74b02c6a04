"""Cooperative scheduling: lets a greenlet yield to the others of its worker."""

import time
from typing import Final

import gevent


def yield_to_loop() -> None:
    """Yields until the event loop has polled every socket again and run what was due.

    ``gevent.sleep(0)`` is not enough: gevent first runs all greenlets that called it, for up to 5 ms.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


class TimeSlice:
    """Limits how long a greenlet runs before it yields."""

    def __init__(self, seconds: float = 0.001) -> None:
        self._seconds: Final = seconds
        self._ends_at = time.monotonic() + seconds

    def check(self) -> bool:
        """Yields if the slice is over, and starts a new one. Returns whether it yielded. Call it often."""
        if time.monotonic() < self._ends_at:
            return False
        yield_to_loop()
        self._ends_at = time.monotonic() + self._seconds
        return True
