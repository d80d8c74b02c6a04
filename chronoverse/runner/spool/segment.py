"""Segments: consecutive waiting lines, in memory or in a slot of the spool file. Room is taken and freed by segment."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from chronoverse.joblog.values import LineRun
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool import records
from chronoverse.runner.spool.spool_file import SpoolFile

#: Bytes of one read of a segment.
WINDOW_BYTES: Final = 262_144


@dataclass(eq=False, slots=True)
class Segment:
    """Records of batches of lines, in order. A drop marker may stand before them."""

    #: Grows from segment to segment.
    order: int
    #: The index of its first line, the drop marker's included. None after dropped lines, while their marker has none.
    index: int | None
    #: How many lines the job had printed before its first line, dropped ones included.
    ordinal: int
    #: The streams whose last line before this segment is partial.
    open_streams: frozenset[str] = frozenset()
    #: The timestamp of its first line.
    timestamp: str = ""
    #: Its lines, without the drop marker.
    lines: int = 0
    #: Bytes of its records, without the drop marker.
    size: int = 0
    #: Bytes of its lines alone.
    text_bytes: int = 0
    #: The records of the drop marker that stands before its lines.
    marker: bytes = b""
    marker_lines: int = 0
    #: Its records, if it is in memory.
    data: bytearray | None = field(default_factory=bytearray)
    #: Its slot in the file, if it is there.
    slot: int | None = None
    #: Whether nothing more may be added.
    sealed: bool = False

    @property
    def end(self) -> int:
        """The index after its last line. Only for a segment that has an ``index``."""
        assert self.index is not None
        return self.index + self.marker_lines + self.lines

    @property
    def head(self) -> records.SlotHead:
        """The header of its slot."""
        return records.SlotHead(self.order, -1 if self.index is None else self.index, self.ordinal, self.marker)

    def add(self, batch: LineBatch, file: SpoolFile | None) -> None:
        """Appends a batch. Raises OSError, with nothing changed, when the disk is full."""
        head = records.pack_head(batch, self.order)
        if self.data is not None:
            self.data += head
            self.data += batch.text
        elif file is not None and self.slot is not None:
            file.write(self.slot, self.size, head, batch.text)
        self.size += len(head) + len(batch.text)
        self.text_bytes += len(batch.text)
        self.lines += batch.lines
        self.timestamp = self.timestamp or batch.timestamp

    def read(self, position: int, length: int, file: SpoolFile | None) -> bytes:
        """Bytes of its records from ``position`` on. The drop marker comes first."""
        start = position - len(self.marker)
        if start < 0:
            return self.marker[position:]
        length = min(length, self.size - start)
        data = self.data  # another thread may move it to the file
        if data is not None:
            return bytes(data[start : start + length])
        assert file is not None
        assert self.slot is not None
        return file.read(self.slot, start, length)

    def set_marker(self, batches: list[LineBatch]) -> None:
        """Puts a drop marker before its lines."""
        self.marker = b"".join(records.pack_record(batch, self.order) for batch in batches)
        self.marker_lines = len(batches)


def split_batch(batch: LineBatch, limit: int) -> Iterator[LineBatch]:
    """The batch as batches of at most ``limit`` bytes, cut between lines. A line that is longer stays whole."""
    text = batch.text
    while len(text) > limit:
        cut = text.rfind(b"\n", 0, limit + 1)
        cut = text.find(b"\n") if cut < 0 else cut
        if cut < 0:
            break
        yield LineBatch(batch.stream, batch.timestamp, text[:cut], text.count(b"\n", 0, cut) + 1)
        text = text[cut + 1 :]
    yield LineBatch(batch.stream, batch.timestamp, text, text.count(b"\n") + 1, batch.partial)


def recover_segment(slot: int, head: records.SlotHead, data: bytes) -> tuple[Segment, set[str]]:
    """The segment that a slot holds, and the streams whose last line in it is partial."""
    index = None if head.start < 0 else head.start
    segment = Segment(head.order, index, head.ordinal, data=None, slot=slot)
    segment.set_marker([record.batch for record in records.valid_records(head.marker, head.order)])
    open_streams: set[str] = set()
    for batch, end in records.valid_records(data, head.order):
        segment.lines += batch.lines
        segment.text_bytes += len(batch.text)
        segment.size = end
        segment.timestamp = segment.timestamp or batch.timestamp
        (open_streams.add if batch.partial else open_streams.discard)(batch.stream)
    return segment, open_streams


class SegmentReader:
    """Reads lines of segments. It remembers where it stopped, so that reading on needs no search."""

    def __init__(self) -> None:
        #: The ``order`` of the segment that was read last, the position of a record in it, and its first line's index.
        self._order = -1
        self._position = 0
        self._index = 0
        #: The bytes that were read last: the segment's ``order``, where they begin in it, and the bytes.
        self._window = (-1, 0, b"")
        #: The lines of the record that was read last: the segment's ``order``, the record's position, and the lines.
        self._messages: tuple[int, int, list[bytes]] = (-1, 0, [])

    def read_runs(self, segment: Segment, index: int, file: SpoolFile | None, lines: int, size: int) -> list[LineRun]:
        """Lines of the segment from ``index`` on: at most ``lines`` of them, and about ``size`` bytes."""
        assert segment.index is not None
        if self._order != segment.order or index < self._index:
            self._order, self._position, self._index = segment.order, 0, segment.index
        runs: list[LineRun] = []
        end = len(segment.marker) + segment.size
        while self._position < end and lines > 0 and size > 0:
            data, start = self._read(segment, file, records.RECORD_HEAD_BYTES)
            count, after = records.count_lines_at(data, start)
            length = after - start
            if index < self._index + count:
                run = self._read_run(segment, file, length, index - self._index, lines)
                runs.append(run)
                lines -= len(run.messages)
                size -= length
                index += len(run.messages)
            if index < self._index + count:
                break
            self._position += length
            self._index += count
        return runs

    def _read_run(self, segment: Segment, file: SpoolFile | None, length: int, skip: int, lines: int) -> LineRun:
        """At most ``lines`` lines of the record at the current position, after the first ``skip``."""
        batch = records.batch_at(*self._read(segment, file, length))
        if self._messages[:2] != (segment.order, self._position):
            self._messages = (segment.order, self._position, batch.encoded())
        messages = self._messages[2][skip : skip + lines]
        return LineRun(batch.timestamp, batch.stream, batch.partial, messages)

    def _read(self, segment: Segment, file: SpoolFile | None, length: int) -> tuple[bytes, int]:
        """Bytes of the segment, and where in them the current position is. ``length`` bytes follow it at least."""
        order, start, data = self._window
        if order != segment.order or not start <= self._position <= start + len(data) - length:
            data = segment.read(self._position, max(length, WINDOW_BYTES), file)
            start = self._position
            self._window = (segment.order, start, data)
        return data, self._position - start
