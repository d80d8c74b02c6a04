"""Writes to full sockets when they have room again. One greenlet does it for all of a worker's sockets.

With a greenlet for each socket, every write would cost a switch of greenlets and a new watch in the event loop.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.event

from chronoverse.web.guards.connection import STALL_SECONDS

#: Seconds of writing after which other greenlets run.
PASS_SECONDS: Final = 0.003
#: libev's constant EV_WRITE: the socket can be written to. gevent has no public name for it.
_WRITABLE: Final = 2

log = logging.getLogger(__name__)


class PendingWrite:
    """A full socket. ``write_more`` is called when it has room, ``give_up`` when one write takes too long."""

    __slots__ = ("_scheduler", "_watcher", "deadline", "give_up", "is_writable", "write_more")

    def __init__(
        self, scheduler: "WriteScheduler", watcher: Any, write_more: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._watcher = watcher
        self.write_more, self.give_up = write_more, give_up
        #: Whether the socket has room, and waits in the scheduler's queue.
        self.is_writable = False
        self.renew()
        watcher.start(scheduler.queue, self)

    def renew(self) -> None:
        """Begins another write, which may again take :data:`STALL_SECONDS`."""
        self.deadline = self._scheduler.clock() + STALL_SECONDS

    def close(self) -> None:
        """Ends the watch. Neither function is called any more."""
        self._watcher.stop()
        self._watcher.close()
        self._scheduler.remove(self)


class WriteScheduler:
    """All full sockets of a worker. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self._pending: set[PendingWrite] = set()
        self._writable: deque[PendingWrite] = deque()
        #: Set when there is a writable socket, or no socket any more.
        self._wakeup = gevent.event.Event()
        self._is_running = False

    def watch(self, fd: int, write_more: Callable[[], None], give_up: Callable[[], None]) -> PendingWrite:
        """Calls ``write_more``, which must not wait, each time that the socket has room, until the result is closed."""
        pending = PendingWrite(self, gevent.get_hub().loop.io(fd, _WRITABLE), write_more, give_up)
        self._pending.add(pending)
        if not self._is_running:
            self._is_running = True
            gevent.spawn(self._run)
        return pending

    def remove(self, pending: PendingWrite) -> None:
        """Forgets a closed one."""
        self._pending.discard(pending)
        if not self._pending:
            self._wakeup.set()

    def queue(self, pending: PendingWrite) -> None:
        """Notes that a socket has room. The event loop calls this, so it must not wait."""
        if not pending.is_writable:
            pending.is_writable = True
            self._writable.append(pending)
            self._wakeup.set()

    def _run(self) -> None:
        swept_at = self.clock()
        while self._pending:
            # Seconds between two checks for sockets that have had no room for too long.
            self._wakeup.wait(1.0)
            self._wakeup.clear()
            self._write_pass()
            if self.clock() >= swept_at + 1.0:
                swept_at = self.clock()
                # A writable one that was not written to yet is late because of us, not because of its client.
                late = [each for each in self._pending if each.deadline <= swept_at and not each.is_writable]
                for pending in late:
                    self._call(pending, pending.give_up)
        self._is_running = False

    def _call(self, pending: PendingWrite, function: Callable[[], None]) -> None:
        """Calls ``function`` unless ``pending`` was closed. An error closes only this one."""
        if pending not in self._pending:
            return
        try:
            function()
        except Exception:
            log.exception("a stream failed")
            if pending in self._pending:
                pending.close()

    def _write_pass(self) -> None:
        """Writes once to each socket that has room now."""
        until = self.clock() + PASS_SECONDS
        for _ in range(len(self._writable)):
            pending = self._writable.popleft()
            pending.is_writable = False
            self._call(pending, pending.write_more)
            if self.clock() >= until:
                gevent.sleep(0)
                until = self.clock() + PASS_SECONDS
        if self._writable:
            self._wakeup.set()
