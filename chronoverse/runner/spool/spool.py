"""The spool: a bounded queue in which lines wait until the store has them safely.

    first ──────── acked ─────────────── dropped ─────────── end
      │ in the store, │ to be sent         │ the newest       │ the job's next line
      │ not yet safe  │                    │ lines
                                           └ a drop marker will stand here

One thread puts lines in, and another takes them out and says how far the store has them. Without room, lines from the
middle are dropped, since the first and the last lines of a job say the most. The lines after them get their index when
the drop marker is read. So the marker fits in without a gap in the numbers.
"""

import contextlib
import heapq
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.errors import SpoolError
from chronoverse.joblog.values import MAX_NUMBER, Line, LineRun, lines_of
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool.batches import MemoryBatches, StoredBatch
from chronoverse.runner.spool.dropped_range import DroppedRange, add_range
from chronoverse.runner.spool.spool_file import MAX_BATCH_BYTES, SpoolFile, SpoolRoom

#: Lines of one append: enough to make the round trip cheap, few enough to occupy the server for only a millisecond.
BATCH_LINES: Final = 500
#: An append takes no more lines when it has so many bytes.
BATCH_BYTES: Final = 1_048_576
#: Seconds before another attempt to write a file that could not be written.
RETRY_SECONDS: Final = 2.0
#: One such part of the droppable lines is dropped at a time.
DROP_PARTS: Final = 16


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

    def __init__(self, room: SpoolRoom | None = None) -> None:
        self._room = room or SpoolRoom()
        self._changed = threading.Condition()
        #: What was saved last, by this process or by the one that left the file.
        self.state: dict[str, Any] = {}
        #: The index of the first line that the store has not acknowledged.
        self.acked = 0
        #: The index of the first line that is not known to be safe in the store.
        self.safe = 0
        #: Lines that were dropped because there was no room.
        self.dropped = 0
        #: The oldest lines, if there is a file; and the newest ones.
        self._file: SpoolFile | None = None
        self._memory = MemoryBatches()
        #: Ranges of dropped lines, in order; and for the lines before them, their index minus their ordinal.
        self._ranges: list[DroppedRange] = []
        self._shift = 0
        #: Those of them that a recovered file lacked.
        self.missing: list[DroppedRange] = []
        #: Lines and bytes that the job has printed.
        self._printed = self._position = 0
        #: The ordinal after the last batch that was read. The indexes of the lines before it cannot change any more.
        self._read_end = 0
        #: The batch that was read last, and its messages.
        self._last_read: tuple[StoredBatch, list[bytes]] | None = None
        #: The streams whose last line is partial.
        self._open_streams: set[str] = set()
        #: The time of the end, once there is one.
        self._closed = ""
        self._is_forced = self._is_abandoned = self._keeps_all = False
        #: Whether the lines are another job's: see :meth:`reassign`.
        self.is_reassigned = False
        #: Why the file could not be written, and when to try again; None if it could.
        self.file_error: Exception | None = None
        self._retry_at = 0.0
        #: How many lines :meth:`wait_for_lines` waits for.
        self._awaited = 1

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom | None = None, *, keep_all: bool = False) -> "Spool":
        """Opens the spool file that a runner left behind. More lines may be put in. Raises :class:`SpoolError`.

        With ``keep_all`` released lines stay in the file until the spool is abandoned.
        """
        file, saved = SpoolFile.open(path)
        spool = cls(replace(room or SpoolRoom(), directory=path.parent))
        spool._keeps_all, spool._file = keep_all, file
        problem = ""
        try:
            spool._load(file, saved)
        except (sqlite3.Error, ValueError) as error:
            problem = f"{path} is damaged: {error}"
        if problem:  # the error is gone, and with it the query that it has interrupted: now the file can be closed
            file.close()
            raise SpoolError(problem)
        return spool

    @property
    def first(self) -> int:
        """The lowest index whose line is still here."""
        with self._changed:
            ordinals = [each.ordinal for each in (self._next_at(0), *self._ranges[:1]) if each is not None]
            return min(ordinals) + self._shift if ordinals else self.acked

    @property
    def end(self) -> int:
        """The index after the last line."""
        return self._printed + self._shift + sum(each.shift for each in self._ranges)

    @property
    def undelivered(self) -> int:
        """Lines that the store has not acknowledged."""
        return self.end - self.acked

    @property
    def has_directory(self) -> bool:
        """Whether lines can be left behind in a file."""
        return self._room.directory is not None

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        return self._file.path if self._file else None

    def put(self, batch: LineBatch) -> None:
        """Adds lines, or counts them as dropped."""
        with self._changed:
            streams = " ".join(sorted(self._open_streams))
            stored = StoredBatch(self._printed, self._position, streams, batch)
            has_room = not self._is_abandoned and self._make_room(stored)
            self._printed, self._position = stored.end, self._position + len(batch.text)
            if has_room:
                self._memory.add(stored)
                (self._open_streams.add if batch.partial else self._open_streams.discard)(batch.stream)
                if self._is_forced:
                    self._spill()
            elif not self._is_abandoned:
                self._drop(DroppedRange(stored.ordinal, batch.lines, len(batch.text), streams))
            if self.end - self.acked >= self._awaited:
                self._changed.notify_all()

    def close(self, timestamp: str) -> None:
        """Call this after the last line. If the last lines were dropped, their marker gets ``timestamp``."""
        with self._changed:
            self._closed = timestamp
            self._changed.notify_all()

    def save_state(self, **state: Any) -> None:
        """Saves values with the lines, for a process that may resend the file. They must be JSON. None removes one."""
        with self._changed:
            self.state = {name: value for name, value in {**self.state, **state}.items() if value is not None}
            self._save()

    def reassign(self) -> None:
        """The lines are to be published as another job. The file says so once that job has an attempt.

        Forgets their own job, and the numbers that they had there.
        """
        with self._changed:
            self.is_reassigned = True
            self.state = {name: value for name, value in self.state.items() if name == "ending"}
            self._ranges = [replace(each, numbered=False) for each in self._ranges]

    def force_spill(self, enabled: bool) -> None:
        """While enabled, all lines go to the file at once, and so survive this process. For when the store is away."""
        with self._changed:
            self._is_forced = enabled
            if enabled:
                self._spill()

    def wait_for_lines(self, lines: int, seconds: float) -> bool:
        """Waits until so many ``lines`` are not acknowledged. Returns whether any are not.

        It waits up to ``seconds``, and not after the spool was closed.
        """
        with self._changed:
            self._awaited = lines
            self._changed.wait_for(lambda: self._closed or self.end - self.acked >= lines, max(0.0, seconds))
            self._awaited = 1
            return self.end > self.acked

    def wait_for_unsafe(self, seconds: float) -> bool:
        """Waits up to ``seconds`` for lines that are acknowledged and not safe. Whether there are any."""
        with self._changed:
            return self._changed.wait_for(lambda: self.acked > self.safe, seconds)

    def take(self, index: int, base: int) -> SpoolBatch | None:
        """Lines from ``index`` on, at most one batch; None if there are none.

        From now on their sequence numbers are fixed: index + ``base``.
        """
        with self._changed:
            shift, dropped = self._find(index)
            if dropped is not None and index >= dropped.ordinal + shift:
                start = dropped.ordinal + shift
                runs = self._read_marker(dropped, start + base)[index - start :]
            else:
                runs = self._read(index - shift, dropped.ordinal if dropped else self._printed)
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
            self.acked = index
            self._changed.notify_all()

    def release(self, index: int) -> None:
        """Every line below ``index`` is safe in the store, and may be removed here."""
        with self._changed:
            self.safe = max(self.safe, min(index, self.acked))
            if not self._keeps_all:
                with contextlib.suppress(sqlite3.Error):
                    self._free(self.safe, self._room.keep_bytes)

    def rewind(self, index: int) -> bool:
        """Goes back: lines from ``index`` on must be sent again. False, and no change, if that line is not here."""
        with self._changed:
            if not self.first <= index <= self.acked:
                return False
            self.acked = index
            self.safe = min(self.safe, index)
            return True

    def preserve(self) -> Path | None:
        """Leaves all lines that were not removed in the file. None if there are none, or there can be no file.

        There is a file also for a job that has ended without any lines: it says how the job ended.
        Lines for which there is no room in the file are dropped.
        """
        with self._changed:
            self._retry_at = 0.0
            while not self._spill() and self._file is not None and self._drop_from(self._memory):
                self._retry_at = 0.0
            has_only_an_end = "ending" in self.state and not (self._printed or self._is_abandoned)
            if self._file is None and has_only_an_end and self._room.directory is not None:
                with contextlib.suppress(OSError, sqlite3.Error):
                    self._file = SpoolFile.create(self._room.directory, self._room.name)
                    self._save()
            if self._file is None:
                return None
            file, self._file, self._is_abandoned = self._file, None, True
            file.close()
            return file.path

    def abandon(self) -> None:
        """Removes all lines and the file, and refuses further lines. For when all is safe, or nothing can be sent."""
        with self._changed:
            self._is_abandoned = True
            self._fold(self._printed)
            self._memory = MemoryBatches()
            self._remove_file()

    # Reading

    @property
    def _stores(self) -> list[MemoryBatches | SpoolFile]:
        """Where the batches are, the oldest first."""
        return [self._memory] if self._file is None else [self._file, self._memory]

    def _next_at(self, ordinal: int) -> StoredBatch | None:
        """The first batch that begins at ``ordinal`` or later. Its text may be left out."""
        return next((found for store in self._stores if (found := store.next_at(ordinal))), None)

    def _find(self, index: int) -> tuple[int, DroppedRange | None]:
        """The first dropped range whose drop marker ends after line ``index``; None if there is none.

        Before it: by how much the indexes of the lines before that range differ from their ordinals.
        """
        shift = self._shift
        for each in self._ranges:
            if index < each.ordinal + shift + each.marker_lines:
                return shift, each
            shift += each.shift
        return shift, None

    def _read_marker(self, dropped: DroppedRange, number: int) -> list[LineRun]:
        """The drop marker, with the sequence number ``number``. Empty while the range may grow: no line follows it."""
        if not dropped.timestamp:
            following = self._next_at(dropped.end)
            fixed = replace(dropped, timestamp=following.batch.timestamp if following else self._closed)
            self._ranges[self._ranges.index(dropped)] = dropped = fixed
        return dropped.marker(number) if dropped.timestamp else []

    def _read(self, ordinal: int, stop: int) -> list[LineRun]:
        """The lines of one append: from the line ``ordinal`` on, before ``stop``."""
        runs: list[LineRun] = []
        lines, size = BATCH_LINES, BATCH_BYTES
        for each in self._read_batches(ordinal, stop):
            if self._last_read is None or self._last_read[0] is not each:
                self._last_read = each, each.batch.messages()
                self._read_end = max(self._read_end, each.end)
            skip = max(0, ordinal - each.ordinal)
            messages = self._last_read[1][skip : skip + lines]
            runs.append(LineRun(each.batch.timestamp, each.batch.stream, each.batch.partial, messages))
            lines -= len(messages)
            size -= len(each.batch.text)
            if lines <= 0 or size <= 0:
                break
        return runs

    def _read_batches(self, ordinal: int, stop: int) -> Iterator[StoredBatch]:
        last = self._last_read[0] if self._last_read else None
        if last is not None and last.ordinal <= ordinal < last.end:
            yield last
            ordinal = last.end
        for store in self._stores:
            yield from (each for each in store.read(ordinal, stop) if each.end > ordinal)

    # Making room

    def _make_room(self, batch: StoredBatch) -> bool:
        """Makes room for ``batch`` in memory. Whether there is any."""
        if len(batch.batch.text) > MAX_BATCH_BYTES:
            return False
        limit = max(self._room.memory_bytes, batch.size)
        with contextlib.suppress(sqlite3.Error):  # the file cannot even be read
            while self._memory.size + batch.size > limit:
                if not self._spill() and not self._drop_from(self._memory):
                    return False
            return True
        return False

    def _spill(self) -> bool:
        """Moves all batches from memory to the file, which is created if need be. Whether they are all there."""
        room = self._room
        if not self._memory.size:
            return True
        if room.directory is None or time.monotonic() < self._retry_at:
            return False
        try:
            while True:
                self._file = self._file or SpoolFile.create(room.directory, room.name)
                if self._file.size + self._memory.size <= room.file_bytes:
                    break
                if not self._drop_from(self._file) and not self._drop_from(self._memory):
                    return False
            self._file.write(self._saved(), add=self._memory)
        except (OSError, sqlite3.Error) as error:
            self.file_error, self._retry_at = error, time.monotonic() + RETRY_SECONDS
            return False
        self._memory, self.file_error = MemoryBatches(), None
        return True

    def _drop_from(self, store: MemoryBatches | SpoolFile) -> bool:
        """Drops some lines: acknowledged ones, or else some from the middle of ``store``. Whether there were any.

        Raises sqlite3.Error, with nothing changed, when the file cannot be written.
        """
        first = self.first
        # Some acknowledged lines, or all of them if those are only a part of a batch.
        if any(self._free(index) for index in (first + (self.acked - first) // DROP_PARTS, self.acked)):
            return True
        front, following = store.next_at(0), self._memory.next_at(0) if store is self._file else None
        end = following.ordinal if following else self._printed
        if front is None:
            return False
        growing = [each.end for each in self._ranges if not each.timestamp and front.ordinal <= each.end < end]
        victim = store.next_at(growing[-1] if growing else max((front.ordinal + end) // 2, self._read_end))
        if victim is None:
            return False
        stop = victim.ordinal + max(1, (end - victim.ordinal) // DROP_PARTS)
        lines, size = store.count(victim.ordinal, stop)
        self._drop(DroppedRange(victim.ordinal, lines, size, victim.open_streams), store, stop)
        return True

    def _drop(self, dropped: DroppedRange, store: MemoryBatches | SpoolFile | None = None, stop: int = 0) -> None:
        """Notes that lines were dropped. Removes them from ``store``: the batches from theirs on, before ``stop``."""
        before = self._ranges
        self._ranges = add_range(before, dropped)
        self.dropped += dropped.lines
        if isinstance(store, SpoolFile):
            try:
                store.write(self._saved(), delete=(dropped.ordinal, stop))
            except sqlite3.Error:
                self._ranges = before
                self.dropped -= dropped.lines
                raise
            return
        if store is not None:
            store.delete(dropped.ordinal, stop)
        self._save()

    def _free(self, index: int, keep_bytes: int = 0) -> bool:
        """Removes batches whose lines are all below ``index``, but keeps the newest ``keep_bytes`` of them.

        Returns whether any was removed.
        """
        shift, dropped = self._find(index)
        ordinal = min(index - shift, dropped.ordinal if dropped else self._printed)
        following = self._next_at(ordinal)
        position = (following.position if following else self._position) - keep_bytes
        kept = [store.first_kept(ordinal, position) for store in self._stores]
        stop = next((each for each in kept if each is not None), self._printed)
        self._fold(min(stop, ordinal))
        front = self._next_at(0)
        if front is None or front.ordinal >= stop:
            return False
        before = self._memory.size
        self._memory.delete(0, stop)
        if kept[0] is None:
            self._remove_file()
        elif self._file is not None:
            try:
                self._file.write(self._saved(), delete=(0, stop))
            except sqlite3.Error:
                # If the disk is full, the lines stay, and may be sent again. The store skips lines that it has.
                return self._memory.size < before
        return True

    def _fold(self, ordinal: int) -> None:
        """Forgets the dropped ranges before ``ordinal``. Their markers are not needed any more."""
        before = [each for each in self._ranges if each.end <= ordinal]
        self._ranges = self._ranges[len(before) :]
        self._shift += sum(each.shift for each in before)

    # The file

    def _saved(self) -> dict[str, Any]:
        """The state that the file gets."""
        ranges = [each.to_json() for each in self._ranges]
        return {**self.state, "dropped": self.dropped, "shift": self._shift, "ranges": ranges}

    def _save(self) -> None:
        if self._file is not None and not (self.is_reassigned and "attempt" not in self.state):
            with contextlib.suppress(sqlite3.Error):
                self._file.write(self._saved())

    def _remove_file(self) -> None:
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _load(self, file: SpoolFile, saved: dict[str, Any]) -> None:
        """Takes the state and the batches of a recovered file. Raises ValueError if they contradict each other."""
        self.dropped, self._shift = saved.pop("dropped", 0), saved.pop("shift", 0)
        ranges = [DroppedRange(*each) for each in saved.pop("ranges", [])]
        self.state = saved
        # Before the first attempt no line was released.
        end = None if "base" in saved else 0
        found: Iterable[DroppedRange | StoredBatch]
        found = heapq.merge(ranges, file.valid_batches(), key=attrgetter("ordinal"))
        for each in found:
            missing = 0 if end is None else each.ordinal - end
            if missing < 0:
                raise ValueError("its lines overlap")
            if end is not None and missing:  # somebody has damaged or removed batches
                self.missing.append(DroppedRange(end, missing, 0, " ".join(sorted(self._open_streams))))
                self._ranges.append(self.missing[-1])
                self.dropped += missing
            if isinstance(each, DroppedRange):
                self._ranges.append(each)
            else:
                self._position = each.position + len(each.batch.text)
                self._open_streams = set(each.open_streams.split())
                (self._open_streams.add if each.batch.partial else self._open_streams.discard)(each.batch.stream)
            end = each.end
        self._printed = self._read_end = end or 0
        self.acked = self.first
        base = saved.get("base", 1)
        if self.acked < 0 or ("attempt" in saved and base + self.acked < 1):
            raise ValueError(f"its first line would have the number {base + self.acked}")
        if max(base, 1) + max(self.end, self._printed, self.dropped) > MAX_NUMBER:
            raise ValueError("its lines would have numbers beyond all that there are")
