"""What this process holds open."""

import contextlib
import os
import time
from collections import Counter
from typing import Final

#: An event loop opens these when a thread first needs one, under gevent; they are no command's.
_EVENT_LOOPS: Final = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")
#: Seconds for gevent's event loop to go round: its os.close() closes no earlier than that.
_ROUND_SECONDS: Final = 0.05


def open_descriptors() -> Counter[str]:
    """Each open descriptor's target without its number (``pipe:[4711]`` is ``pipe:``), and how many have it."""
    time.sleep(_ROUND_SECONDS)
    targets: Counter[str] = Counter()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            target = os.readlink(f"/dev/fd/{name}")
            if target not in _EVENT_LOOPS:
                targets[target if target.startswith("anon_inode:") else target.partition("[")[0]] += 1
    return targets
