"""Where lines wait until the store has them safely: in memory, beyond a bound in a file. One puts in, one takes out.

A line's *index* is its place among this run's published lines, from 0. Its ``sequence_num`` is known only once the
store has said where the log goes on, which may be long after the job began to print.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.joblog.values import Line, LineRun, lines_of
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool.segment import SegmentReader
from chronoverse.runner.spool.segment_buffer import SegmentBuffer
from chronoverse.runner.spool.spool_file import SpoolRoom

#: Lines of one append: enough to make the round trip cheap, few enough to hold the server for about a millisecond.
BATCH_LINES: Final = 500
#: Bytes of one append after which nothing is added to it.
BATCH_BYTES: Final = 1_048_576


class SpoolBatch(NamedTuple):
    """Lines to be sent at once, the first of them with the index ``start``."""

    start: int
    end: int
    runs: list[LineRun]

    def lines(self, base: int) -> list[Line]:
        """Numbered: a line's number is its index plus ``base``."""
        return lines_of(self.runs, base + self.start)


class Spool:
    """A bounded queue of lines that keeps what it hands out until it is released. ``put`` never waits for the store."""

    def __init__(self, room: SpoolRoom | None = None, buffer: SegmentBuffer | None = None) -> None:
        self._stock = buffer or SegmentBuffer(room or SpoolRoom())
        self._changed = threading.Condition()
        self._cursor = SegmentReader()
        self._wanted: tuple[int, int] = (0, 1)
        self._safe = 0
        self._gone = 0
        self._closed = self._abandoned = False
        self._keeps_all = False

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom | None = None, *, keep_all: bool = False) -> "Spool":
        """The spool that a runner left behind in a file; more can be put into it. Raises :class:`SpoolError`.

        With ``keep_all`` what is released stays in the file, until the spool is abandoned.
        """
        spool = cls(buffer=SegmentBuffer.recover(path, room or SpoolRoom()))
        spool._keeps_all = keep_all
        return spool

    @property
    def state(self) -> dict[str, Any]:
        """What was noted last: by this process, or by the one that left the file."""
        return self._stock.state

    @property
    def acked(self) -> int:
        """The index of the first line that the store is not known to have."""
        return self._stock.acked

    @property
    def safe(self) -> int:
        """The index of the first line that the store is not known to have safely."""
        return self._safe

    @property
    def end(self) -> int:
        """The index behind the last line."""
        return self._stock.end + self._gone

    @property
    def first(self) -> int:
        """The lowest index that can still be had."""
        with self._changed:
            return self._stock.first

    @property
    def dropped(self) -> int:
        """Lines that found no room."""
        return self._stock.dropped

    @property
    def has_directory(self) -> bool:
        """Whether lines can be left behind in a file."""
        return self._stock.room.directory is not None

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        file = self._stock.file
        return file.path if file else None

    def put(self, batch: LineBatch) -> None:
        """Takes a block, or counts it as dropped."""
        with self._changed:
            if self._abandoned:
                self._gone += batch.lines
                return
            self._stock.add(batch)
            after, lines = self._wanted
            if self._stock.end - after >= lines:
                self._changed.notify_all()

    def close(self, timestamp: str) -> None:
        """No line comes after this. ``timestamp`` is for the marker of lines that were dropped last."""
        with self._changed:
            self._stock.close(timestamp)
            self._closed = True
            self._changed.notify_all()

    def save_state(self, **state: Any) -> None:
        """Remembers what a delivery by another process will need, along with the lines. JSON."""
        with self._changed:
            self._stock.save_state(**state)

    def remove_state(self, name: str) -> None:
        """Takes back what was noted as ``name``."""
        with self._changed:
            self._stock.remove_state(name)

    def set_state(self, **state: Any) -> None:
        """As :meth:`note`, but the file is told with the next note."""
        with self._changed:
            self._stock.state = {**self._stock.state, **state}

    def reassign(self) -> None:
        """The lines are to be another job's. The file says so once that job has an attempt."""
        with self._changed:
            self._stock.reassign()

    def force_spill(self, enabled: bool) -> None:
        """The store is away: what waits goes to the file at once, so that it outlives us too. Or it is back."""
        with self._changed:
            self._stock.force_spill = enabled
            if enabled and self._stock.segments:
                self._stock.spill()

    def wait_for_lines(self, lines: int, seconds: float, after: int | None = None) -> bool:
        """Waits until ``lines`` follow index ``after`` (default: the acknowledged ones), the spool is closed, or time
        is up. Whether there is any."""
        with self._changed:
            start = self.acked if after is None else after
            self._wanted = (start, lines)
            self._changed.wait_for(lambda: self._closed or self._stock.end - start >= lines, max(0.0, seconds))
            self._wanted = (0, 1)
            return self._stock.end > start

    def wait_for_unsafe(self, seconds: float) -> bool:
        """Waits up to ``seconds`` for acknowledged lines that are not safe. Whether there are any."""
        with self._changed:
            self._changed.wait_for(lambda: self.acked > self._safe, seconds)
            return self.acked > self._safe

    def take(self, index: int, base: int) -> SpoolBatch | None:
        """Lines from ``index`` on, if there are any. From now on what ``base`` + index numbers them is fixed."""
        with self._changed:
            segment = self._stock.locate(index, base)
            file = self._stock.file
        if segment is None:
            return None
        runs = self._cursor.runs(segment, index, file, BATCH_LINES, BATCH_BYTES)
        return SpoolBatch(index, index + sum(len(run.messages) for run in runs), runs) if runs else None

    def lines(self, base: int = 1) -> Iterator[Line]:
        """All that is kept, numbered as :meth:`take` does."""
        index = self.first
        while batch := self.take(index, base):
            yield from batch.lines(base)
            index = batch.end

    def acknowledge(self, index: int) -> None:
        """The store has every line below ``index``."""
        with self._changed:
            self._stock.acked = index
            self._changed.notify_all()

    def release(self, index: int) -> None:
        """The store has every line below ``index`` safely."""
        with self._changed:
            self._safe = max(self._safe, min(index, self.acked))
            if not self._keeps_all:
                self._stock.free(self._safe)

    def rewind(self, index: int) -> bool:
        """Goes back to ``index``. False, and nothing changed, when that line is no longer kept."""
        with self._changed:
            if not self._stock.first <= index <= self.acked:
                return False
            self._stock.acked = index
            self._safe = min(self._safe, index)
            return True

    def preserve(self) -> Path | None:
        """Leaves all that is not safe in the file. None, when there is no need, or no file."""
        with self._changed:
            path = None if self._abandoned else self._stock.preserve()
            self._abandoned = self._abandoned or path is not None
            return path

    def abandon(self) -> None:
        """Lets all lines go, and the file: nobody will take them, or they are safe."""
        with self._changed:
            self._abandoned = True
            self._stock.clear()
