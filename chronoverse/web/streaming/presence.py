"""Says whether anybody watches a running or awaited job live, in this worker or in another one of the same machine.

The workers share a page of memory, in which each writes the time. Only this project's gunicorn worker does so. Under
another worker class it looks as if nobody watched.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

#: Seconds for which what a worker wrote is valid. Each worker writes ten times as often.
STALE_SECONDS: Final = 1.0
#: What a worker writes: a time of the monotonic clock, which is the same for all processes of a machine.
_TIME: Final = struct.Struct("d")
#: A page of memory that all workers share. gunicorn's master imports this module, and its workers are forked from it.
#: So the page must be made when the module is imported.
_PAGE: Final = mmap.mmap(-1, mmap.PAGESIZE)
#: Slots in the page. With more workers than slots, two may share one. That does no harm.
_SLOTS: Final = mmap.PAGESIZE // _TIME.size


class Presence:
    """Whether anybody watches live. True and False are read by ``bool``. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, page: mmap.mmap = _PAGE) -> None:
        self._clock = clock
        self._page = page

    def announce(self) -> None:
        """Tells all workers that somebody watches here. To be repeated while that is so."""
        _TIME.pack_into(self._page, os.getpid() % _SLOTS * _TIME.size, self._clock())

    def __bool__(self) -> bool:
        oldest = self._clock() - STALE_SECONDS
        return any(written > oldest for (written,) in _TIME.iter_unpack(self._page[: _SLOTS * _TIME.size]))
