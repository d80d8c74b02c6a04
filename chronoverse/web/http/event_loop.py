"""Letting everybody else in the worker go on."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import gevent
from gevent.hub import Waiter

_Result = TypeVar("_Result")

#: Seconds that work of no hurry stands back, at most, before it goes on for a moment all the same: in a worker that
#: has no rest it has some twentieth of the time, and comes to its end.
MAX_IDLE_WAIT_SECONDS: Final = 0.005
#: Seconds that a request works before it lets others run, which takes 20 µs. A live line waits for about two of these.
WORK_SLICE_SECONDS: Final = 0.001
#: The same for a search, which goes on only when the event loop is idle. A live line waits for one of these.
SEARCH_SLICE_SECONDS: Final = 0.00025
#: Seconds for which viewers that come are let in before everybody else goes on: some five of them.
ACCEPT_SLICE_SECONDS: Final = 0.002


def yield_to_loop() -> None:
    """Comes back when the event loop has looked at every socket once more and run what was due.

    ``sleep(0)`` would not do: gevent runs all who sleep so in a row, for 5 ms, before it looks at a socket again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def wait_until_idle() -> bool:
    """Comes back when a whole round of the event loop has found nothing to do: no socket had news, nobody was due.

    After :data:`STAND_BACK_SECONDS` in any case: then this is False. For one greenlet at a time: all that wait so come
    back in the same round. libev's idle watchers do that, at 3 µs a round; libuv's come back in every round.
    """
    hub = gevent.get_hub()
    waiter = Waiter(hub)
    with hub.loop.idle() as idle, hub.loop.timer(MAX_IDLE_WAIT_SECONDS) as timer:
        idle.start(waiter.switch, True)
        # From now, not from when the round began, or work that held up a round for long would not stand back at all.
        timer.start(waiter.switch, False, update=True)
        idle_at_last: bool = waiter.get()
    return idle_at_last


def run_in_thread(work: Callable[[], _Result]) -> _Result:
    """Has a thread of gevent's pool do ``work``, and lets everybody else go on meanwhile. Raises what that raises."""
    result: _Result = gevent.get_hub().threadpool.apply(work)
    return result


class TimeSlice:
    """Bounds how long a greenlet works before it lets others run.

    Call :meth:`check` often, for example for each line. After ``seconds`` of work it calls ``let_others_run``, and a
    new slice begins. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        seconds: float = WORK_SLICE_SECONDS,
        let_others_run: Callable[[], object] = yield_to_loop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._let_others_run = let_others_run
        self._clock = clock
        self._ends_at = clock() + seconds

    def check(self) -> None:
        """Lets others run if the slice is over. Raises as ``let_others_run`` does."""
        if self._clock() >= self._ends_at:
            self._let_others_run()
            self._ends_at = self._clock() + self._seconds
