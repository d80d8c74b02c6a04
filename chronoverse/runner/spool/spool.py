"""The spool: a bounded queue in which lines wait until the store has them safely.

One thread puts lines in, and another takes them out and says how far the store has them. A line's *index* is its
position among the lines of this runner that are published, from 0. Its sequence number is known only when the store has
said where the log continues, which may be long after the job has begun to print.
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

#: Lines of one append: enough to make the round trip cheap, few enough to occupy the server for only a millisecond.
BATCH_LINES: Final = 500
#: An append takes no more lines when it has so many bytes.
BATCH_BYTES: Final = 1_048_576


class SpoolBatch(NamedTuple):
    """Lines that are sent together. They have the indexes from ``start`` up to ``end``, which is not included."""

    start: int
    end: int
    runs: list[LineRun]

    def lines(self, base: int) -> list[Line]:
        """The lines, with sequence numbers: each line's index plus ``base``."""
        return lines_of(self.runs, base + self.start)


class Spool:
    """The queue. It keeps the lines that it has handed out until they are released. :meth:`put` never waits."""

    def __init__(self, room: SpoolRoom | None = None, buffer: SegmentBuffer | None = None) -> None:
        self._buffer = buffer or SegmentBuffer(room or SpoolRoom())
        self._changed = threading.Condition()
        self._reader = SegmentReader()
        #: What :meth:`wait_for_lines` waits for: an index, and how many lines after it.
        self._awaited: tuple[int, int] = (0, 1)
        self._safe = 0
        #: Lines that came after the spool was abandoned.
        self._refused = 0
        self._closed = self._abandoned = False
        self._keeps_all = False

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom | None = None, *, keep_all: bool = False) -> "Spool":
        """Opens the spool file that a runner left behind. More lines may be put in. Raises :class:`SpoolError`.

        With ``keep_all`` released lines stay in the file until the spool is abandoned.
        """
        spool = cls(buffer=SegmentBuffer.recover(path, room or SpoolRoom()))
        spool._keeps_all = keep_all
        return spool

    @property
    def state(self) -> dict[str, Any]:
        """What was saved last, by this process or by the one that left the file."""
        return self._buffer.state

    @property
    def acked(self) -> int:
        """The index of the first line that the store has not acknowledged."""
        return self._buffer.acked

    @property
    def safe(self) -> int:
        """The index of the first line that is not known to be safe in the store."""
        return self._safe

    @property
    def end(self) -> int:
        """The index after the last line."""
        return self._buffer.end + self._refused

    @property
    def first(self) -> int:
        """The lowest index whose line is still here."""
        with self._changed:
            return self._buffer.first

    @property
    def dropped(self) -> int:
        """Lines that were dropped because there was no room."""
        return self._buffer.dropped

    @property
    def has_directory(self) -> bool:
        """Whether lines can be left behind in a file."""
        return self._buffer.room.directory is not None

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        file = self._buffer.file
        return file.path if file else None

    def put(self, batch: LineBatch) -> None:
        """Adds lines, or counts them as dropped."""
        with self._changed:
            if self._abandoned:
                self._refused += batch.lines
                return
            self._buffer.add(batch)
            after, lines = self._awaited
            if self._buffer.end - after >= lines:
                self._changed.notify_all()

    def close(self, timestamp: str) -> None:
        """Call this after the last line. If the last lines were dropped, their marker gets ``timestamp``."""
        with self._changed:
            self._buffer.close(timestamp)
            self._closed = True
            self._changed.notify_all()

    def save_state(self, **state: Any) -> None:
        """Saves values with the lines, for a process that may resend the file. They must be JSON."""
        with self._changed:
            self._buffer.save_state(**state)

    def remove_state(self, name: str) -> None:
        """Removes the saved value ``name``."""
        with self._changed:
            self._buffer.remove_state(name)

    def set_state(self, **state: Any) -> None:
        """As :meth:`save_state`, but the file gets the values only with the next one that is saved."""
        with self._changed:
            self._buffer.state = {**self._buffer.state, **state}

    def reassign(self) -> None:
        """The lines are to be published as another job. The file says so once that job has an attempt."""
        with self._changed:
            self._buffer.reassign()

    def force_spill(self, enabled: bool) -> None:
        """While enabled, all lines go to the file at once, and so survive this process. For when the store is away."""
        with self._changed:
            self._buffer.force_spill = enabled
            if enabled and self._buffer.segments:
                self._buffer.spill()

    def wait_for_lines(self, lines: int, seconds: float, after: int | None = None) -> bool:
        """Waits until so many ``lines`` follow index ``after``, by default the acknowledged ones. Whether any follow.

        It waits up to ``seconds``, and not after the spool was closed.
        """
        with self._changed:
            start = self.acked if after is None else after
            self._awaited = (start, lines)
            self._changed.wait_for(lambda: self._closed or self._buffer.end - start >= lines, max(0.0, seconds))
            self._awaited = (0, 1)
            return self._buffer.end > start

    def wait_for_unsafe(self, seconds: float) -> bool:
        """Waits up to ``seconds`` for lines that are acknowledged and not safe. Whether there are any."""
        with self._changed:
            self._changed.wait_for(lambda: self.acked > self._safe, seconds)
            return self.acked > self._safe

    def take(self, index: int, base: int) -> SpoolBatch | None:
        """Lines from ``index`` on, at most one batch; None if there are none.

        From now on their sequence numbers are fixed: index + ``base``.
        """
        with self._changed:
            segment = self._buffer.locate(index, base)
            file = self._buffer.file
        if segment is None:
            return None
        runs = self._reader.read_runs(segment, index, file, BATCH_LINES, BATCH_BYTES)
        return SpoolBatch(index, index + sum(len(run.messages) for run in runs), runs) if runs else None

    def lines(self, base: int = 1) -> Iterator[Line]:
        """All lines that are here, numbered as :meth:`take` numbers them."""
        index = self.first
        while batch := self.take(index, base):
            yield from batch.lines(base)
            index = batch.end

    def acknowledge(self, index: int) -> None:
        """The store has every line below ``index``."""
        with self._changed:
            self._buffer.acked = index
            self._changed.notify_all()

    def release(self, index: int) -> None:
        """Every line below ``index`` is safe in the store, and may be removed here."""
        with self._changed:
            self._safe = max(self._safe, min(index, self.acked))
            if not self._keeps_all:
                self._buffer.free(self._safe)

    def rewind(self, index: int) -> bool:
        """Goes back: lines from ``index`` on must be sent again. False, and no change, if that line is not here."""
        with self._changed:
            if not self._buffer.first <= index <= self.acked:
                return False
            self._buffer.acked = index
            self._safe = min(self._safe, index)
            return True

    def preserve(self) -> Path | None:
        """Leaves all lines that were not removed in the file. None if there are none, or there can be no file."""
        with self._changed:
            path = None if self._abandoned else self._buffer.preserve()
            self._abandoned = self._abandoned or path is not None
            return path

    def abandon(self) -> None:
        """Removes all lines and the file, and refuses further lines. For when all is safe, or nothing can be sent."""
        with self._changed:
            self._abandoned = True
            self._buffer.clear()
