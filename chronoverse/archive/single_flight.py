"""What was read a moment ago, for others who want the same; and what several want at once, read once."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from chronoverse.errors import ArchiveUnavailable

#: Seconds that anybody waits for what another reads. Any place for objects has answered or given up long before.
MAKING_SECONDS: Final = 60.0

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Uncacheable(Exception):
    """Raised to those who wait when whoever read for them was itself stopped."""


class SingleFlightCache(Generic[_Key, _Value]):
    """Values by key: the ones used last, of ``most_bytes`` together, none older than ``seconds``.

    For threads and greenlets: whoever wants a value that another is just making waits for it.
    """

    def __init__(
        self, most_bytes: int, *, seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_bytes: Final = most_bytes
        self._seconds: Final = seconds
        self._clock: Final = clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._values: OrderedDict[_Key, tuple[_Value, int, float]] = OrderedDict()
        self._making: dict[_Key, Future[_Value]] = {}

    def get(self, key: _Key, make: Callable[[], tuple[_Value, int]]) -> _Value:
        """The value under ``key``; where there is none, what ``make`` returns: it, and its bytes.

        Raises what ``make`` raises, to all who wait for it; :class:`ArchiveUnavailable`.
        """
        while True:
            with self._lock:
                found = self._find(key)
                if found is not None:
                    return found[0]
                making = self._making.get(key)
                if making is None:
                    mine = self._making[key] = Future()
            if making is None:
                return self._make(key, mine, make)
            try:
                return making.result(MAKING_SECONDS)
            except _Uncacheable:
                continue
            except TimeoutError as error:
                raise ArchiveUnavailable(f"the archive was not read within {MAKING_SECONDS:g} s") from error

    def forget(self, wanted: Callable[[_Key], bool]) -> None:
        """Lets go of what is under keys that are ``wanted``. What is being made is kept by nobody."""
        with self._lock:
            for key in [key for key in self._values if wanted(key)]:
                self._drop(key)
            for key in [key for key in self._making if wanted(key)]:
                del self._making[key]

    def _make(self, key: _Key, mine: "Future[_Value]", make: Callable[[], tuple[_Value, int]]) -> _Value:
        asked_at = self._clock()
        try:
            value, size = make()
        except BaseException as error:
            with self._lock:
                if self._making.get(key) is mine:
                    del self._making[key]
            mine.set_exception(error if isinstance(error, Exception) else _Uncacheable())
            raise
        with self._lock:
            if self._making.get(key) is mine:
                del self._making[key]
                self._keep(key, value, size, asked_at)
        mine.set_result(value)
        return value

    def _find(self, key: _Key) -> tuple[_Value, int, float] | None:
        found = self._values.get(key)
        if found is None:
            return None
        if self._seconds is not None and self._clock() - found[2] > self._seconds:
            self._drop(key)
            return None
        self._values.move_to_end(key)
        return found

    def _keep(self, key: _Key, value: _Value, size: int, asked_at: float) -> None:
        if size > self._most_bytes:
            return
        self._values[key] = (value, size, asked_at)
        self._bytes += size
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._values)))

    def _drop(self, key: _Key) -> None:
        self._bytes -= self._values.pop(key)[1]
