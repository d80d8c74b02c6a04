"""One at a time, in the order in which they asked, and everybody else in between."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final


class Turns:
    """A lock for a ``with``, handed to whoever has waited longest: who asks again at once comes behind all that wait.

    A turn begins with ``pause``, which lets whoever needs no turn go on for once. So however many take turns,
    nobody else waits for more than one. ``seconds`` is how long anybody waits for a turn; when it does not come,
    ``missed`` is raised, made of a text.
    """

    def __init__(self, seconds: float, missed: Callable[[str], Exception], pause: Callable[[], object] = bool) -> None:
        self._seconds: Final = seconds
        self._missed: Final = missed
        self._pause: Final = pause
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        """Begins a turn."""
        self._take()
        try:
            self._pause()
        except BaseException:
            self._give()
            raise

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._give()

    def _take(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        came = False
        try:
            came = mine.wait(self._seconds)
        finally:
            if not came:
                self._leave(mine)
        if not came:
            raise self._missed(f"no turn came within {self._seconds:g} s")

    def _leave(self, mine: threading.Event) -> None:
        """Waits no longer. A turn that was handed over at the last moment is handed on."""
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return
        self._give()

    def _give(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
