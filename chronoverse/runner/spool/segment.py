"""A stretch of waiting lines, in memory or in a slot of the spool's file: the unit in which room is taken and freed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from chronoverse.joblog.values import LineRun
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool import records
from chronoverse.runner.spool.spool_file import SpoolFile

#: Bytes read from a segment at once.
WINDOW_BYTES: Final = 262_144


@dataclass(eq=False, slots=True)
class Segment:
    """Records in order. ``index`` is unknown (None) behind a hole that may still grow."""

    order: int
    index: int | None
    ordinal: int
    open_streams: frozenset[str] = frozenset()
    timestamp: str = ""
    lines: int = 0
    size: int = 0
    text_bytes: int = 0
    marker: bytes = b""
    marker_lines: int = 0
    data: bytearray | None = field(default_factory=bytearray)
    slot: int | None = None
    #: Nothing more may be added to it.
    sealed: bool = False

    @property
    def end(self) -> int:
        """The index behind the last line; to be asked only where the index is known."""
        assert self.index is not None
        return self.index + self.marker_lines + self.lines

    @property
    def head(self) -> records.SlotHead:
        """Its slot's header."""
        return records.SlotHead(self.order, -1 if self.index is None else self.index, self.ordinal, self.marker)

    def add(self, batch: LineBatch, file: SpoolFile | None) -> None:
        """Appends the block. Raises OSError, with nothing changed, when the disk has no room."""
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

    def read(self, at: int, length: int, file: SpoolFile | None) -> bytes:
        """Bytes from ``at`` on, where the prelude comes first."""
        start = at - len(self.marker)
        if start < 0:
            return self.marker[at:]
        length = min(length, self.size - start)
        data = self.data  # another thread may move it to the file
        if data is not None:
            return bytes(data[start : start + length])
        assert file is not None
        assert self.slot is not None
        return file.read(self.slot, start, length)

    def set_marker(self, blocks: list[LineBatch]) -> None:
        """Puts lines before its own."""
        self.marker = b"".join(records.pack_record(block, self.order) for block in blocks)
        self.marker_lines = len(blocks)


def split_batch(block: LineBatch, limit: int) -> Iterator[LineBatch]:
    """The block as blocks of at most ``limit`` bytes, cut between lines; a longer line stays as long as it is."""
    text = block.text
    while len(text) > limit:
        cut = text.rfind(b"\n", 0, limit + 1)
        cut = text.find(b"\n") if cut < 0 else cut
        if cut < 0:
            break
        yield LineBatch(block.stream, block.timestamp, text[:cut], text.count(b"\n", 0, cut) + 1)
        text = text[cut + 1 :]
    yield LineBatch(block.stream, block.timestamp, text, text.count(b"\n") + 1, block.partial)


def recover_segment(slot: int, head: records.SlotHead, data: bytes) -> tuple[Segment, set[str]]:
    """A segment out of its slot, and the streams whose last line in it is not whole."""
    index = None if head.start < 0 else head.start
    segment = Segment(head.order, index, head.ordinal, data=None, slot=slot)
    segment.set_marker([found.batch for found in records.valid_records(head.marker, head.order)])
    opened: set[str] = set()
    for block, end in records.valid_records(data, head.order):
        segment.lines += block.lines
        segment.text_bytes += len(block.text)
        segment.size = end
        segment.timestamp = segment.timestamp or block.timestamp
        (opened.add if block.partial else opened.discard)(block.stream)
    return segment, opened


class SegmentReader:
    """Where one reader is among segments. It reads on from where it was without looking for the place again."""

    def __init__(self) -> None:
        self._order = -1
        self._at = 0
        self._index = 0
        self._window = (-1, 0, b"")
        self._texts: tuple[int, int, list[bytes]] = (-1, 0, [])

    def reset(self) -> None:
        """What was read may have changed its place."""
        self._order = -1
        self._texts = (-1, 0, [])

    def runs(self, segment: Segment, index: int, file: SpoolFile | None, lines: int, size: int) -> list[LineRun]:
        """Lines from ``index`` on: up to ``lines`` of them, and about ``size`` bytes; none behind the segment's end."""
        assert segment.index is not None
        if self._order != segment.order or index < self._index:
            self._order, self._at, self._index = segment.order, 0, segment.index
        runs: list[LineRun] = []
        end = len(segment.marker) + segment.size
        while self._at < end and lines > 0 and size > 0:
            head = self._bytes(segment, file, records.RECORD_HEAD_BYTES)
            count, after = records.count_lines_at(*head)
            if index < self._index + count:
                run = self._run(segment, file, after - head[1], index - self._index, lines)
                runs.append(run)
                lines -= len(run.messages)
                size -= after - head[1]
                index += len(run.messages)
            if index < self._index + count:
                break
            self._at += after - head[1]
            self._index += count
        return runs

    def _run(self, segment: Segment, file: SpoolFile | None, length: int, start: int, lines: int) -> LineRun:
        block = records.batch_at(*self._bytes(segment, file, length))
        if self._texts[:2] != (segment.order, self._at):
            self._texts = (segment.order, self._at, block.encoded())
        messages = self._texts[2][start : start + lines]
        return LineRun(block.timestamp, block.stream, block.partial, messages)

    def _bytes(self, segment: Segment, file: SpoolFile | None, length: int) -> tuple[bytes, int]:
        order, start, data = self._window
        if order != segment.order or not start <= self._at <= start + len(data) - length:
            data = segment.read(self._at, max(length, WINDOW_BYTES), file)
            start = self._at
            self._window = (segment.order, start, data)
        return data, self._at - start
