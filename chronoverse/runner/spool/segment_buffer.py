"""What waits, as segments: room is taken at the end, given back at the front, and made in the middle.

    oldest ──────── acked ───────────────── hole ──────────── newest
      │ in the store, │ to be sent           │ the newest       │ the job's next line
      │ not yet safe  │                      │ lines
                                             └ where the bound made us drop lines: a marker will stand here

At the bound the middle goes: what came first and what comes last says most. Nobody has been told an index behind the
hole, so the lines there follow the marker without a gap in the numbers.

Not safe for threads: :class:`chronoverse.runner.spool.spool.Spool` is, and is what others use.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from chronoverse.errors import SpoolError
from chronoverse.joblog.values import MAX_NUMBER
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool import records
from chronoverse.runner.spool.dropped_range import DroppedRange, without_numbers
from chronoverse.runner.spool.segment import Segment, recover_segment, split_batch
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom

#: Seconds before a file that could not be made is tried again.
CREATE_RETRY_SECONDS: Final = 5.0
#: What the state says that is true of the lines whichever job they belong to.
_OF_ANY_JOB: Final = ("ending", "dropped", "printed")
#: Slots that may fail to take a block before it is dropped.
_MAX_ATTEMPTS: Final = 3


class _Inconsistent(Exception):
    """Raised when the slots of a file cannot all be what they say."""


class SegmentBuffer:
    """The segments, in memory or in the file. What lines are safe or known elsewhere is told to it."""

    def __init__(self, room: SpoolRoom, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.segments: deque[Segment] = deque()
        self.file: SpoolFile | None = None
        #: What was noted last: by this process, or by the one that left the file.
        self.state: dict[str, Any] = {}
        #: The index behind the last line, of the first line that the store may not have, and behind the highest read.
        self.end = self.acked = self._read_end = 0
        #: Lines that found no room.
        self.dropped = 0
        #: Whether new lines should go to the file, however few they are.
        self.force_spill = False
        self.room = room
        self._monotonic = monotonic
        self._capacity = room.slot_bytes - records.SLOT_HEAD_BYTES
        self._dropped_range: DroppedRange | None = None
        self._open_streams: set[str] = set()
        self._order = self._printed = 0
        self._retry_at = 0.0
        #: Whether the file still says that its lines are another job's.
        self._is_renamed = False

    @classmethod
    def recover(cls, path: Path, room: SpoolRoom) -> "SegmentBuffer":
        """What a runner left behind in a file. Raises :class:`SpoolError`."""
        file, state = SpoolFile.open(path, room.file_bytes)
        stock = cls(SpoolRoom(path.parent, room.name, room.memory_bytes, room.file_bytes, 0, file.slot_bytes))
        stock.file, stock.state = file, state
        try:
            stock._load(file)
        except _Inconsistent as error:
            file.close()
            raise SpoolError(f"{path} is damaged: {error}") from None
        return stock

    @property
    def first(self) -> int:
        """The lowest index that can still be had."""
        front = self.segments[0] if self.segments else None
        return self.acked if front is None or front.index is None else front.index

    def add(self, batch: LineBatch) -> None:
        """Takes a block, or counts it as dropped."""
        limit = self._capacity - records.RECORD_HEAD_BYTES
        for part in split_batch(batch, limit) if len(batch.text) > limit else (batch,):
            self._store(part)
            self._printed += part.lines

    def close(self, timestamp: str) -> None:
        """Nothing comes any more: the marker of what was dropped last, if there was, gets a place."""
        if self._dropped_range is not None and self._tail_is_empty():
            self._append(Segment(self._order, None, self._printed, timestamp=timestamp))

    def save_state(self, **state: Any) -> None:
        """Changes the state, here and in the file; in the file of a renamed job only once there is an attempt."""
        self.state = {**self.state, **state}
        if self.file is None or (self._is_renamed and "attempt" not in self.state):
            return
        with contextlib.suppress(OSError):
            if self._is_renamed:
                # Another delivery of this file must find the same lines that this one sends.
                for segment in self.segments:
                    if segment.slot is not None:
                        self.file.write_head(segment.slot, segment.head)
                self._is_renamed = False
            self.file.write_state(self.state)

    def remove_state(self, name: str) -> None:
        """Takes ``name`` out of the state, here and in the file."""
        if name in self.state:
            self.state = {other: value for other, value in self.state.items() if other != name}
            self.save_state()

    def reassign(self) -> None:
        """The lines are to be another job's: forgets which one they were of, and what numbers they had there."""
        self._is_renamed = True
        self.state = {name: value for name, value in self.state.items() if name in _OF_ANY_JOB}
        for segment in self.segments:
            blocks = [found.batch for found in records.valid_records(segment.marker, segment.order)]
            segment.set_marker([block._replace(text=without_numbers(block.text)) for block in blocks])

    def locate(self, index: int, base: int) -> Segment | None:
        """The segment in which ``index`` is. From now on what ``base`` + index numbers its lines is fixed."""
        for segment in self.segments:
            if segment.index is None:
                self._number_tail(index, base)
            if segment.index is not None and index < segment.end:
                self._read_end = max(self._read_end, segment.end)
                return segment
        return None

    def free(self, safe: int) -> None:
        """Gives back room: the store has every line below ``safe`` safely."""
        kept = sum(each.size for each in self.segments if each.index is not None and each.end <= safe)
        while self.segments and self.segments[0].index is not None and self.segments[0].end <= safe:
            kept -= self.segments[0].size
            if kept < self.room.keep_bytes:
                break
            self._discard(self.segments.popleft())
        if not self.segments:
            self._delete()

    def clear(self) -> None:
        """Lets everything go, the file too."""
        self.segments.clear()
        self._delete()

    def preserve(self) -> Path | None:
        """Puts everything into the file and lets go of it. None, when there can be no file, or need be none."""
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

    def _delete(self) -> None:
        if self.file is not None:
            self.file.delete()
            self.file = None

    # Taking room

    def _store(self, block: LineBatch) -> None:
        size = records.RECORD_HEAD_BYTES + len(block.text)
        for _ in range(_MAX_ATTEMPTS if size <= self._capacity else 0):
            segment = self._tail(size) or self._grow()
            if segment is None:
                break
            try:
                segment.add(block, self.file)
            except OSError:
                self._disk_is_full(segment)
                continue
            (self._open_streams.add if block.partial else self._open_streams.discard)(block.stream)
            self.end += block.lines
            return
        self._drop(
            frozenset(self._open_streams), block.lines, len(block.text), self._order, self._printed + block.lines
        )

    def _tail(self, size: int) -> Segment | None:
        """The last segment, if the next ``size`` bytes may go there."""
        last = self.segments[-1] if self.segments else None
        if last is None or last.sealed or last.size + size > self._capacity:
            return None
        return None if self._dropped_range is not None and last.order < self._dropped_range.order else last

    def _grow(self) -> Segment | None:
        """A new segment at the end, for which room is made if need be."""
        if self.file is None and (self.force_spill or self._is_memory_full()):
            self.spill()
        for _ in range(_MAX_ATTEMPTS):
            segment = Segment(
                self._order, None if self._dropped_range else self.end, self._printed, frozenset(self._open_streams)
            )
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
        held = sum(each.data is not None for each in self.segments)
        return (held + 1) * self.room.slot_bytes > self.room.memory_bytes

    def _disk_is_full(self, segment: Segment) -> None:
        segment.sealed = True
        if self.file is not None:
            self.file.report_full()
        if not segment.lines and not segment.marker:
            self.segments.remove(segment)
            self._discard(segment)

    def _make_room(self) -> bool:
        """Lets one segment go: one that the store has, else one from the middle."""
        if not self.segments:
            return False
        front = self.segments[0]
        if front.index is not None and front.end <= self.acked:
            self._discard(self.segments.popleft())
            return True
        if self._dropped_range is not None:
            behind = [each for each in self.segments if each.order >= self._dropped_range.order]
        else:
            middle = list(self.segments)[len(self.segments) // 2 :]
            behind = [each for each in middle if each.index is not None and each.index >= self._read_end]
        if not behind:
            return False
        victim = behind[0]
        self.segments.remove(victim)
        self._discard(victim)
        self.end -= victim.lines
        self._drop(
            victim.open_streams, victim.lines, victim.text_bytes, victim.order + 1, victim.ordinal + victim.lines
        )
        return True

    def _drop(self, opened: frozenset[str], lines: int, size: int, order: int, printed: int) -> None:
        """Lines were dropped just before the segment ``order``. The last of them was the job's line ``printed``."""
        if self._dropped_range is None:
            self._dropped_range = DroppedRange(order, opened)
            self.end += self._dropped_range.marker_lines
            for segment in self.segments:
                segment.index = None if segment.order >= order else segment.index
        elif not self._tail_is_empty():
            order = (
                max(order, self._dropped_range.order) if order <= self.segments[-1].order else self._dropped_range.order
            )
        self._dropped_range.order = order
        self._dropped_range.lines += lines
        self._dropped_range.size += size
        self.dropped += lines
        # Who recovers the file sees by ``printed`` what was dropped behind all that the file holds.
        self.save_state(dropped=self.dropped, printed=max(printed, self.state.get("printed", 0)))

    def _tail_is_empty(self) -> bool:
        return self._dropped_range is None or not self.segments or self.segments[-1].order < self._dropped_range.order

    def _discard(self, segment: Segment) -> None:
        if segment.slot is not None and self.file is not None:
            self.file.free(segment.slot)

    # The file

    def spill(self) -> bool:
        """Moves all that waits to the file. Whether there is one now, with everything in it."""
        if self.file is None and not self._make_file():
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

    def _make_file(self) -> bool:
        room, now = self.room, self._monotonic()
        if room.directory is None or now < self._retry_at:
            return False
        try:
            self.file = SpoolFile.create(room.directory, room.name, room.file_bytes, room.slot_bytes)
            self.file.write_state(self.state)
        except OSError:
            self._retry_at = now + CREATE_RETRY_SECONDS
            if self.file is not None:
                self.file.delete()
                self.file = None
            return False
        return True

    def _load(self, file: SpoolFile) -> None:
        """Takes over what the file holds."""
        for slot, head, data in file.recover():
            if head.order > MAX_NUMBER or (self.segments and head.order == self.segments[-1].order):
                raise _Inconsistent(f"its slots cannot be in the order that they say ({head.order})")
            segment, opened = recover_segment(slot, head, data)
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
            self._open_streams = opened
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

    # Numbers

    def _number_tail(self, index: int, base: int) -> None:
        """Closes the hole: the segments behind it follow ``index``, after the marker."""
        for segment in self.segments:
            if segment.index is not None:
                continue
            segment.index = index
            if self._dropped_range is not None:
                self._place_marker(segment, base)
            index = segment.end
            if self.file is not None and segment.slot is not None:
                # A file that could not be told finds the same out by itself.
                with contextlib.suppress(OSError):
                    self.file.write_head(segment.slot, segment.head)

    def _place_marker(self, segment: Segment, base: int | None) -> None:
        """Puts the marker before the segment's lines."""
        assert self._dropped_range is not None
        assert segment.index is not None
        hole, self._dropped_range = self._dropped_range, None
        segment.set_marker(hole.marker(segment.index, base, segment.timestamp))
