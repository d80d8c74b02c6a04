"""Reads archived lines: those after a number, those before it, and those that a search finds.

When several viewers of a worker want the same frame, it is read and decompressed once: see :class:`SingleFlightCache`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice, takewhile
from typing import Final, NoReturn, Protocol, TypeVar

from chronoverse.archive.caches import ChunkRecordCache, SingleFlightCache
from chronoverse.archive.codec import decode_entry, decompress_frame, split_lines
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.shape_sets import read_shape_set
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.joblog.chunk import Chunk, Frame
from chronoverse.joblog.entries import Batch, Entry
from chronoverse.joblog.model import Gap, JobRef, Line, TimeRange
from chronoverse.joblog.shapes import ShapeSet

#: Bytes of an object that one read for a page brings, approximately: some ten frames. From S3 one frame takes as long.
READ_BYTES: Final = 256 * 2**10
#: Bytes of objects in the cache: enough for 16 replays at different positions.
READ_CACHE_BYTES: Final = 4 * 2**20
#: The most bytes of one read in a search, since S3 takes 10 ms for each answer.
MAX_SCAN_READ_BYTES: Final = 2**20
#: Bytes of lines in the cache. One replay asks for the same frame some five times in a row.
LINE_CACHE_BYTES: Final = 4 * 2**20
#: Bytes of lines after which one read of entries ends, at the end of a frame.
MAX_ENTRIES_BYTES: Final = 2**20
#: The most chunks of a log whose set of shapes is looked for. Each takes a round trip to the store.
MAX_SHAPED_CHUNKS: Final = 1_000

_Result = TypeVar("_Result")


class ChunkIndexReader(Protocol):
    """Finds the records of chunks; see :class:`chronoverse.store.chunk_index.ChunkIndex`."""

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk that has line ``number``, or else the first one after it; None after the last chunk."""


class FrameFilter(Protocol):
    """Finds the lines of a frame that are wanted, such as :class:`chronoverse.archive.prefilter.Prefilter`."""

    def matching_lines(self, text: bytes) -> list[Line]:
        """The lines of a frame's JSON Lines that are wanted, in order."""


class ArchiveReader:
    """Reads the archived part of logs. ``index`` finds chunk records. ``clock`` is monotonic, in seconds.

    Without ``objects`` no archive is configured, and lines that were archived elsewhere cannot be read.
    Every method raises :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what ``index`` raises.
    """

    def __init__(
        self,
        objects: ObjectStore | None = None,
        index: ChunkIndexReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects: Final = objects
        self._get_object: Callable[[str, int, int], bytes] = _refuse
        find: Callable[[JobRef, int], Chunk | None] = _refuse
        if objects and index:
            self._get_object, find = objects.get, index.chunk
        self._record_cache: Final = ChunkRecordCache(find, clock)
        self._read_cache: SingleFlightCache[tuple[str, int], bytes] = SingleFlightCache(READ_CACHE_BYTES)
        self._line_cache: SingleFlightCache[tuple[str, int], list[bytes]] = SingleFlightCache(LINE_CACHE_BYTES)

    def json_lines(self, job: JobRef, after: int, max_lines: int) -> list[bytes]:
        """The JSON of up to ``max_lines`` lines after the number ``after``, all from one frame of a chunk.

        Empty at the archive's end, and when not every number in the frame is a line. Use :meth:`entries` then.
        """
        found = self._frame_with(job, after + 1)
        if found is None or not found[0].plain or found[0].first > after + 1:
            return []
        frame, lines = found
        start = after + 1 - frame.first
        return lines[start : start + max_lines]

    def entries(self, job: JobRef, position: int, count: int, *, descending: bool = False) -> list[Entry]:
        """Up to ``count`` entries after the number ``position``, or lines and gaps before it when ``descending``.

        Every number is in a line or a gap. Going down, entries out of sequence are left out, which have no number, and
        ``position`` is at most the archive's last number and 1. There are fewer entries when they come to
        :data:`MAX_ENTRIES_BYTES`, and where the archive ends. An empty list means that it has nothing there.
        """
        found: list[Entry] = []
        size, start = 0, position
        while len(found) < count and (size < MAX_ENTRIES_BYTES or not found):
            number = position - 1 if descending else position + 1
            read = self._frame_with(job, number) if number > 0 else None
            if read is None or (descending and read[0].first > number):
                break
            frame, lines = read
            size += frame.text_size
            if frame.first > number:
                found.append(Gap(number, frame.first - 1, "trimmed"))
            entries = _entries_before(frame, lines, start) if descending else _entries_after(frame, lines, start)
            found += islice(entries, count - len(found))
            position = frame.first if descending else frame.last
        return found

    def search(
        self,
        job: JobRef,
        frame_filter: FrameFilter,
        cursor: int,
        *,
        descending: bool = False,
        time_range: TimeRange | None = None,
    ) -> Iterator[Batch]:
        """The lines after ``cursor``, or before it, that ``frame_filter`` finds: a batch for each frame.

        ``time_range`` only leaves out frames whose lines are all earlier or later. The caller must check the times of
        the lines that were found. When ``descending``, ``cursor`` is at most the archive's last number and 1.
        """
        since, until = time_range or (None, None)

        def skip(frame: Frame) -> bool:
            is_early = frame.latest < (since or "")
            return bool(frame.latest) and (is_early or (until is not None and frame.earliest > until))

        for frame, data in self._scan_frames(job, cursor, descending=descending, skip=skip):
            lines = [] if data is None else frame_filter.matching_lines(decompress_frame(frame, data))
            previous = cursor
            cursor = frame.first if descending else frame.last
            if descending:
                lines = [line for line in reversed(lines) if line.sequence_num < previous]
            elif lines and lines[0].sequence_num <= previous:
                lines = [line for line in lines if line.sequence_num > previous]
            yield Batch([*lines], cursor, is_last=False, is_match=True)

    def _scan_frames(
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
            data = self._get_object(chunk.name, start, max(each.offset + each.size for each in wanted))
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
        if self._objects is None:
            return None
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
            data = self._get_object(chunk.name, start, stop)
            return data, len(data)

        data = self._read_cache.get((chunk.name, block), read)
        text = decompress_frame(frame, data[frame.offset - start : frame.offset - start + frame.size])
        lines = split_lines(frame, text)
        # A line takes 48 bytes besides its text.
        return lines, frame.text_size + 48 * len(lines)


def _refuse(*_: object) -> NoReturn:
    raise ArchiveUnavailable("this part of the log is in an archive, and CHRONOVERSE_ARCHIVE_URL names none")


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
