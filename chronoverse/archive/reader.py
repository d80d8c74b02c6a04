"""Reads archived lines: those after a number, those before it, and whole logs frame by frame.

When several viewers of a worker want the same frame, it is read and decompressed once: see :class:`SingleFlightCache`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice, takewhile
from typing import Final, NamedTuple, TypeVar

from chronoverse.archive.caches import ChunkIndexReader, ChunkRecordCache, SingleFlightCache
from chronoverse.archive.codec import decode_entry, decompress_frame, split_lines
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.shape_sets import read_shape_set
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, Frame
from chronoverse.joblog.entries import Entry
from chronoverse.joblog.events import LOG_FRAME
from chronoverse.joblog.shapes import ShapeSet
from chronoverse.joblog.values import Gap, JobRef, Line

#: Bytes of an object that one read for a page brings, approximately: some ten frames. From S3 one frame takes as long.
READ_BYTES: Final = 256 * 2**10
#: Bytes of objects in the cache. This is enough for 16 replays at different positions: none reads the same bytes twice.
READ_CACHE_BYTES: Final = 4 * 2**20
#: The most bytes of one read in a scan of a whole log, since S3 takes 10 ms for each answer.
MAX_SCAN_READ_BYTES: Final = 2**20
#: Bytes of lines in the cache. One replay asks for the same frame some five times in a row.
LINE_CACHE_BYTES: Final = 4 * 2**20
#: Bytes of lines after which one read of entries ends, at the end of a frame.
MAX_ENTRIES_BYTES: Final = 2**20
#: The most chunks of a log whose set of shapes is looked for. Each chunk takes a round trip to the store. A thousand
#: have 16 GB of lines.
MAX_SHAPED_CHUNKS: Final = 1_000
#: Bytes of memory that a line takes in the cache besides its text.
_LINE_OVERHEAD: Final = 48

_Result = TypeVar("_Result")


class FrameRange(NamedTuple):
    """Consecutive lines as bytes, and the number of the last one."""

    text: bytes
    cursor: int


class ArchiveReader:
    """Reads the archived part of logs. ``index`` finds chunk records. ``clock`` is monotonic, in seconds.

    Every method raises :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what ``index`` raises.
    """

    def __init__(
        self, objects: ObjectStore, index: ChunkIndexReader, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._objects: Final = objects
        self._record_cache: Final = ChunkRecordCache(index, clock)
        self._read_cache: SingleFlightCache[tuple[str, int], bytes] = SingleFlightCache(READ_CACHE_BYTES)
        self._line_cache: SingleFlightCache[tuple[str, int], list[bytes]] = SingleFlightCache(LINE_CACHE_BYTES)

    def frames(self, job: JobRef, after: int, max_lines: int) -> FrameRange | None:
        """Up to ``max_lines`` lines after the number ``after`` as Server-Sent Events, all from one frame of a chunk.

        None at the archive's end, and when not every number in the frame is a line. Use :meth:`entries` then.
        """
        found = self._frame_with(job, after + 1)
        if found is None or not found[0].plain or found[0].first > after + 1:
            return None
        frame, lines = found
        start = after + 1 - frame.first
        lines = lines[start : start + max_lines]
        cursor = after + len(lines)
        frames = [LOG_FRAME % numbered for numbered in zip(lines, range(after + 1, cursor + 1), strict=True)]
        return FrameRange(b"".join(frames), cursor)

    def entries(self, job: JobRef, after: int, count: int) -> list[Entry]:
        """Up to ``count`` entries after the number ``after``. Every number after ``after`` is in a line or a gap.

        There are fewer when they come to :data:`MAX_ENTRIES_BYTES`, and at the archive's end. An empty list means that
        the archive ends before ``after``.
        """
        found: list[Entry] = []
        reached, size = after, 0
        while len(found) < count and (size < MAX_ENTRIES_BYTES or not found):
            read = self._frame_with(job, reached + 1)
            if read is None:
                break
            frame, lines = read
            size += frame.text_size
            if frame.first > reached + 1:
                found.append(Gap(reached + 1, frame.first - 1, "trimmed"))
            found += islice(_entries_after(frame, lines, after), count - len(found))
            reached = frame.last
        return found

    def entries_before(self, job: JobRef, before: int, count: int) -> list[Entry]:
        """Up to ``count`` lines and gaps before the number ``before``, the last one first.

        There are fewer when they come to :data:`MAX_ENTRIES_BYTES`, and at the archive's beginning. An empty list means
        that the archive begins at ``before`` or later. ``before`` is at most the archive's last number and 1. Entries
        out of sequence are left out, since readers that go downwards need a number in each entry.
        """
        found: list[Entry] = []
        size = 0
        while len(found) < count and before > 1 and (size < MAX_ENTRIES_BYTES or not found):
            read = self._frame_with(job, before - 1)
            if read is None or read[0].first >= before:
                break
            frame, lines = read
            size += frame.text_size
            found += islice(_entries_before(frame, lines, before), count - len(found))
            before = frame.first
        return found

    def scan_frames(
        self, job: JobRef, cursor: int, *, descending: bool, skip: Callable[[Frame], bool]
    ) -> Iterator[tuple[Frame, bytes | None]]:
        """Reads frame by frame, upwards from the line after ``cursor``, or downwards from the line before it.

        Yields each frame with its compressed bytes. If ``skip`` returns true for a frame, it is not read, and None is
        yielded for its bytes. Nothing is cached. The reads grow from :data:`READ_BYTES` to :data:`MAX_SCAN_READ_BYTES`.
        """
        max_bytes = READ_BYTES

        def read_frames(chunk: Chunk) -> list[tuple[Frame, bytes | None]]:
            index = chunk.frame_index(number)
            frames = chunk.frames[index::-1] if descending else chunk.frames[index:]
            if frames and skip(frames[0]):
                return [(each, None) for each in takewhile(skip, frames)]
            # The first frame, and those after it that begin within max_bytes.
            starts = takewhile(max_bytes.__gt__, accumulate((each.size for each in frames), initial=0))
            wanted = [each for each, _ in zip(takewhile(lambda each: not skip(each), frames), starts, strict=False)]
            start = min(each.offset for each in wanted)
            data = self._objects.get(chunk.name, start, max(each.offset + each.size for each in wanted))
            return [(each, data[each.offset - start : each.offset - start + each.size]) for each in wanted]

        while (number := cursor - 1 if descending else cursor + 1) > 0 and (
            found := self._read_chunk(job, number, read_frames)
        ):
            if descending and found[0][0].first > number:
                return
            yield from found
            cursor = found[-1][0].first if descending else found[-1][0].last
            max_bytes = min(2 * max_bytes, MAX_SCAN_READ_BYTES)

    def shape_set(self, job: JobRef) -> ShapeSet | None:
        """The shapes of the job's archived lines. None when the archive has no set of them, or very many chunks."""
        chunks: list[Chunk] = []
        while chunk := self._record_cache.fresh_chunk(job, chunks[-1].last + 1 if chunks else 1):
            chunks.append(chunk)
            if len(chunks) > MAX_SHAPED_CHUNKS:
                return None
        return read_shape_set(self._objects, job, chunks)

    def forget(self, job: JobRef) -> None:
        """Drops the cached chunk records of ``job``, because they were replaced."""
        self._record_cache.forget(job)

    def _frame_with(self, job: JobRef, number: int) -> tuple[Frame, list[bytes]] | None:
        """The frame with line ``number``, or else the next frame, and its JSON Lines. None after the last frame."""
        return self._read_chunk(job, number, lambda chunk: self._load_frame(chunk, number))

    def _read_chunk(self, job: JobRef, number: int, read: Callable[[Chunk], _Result]) -> _Result | None:
        """The result of ``read`` for the chunk with line ``number``, or else for the next one. None after the last."""
        chunk = self._record_cache.chunk(job, number)
        if chunk is None:
            return None
        try:
            return read(chunk)
        except ArchiveDamaged:
            self._read_cache.forget(lambda key: key[0] == chunk.name)
            # A redaction may have replaced the chunk meanwhile. Then the old object is gone and a new one is recorded.
            fresh = self._record_cache.fresh_chunk(job, number)
            if fresh is not None and fresh.name == chunk.name:
                raise
            return read(fresh) if fresh else None

    def _load_frame(self, chunk: Chunk, number: int) -> tuple[Frame, list[bytes]]:
        index = chunk.frame_index(number)
        return chunk.frames[index], self._line_cache.get((chunk.name, index), lambda: self._load_lines(chunk, index))

    def _load_lines(self, chunk: Chunk, index: int) -> tuple[list[bytes], int]:
        """The JSON Lines of a frame, and the bytes of memory that they take. Reads the frames around it as well."""
        frame = chunk.frames[index]
        block = frame.offset // READ_BYTES
        neighbours = [each for each in chunk.frames if each.offset // READ_BYTES == block]
        start, stop = neighbours[0].offset, neighbours[-1].offset + neighbours[-1].size

        def read() -> tuple[bytes, int]:
            data = self._objects.get(chunk.name, start, stop)
            return data, len(data)

        data = self._read_cache.get((chunk.name, block), read)
        text = decompress_frame(frame, data[frame.offset - start : frame.offset - start + frame.size])
        lines = split_lines(frame, text)
        return lines, frame.text_size + _LINE_OVERHEAD * len(lines)


def _with_numbers(frame: Frame, lines: Iterable[bytes]) -> Iterator[tuple[int, Entry]]:
    """Each entry with its number. A gap has its last number; an entry out of sequence that of the entry before it."""
    reached = frame.first - 1
    for entry in map(decode_entry, lines):
        if isinstance(entry, Line):
            reached = entry.sequence_num
        elif isinstance(entry, Gap):
            reached = entry.last
        yield reached, entry


def _entries_after(frame: Frame, lines: list[bytes], after: int) -> Iterator[Entry]:
    if frame.plain:
        yield from map(decode_entry, islice(lines, max(after + 1 - frame.first, 0), None))
        return
    for reached, entry in _with_numbers(frame, lines):
        if reached > after:
            yield Gap(max(entry.first, after + 1), entry.last, entry.reason) if isinstance(entry, Gap) else entry


def _entries_before(frame: Frame, lines: list[bytes], before: int) -> Iterator[Entry]:
    if frame.plain:
        yield from map(decode_entry, reversed(lines[: before - frame.first]))
        return
    for _, entry in reversed(list(_with_numbers(frame, lines))):
        if isinstance(entry, Gap) and entry.first < before:
            yield Gap(entry.first, min(entry.last, before - 1), entry.reason)
        elif isinstance(entry, Line) and entry.sequence_num < before:
            yield entry
