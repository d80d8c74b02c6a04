"""The file descriptors that this process has open."""

import contextlib
import os
import time
from collections import Counter
from typing import Final

#: gevent opens these when a thread first needs an event loop. They do not belong to what a test examines.
_EVENT_LOOPS: Final = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")
#: Seconds for one iteration of gevent's event loop, which closes descriptors only then.
_LOOP_SECONDS: Final = 0.05


def open_descriptors() -> Counter[str]:
    """Counts the open descriptors by target. A target has no number: ``pipe:[4711]`` is counted as ``pipe:``."""
    time.sleep(_LOOP_SECONDS)
    targets: Counter[str] = Counter()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # The descriptor of the listing itself is closed again.
            target = os.readlink(f"/dev/fd/{name}")
            if target not in _EVENT_LOOPS:
                targets[target if target.startswith("anon_inode:") else target.partition("[")[0]] += 1
    return targets
