"""Letting everybody else in the worker go on."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import gevent
from gevent.hub import Waiter

_Result = TypeVar("_Result")

#: Seconds that work of no hurry stands back, at most, before it goes on for a moment all the same: in a worker that
#: has no rest it has some twentieth of the time, and comes to its end.
STAND_BACK_SECONDS: Final = 0.005
#: Seconds for which viewers that come are let in before everybody else goes on: some five of them.
ARRIVING_SECONDS: Final = 0.002


def yield_to_loop() -> None:
    """Comes back when the event loop has looked at every socket once more and run what was due.

    ``sleep(0)`` would not do: gevent runs all who sleep so in a row, for 5 ms, before it looks at a socket again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def when_idle() -> bool:
    """Comes back when a whole round of the event loop has found nothing to do: no socket had news, nobody was due.

    After :data:`STAND_BACK_SECONDS` in any case: then this is False. For one greenlet at a time: all that wait so come
    back in the same round. libev's idle watchers do that, at 3 µs a round; libuv's come back in every round.
    """
    hub = gevent.get_hub()
    waiter = Waiter(hub)
    with hub.loop.idle() as idle, hub.loop.timer(STAND_BACK_SECONDS) as timer:
        idle.start(waiter.switch, True)
        # From now, not from when the round began, or work that held up a round for long would not stand back at all.
        timer.start(waiter.switch, False, update=True)
        idle_at_last: bool = waiter.get()
    return idle_at_last


def in_thread(work: Callable[[], _Result]) -> _Result:
    """Has a thread of gevent's pool do ``work``, and lets everybody else go on meanwhile. Raises what that raises."""
    result: _Result = gevent.get_hub().threadpool.apply(work)
    return result


class TimedYield:
    """Lets others go on when they could not for ``seconds``: a round of the loop costs a tenth of letting one in."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = clock() + seconds

    def __call__(self) -> None:
        """To be called now and then."""
        if self._clock() >= self._until:
            yield_to_loop()
            self._until = self._clock() + self._seconds
