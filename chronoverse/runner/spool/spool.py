"""The spool: a bounded queue of lines that are not yet safe in the store.

    first ──────── acked ──────── sent ╌╌╌╌ dropped ╌╌╌╌ ──────── end
      │ in the store, │ sent, but   │                     │ to be   │ the job's
      │ not yet safe  │ no answer   │                     │ sent    │ next line

If the spool is full, it drops the oldest unsent lines. Their indexes stay empty, and the publisher declares them lost
in the log.
"""

import contextlib
import sqlite3
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.errors import SpoolError
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import MAX_NUMBER, Gap, Line, LineRun, lines_of
from chronoverse.runner.spool.spool_file import MAX_BATCH_BYTES, SpoolFile, SpoolRoom

#: Approximate bytes of a batch in memory, without its text.
OVERHEAD_BYTES: Final = 400
#: Lines per append: enough for a cheap round trip, few enough to occupy the server for only a millisecond.
BATCH_LINES: Final = 500
#: Maximum runs of an append of more than BATCH_LINES lines. The service limits the quotation marks of a request.
BATCH_RUNS: Final = 250

_ordinal: Final = attrgetter("ordinal")


class MemoryBatches:
    """Batches in memory, by the index of their first line. :class:`SpoolFile` has the same methods."""

    def __init__(self) -> None:
        self._batches: list[LineBatch] = []
        self.size = 0

    def __iter__(self) -> Iterator[LineBatch]:
        return iter(self._batches)

    def add(self, batch: LineBatch) -> None:
        self._batches.append(batch)
        self.size += OVERHEAD_BYTES + len(batch.text)

    def read(self, index: int) -> Iterator[LineBatch]:
        return islice(self._batches, max(0, bisect_right(self._batches, index, key=_ordinal) - 1), None)

    def next_at(self, index: int) -> LineBatch | None:
        at = bisect_left(self._batches, index, key=_ordinal)
        return self._batches[at] if at < len(self._batches) else None

    def first_kept(self, index: int, position: int) -> int | None:
        kept = (each for each in self if each.end > index or each.position + len(each.text) > position)
        return next(map(_ordinal, kept), None)

    def count(self, start: int, stop: int) -> int:
        return sum(each.lines for each in self._batches[self._slice(start, stop)])

    def delete(self, start: int, stop: int) -> None:
        removed = self._slice(start, stop)
        self.size -= sum(OVERHEAD_BYTES + len(each.text) for each in self._batches[removed])
        del self._batches[removed]

    def _slice(self, start: int, stop: int) -> slice:
        first = bisect_left(self._batches, start, key=_ordinal)
        return slice(first, max(first, bisect_right(self._batches, stop, key=attrgetter("end"))))


class SpoolBatch(NamedTuple):
    """Lines to send together, with indexes from ``start`` up to, but not including, ``end``."""

    start: int
    end: int
    runs: list[LineRun]

    def lines(self, base: int) -> list[Line]:
        return lines_of(self.runs, base + self.start)


class Spool:
    """The queue. Keeps taken lines until they are released. :meth:`put` never blocks."""

    def __init__(self, room: SpoolRoom | None = None) -> None:
        self.room = room or SpoolRoom()
        self._changed = threading.Condition()
        #: The state last saved by this process, or by the process that left the file.
        self.state: dict[str, Any] = {}
        #: Indexes, as in the picture above. ``safe``: the index of the first line not known to be safe.
        self.acked = self.safe = self.first = self.end = 0
        #: For a recovered file: the first index that its runner had no acknowledgement for. 0 after our first one.
        self._was_acked = 0
        #: Lines dropped because the spool was full.
        self.dropped = 0
        #: The file with the oldest lines, if there is one; the newest lines, in memory.
        self._file: SpoolFile | None = None
        self._memory = MemoryBatches()
        #: Bytes that the job has printed.
        self._position = 0
        #: Lines below this index may have been sent. They are not dropped, because the store may have them.
        self._sent = 0
        #: The last batch read, and its messages.
        self._last_read: tuple[LineBatch, list[bytes]] | None = None
        self._is_closed = self._is_forced = self._is_abandoned = self._keeps_all = False
        #: Whether the lines are another job's: see :meth:`reassign`.
        self.is_reassigned = False
        #: Why the file could not be written (None if it could), and when to retry.
        self.file_error: Exception | None = None
        self._retry_at = 0.0
        #: The number of lines that :meth:`wait_for_lines` waits for.
        self._awaited = 1

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom | None = None, *, keep_all: bool = False) -> "Spool":
        """Opens a runner's leftover file. ``keep_all`` keeps lines after their release. Raises :class:`SpoolError`."""
        file, saved = SpoolFile.open(path)
        spool = cls(replace(room or SpoolRoom(), directory=path.parent))
        spool._keeps_all, spool._file = keep_all, file
        problem = ""
        try:
            spool._load(file, saved)
        except (sqlite3.Error, ValueError) as error:
            problem = f"{path} is damaged: {error}"
        if problem:  # the query that failed has been freed with its error, so the file can be closed
            file.close()
            raise SpoolError(problem)
        return spool

    @property
    def line_count(self) -> int:
        with self._changed:
            return sum(store.count(0, self.end) for store in self._stores)

    @property
    def undelivered(self) -> int:
        """The number of lines not acknowledged, including dropped ones not yet declared in the log."""
        return self.end - max(self.acked, self._was_acked)

    @property
    def memory_bytes(self) -> int:
        return self._memory.size

    @property
    def path(self) -> Path | None:
        return self._file.path if self._file else None

    def put(self, batch: LineBatch) -> None:
        """Adds lines. Can drop others to make room."""
        with self._changed:
            batch = batch._replace(ordinal=self.end, position=self._position)
            self.end, self._position = batch.end, self._position + len(batch.text)
            if len(batch.text) > MAX_BATCH_BYTES:
                self.dropped += batch.lines
            elif not self._is_abandoned:
                size = OVERHEAD_BYTES + len(batch.text)
                # Sent lines stay in memory if the disk is full or the file is unreadable.
                with contextlib.suppress(sqlite3.Error):
                    while self._memory.size and self._memory.size + size > self.room.memory_bytes:
                        if not self._spill() and not self._drop(self._memory):
                            break
                self._memory.add(batch)
                if self._is_forced:
                    self._spill()
            if self.end - self.acked >= self._awaited:
                self._changed.notify_all()

    def skip(self, lines: int) -> None:
        """Skips the indexes of lost lines. The publisher declares them in the log."""
        with self._changed:
            self.end += lines
            self._changed.notify_all()

    def close(self) -> None:
        """Call this after the last line."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def save_state(self, **state: Any) -> None:
        """Stores values as JSON with the lines, for a process that resends the file. None removes a value."""
        with self._changed:
            self.state = {name: value for name, value in {**self.state, **state}.items() if value is not None}
            self._save()

    def reassign(self) -> None:
        """Prepares the lines for another job: forgets the previous job, and the lines' numbers in its log.

        The file is changed only once the other job has an attempt.
        """
        with self._changed:
            self.is_reassigned, self._was_acked = True, 0
            self.state = {name: value for name, value in self.state.items() if name in ("ending", "labels")}

    def force_spill(self, enabled: bool) -> None:
        """For outages: while enabled, writes all lines to the file immediately, so that they survive this process."""
        with self._changed:
            self._is_forced = enabled
            if enabled:
                self._spill()

    def wait_for_lines(self, lines: int, seconds: float) -> bool:
        """Waits until ``lines`` lines are unacknowledged, or the spool is closed. Returns whether any are."""
        with self._changed:
            self._awaited = lines
            self._changed.wait_for(lambda: self._is_closed or self.end - self.acked >= lines, max(0.0, seconds))
            return self.end > self.acked

    def wait_for_unsafe(self, seconds: float, stop: threading.Event) -> bool:
        """Waits up to ``seconds`` for acknowledged lines that are not safe, or for ``stop`` and :meth:`wake`. Returns
        whether there are any.
        """
        with self._changed:
            self._changed.wait_for(lambda: stop.is_set() or self.acked > self.safe, seconds)
            return self.acked > self.safe

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def take(self, index: int, lines: int = BATCH_LINES) -> SpoolBatch | None:
        """Up to ``lines`` lines from ``index``, for one append. None after the last line, or if abandoned.

        Skips dropped lines at ``index``, and ends before the next dropped line. If all remaining lines were dropped,
        the batch is empty and begins at the spool's end.
        """
        with self._changed:
            if self._is_abandoned or index >= self.end:
                return None
            runs: list[LineRun] = []
            start = end = index
            # The append ends once it has 1 MiB.
            size = 1_048_576
            most_runs = BATCH_RUNS if lines > BATCH_LINES else lines
            for each in self._batches(index):
                if not runs:
                    start = end = max(index, each.ordinal)
                elif each.ordinal != end:
                    break
                if self._last_read is None or self._last_read[0] is not each:
                    self._last_read = each, each.messages()
                    self._sent = max(self._sent, each.end)
                skip = end - each.ordinal
                messages = self._last_read[1][skip : skip + lines]
                runs.append(LineRun(each.timestamp, each.stream, each.partial, messages))
                end += len(messages)
                lines -= len(messages)
                size -= len(each.text)
                if lines <= 0 or size <= 0 or len(runs) == most_runs:
                    break
            return SpoolBatch(start, end, runs) if runs else SpoolBatch(self.end, self.end, [])

    def entries(self, base: int = 1) -> Iterator[Line | Gap]:
        """All lines in the spool, with sequence numbers from ``base``, and gaps for missing ones."""
        index = self.first
        while batch := self.take(index):
            if batch.start > index:
                yield Gap(index + base, batch.start - 1 + base, "lost")
            yield from batch.lines(base)
            index = batch.end

    def acknowledge(self, index: int) -> None:
        """Records that the store has exactly the lines below ``index``. It may have lost acknowledged ones."""
        with self._changed:
            self.acked, self._was_acked = index, 0
            self.safe = min(self.safe, index)
            self._changed.notify_all()

    def release(self, index: int) -> None:
        """Records that all lines below ``index`` are safe in the store, and can be removed."""
        with self._changed:
            self.safe = max(self.safe, min(index, self.acked))
            if not self._keeps_all:
                with contextlib.suppress(sqlite3.Error):
                    self._remove_safe()

    def drop_earlier(self, index: int) -> None:
        """Removes the lines below ``index``, which are no longer needed."""
        with self._changed:
            self.acked = self.safe = self.first = index
            self._memory.delete(0, index)
            if self._file is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._file.write(self._saved(), delete=(0, index))

    def preserve(self) -> Path | None:
        """Writes all lines, and the job's end, to the file, and closes it. Drops lines that do not fit.

        Returns its path. None if there are no lines and no end, or if no file can be written.
        """
        with self._changed:
            self._retry_at = 0.0
            while not self._spill() and self._file is not None and self._drop(self._memory):
                self._retry_at = 0.0
            has_only_an_end = "ending" in self.state and not (self.end or self._is_abandoned)
            if self._file is None and has_only_an_end and self.room.directory is not None:
                with contextlib.suppress(OSError, sqlite3.Error):
                    self._file = SpoolFile.create(self.room.directory, self.room.name)
            if self._file is None:
                return None
            if not self._keeps_all:
                self._save()
            file, self._file, self._is_abandoned = self._file, None, True
            file.close()
            return file.path

    def abandon(self) -> None:
        """Removes all lines and the file, and accepts no more lines. Called if all are safe, or none can be sent."""
        with self._changed:
            self._is_abandoned = True
            self._memory = MemoryBatches()
            self._last_read = None
            self._remove_file()

    @property
    def _stores(self) -> list[MemoryBatches | SpoolFile]:
        return [self._memory] if self._file is None else [self._file, self._memory]

    def _batches(self, index: int) -> Iterator[LineBatch]:
        last = self._last_read[0] if self._last_read else None
        if last is not None and last.ordinal <= index < last.end:
            yield last
            index = last.end
        for store in self._stores:
            yield from (each for each in store.read(index) if each.end > index)

    def _spill(self) -> bool:
        """Moves all batches from memory to the file, which is created if needed. Returns whether it did."""
        room = self.room
        if not self._memory.size:
            return True
        if room.directory is None or time.monotonic() < self._retry_at:
            return False
        try:
            while True:
                self._file = self._file or SpoolFile.create(room.directory, room.name)
                if self._file.size + self._memory.size <= room.file_bytes:
                    break
                if not self._drop(self._file) and not self._drop(self._memory):
                    return False
            self._file.write(self._saved(), add=self._memory)
        except (OSError, sqlite3.Error) as error:
            # Retried after two seconds.
            self.file_error, self._retry_at = error, time.monotonic() + 2.0
            return False
        self._memory, self.file_error = MemoryBatches(), None
        return True

    def _drop(self, store: MemoryBatches | SpoolFile) -> bool:
        """Removes the oldest acknowledged lines of ``store``, or, if there are none, drops the oldest unsent lines.

        Returns whether it did either. Raises sqlite3.Error, with nothing changed.
        """
        for start, stop in ((0, self.acked), (max(self._sent, self.acked), self.end)):
            oldest = store.next_at(start)
            if oldest is not None and oldest.end <= stop:
                # Removes a sixteenth of the lines, so that not every new batch has to remove others.
                stop = max(oldest.end, oldest.ordinal + (stop - oldest.ordinal) // 16)
                break
        else:
            return False
        before = self.first, self.dropped
        if oldest.ordinal >= self.acked:
            self.dropped += store.count(oldest.ordinal, stop)
        else:
            self.first = max(self.first, stop)
        if isinstance(store, MemoryBatches):
            store.delete(oldest.ordinal, stop)
            self._save()
            return True
        try:
            store.write(self._saved(), delete=(oldest.ordinal, stop))
        except sqlite3.Error:
            self.first, self.dropped = before
            raise
        return True

    def _remove_safe(self) -> None:
        """Removes safe batches except the newest ``keep_bytes``. They stay if the disk is full, which is harmless."""
        following = next((found for store in self._stores if (found := store.next_at(self.safe))), None)
        position = (following.position if following else self._position) - self.room.keep_bytes
        kept = [store.first_kept(self.safe, position) for store in self._stores]
        stop = min(next((each for each in kept if each is not None), self.safe), self.safe)
        if stop <= self.first:
            return
        self.first = stop
        self._memory.delete(0, stop)
        if kept[0] is None:
            self._remove_file()
        elif self._file is not None:
            self._file.write(self._saved(), delete=(0, stop))

    def _saved(self) -> dict[str, Any]:
        acked = max(self.acked, self._was_acked)
        return {**self.state, "dropped": self.dropped, "first": self.first, "acked": acked}

    def _save(self) -> None:
        if self._file is not None and not (self.is_reassigned and "attempt" not in self.state):
            with contextlib.suppress(sqlite3.Error):
                self._file.write({**self._saved(), "end": self.end})

    def _remove_file(self) -> None:
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _load(self, file: SpoolFile, saved: dict[str, Any]) -> None:
        """Loads the state and batches of a recovered file. Raises ValueError if they are inconsistent."""
        self.dropped, first, self.end = saved.pop("dropped", 0), saved.pop("first", None), saved.pop("end", 0)
        acked, self.state = saved.pop("acked", 0), saved
        for each in file.valid_batches():
            first = each.ordinal if first is None else first
            self._position = each.position + len(each.text)
            self.end = max(self.end, each.end)
        self.first = self.acked = first or 0
        self.end = self._sent = max(self.end, self.first)
        self._was_acked = min(acked, self.end)
        base = saved.get("base", 1)
        if "attempt" in saved and base + self.first < 1:
            raise ValueError(f"its first line would have the number {base + self.first}")
        if max(base, 1) + max(self.end, self.dropped) > MAX_NUMBER:
            raise ValueError("its line numbers would exceed the maximum")
