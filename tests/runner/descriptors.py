"""This process's open file descriptors."""

import contextlib
import os
import time
from collections import Counter
from typing import Final

#: Opened by gevent when a thread first needs an event loop, and unrelated to what a test examines.
_EVENT_LOOPS: Final = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")
#: Duration of one iteration of gevent's event loop, which closes descriptors only then, in seconds.
_LOOP_SECONDS: Final = 0.05


def open_descriptors() -> Counter[str]:
    """Counts the open descriptors by target, without the target's number: ``pipe:[4711]`` is counted as ``pipe:``."""
    time.sleep(_LOOP_SECONDS)
    targets: Counter[str] = Counter()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # The listing's own descriptor is closed again.
            target = os.readlink(f"/dev/fd/{name}")
            if target not in _EVENT_LOOPS:
                targets[target if target.startswith("anon_inode:") else target.partition("[")[0]] += 1
    return targets
