"""Tells operators what the store does to logs behind our back: at the start, and by a metric."""

import time
from collections.abc import Callable
from typing import Final, Protocol

from chronoverse import metrics
from chronoverse.errors import StoreError

#: Seconds between two looks, which are one INFO of each server.
LOOK_SECONDS: Final = 10.0


class Watched(Protocol):
    """What a look needs; see :class:`chronoverse.store.Store`."""

    def warnings(self) -> list[str]: ...
    def evicted_keys(self) -> int: ...


def watch(
    store: Watched, warn: Callable[[str], object] | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Looks for ever, in a thread of its own. The first look that succeeds calls ``warn`` with each warning."""
    while True:
        try:
            if warn is not None:
                for warning in store.warnings():
                    warn(warning)
                warn = None
            metrics.STORE_EVICTED.set(store.evicted_keys())
        except StoreError:
            pass  # a store that is away is told of elsewhere
        sleep(LOOK_SECONDS)
