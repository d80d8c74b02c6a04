"""The basis of every part of a simulation: virtual time, randomness, simulated processes, the trace and the story.

:func:`boot` must run before any import of the code under test, whose default arguments contain ``time.time``. One
Python process runs one simulation.
"""

import os

os.environ["GEVENT_LOOP"] = "tests.simulation.loop.VirtualLoop"
from gevent import monkey

monkey.patch_all()

import hashlib
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import gevent

from tests.simulation.loop import Callback, VirtualLoop

#: Unix time at the start of every simulation, 2026-01-01, and the monotonic clock then.
EPOCH: Final = 1_767_225_600.0
MONOTONIC: Final = 1_000.0

loop: Final[VirtualLoop] = gevent.get_hub().loop


class Process:
    """A simulated process. Its clock is ``offset`` seconds ahead. ``endpoints`` are its ends of connections."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.offset = 0.0
        self.dead = self.frozen = False
        self.slow = world.slow
        self.held: list[Callback] = []
        self.endpoints: list[Any] = []
        #: Keeps what was running when the process died: none of it may run again, not even a ``finally``.
        self.greenlets: list[Any] = []

    def spawn(self, function: Callable[..., object], *args: Any) -> Any:
        """Schedules a function in this process, and returns its greenlet."""
        before, loop.current = loop.current, self
        greenlet = gevent.spawn(_guarded, function, *args)
        loop.current = before
        self.greenlets.append(greenlet)
        return greenlet

    def freeze(self, seconds: float) -> None:
        if not self.frozen and not self.dead:
            self.frozen = True
            loop.call_later(seconds, loop.thaw, self)


def _guarded(function: Callable[..., object], *args: Any) -> None:
    try:
        function(*args)
    except Exception as error:
        world.violation(f"{world.process_name}: {type(error).__name__}: {error}", error)


class _Timeout(gevent.Timeout):  # type: ignore[misc]
    """The timeout of a wait, with few of the calls of gevent's, which take a tenth of all time."""

    def __init__(self, seconds: float) -> None:
        self._call = loop.call_later(seconds, gevent.getcurrent().throw, self)

    def __enter__(self) -> "_Timeout":
        return self

    def close(self, *_: object) -> None:
        self._call.stop()

    cancel = __exit__ = close


class World:
    """The simulation's state: the seed's random numbers, the trace, the story, and what was found."""

    def __init__(self) -> None:
        self.chance = random.Random(0)
        self.entropy = random.Random(0)
        self.story: deque[tuple[float, str, str]] | None = None
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self.faults: list[int] = []
        #: The share of every process's steps that are late, and of the messages on every link.
        self.slow, self.late = 0.0, 0.002
        self.errors: list[BaseException] = []
        self._hash = hashlib.sha256()

    def seed(self, seed: int, *, with_story: bool = False) -> None:
        """Starts a simulation whose random decisions all derive from ``seed``."""
        self.chance.seed(seed)
        self.entropy.seed(seed + 1_000_003)
        random.seed(seed)
        order = random.Random(seed + 2_000_003).random
        loop.choose, loop.chance = lambda count: int(order() * count), order
        self.story = deque(maxlen=40_000) if with_story else None

    @property
    def process_name(self) -> str:
        return getattr(loop.current, "name", "world")

    def trace(self, data: bytes) -> None:
        """Adds to the trace, whose hash shows whether two runs were identical."""
        self._hash.update(b"%d %d %b" % (round(loop.time * 1e6), len(data), data))

    def tell(self, who: str, text: str) -> None:
        """Adds a fact to the trace, and to the story if there is one."""
        self.trace(f"{who}: {text}".encode())
        if self.story is not None:
            self.story.append((loop.time, who, text))

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def violation(self, text: str, error: BaseException | None = None) -> None:
        """Records an error. The simulation ends soon."""
        self.violations.append(f"{loop.time:.3f} s: {text}")
        self.tell("judge", text)
        self.errors += [error] if error else []

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


world: Final = World()


def _now() -> float:
    return EPOCH + loop.time + getattr(loop.current, "offset", 0.0)


def _monotonic() -> float:
    return MONOTONIC + loop.time


def boot() -> None:
    """Replaces the machine's time and random numbers by virtual ones, before the code under test is imported."""
    time.time, time.monotonic, time.perf_counter = _now, _monotonic, _monotonic
    time.time_ns = lambda: int(_now() * 1e9)
    time.monotonic_ns = lambda: int(_monotonic() * 1e9)
    os.urandom = world.entropy.randbytes
    random._urandom = os.urandom  # type: ignore[attr-defined]
    threading._start_new_thread = _start_thread  # type: ignore[attr-defined]
    threading._time = _monotonic  # type: ignore[attr-defined]
    start = gevent.Timeout._start_new_or_dummy
    gevent.Timeout._start_new_or_dummy = lambda seconds=None, *more: (
        start(seconds, *more) if seconds is None or more else _Timeout(seconds)
    )
    queue.time = _monotonic  # type: ignore[attr-defined]


def _start_thread(function: Callable[..., object], args: tuple[Any, ...] = (), kwargs: Any = None) -> int:
    owner = loop.current
    greenlet = gevent.spawn(function, *args, **(kwargs or {}))
    if isinstance(owner, Process):
        owner.greenlets.append(greenlet)
    return id(greenlet)
