"""Where lines wait until the store has them: in memory, in order, up to a bound. One puts in, one takes out.

A line's *index* is its place among this run's lines, from 0. Its ``sequence_num`` is known only once the
store has said where the log goes on, which may be long after the job began to print.
"""

import threading
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from typing import Final, NamedTuple

from chronoverse.cutter import Block
from chronoverse.joblog import Line

#: Bytes that may wait for the store. Beyond it the job goes on and new lines are dropped, and counted.
MAX_PENDING_BYTES: Final = 134_217_728
#: Bytes of acknowledged lines that are kept, in case the store loses its last seconds and asks again.
KEEP_ACKED_BYTES: Final = 8_388_608
#: Bytes a block costs beside its text, measured with CPython 3.11: without them a million short lines look small.
BLOCK_OVERHEAD_BYTES: Final = 320
#: Lines of one append: enough to make the round trip cheap, few enough to hold the server for about a millisecond.
BATCH_LINES: Final = 500
#: Bytes of one append after which no further block is added to it.
BATCH_BYTES: Final = 1_048_576


class _Placed(NamedTuple):
    """A block and its first line's index."""

    first: int
    block: Block

    @property
    def end(self) -> int:
        return self.first + self.block.lines

    @property
    def cost(self) -> int:
        return len(self.block.text) + BLOCK_OVERHEAD_BYTES


class Spool:
    """A bounded queue of lines that keeps what it hands out until it is acknowledged, and some of it after."""

    def __init__(self, max_bytes: int = MAX_PENDING_BYTES, keep_bytes: int = KEEP_ACKED_BYTES) -> None:
        self._max = max_bytes
        self._keep = keep_bytes
        self._changed = threading.Condition()
        self._waiting: deque[_Placed] = deque()
        self._waiting_bytes = 0
        self._kept: deque[_Placed] = deque()
        self._kept_bytes = 0
        self._end = 0
        self._acked = 0
        self._open: set[str] = set()
        self._dropping = 0
        self._dropped = 0
        self._wanted = 1
        self._closed = False
        self._abandoned = False
        self._texts: tuple[int, list[str]] = (-1, [])

    @property
    def acked(self) -> int:
        """The index of the first line that the store is not known to have."""
        return self._acked

    @property
    def end(self) -> int:
        """The index behind the last line."""
        return self._end

    @property
    def first(self) -> int:
        """The lowest index that can still be had."""
        placed = self._kept or self._waiting
        return placed[0].first if placed else self._acked

    @property
    def dropped(self) -> int:
        """Lines that found no room."""
        return self._dropped

    def put(self, block: Block) -> None:
        """Takes a block, or counts it as dropped. Never waits."""
        with self._changed:
            if self._abandoned:
                self._end += block.lines
            elif self._full(block):
                self._dropping += block.lines
                self._dropped += block.lines
            else:
                self._mark(block.timestamp)
                self._add(block)
                if self._end - self._acked >= self._wanted:
                    self._changed.notify_all()

    def close(self, timestamp: str) -> None:
        """No line comes after this. ``timestamp`` is for the marker of lines that were dropped last."""
        with self._changed:
            self._mark(timestamp)
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Lets all lines go: nobody will take them."""
        with self._changed:
            self._abandoned = True
            self._waiting.clear()
            self._kept.clear()
            self._texts = (-1, [])

    def wait(self, lines: int, seconds: float) -> bool:
        """Waits until ``lines`` are there to be taken, the spool is closed, or time is up. Whether there is any."""
        with self._changed:
            self._wanted = lines
            self._changed.wait_for(lambda: self._closed or self._end - self._acked >= lines, max(0.0, seconds))
            self._wanted = 1
            return self._end > self._acked

    def take(self, base: int) -> list[Line]:
        """The next batch that is not acknowledged. A line's number is its index plus ``base``."""
        with self._changed:
            batch = list(self._front())
            index = self._acked
        lines: list[Line] = []
        for placed in batch:
            start = index - placed.first
            texts = self._messages(placed)[start : start + BATCH_LINES - len(lines)]
            _, timestamp, _, _, partial = placed.block
            numbers = range(base + index, base + index + len(texts))
            lines += map(Line, numbers, repeat(timestamp), texts, repeat(placed.block.stream), repeat(partial))
            index += len(texts)
        return lines

    def acknowledge(self, index: int) -> None:
        """The store has every line below ``index``."""
        with self._changed:
            self._acked = index
            while self._waiting and self._waiting[0].end <= index:
                placed = self._waiting.popleft()
                self._waiting_bytes -= placed.cost
                self._kept.append(placed)
                self._kept_bytes += placed.cost
            while self._kept_bytes > self._keep:
                self._kept_bytes -= self._kept.popleft().cost

    def rewind(self, index: int) -> bool:
        """Goes back to ``index``. False, and nothing changed, when that line is no longer kept."""
        with self._changed:
            if not self.first <= index <= self._acked:
                return False
            while self._kept and self._kept[-1].end > index:
                placed = self._kept.pop()
                self._kept_bytes -= placed.cost
                self._waiting.appendleft(placed)
                self._waiting_bytes += placed.cost
            self._acked = index
            return True

    def _full(self, block: Block) -> bool:
        # Once full it must half empty before lines are taken again: one marker, not one for every line.
        limit = self._max // 2 if self._dropping else self._max
        return self._waiting_bytes + len(block.text) + BLOCK_OVERHEAD_BYTES > limit

    def _mark(self, timestamp: str) -> None:
        if self._dropping:
            text = f"[chronoverse] {self._dropping} lines dropped: the store was away"
            self._dropping = 0
            # A line whose end was dropped must end here, or the marker would be read as a piece of it.
            for stream in sorted(self._open):
                self._add(Block(stream, timestamp, b"", 1))
            self._add(Block("stderr", timestamp, text.encode(), 1))

    def _add(self, block: Block) -> None:
        (self._open.add if block.partial else self._open.discard)(block.stream)
        placed = _Placed(self._end, block)
        self._waiting.append(placed)
        self._waiting_bytes += placed.cost
        self._end = placed.end

    def _front(self) -> Iterator[_Placed]:
        size = 0
        for placed in self._waiting:
            yield placed
            size += len(placed.block.text)
            if placed.end - self._acked >= BATCH_LINES or size >= BATCH_BYTES:
                return

    def _messages(self, placed: _Placed) -> list[str]:
        if self._texts[0] != placed.first:
            self._texts = (placed.first, placed.block.messages())
        return self._texts[1]
