"""A lock for which subjects, such as users, take turns."""

import contextlib
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class FairLock:
    """A lock with up to ``at_once`` holders, and up to ``each`` per subject, such as the user of a token.

    :meth:`hold` calls ``pause`` once it has the lock. If it does not get the lock within ``seconds``, it raises what
    ``missed`` returns or, if the subject already has ``each`` holders, what ``used_up`` returns (if given).
    """

    seconds: float
    missed: Callable[[str], Exception]
    pause: Callable[[], object] = lambda: None
    at_once: float = 1
    each: float = math.inf
    used_up: Callable[[str], Exception] | None = None
    _free: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _held: Counter[Hashable] = field(default_factory=Counter)
    #: Waiting callers by subject. The first subject is the next to get the lock.
    _queues: dict[Hashable, deque[threading.Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = self.at_once

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @contextlib.contextmanager
    def hold(self, subject: Hashable = "", seconds: float | None = None) -> Iterator[bool]:
        """Holds the lock for ``subject`` in the ``with`` block. Waits up to ``seconds`` (default: the lock's).

        Yields whether it had to wait. Raises the error that ``missed`` or ``used_up`` returns.
        """
        waited = self._acquire(subject, self.seconds if seconds is None else seconds)
        try:
            self.pause()
            yield waited
        finally:
            self._release(subject)

    def _acquire(self, subject: Hashable, seconds: float) -> bool:
        with self._lock:
            if self._free and self._held[subject] < self.each:
                self._grant(subject)
                return False
            mine = threading.Event()
            self._queues.setdefault(subject, deque()).append(mine)
        came = False
        try:
            came = mine.wait(seconds)
        finally:
            if not came:
                self._give_up(subject, mine)
        if not came:
            error = self.used_up if self.used_up and self._held[subject] >= self.each else self.missed
            raise error(f"too many concurrent requests: timed out after {seconds:g} s")
        return True

    def _give_up(self, subject: Hashable, mine: threading.Event) -> None:
        """Stops waiting. Releases the lock if it was granted meanwhile."""
        with self._lock:
            queue = self._queues.get(subject, deque())
            if mine in queue:
                queue.remove(mine)
                if not queue:
                    del self._queues[subject]
                return
        self._release(subject)

    def _release(self, subject: Hashable) -> None:
        with self._lock:
            self._free += 1
            self._held[subject] -= 1
            if not self._held[subject]:
                del self._held[subject]
            following = next((waits for waits in self._queues if self._held[waits] < self.each), None)
            if following is not None:
                queue = self._queues.pop(following)
                self._grant(following)
                queue.popleft().set()
                if queue:
                    self._queues[following] = queue

    def _grant(self, subject: Hashable) -> None:
        self._free -= 1
        self._held[subject] += 1
