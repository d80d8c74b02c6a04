"""The archive as a reader has it: what follows a line, what comes before it, from whichever chunk and frame.

Everything that several readers of a worker may want is read and unpacked once: see :class:`SingleFlightCache`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice, takewhile
from typing import Final, NamedTuple, TypeVar

from chronoverse.archive.caches import ChunkIndexReader, ChunkRecordCache, SingleFlightCache
from chronoverse.archive.codec import decode_entry, decompress_frame, split_lines
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, Frame
from chronoverse.joblog.entries import Entry
from chronoverse.joblog.values import Gap, JobRef, Line

#: Bytes of an object that are read at once, about: some ten frames. One page from S3 takes as long with one frame.
READ_BYTES: Final = 256 * 2**10
#: Bytes of objects kept as they were read. Sixteen replays at different places find each of their runs once.
READ_CACHE_BYTES: Final = 4 * 2**20
#: Bytes of an object that are read at once by who goes through all of it: S3 takes some 10 ms for each answer.
MAX_SCAN_READ_BYTES: Final = 2**20
#: Bytes of lines kept. A frame is asked for some five times by one replay, and then no more.
LINE_CACHE_BYTES: Final = 4 * 2**20
#: Bytes of lines behind which a read of entries ends, at the end of a frame.
MAX_ENTRIES_BYTES: Final = 2**20
#: What a line costs besides its bytes.
_LINE_OVERHEAD: Final = 48

_Read = TypeVar("_Read")

_FRAME: Final = b"event: log\ndata: %b\nid: %d\n\n"


class FrameRange(NamedTuple):
    """Bytes of lines in a row, and the number of the last."""

    text: bytes
    cursor: int


class ArchiveReader:
    """The archived part of all logs. ``clock`` is monotonic, in seconds.

    Raises of any method: :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what ``index`` raises.
    """

    def __init__(
        self, objects: ObjectStore, index: ChunkIndexReader, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._objects: Final = objects
        self._record_cache: Final = ChunkRecordCache(index, clock)
        self._read_cache: SingleFlightCache[tuple[str, int], bytes] = SingleFlightCache(READ_CACHE_BYTES)
        self._line_cache: SingleFlightCache[tuple[str, int], list[bytes]] = SingleFlightCache(LINE_CACHE_BYTES)

    def frames(self, job: JobRef, after: int, max_lines: int) -> FrameRange | None:
        """SSE frames of the lines strictly after ``after``: up to ``most_lines``, of one of the archive's frames.

        None where the archive does not reach, and where not every number that follows is a line: what is there then,
        :meth:`entries` says.
        """
        lines = self._plain_lines(job, after, max_lines)
        if not lines:
            return None
        cursor = after + len(lines)
        frames = [_FRAME % numbered for numbered in zip(lines, range(after + 1, cursor + 1), strict=True)]
        return FrameRange(b"".join(frames), cursor)

    def json_lines(self, job: JobRef, after: int, max_lines: int) -> FrameRange | None:
        """As :meth:`frames`, but the lines' JSON, each with a newline behind it."""
        lines = self._plain_lines(job, after, max_lines)
        return FrameRange(b"\n".join([*lines, b""]), after + len(lines)) if lines else None

    def entries(self, job: JobRef, after: int, count: int) -> list[Entry]:
        """Up to ``count`` entries strictly after ``after``, every number accounted for.

        Fewer where they come to :data:`ENTRIES_BYTES`, and at the archive's end; none only there.
        """
        found: list[Entry] = []
        reached, size = after, 0
        while (
            len(found) < count
            and (size < MAX_ENTRIES_BYTES or not found)
            and (there := self._frame_with(job, reached + 1))
        ):
            frame, lines = there
            size += frame.text_size
            if frame.first > reached + 1:
                found.append(Gap(reached + 1, frame.first - 1, "trimmed"))
            found += islice(_entries_after(frame, lines, after), count - len(found))
            reached = frame.last
        return found

    def entries_before(self, job: JobRef, before: int, count: int) -> list[Entry]:
        """Up to ``count`` entries strictly before ``before``, the last first.

        Fewer where they come to :data:`ENTRIES_BYTES`, and at the archive's beginning; none only there.
        ``before`` is at most one past the archive's last number. What has no number is not named: whoever reads
        downwards counts on each entry having one.
        """
        found: list[Entry] = []
        size = 0
        while len(found) < count and before > 1 and (size < MAX_ENTRIES_BYTES or not found):
            there = self._frame_with(job, before - 1)
            if there is None or there[0].first >= before:
                break
            frame, lines = there
            size += frame.text_size
            found += islice(_entries_before(frame, lines, before), count - len(found))
            before = frame.first
        return found

    def scan_frames(
        self, job: JobRef, cursor: int, *, descending: bool, skip: Callable[[Frame], bool]
    ) -> Iterator[tuple[Frame, bytes | None]]:
        """Frame by frame, from the one right after ``place`` on, or right before it: for those who go through all.

        Of a frame that ``skip`` is true of nothing is read. Nothing is kept.
        """
        most = READ_BYTES

        def run(chunk: Chunk) -> list[tuple[Frame, bytes | None]]:
            at = chunk.frame_index(number)
            frames = chunk.frames[at::-1] if descending else chunk.frames[at:]
            if frames and skip(frames[0]):
                return [(each, None) for each in takewhile(skip, frames)]
            bounds = takewhile(most.__gt__, accumulate((each.size for each in frames), initial=0))
            taken = [each for each, _ in zip(takewhile(lambda each: not skip(each), frames), bounds, strict=False)]
            start = min(each.offset for each in taken)
            data = self._objects.get(chunk.name, start, max(each.offset + each.size for each in taken))
            return [(each, data[each.offset - start : each.offset - start + each.size]) for each in taken]

        while (number := cursor - 1 if descending else cursor + 1) > 0 and (
            found := self._read_chunk(job, number, run)
        ):
            if descending and found[0][0].first > number:
                return
            yield from found
            cursor = found[-1][0].first if descending else found[-1][0].last
            most = min(2 * most, MAX_SCAN_READ_BYTES)

    def forget(self, job: JobRef) -> None:
        """The records of ``job`` are asked for again: somebody says that they were replaced."""
        self._record_cache.forget(job)

    def _plain_lines(self, job: JobRef, after: int, max_lines: int) -> list[bytes]:
        there = self._frame_with(job, after + 1)
        if there is None or not there[0].plain or there[0].first > after + 1:
            return []
        frame, lines = there
        start = after + 1 - frame.first
        return lines[start : start + max_lines]

    def _frame_with(self, job: JobRef, number: int) -> tuple[Frame, list[bytes]] | None:
        """The frame with line ``number``, or else the first behind it, and its lines."""
        return self._read_chunk(job, number, lambda chunk: self._load_frame(chunk, number))

    def _read_chunk(self, job: JobRef, number: int, read: Callable[[Chunk], _Read]) -> _Read | None:
        """What ``read`` reads of the chunk with line ``number``, or else of the first behind it."""
        chunk = self._record_cache.chunk(job, number)
        if chunk is None:
            return None
        try:
            return read(chunk)
        except ArchiveDamaged:
            self._read_cache.forget(lambda key: key[0] == chunk.name)
            # Perhaps it was replaced, and is gone by right.
            now = self._record_cache.fresh_chunk(job, number)
            if now is not None and now.name == chunk.name:
                raise
            return read(now) if now else None

    def _load_frame(self, chunk: Chunk, number: int) -> tuple[Frame, list[bytes]]:
        place = chunk.frame_index(number)
        return chunk.frames[place], self._line_cache.get((chunk.name, place), lambda: self._load_lines(chunk, place))

    def _load_lines(self, chunk: Chunk, place: int) -> tuple[list[bytes], int]:
        frame = chunk.frames[place]
        which = frame.offset // READ_BYTES
        run = [each for each in chunk.frames if each.offset // READ_BYTES == which]
        start, stop = run[0].offset, run[-1].offset + run[-1].size

        def read() -> tuple[bytes, int]:
            data = self._objects.get(chunk.name, start, stop)
            return data, len(data)

        data = self._read_cache.get((chunk.name, which), read)
        text = decompress_frame(frame, data[frame.offset - start : frame.offset - start + frame.size])
        lines = split_lines(frame, text)
        return lines, frame.text_size + _LINE_OVERHEAD * len(lines)


def _with_numbers(frame: Frame, lines: Iterable[bytes]) -> Iterator[tuple[int, Entry]]:
    """Each entry with the number that it reaches; a Stray's is that of what it comes behind."""
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
