"""A lock that serves its subjects in turn."""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final


class FairLock:
    """A lock with up to ``at_once`` holders, up to ``each`` of them of one subject, such as the user of a token.

    A holder first calls ``pause``. After ``seconds`` of waiting, raises the error that ``missed`` makes of a text, or
    ``used_up`` if the subject already has ``each`` holders.
    """

    def __init__(
        self,
        seconds: float,
        missed: Callable[[str], Exception],
        pause: Callable[[], object] = lambda: None,
        at_once: float = 1,
        each: int | None = None,
        used_up: Callable[[str], Exception] | None = None,
    ) -> None:
        self._seconds: Final = seconds
        self._missed: Final = missed
        self._used_up: Final = used_up or missed
        self._pause: Final = pause
        self._lock = threading.Lock()
        self._free = at_once
        self._each: Final = at_once if each is None else each
        self._held: Counter[Hashable] = Counter()
        #: The callers that wait, by subject. The first subject is the next to get the lock.
        self._queues: dict[Hashable, deque[threading.Event]] = {}

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @contextlib.contextmanager
    def hold(self, subject: Hashable = "", seconds: float | None = None) -> Iterator[bool]:
        """Holds the lock for ``subject`` during a ``with`` block, after up to ``seconds``, if these are not the lock's.

        Yields whether it had to wait. Raises what ``missed`` or ``used_up`` makes.
        """
        waited = self._acquire(subject, self._seconds if seconds is None else seconds)
        try:
            self._pause()
            yield waited
        finally:
            self._release(subject)

    def _acquire(self, subject: Hashable, seconds: float) -> bool:
        with self._lock:
            if self._free and self._held[subject] < self._each:
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
            error = self._used_up if self._held[subject] >= self._each else self._missed
            raise error(f"too many requests at a time: this one did not get its turn within {seconds:g} s")
        return True

    def _give_up(self, subject: Hashable, mine: threading.Event) -> None:
        """Stops waiting. If the lock was granted at the last moment, it is passed on."""
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
            following = next((waits for waits in self._queues if self._held[waits] < self._each), None)
            if following is not None:
                queue = self._queues.pop(following)
                self._grant(following)
                queue.popleft().set()
                if queue:
                    self._queues[following] = queue

    def _grant(self, subject: Hashable) -> None:
        self._free -= 1
        self._held[subject] += 1
