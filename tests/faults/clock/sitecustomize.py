"""On ``PYTHONPATH``, makes a process's clock wrong: ``time.time`` is off by what the file that ``CLOCK`` names holds.

Eight bytes, a double, in seconds; they may change at any time. The monotonic clock is untouched.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

_RIGHT: Final = time.time


def _wrong(path: str) -> Callable[[], float]:
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

    def now() -> float:
        off: float = struct.unpack("d", shared[:8])[0]
        return _RIGHT() + off

    return now


if path := os.environ.get("CLOCK"):
    time.time = _wrong(path)
