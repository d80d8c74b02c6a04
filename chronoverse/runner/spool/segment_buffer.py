"""The waiting lines, as a queue of segments with a bound.

    oldest ──────── acked ─────────────── dropped ─────────── newest
      │ in the store, │ to be sent           │ the newest       │ the job's next line
      │ not yet safe  │                      │ lines
                                             └ a drop marker will stand here

New lines go to the last segment. When there is no room for another segment, one from the middle is dropped, since the
first and the last lines of a job say the most. The dropped range then grows towards the newest lines. The lines after
it have no index until they are taken. So the drop marker fits in before them without a gap in the numbers.

Not safe for threads. :class:`chronoverse.runner.spool.spool.Spool` is, and others use that.
"""

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chronoverse.errors import SpoolError
from chronoverse.joblog.values import MAX_NUMBER
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool import records
from chronoverse.runner.spool.segment import Segment, recover_segment, split_batch
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom

#: Seconds before another attempt to create a file that could not be created.
CREATE_RETRY_SECONDS: Final = 5.0
#: The parts of the state that stay true when the lines are published as another job.
_OF_ANY_JOB: Final = ("ending", "dropped", "printed")
#: Segments that may fail to take a batch before the batch is dropped.
_MAX_ATTEMPTS: Final = 3
#: The part of a drop marker that names the numbers of its neighbours.
_NEIGHBOURS: Final = re.compile(rb"^(\[chronoverse\] .* dropped) between line \d+ and line \d+:")


class _Inconsistent(Exception):
    """Raised when the slots of a file contradict each other."""


@dataclass(slots=True)
class DroppedRange:
    """Lines that were dropped just before the segment ``order``.

    ``open_streams`` are the streams whose last line before them is partial. ``size`` is in bytes, 0 if it is not known.
    """

    order: int
    open_streams: frozenset[str]
    lines: int = 0
    size: int = 0

    @property
    def marker_lines(self) -> int:
        """How many lines the drop marker has."""
        return 1 + len(self.open_streams)

    def marker(self, index: int, base: int | None, timestamp: str) -> list[LineBatch]:
        """The drop marker: the lines that stand in the log instead, from ``index`` on.

        Without a ``base`` the sequence numbers are not known yet, and the marker names none.
        """
        size = f" ({self.size} bytes)" if self.size else ""
        number = index + self.marker_lines - 1 + (base or 0)
        where = f" between line {number - 1} and line {number + 1}" if base else " here"
        text = f"[chronoverse] {self.lines} lines{size} dropped{where}: there was no room to keep them"
        # A partial line whose end was dropped must end here. Else the marker would look like its next piece.
        ends = [LineBatch(stream, timestamp, b"", 1) for stream in sorted(self.open_streams)]
        return [*ends, LineBatch("stderr", timestamp, text.encode(), 1)]


def _without_numbers(text: bytes) -> bytes:
    """A drop marker's text for a log in which its neighbours have other numbers. Any other text stays the same."""
    return _NEIGHBOURS.sub(rb"\1 here:", text)


class SegmentBuffer:
    """The segments, in memory or in the file. The spool tells it how far lines are acknowledged and safe."""

    def __init__(self, room: SpoolRoom, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.segments: deque[Segment] = deque()
        self.file: SpoolFile | None = None
        #: What was saved last, by this process or by the one that left the file.
        self.state: dict[str, Any] = {}
        #: The index after the last line.
        self.end = 0
        #: The index of the first line that the store has not acknowledged.
        self.acked = 0
        #: The index after the last segment that was read. The indexes of the lines before it cannot change any more.
        self._read_end = 0
        #: Lines that were dropped.
        self.dropped = 0
        #: Whether new lines go to the file even if memory has room.
        self.force_spill = False
        self.room = room
        self._monotonic = monotonic
        self._capacity = room.slot_bytes - records.SLOT_HEAD_BYTES
        #: The dropped lines whose marker has no index yet, and the segments after which have none.
        self._dropped_range: DroppedRange | None = None
        #: The streams whose last line is partial.
        self._open_streams: set[str] = set()
        #: The ``order`` of the next segment.
        self._order = 0
        #: Lines that the job has printed, dropped ones included.
        self._printed = 0
        self._create_at = 0.0
        #: Whether the lines were reassigned to another job, and the file does not say so yet.
        self._is_reassigned = False

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom) -> "SegmentBuffer":
        """Opens the file that a runner left behind. Raises :class:`SpoolError`."""
        file, state = SpoolFile.open(path, room.file_bytes)
        buffer = cls(SpoolRoom(path.parent, room.name, room.memory_bytes, room.file_bytes, 0, file.slot_bytes))
        buffer.file, buffer.state = file, state
        try:
            buffer._load(file)
        except _Inconsistent as error:
            file.close()
            raise SpoolError(f"{path} is damaged: {error}") from None
        return buffer

    @property
    def first(self) -> int:
        """The lowest index whose line is still here."""
        front = self.segments[0] if self.segments else None
        return self.acked if front is None or front.index is None else front.index

    def add(self, batch: LineBatch) -> None:
        """Takes a batch, or counts its lines as dropped."""
        limit = self._capacity - records.RECORD_HEAD_BYTES
        for part in split_batch(batch, limit) if len(batch.text) > limit else (batch,):
            self._store(part)
            self._printed += part.lines

    def close(self, timestamp: str) -> None:
        """Call this after the last line. If the last lines were dropped, an empty segment gets their marker."""
        if self._dropped_range is not None and self._nothing_follows_drop():
            self._append(Segment(self._order, None, self._printed, timestamp=timestamp))

    def save_state(self, **state: Any) -> None:
        """Changes the state, here and in the file. After :meth:`reassign` the file changes once there is an attempt."""
        self.state = {**self.state, **state}
        if self.file is None or (self._is_reassigned and "attempt" not in self.state):
            return
        with contextlib.suppress(OSError):
            if self._is_reassigned:
                # If this file is resent again, it must have the same lines that are sent now.
                for segment in self.segments:
                    if segment.slot is not None:
                        self.file.write_head(segment.slot, segment.head)
                self._is_reassigned = False
            self.file.write_state(self.state)

    def remove_state(self, name: str) -> None:
        """Removes ``name`` from the state, here and in the file."""
        if name in self.state:
            self.state = {other: value for other, value in self.state.items() if other != name}
            self.save_state()

    def reassign(self) -> None:
        """The lines are to be published as another job. Forgets their own job, and the numbers that they had there."""
        self._is_reassigned = True
        self.state = {name: value for name, value in self.state.items() if name in _OF_ANY_JOB}
        for segment in self.segments:
            batches = [record.batch for record in records.valid_records(segment.marker, segment.order)]
            segment.set_marker([batch._replace(text=_without_numbers(batch.text)) for batch in batches])

    def locate(self, index: int, base: int) -> Segment | None:
        """The segment that has the line ``index``; None if there is none.

        Its lines get the sequence numbers index + ``base``. From now on they keep them.
        """
        for segment in self.segments:
            if segment.index is None:
                self._assign_indexes(index, base)
            if segment.index is not None and index < segment.end:
                self._read_end = max(self._read_end, segment.end)
                return segment
        return None

    def free(self, safe: int) -> None:
        """Frees segments whose lines are all below ``safe``, but keeps the newest ``keep_bytes`` of them."""
        kept_bytes = sum(each.size for each in self.segments if each.index is not None and each.end <= safe)
        while self.segments and self.segments[0].index is not None and self.segments[0].end <= safe:
            kept_bytes -= self.segments[0].size
            if kept_bytes < self.room.keep_bytes:
                break
            self._free_slot(self.segments.popleft())
        if not self.segments:
            self._delete_file()

    def clear(self) -> None:
        """Removes all lines, and the file."""
        self.segments.clear()
        self._delete_file()

    def preserve(self) -> Path | None:
        """Moves all segments to the file, closes it, and returns its path. None if there can be no file, or no need."""
        if not self.segments and self.file is None:
            return None
        if not self.spill() or self.file is None:
            return None
        file, self.file = self.file, None
        self.segments.clear()
        with contextlib.suppress(OSError):
            file.sync()
        file.close()
        return file.path

    def spill(self) -> bool:
        """Moves all segments to the file, which is created if need be. Returns whether they are all there."""
        if self.file is None and not self._create_file():
            return False
        assert self.file is not None
        try:
            for segment in self.segments:
                if segment.data is None:
                    continue
                slot = self.file.allocate()
                if slot is None:
                    return False
                self.file.write(slot, 0, segment.data)
                self.file.write_head(slot, segment.head)
                segment.slot, segment.data = slot, None
        except OSError:
            self.file.report_full()
            return False
        return True

    # Adding lines

    def _store(self, batch: LineBatch) -> None:
        size = records.RECORD_HEAD_BYTES + len(batch.text)
        for _ in range(_MAX_ATTEMPTS if size <= self._capacity else 0):
            segment = self._last_with_room(size) or self._add_segment()
            if segment is None:
                break
            try:
                segment.add(batch, self.file)
            except OSError:
                self._on_disk_full(segment)
                continue
            (self._open_streams.add if batch.partial else self._open_streams.discard)(batch.stream)
            self.end += batch.lines
            return
        printed = self._printed + batch.lines
        self._drop(frozenset(self._open_streams), batch.lines, len(batch.text), self._order, printed)

    def _last_with_room(self, size: int) -> Segment | None:
        """The last segment, if it can take ``size`` more bytes."""
        last = self.segments[-1] if self.segments else None
        if last is None or last.sealed or last.size + size > self._capacity:
            return None
        return None if self._dropped_range is not None and last.order < self._dropped_range.order else last

    def _add_segment(self) -> Segment | None:
        """A new last segment, in memory or in the file. Drops older lines if there is no room; None if that fails."""
        if self.file is None and (self.force_spill or self._is_memory_full()):
            self.spill()
        for _ in range(_MAX_ATTEMPTS):
            index = None if self._dropped_range else self.end
            segment = Segment(self._order, index, self._printed, frozenset(self._open_streams))
            slot = self.file.allocate() if self.file is not None else None
            if self.file is not None and slot is not None:
                segment.data, segment.slot = None, slot
                try:
                    self.file.write_head(slot, segment.head)
                except OSError:
                    self.file.report_full(slot)
                    continue
                return self._append(segment)
            if self.file is None and not self._is_memory_full():
                return self._append(segment)
            if not self._make_room():
                break
        return None

    def _append(self, segment: Segment) -> Segment:
        self._order = segment.order + 1
        self.segments.append(segment)
        return segment

    def _is_memory_full(self) -> bool:
        in_memory = sum(each.data is not None for each in self.segments)
        return (in_memory + 1) * self.room.slot_bytes > self.room.memory_bytes

    def _on_disk_full(self, segment: Segment) -> None:
        segment.sealed = True
        if self.file is not None:
            self.file.report_full()
        if not segment.lines and not segment.marker:
            self.segments.remove(segment)
            self._free_slot(segment)

    # Dropping lines

    def _make_room(self) -> bool:
        """Frees one segment: the first, if the store has its lines, else one from the middle. Whether it could."""
        if not self.segments:
            return False
        front = self.segments[0]
        if front.index is not None and front.end <= self.acked:
            self._free_slot(self.segments.popleft())
            return True
        if self._dropped_range is not None:
            candidates = [each for each in self.segments if each.order >= self._dropped_range.order]
        else:
            middle = list(self.segments)[len(self.segments) // 2 :]
            candidates = [each for each in middle if each.index is not None and each.index >= self._read_end]
        if not candidates:
            return False
        victim = candidates[0]
        self.segments.remove(victim)
        self._free_slot(victim)
        self.end -= victim.lines
        printed = victim.ordinal + victim.lines
        self._drop(victim.open_streams, victim.lines, victim.text_bytes, victim.order + 1, printed)
        return True

    def _drop(self, open_streams: frozenset[str], lines: int, size: int, order: int, printed: int) -> None:
        """Counts lines as dropped just before the segment ``order``. The last was the job's line number ``printed``."""
        if self._dropped_range is None:
            self._dropped_range = DroppedRange(order, open_streams)
            self.end += self._dropped_range.marker_lines
            for segment in self.segments:
                segment.index = None if segment.order >= order else segment.index
        elif not self._nothing_follows_drop():
            earlier = self._dropped_range.order
            order = max(order, earlier) if order <= self.segments[-1].order else earlier
        self._dropped_range.order = order
        self._dropped_range.lines += lines
        self._dropped_range.size += size
        self.dropped += lines
        # ``printed`` tells whoever recovers the file that lines were dropped after the last one in it.
        self.save_state(dropped=self.dropped, printed=max(printed, self.state.get("printed", 0)))

    def _nothing_follows_drop(self) -> bool:
        dropped = self._dropped_range
        return dropped is None or not self.segments or self.segments[-1].order < dropped.order

    def _assign_indexes(self, index: int, base: int) -> None:
        """Gives the drop marker the index ``index``, and the segments after it the next ones."""
        for segment in self.segments:
            if segment.index is not None:
                continue
            segment.index = index
            if self._dropped_range is not None:
                self._place_marker(segment, base)
            index = segment.end
            if self.file is not None and segment.slot is not None:
                # If the disk is full, whoever recovers the file works out the same index.
                with contextlib.suppress(OSError):
                    self.file.write_head(segment.slot, segment.head)

    def _place_marker(self, segment: Segment, base: int | None) -> None:
        """Puts the drop marker before the segment's lines."""
        assert self._dropped_range is not None
        assert segment.index is not None
        dropped, self._dropped_range = self._dropped_range, None
        segment.set_marker(dropped.marker(segment.index, base, segment.timestamp))

    # The file

    def _create_file(self) -> bool:
        room, now = self.room, self._monotonic()
        if room.directory is None or now < self._create_at:
            return False
        try:
            self.file = SpoolFile.create(room.directory, room.name, room.file_bytes, room.slot_bytes)
            self.file.write_state(self.state)
        except OSError:
            self._create_at = now + CREATE_RETRY_SECONDS
            self._delete_file()
            return False
        return True

    def _delete_file(self) -> None:
        if self.file is not None:
            self.file.delete()
            self.file = None

    def _free_slot(self, segment: Segment) -> None:
        if segment.slot is not None and self.file is not None:
            self.file.free(segment.slot)

    def _load(self, file: SpoolFile) -> None:
        """Takes the segments of a recovered file, and finds out where lines were dropped. Raises _Inconsistent."""
        for slot, head, data in file.recover():
            if head.order > MAX_NUMBER or (self.segments and head.order == self.segments[-1].order):
                raise _Inconsistent(f"its slots cannot be in the order that they say ({head.order})")
            segment, open_streams = recover_segment(slot, head, data)
            if not self.segments:
                self.end = self.acked = max(0, head.start)
                self._printed = segment.ordinal
            missing = segment.ordinal - self._printed
            segment.index = self.end
            if missing > 0 and not segment.marker:
                self._dropped_range = DroppedRange(segment.order, frozenset(self._open_streams), missing)
                self._place_marker(segment, self.state.get("base"))
            self.segments.append(segment)
            self.end = segment.end
            self._printed = segment.ordinal + segment.lines
            self._open_streams = open_streams
            self.dropped += max(0, missing)
            self._order = segment.order + 1
        self._read_end = self.end
        missing = self.state.get("printed", 0) - self._printed
        if missing > 0:
            self._dropped_range = DroppedRange(self._order, frozenset(self._open_streams), missing)
            self.end += self._dropped_range.marker_lines
            self._printed += missing
            self.dropped += missing
        self.dropped = max(self.dropped, self.state.get("dropped", 0))
        base = self.state.get("base", 1)
        if "attempt" in self.state and base + self.first < 1:
            raise _Inconsistent(f"its first line would have the number {base + self.first}")
        if max(base, 1) + max(self.end, self._printed, self.dropped) > MAX_NUMBER:
            raise _Inconsistent("its lines would have numbers beyond all that there are")
