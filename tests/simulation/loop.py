"""gevent's event loop with virtual time, created by gevent because the variable ``GEVENT_LOOP`` names it.

Nothing waits: when no callback is ready, the clock jumps to the next timer. ``choose`` selects one of the ready
callbacks. Every callback and timer belongs to the process that was running when it was created, so that a simulated
process can be frozen or dead (:class:`tests.simulation.kernel.Process`). This module does not import gevent.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final


class Callback:
    """A call that is due. ``args`` is None once it was made or stopped."""

    __slots__ = ("args", "callback", "owner")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], owner: Any) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args: tuple[Any, ...] | None = args
        self.owner = owner

    def stop(self) -> None:
        self.callback = self.args = None

    close = stop

    @property
    def pending(self) -> bool:
        return self.callback is not None

    def __bool__(self) -> bool:
        return self.args is not None


class Watcher:
    """A timer of ``after`` seconds; or with None, what never fires: descriptors, signals, and other threads."""

    def __init__(self, loop: "VirtualLoop", after: float | None = None, repeat: float = 0.0) -> None:
        self.loop: Final = loop
        self._after, self._repeat = after, repeat
        self._call: Callback | None = None
        self.args: tuple[Any, ...] | None = None
        self.callback: Callable[..., object] | None = None
        self.ref = True
        self.priority = 0

    def start(self, callback: Callable[..., object], *args: Any, **_: Any) -> None:
        self.stop()
        self.callback, self.args = callback, args
        if self._after is not None:
            self._call = self.loop.call_later(self._after, self._fire)

    def _fire(self) -> None:
        callback, args = self.callback, self.args
        self._call = self.loop.call_later(self._repeat, self._fire) if self._repeat else None
        if callback is not None and args is not None:
            callback(*args)

    def stop(self, *_: object) -> None:
        if self._call is not None:
            self._call.stop()
        self._call = self.callback = self.args = None

    close = __exit__ = stop

    def send(self) -> None: ...  # Of an ``async_`` watcher. There are no other threads.

    @property
    def active(self) -> bool:
        return self._call is not None

    pending = False

    def __enter__(self) -> "Watcher":
        return self


class VirtualLoop:
    """The loop. ``time`` is in seconds since its start. ``choose`` returns a number below that of ready callbacks."""

    MAXPRI = MINPRI = 0
    approx_timer_resolution = 1e-6
    default = True

    def __init__(self, flags: object = None, default: object = None) -> None:
        self.time = 0.0
        self.choose: Callable[[int], int] = lambda count: 0
        #: Returns numbers below 1, which decide what is late.
        self.chance: Callable[[], float] = lambda: 1.0
        #: The process whose code is running. None is the world: the network, the servers and the schedule of faults.
        self.current: Any = None
        self.error_handler: Any = None
        #: Number of callbacks created.
        self.steps = 0
        self._ready: list[Callback] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._count = 0

    def run(self, nowait: bool = False, once: bool = False) -> None:
        """Runs until nothing is left to do."""
        ready, timers, pop = self._ready, self._timers, heapq.heappop
        while True:
            if not ready:
                if not timers:
                    return
                self.time = max(self.time, timers[0][0])
                while timers and timers[0][0] <= self.time:
                    call = pop(timers)[2]
                    if call.args is not None:
                        ready.append(call)
                continue
            at = self.choose(len(ready)) if len(ready) > 1 else 0
            ready[at], ready[-1] = ready[-1], ready[at]
            call = ready.pop()
            callback, args, owner = call.callback, call.args, call.owner
            if callback is None or args is None or (owner is not None and owner.dead):
                continue
            if owner is not None and owner.frozen:
                owner.held.append(call)
                continue
            if owner is not None and owner.slow and self.chance() < owner.slow:
                self._count += 1
                # Up to 0.2 s later. Most are far shorter.
                heapq.heappush(timers, (self.time + 0.2 * self.chance() ** 4, self._count, call))
                continue
            call.callback = None
            self.current = owner
            self.steps += 1
            try:
                callback(*args)
            except BaseException as error:
                self.handle_error(callback, type(error), error, error.__traceback__)
            call.args = None
            self.current = None

    def thaw(self, owner: Any) -> None:
        """Unfreezes the process."""
        owner.frozen = False
        self._ready += owner.held
        owner.held = []

    def run_callback(self, callback: Callable[..., object], *args: Any) -> Callback:
        call = Callback(callback, args, self.current)
        self._ready.append(call)
        return call

    run_callback_threadsafe = run_callback

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Callback:
        """Makes the call after that many seconds."""
        return self.call_at(self.time + max(seconds, 0.0), callback, *args)

    def call_at(self, at: float, callback: Callable[..., object], *args: Any) -> Callback:
        """Makes the call at that time."""
        call = Callback(callback, args, self.current)
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, call))
        return call

    def timer(self, after: float, repeat: float = 0.0, ref: bool = True, priority: object = None) -> Watcher:
        return Watcher(self, after, repeat)

    def _never(self, *_: object, **__: object) -> Watcher:
        return Watcher(self)

    io = signal = async_ = child = fork = idle = prepare = check = stat = _never

    def update(self, *_: object) -> None: ...

    install_sigchld = update_now = destroy = reinit = closing_fd = update

    def now(self) -> float:
        return self.time

    def handle_error(self, context: object, kind: Any, value: Any, traceback: Any) -> None:
        if self.error_handler is None:
            raise value
        self.error_handler.handle_error(context, kind, value, traceback)
