"""Whether anybody watches a job that goes on, in this worker or beside it.

Only our own worker class tells; where gunicorn has another, nobody seems to.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

#: Seconds after which what a worker told says nothing of now. Each tells ten times as often.
STALE_SECONDS: Final = 1.0
#: What a worker tells: when, on the monotonic clock, which all processes of a machine share.
_TOLD: Final = struct.Struct("d")
#: One page between the processes that are forked from the one that imports this, as gunicorn's master does. Of more
#: workers than have a place there two may share one, which is as good.
_BOARD: Final = mmap.mmap(-1, mmap.PAGESIZE)
_PLACES: Final = mmap.PAGESIZE // _TOLD.size


class Presence:
    """What the workers of one master tell each other. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, board: mmap.mmap = _BOARD) -> None:
        self._clock = clock
        self._board = board

    def announce(self) -> None:
        """Somebody watches a job here that goes on, or one that is awaited."""
        _TOLD.pack_into(self._board, os.getpid() % _PLACES * _TOLD.size, self._clock())

    def __bool__(self) -> bool:
        """Whether somebody does anywhere."""
        oldest = self._clock() - STALE_SECONDS
        return any(told > oldest for (told,) in _TOLD.iter_unpack(self._board[: _PLACES * _TOLD.size]))
