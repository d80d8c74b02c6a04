"""Reads archived lines after a number, before it, or by a search. Viewers of the same frame share one read."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Final, NoReturn, TypeVar

from chronoverse import metrics
from chronoverse.archive.caches import ChunkRecordCache, SingleFlightCache
from chronoverse.archive.codec import decode_entry, frame_text, split_lines
from chronoverse.archive.derived import read_shape_set, read_timeline
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.joblog.chunk import Chunk, Frame
from chronoverse.joblog.entries import Batch, Entry, Match, missing_numbers
from chronoverse.joblog.model import MAX_NUMBER, Gap, Job, JobRef, Line, TimeRange
from chronoverse.joblog.shapes import PackedShapes
from chronoverse.joblog.timelines import Timeline

#: Approximate bytes that a read for a page fetches: some ten frames. From S3, a single frame takes as long as ten.
READ_BYTES: Final = 256 * 2**10
#: Bytes of the cache of objects (enough for 16 replays at different positions) and of the cache of lines, each.
_CACHE_BYTES: Final = 4 * 2**20
#: Bytes of the cache of shapes: a thousand jobs of 2,000 shapes each. Used only in processes that scan.
SHAPES_BYTES: Final = 32 * 2**20
#: Approximate bytes that a read for a search fetches: many, since S3 takes 10 ms per answer.
_SEARCH_BYTES: Final = 2**20

_Result = TypeVar("_Result")
FrameFilter = Callable[[bytes], Sequence[Line | Match]]


class ArchiveReader:
    """Reads the archived part of logs. ``clock`` is monotonic, in seconds. Without ``objects``, nothing can be read.

    Every method raises :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what ``find_chunk`` raises.
    """

    def __init__(
        self,
        objects: ObjectStore | None = None,
        find_chunk: Callable[[JobRef, int], Chunk | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects: Final = objects
        self._get_object: Callable[[str, int, int], bytes] = _refuse
        if objects is not None:
            self._get_object = objects.get
        self.record_cache: Final = ChunkRecordCache(find_chunk if objects and find_chunk else _refuse, clock)
        self._read_cache: SingleFlightCache[tuple[str, int], bytes] = SingleFlightCache(_CACHE_BYTES)
        self._shapes_cache: SingleFlightCache[tuple[JobRef, str], PackedShapes | None] = SingleFlightCache(SHAPES_BYTES)
        # At most 800 KB each: five jobs, each with the runs that it is compared with.
        self._timelines: SingleFlightCache[tuple[JobRef, str], Timeline | None] = SingleFlightCache(32)
        self._line_cache: SingleFlightCache[tuple[str, int], list[bytes]] = SingleFlightCache(_CACHE_BYTES)
        self._ahead: SingleFlightCache[tuple[str, int, int], bytes] = SingleFlightCache(16 * _SEARCH_BYTES)
        #: How long the last read for a search took. Unknown at first.
        self.read_seconds = math.inf

    def json_lines(self, job: JobRef, position: int, count: int, *, descending: bool = False) -> list[bytes]:
        """The JSON of up to ``count`` lines from one frame. Empty at the archive's end, and for a frame with gaps."""
        number = position - 1 if descending else position + 1
        found = self._frame_with(job, number)
        if found is None or not found[0].plain or found[0].first > number:
            return []
        frame, lines = found
        start = number - frame.first
        return lines[start::-1][:count] if descending else lines[start : start + count]

    def entries(self, job: JobRef, position: int, count: int, *, descending: bool = False) -> list[Entry]:
        """Up to ``count`` entries after number ``position``; if ``descending``, lines and gaps before it.

        If ``descending``, ``position`` is at most one past the archive's last number. Returns fewer entries if they
        reach 1 MiB or the archive ends; none if the archive has nothing there.
        """
        found: list[Entry] = []
        size, start = 0, position
        while len(found) < count and (size < 2**20 or not found):
            number = position - 1 if descending else position + 1
            read = self._frame_with(job, number) if number > 0 else None
            if read is None or (descending and read[0].first > number):
                break
            frame, lines = read
            size += frame.text_size
            found += missing_numbers(number - 1, frame.first, frame.first)
            # A chunk merged since the previous read can repeat that read's lines. Only later lines are wanted.
            after = position if descending or frame.first <= position else start
            found += islice(_entries(frame, lines, after, descending), count - len(found))
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
        """The lines after ``cursor``, or before it, that ``frame_filter`` finds: one batch per frame.

        ``time_range`` skips frames whose lines are all outside it, but does not filter lines. If ``descending``,
        ``cursor`` is at most one past the archive's last number. Uses the cache only for data from :meth:`read_ahead`.
        """
        since, until = time_range or (None, None)

        def skip(frame: Frame) -> bool:
            is_early = frame.latest < (since or "")
            return bool(frame.latest) and (is_early or (until is not None and frame.earliest > until))

        def read_wanted(chunk: Chunk) -> tuple[str, Sequence[Frame], int, bytes | None]:
            index = chunk.frame_index(number)
            frames = chunk.frames[index::-1] if descending else chunk.frames[index:]
            wanted = _wanted(frames, skip)
            if not wanted:
                return chunk.name, frames[:1], 0, None
            low, high = (wanted[-1], wanted[0]) if descending else (wanted[0], wanted[-1])
            return chunk.name, wanted, low.offset, self._read_frames(chunk, low, high, math.inf)

        while (number := cursor - 1 if descending else cursor + 1) > 0 and (
            found := self._read_chunk(job, number, read_wanted)
        ):
            name, frames, start, data = found
            if descending and frames[0].first > number:
                return
            for frame in frames:
                try:
                    lines = frame_filter(frame_text(frame, data, start)) if data is not None else []
                except ArchiveDamaged:
                    # Forgets the bytes, because the object may be repaired.
                    self._forget_bytes(name)
                    raise
                if descending:
                    lines = [line for line in reversed(lines) if line.sequence_num < cursor]
                    cursor = frame.first
                else:
                    lines = [line for line in lines if line.sequence_num > cursor]
                    cursor = frame.last
                yield Batch([], cursor, is_last=False, matches=lines)

    def read_ahead(self, job: JobRef) -> None:
        """Caches what a :meth:`search` of the whole log of ``job`` would read first. Thread-safe."""
        if chunk := self.record_cache.chunk(job, 1):
            wanted = _wanted(chunk.frames, lambda frame: False)
            self._read_frames(chunk, wanted[0], wanted[-1], 1)

    def _read_frames(self, chunk: Chunk, low: Frame, high: Frame, size: float) -> bytes:
        """The object's bytes from ``low`` to ``high``.

        Caches what it reads, counting each byte as ``size`` bytes. Caches nothing if ``size`` is infinite.
        """
        key = chunk.name, low.offset, high.offset + high.size

        def read() -> tuple[bytes, float]:
            began = time.monotonic()
            data = self._get_object(*key)
            self.read_seconds = time.monotonic() - began
            return data, size * len(data)

        return self._ahead.get(key, read)

    def shape_set(self, job: Job) -> PackedShapes | None:
        """The shapes of an archived job's lines, or None. Thread-safe, like :meth:`timeline`."""
        return self._derived(self._shapes_cache, read_shape_set, lambda found: found.size, job)

    def timeline(self, job: Job) -> Timeline | None:
        return self._derived(self._timelines, read_timeline, lambda found: 1, job)

    def _derived(
        self,
        cache: "SingleFlightCache[tuple[JobRef, str], _Result | None]",
        read: Callable[[Callable[[str, int, int], bytes], JobRef, str], _Result | None],
        size: Callable[[_Result], int],
        job: Job,
    ) -> _Result | None:
        if job.archive_sha256 is None or self._objects is None:
            return None
        sha256 = job.archive_sha256

        def load() -> tuple[_Result | None, float]:
            found = read(self._get_object, job.ref, sha256)
            # A missing object can be created at any time, so None gets an infinite size, and is not cached.
            return found, math.inf if found is None else size(found)

        return cache.get((job.ref, sha256), load)

    def forget(self, job: JobRef) -> None:
        self.record_cache.forget(job)

    def _frame_with(self, job: JobRef, number: int) -> tuple[Frame, list[bytes]] | None:

        def read(chunk: Chunk) -> tuple[Frame, list[bytes]]:
            index = chunk.frame_index(number)
            lines = self._line_cache.get((chunk.name, index), lambda: self._load_lines(chunk, index))
            return chunk.frames[index], lines

        return self._read_chunk(job, number, read)

    def _read_chunk(self, job: JobRef, number: int, read: Callable[[Chunk], _Result]) -> _Result | None:
        chunk = self.record_cache.chunk(job, number)
        if chunk is None:
            return None
        try:
            return read(chunk)
        except ArchiveDamaged:
            self._forget_bytes(chunk.name)
            # A redaction may have replaced the chunk. Then the old object is gone, and a new one is recorded.
            fresh = self.record_cache.fresh_chunk(job, number)
            if fresh is not None and fresh.name == chunk.name:
                metrics.ARCHIVE_DAMAGED.inc()
                raise
            return read(fresh) if fresh else None

    def _forget_bytes(self, name: str) -> None:
        self._read_cache.forget(lambda key: key[0] == name)
        self._ahead.forget(lambda key: key[0] == name)

    def _load_lines(self, chunk: Chunk, index: int) -> tuple[list[bytes], int]:
        """A frame's JSON Lines, and their memory in bytes. Also reads the frames around it."""
        frame = chunk.frames[index]
        block = frame.offset // READ_BYTES
        neighbours = [each for each in chunk.frames if each.offset // READ_BYTES == block]
        start, stop = neighbours[0].offset, neighbours[-1].offset + neighbours[-1].size

        def read() -> tuple[bytes, int]:
            data = self._get_object(chunk.name, start, stop)
            return data, len(data)

        lines = split_lines(frame, frame_text(frame, self._read_cache.get((chunk.name, block), read), start))
        # A line takes 48 bytes besides its text.
        return lines, frame.text_size + 48 * len(lines)


def _wanted(frames: Sequence[Frame], skip: Callable[[Frame], bool]) -> list[Frame]:
    wanted: list[Frame] = []
    for frame in takewhile(lambda frame: not skip(frame), frames):
        if wanted and abs(frame.offset - wanted[0].offset) >= _SEARCH_BYTES:
            break
        wanted.append(frame)
    return wanted


def _refuse(*_: object) -> NoReturn:
    raise ArchiveUnavailable("this part of the log is in an archive, and CHRONOVERSE_ARCHIVE_URL is not set")


def _entries(frame: Frame, lines: list[bytes], position: int, descending: bool) -> Iterable[Entry]:
    """A frame's entries after number ``position``; if ``descending``, the lines and gaps before it."""
    if frame.plain:
        index = position - frame.first
        return map(decode_entry, reversed(lines[:index]) if descending else lines[max(index + 1, 0) :])
    low, high = (0, position - 1) if descending else (position + 1, MAX_NUMBER)
    found: list[Entry] = []
    #: The last number so far. An out-of-sequence entry has none.
    reached = frame.first - 1
    for entry in map(decode_entry, lines):
        if isinstance(entry, Gap):
            reached = entry.last
            entry = Gap(max(entry.first, low), min(entry.last, high), entry.reason)
            if entry.first <= entry.last:
                found.append(entry)
            continue
        if isinstance(entry, Line):
            reached = entry.sequence_num
        elif descending:
            continue
        if low <= reached <= high:
            found.append(entry)
    return reversed(found) if descending else found
