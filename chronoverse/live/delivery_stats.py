"""What a worker has delivered, counted once per batch and told to the metrics now and then.

Telling costs some microseconds, so nothing here is done once per viewer and line.
"""

import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

from chronoverse import metrics
from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.live.feed import Feed

#: Seconds. An older line was written long ago and is only now appended, as by a runner that was cut off for a day:
#: that says nothing of how we deliver.
MAX_DELAY_SECONDS: Final = 3_600.0


class DeliveryStats:
    """Lines and bytes handed to viewers, and how late. ``wall_clock`` is Unix time in seconds."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lines = self._bytes = self._replays = 0

    def count_delivered(self, lines: int, size: int, viewers: int = 1) -> None:
        """So many lines, ``size`` bytes, to each of the viewers."""
        self._lines += lines * viewers
        self._bytes += size * viewers

    def count_replayed(self, lines: int, size: int) -> None:
        """What one viewer got by a read of its own."""
        self._replays += 1
        self.count_delivered(lines, size)

    def observe_delay(self, entry: RawEntry) -> None:
        """The oldest entry of a batch that all viewers have been written just now."""
        written = written_at(entry)
        delay = MAX_DELAY_SECONDS if written is None else self._wall_clock() - written
        if delay < MAX_DELAY_SECONDS:
            # A runner's clock may be ahead of ours.
            metrics.DELIVERY_DELAY.observe(max(delay, 0.0))

    def report(self, feeds: Collection[Feed], silence: float) -> None:
        """Brings the metrics up to date. ``silence`` is for how many seconds the store has not answered."""
        watching = sum([len(feed.viewers) + feed.group_size for feed in feeds])
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
    """When a raw entry says it was written, in Unix time; None when it does not say, or nothing sensible."""
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
    """Counts a call of the store that failed: ``tail``, ``replay`` or ``request`` says whose."""
    kinds = {StoreUnavailable: "unavailable", StoreRefused: "refused"}
    metrics.STORE_ERRORS.labels(during, kinds.get(type(error), "unexpected")).inc()
