"""Letting everybody else in the worker go on."""

import gevent


def let_others() -> None:
    """Comes back when the event loop has looked at every socket once more and run what was due.

    ``sleep(0)`` would not do: gevent runs all who sleep so in a row, for 5 ms, before it looks at a socket again.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)
