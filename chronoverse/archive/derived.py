"""An archived log's shapes and timeline, as objects beside its chunks. Their names contain the log's hash."""

from collections.abc import Callable, Sequence
from typing import Final

from chronoverse.archive.codec import decode_lines, frame_text
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog import timelines
from chronoverse.joblog.chunk import Chunk, folder
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.shapes import MAX_SET_BYTES, VERSION, PackedShapes, ShapeHasher, ShapeSet
from chronoverse.joblog.timelines import Timeline, TimelineBuilder

_Get = Callable[[str, int, int], bytes]


def derived_names(job: JobRef, sha256: str) -> tuple[str, str]:
    """The names of a job's shape set and timeline. ``sha256`` is the hash of the whole log, in hex."""
    return (
        f"{folder(job)}shapes{VERSION}-{sha256[:32]}",
        f"{folder(job)}timeline{VERSION}.{timelines.VERSION}-{sha256[:32]}",
    )


def read_shape_set(get: _Get, job: JobRef, sha256: str) -> PackedShapes | None:
    """The shapes of an archived log. None if missing or damaged. Raises :class:`ArchiveUnavailable`."""
    try:
        return PackedShapes(get(derived_names(job, sha256)[0], 0, MAX_SET_BYTES))
    except (ArchiveDamaged, ValueError):
        return None


def read_timeline(get: _Get, job: JobRef, sha256: str) -> Timeline | None:
    """The timeline of an archived log. None if missing or damaged. Raises :class:`ArchiveUnavailable`."""
    try:
        return Timeline.from_bytes(get(derived_names(job, sha256)[1], 0, timelines.MAX_TIMELINE_BYTES))
    except (ArchiveDamaged, ValueError):
        return None


class LineCollector:
    """Collects the ``shapes`` and the ``timeline`` of a log's lines, added in the log's order."""

    def __init__(self, hasher: ShapeHasher) -> None:
        self.shapes: Final = ShapeSet()
        self.timeline: Final = TimelineBuilder()
        self._hasher = hasher

    def add(self, messages: Sequence[str], numbers: Sequence[int], timestamps: Sequence[str]) -> None:
        """Adds lines. Raises ValueError if numbers do not ascend."""
        hashes = self._hasher.hashes(messages)
        self.shapes.add(hashes, numbers)
        self.timeline.add(hashes, numbers, timestamps)


class DerivedBuilder:
    """Collects the lines of ``job``'s archived log, whose chunks are added in order."""

    def __init__(self, job: JobRef) -> None:
        self.job: Final = job
        self.lines: Final = LineCollector(ShapeHasher())
        #: The chunks already added, and the chunks to read next.
        self.chunks: Final[list[Chunk]] = []
        self.left: list[Chunk] = []

    def add_chunk(self, chunk: Chunk, data: bytes) -> None:
        """Adds the lines of a chunk's object. Raises :class:`ArchiveDamaged`."""
        for frame in chunk.frames:
            lines = decode_lines(frame_text(frame, data))
            try:
                columns = [[line[name] for line in lines] for name in ("message", "sequence_num", "timestamp")]
                self.lines.add(*columns)
            except (ValueError, TypeError, LookupError) as error:
                raise ArchiveDamaged("a part of the log does not match what was archived") from error
        self.chunks.append(chunk)

    def missing(self, chunks: Sequence[Chunk]) -> Sequence[Chunk] | None:
        """The ``chunks`` that are not yet added. None if chunks have changed, and the builder must start over."""
        names = [chunk.name for chunk in chunks]
        added = len(self.chunks)
        return chunks[added:] if names[:added] == [chunk.name for chunk in self.chunks] else None
