"""Counts what a worker delivers, and reports it to the metrics from time to time.

Updating a metric takes some microseconds. So deliveries are counted once per batch, not once per viewer and line.
"""

import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

from chronoverse import metrics
from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.live.feed import Feed

#: Lines older than so many seconds do not count as delays. Their runner was cut off and appends them late, which says
#: nothing about our own delay.
MAX_DELAY_SECONDS: Final = 3_600.0


class DeliveryStats:
    """Lines and bytes sent to viewers, and their delay. ``wall_clock`` returns Unix time in seconds."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lines = self._bytes = self._replays = 0

    def count_delivered(self, lines: int, size: int, viewers: int = 1) -> None:
        """Counts ``lines`` lines with ``size`` bytes, sent to each of ``viewers`` viewers."""
        self._lines += lines * viewers
        self._bytes += size * viewers

    def count_replayed(self, lines: int, size: int) -> None:
        """Counts what one viewer got by a read of its own."""
        self._replays += 1
        self.count_delivered(lines, size)

    def observe_delay(self, entry: RawEntry) -> None:
        """Records the delay of a batch that was just sent. ``entry`` is its oldest entry."""
        written = written_at(entry)
        delay = MAX_DELAY_SECONDS if written is None else self._wall_clock() - written
        if delay < MAX_DELAY_SECONDS:
            # A runner's clock may be ahead of ours.
            metrics.DELIVERY_DELAY.observe(max(delay, 0.0))

    def report(self, feeds: Collection[Feed], silence: float) -> None:
        """Updates the metrics. ``silence`` is for how many seconds the store has not answered."""
        watching = sum([feed.viewer_count for feed in feeds])
        metrics.VIEWERS_BEHIND.set(watching - sum([feed.ring_readers for feed in feeds]))
        metrics.JOBS_WATCHED.set(len(feeds))
        metrics.TAIL_SILENCE.set(silence if feeds else 0.0)
        lines, size, replays = self._lines, self._bytes, self._replays
        metrics.LINES_DELIVERED.inc(lines)
        metrics.BYTES_DELIVERED.inc(size)
        metrics.REPLAY_READS.inc(replays)
        self._lines -= lines
        self._bytes -= size
        self._replays -= replays


def written_at(entry: RawEntry) -> float | None:
    """The timestamp of a raw entry as Unix time. None if it has no valid one."""
    fields = entry[1]
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"timestamp":
            try:
                stamp = datetime.fromisoformat(value.decode("ascii"))
                return stamp.timestamp() if stamp.tzinfo else None
            except (ValueError, OverflowError):
                return None
    return None


def count_store_error(during: str, error: StoreError) -> None:
    """Counts a failed call of the store. ``during`` is ``tail``, ``replay`` or ``request``."""
    kinds = {StoreUnavailable: "unavailable", StoreRefused: "refused"}
    metrics.STORE_ERRORS.labels(during, kinds.get(type(error), "unexpected")).inc()
