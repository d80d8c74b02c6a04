"""Letting everybody else in the worker go on."""

import time
from collections.abc import Callable
from typing import Final

import gevent

#: Seconds for which viewers that come are let in before everybody else goes on: some five of them.
ARRIVING_SECONDS: Final = 0.002


def let_others() -> None:
    """Comes back when the event loop has looked at every socket once more and run what was due.

    ``sleep(0)`` would not do: gevent runs all who sleep so in a row, for 5 ms, before it looks at a socket again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


class Sparingly:
    """Lets others go on when they could not for ``seconds``: a round of the loop costs a tenth of letting one in."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = 0.0

    def __call__(self) -> None:
        """To be called now and then."""
        if self._clock() >= self._until:
            let_others()
            self._until = self._clock() + self._seconds
