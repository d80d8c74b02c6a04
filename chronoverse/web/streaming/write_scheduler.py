"""Sockets that were full are written to when they have room again, by one greenlet for all of them.

One greenlet for each would have to be switched to, and to ask the loop anew, for every write.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.event

from chronoverse.web.streaming.connection import SEND_SECONDS

#: Seconds for which sockets are written to before others go on.
PASS_SECONDS: Final = 0.003
#: Seconds between looks for sockets that have had no room for too long.
SWEEP_SECONDS: Final = 1.0
#: libev's number for "may be written to".
_WRITE: Final = 2

log = logging.getLogger(__name__)


class PendingWrite:
    """A full socket being watched: ``fill`` is called when it has room, ``give_up`` when one write takes too long."""

    __slots__ = ("_pump", "_watcher", "deadline", "fill", "give_up", "told")

    def __init__(
        self, pump: "WriteScheduler", watcher: Any, fill: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        self._pump = pump
        self._watcher = watcher
        self.fill, self.give_up = fill, give_up
        #: Whether it has room, and waits for its turn.
        self.told = False
        self.renew()
        watcher.start(pump.tell, self)

    def renew(self) -> None:
        """Another write begins, which may take its own :data:`SEND_SECONDS`."""
        self.deadline = self._pump.clock() + SEND_SECONDS

    def close(self) -> None:
        """Neither is called any more."""
        self._watcher.stop()
        self._watcher.close()
        self._pump.forget(self)


class WriteScheduler:
    """All full sockets of a worker. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self._rooms: set[PendingWrite] = set()
        self._ready: deque[PendingWrite] = deque()
        self._some = gevent.event.Event()
        self._running = False

    def watch(self, fd: int, fill: Callable[[], None], give_up: Callable[[], None]) -> PendingWrite:
        """Calls ``fill``, which must not wait, each time that the socket has room, until the room is closed."""
        room = PendingWrite(self, gevent.get_hub().loop.io(fd, _WRITE), fill, give_up)
        self._rooms.add(room)
        if not self._running:
            self._running = True
            gevent.spawn(self._run)
        return room

    def forget(self, room: PendingWrite) -> None:
        """It is closed."""
        self._rooms.discard(room)
        if not self._rooms:
            self._some.set()

    def tell(self, room: PendingWrite) -> None:
        """On the hub: it has room."""
        if not room.told:
            room.told = True
            self._ready.append(room)
            self._some.set()

    def _run(self) -> None:
        swept = self.clock()
        while self._rooms:
            self._some.wait(SWEEP_SECONDS)
            self._some.clear()
            self._fill_ready()
            if self.clock() >= swept + SWEEP_SECONDS:
                swept = self.clock()
                # Who has room has not been asked yet: that is our doing, not the peer's.
                for room in [room for room in self._rooms if room.deadline <= swept and not room.told]:
                    self._do(room, room.give_up)
        self._running = False

    def _do(self, room: PendingWrite, what: Callable[[], None]) -> None:
        """What is wrong with one must not keep the others from being written to."""
        if room not in self._rooms:
            return
        try:
            what()
        except Exception:
            log.exception("a stream failed")
            if room in self._rooms:
                room.close()

    def _fill_ready(self) -> None:
        """One turn for each that has room now."""
        until = self.clock() + PASS_SECONDS
        for _ in range(len(self._ready)):
            room = self._ready.popleft()
            room.told = False
            self._do(room, room.fill)
            if self.clock() >= until:
                gevent.sleep(0)
                until = self.clock() + PASS_SECONDS
        if self._ready:
            self._some.set()
