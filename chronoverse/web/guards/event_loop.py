"""Time slices: a greenlet lets the others of its worker run."""

import time
from typing import Final

import gevent


def yield_to_loop() -> None:
    """Returns once the event loop has polled every socket again and run what was due.

    ``gevent.sleep(0)`` is not enough: gevent runs all greenlets that called it in a row, for up to 5 ms, before it
    polls the sockets again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


class TimeSlice:
    """Bounds how long a greenlet works before it lets others run."""

    def __init__(self, seconds: float = 0.001) -> None:
        self._seconds: Final = seconds
        self._ends_at = time.monotonic() + seconds

    def check(self) -> bool:
        """Lets others run if the slice is over; then a new one begins. Call it often, such as for each line.

        Returns whether others ran.
        """
        if time.monotonic() < self._ends_at:
            return False
        yield_to_loop()
        self._ends_at = time.monotonic() + self._seconds
        return True
