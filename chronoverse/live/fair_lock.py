"""A few at a time, each subject in its turn, and everybody else in between."""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final


class FairLock:
    """A lock that up to ``at_once`` holders have at a time, up to ``each`` of them of one subject.

    It is handed to the subjects that wait in turn.

    Of a subject, whoever has waited longest is served first: who asks again at once comes behind all that wait. However
    many requests of one subject wait, another subject waits for one turn of it. A subject that already has ``each``
    turns is passed over until one of them ends. Without subjects all wait in one queue.

    A turn begins with a call of ``pause``, which lets whoever needs no turn go on for once. So however many take turns,
    nobody else waits for more than ``at_once`` of them. ``seconds`` is how long anybody waits for a turn; when it does
    not come, ``missed`` is raised, made of a text; or ``used_up``, when the subject itself has ``each`` turns by then.
    """

    def __init__(
        self,
        seconds: float,
        missed: Callable[[str], Exception],
        pause: Callable[[], object] = bool,
        at_once: int = 1,
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
        self._held: Counter[str] = Counter()
        #: Who waits, by subject; the first subject has the next turn.
        self._queues: dict[str, deque[threading.Event]] = {}

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(map(len, self._queues.values()))

    @contextlib.contextmanager
    def hold(self, subject: str) -> Iterator[None]:
        """A turn of ``subject`` for a ``with``. Raises what ``missed`` or ``used_up`` makes."""
        self._acquire(subject)
        try:
            self._pause()
            yield
        finally:
            self._release(subject)

    def __enter__(self) -> None:
        """Begins a turn of nobody in particular."""
        self._acquire("")
        try:
            self._pause()
        except BaseException:
            self._release("")
            raise

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._release("")

    def _acquire(self, subject: str) -> None:
        with self._lock:
            if self._free and self._held[subject] < self._each:
                self._grant(subject)
                return
            mine = threading.Event()
            self._queues.setdefault(subject, deque()).append(mine)
        came = False
        try:
            came = mine.wait(self._seconds)
        finally:
            if not came:
                self._give_up(subject, mine)
        if not came:
            error = self._used_up if self._held[subject] >= self._each else self._missed
            raise error(f"too many requests at a time: this one did not get its turn within {self._seconds:g} s")

    def _give_up(self, subject: str, mine: threading.Event) -> None:
        """Waits no longer. A turn that was handed over at the last moment is handed on."""
        with self._lock:
            queue = self._queues.get(subject, deque())
            if mine in queue:
                queue.remove(mine)
                if not queue:
                    del self._queues[subject]
                return
        self._release(subject)

    def _release(self, subject: str) -> None:
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
                    # Behind the other subjects.
                    self._queues[following] = queue

    def _grant(self, subject: str) -> None:
        self._free -= 1
        self._held[subject] += 1
