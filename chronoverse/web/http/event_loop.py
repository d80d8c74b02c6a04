"""How a greenlet lets the others of its worker run."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import gevent
from gevent.hub import Waiter

_Result = TypeVar("_Result")

#: Seconds that :func:`wait_until_idle` waits at most. In a worker that is never idle, searches so have about a
#: twentieth of the time, and come to their end.
MAX_IDLE_WAIT_SECONDS: Final = 0.005
#: Seconds that a request works before it lets others run, which takes 20 µs. A live line waits for about two of these.
WORK_SLICE_SECONDS: Final = 0.001
#: The same for a search, which goes on only when the event loop is idle. A live line waits for one of these.
SEARCH_SLICE_SECONDS: Final = 0.00025
#: Seconds for which new viewers are accepted before others run. That is enough for some five of them.
ACCEPT_SLICE_SECONDS: Final = 0.002


def yield_to_loop() -> None:
    """Returns when the event loop has polled every socket once more and run what was due.

    ``gevent.sleep(0)`` would not do: gevent runs all greenlets that sleep so in a row, for up to 5 ms, before it polls
    the sockets again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def wait_until_idle() -> bool:
    """Returns True after a whole round of the event loop in which no socket was ready and no timer was due.

    Returns False after :data:`MAX_IDLE_WAIT_SECONDS` without such a round. Only one greenlet at a time may call this:
    all that wait would return in the same round. It uses libev's idle watchers, at 3 µs a round. libuv's would fire in
    every round.
    """
    hub = gevent.get_hub()
    waiter = Waiter(hub)
    with hub.loop.idle() as idle, hub.loop.timer(MAX_IDLE_WAIT_SECONDS) as timer:
        idle.start(waiter.switch, True)
        # ``update`` counts from now. Otherwise the loop would count from the beginning of this round, and after long
        # work in this round the timer would fire at once.
        timer.start(waiter.switch, False, update=True)
        is_idle: bool = waiter.get()
    return is_idle


def run_in_thread(work: Callable[[], _Result]) -> _Result:
    """Runs ``work`` in a thread of gevent's pool, while other greenlets run. Raises what ``work`` raises."""
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
        """Lets others run if the slice is over. Raises what ``let_others_run`` raises."""
        if self._clock() >= self._ends_at:
            self._let_others_run()
            self._ends_at = self._clock() + self._seconds
