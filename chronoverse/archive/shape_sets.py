"""The shapes of an archived log's lines, as an object beside its chunks. So comparing with the log need not read it.

The object's name contains a hash of the log's text, so after a redaction the old object is garbage.
"""

from collections.abc import Sequence
from typing import Final

from chronoverse.archive.codec import decode_lines, frame_text
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, combined_sha256, folder
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.shapes import MAX_SET_BYTES, VERSION, ShapeHasher, ShapeSet


def shape_set_name(job: JobRef, chunks: Sequence[Chunk]) -> str:
    return f"{folder(job)}shapes{VERSION}-{combined_sha256(chunks)[:32]}"


def read_shape_set(objects: ObjectStore, job: JobRef, chunks: Sequence[Chunk]) -> ShapeSet | None:
    """The shapes of an archived log; None without a set, or for a damaged one. Raises :class:`ArchiveUnavailable`."""
    try:
        return ShapeSet.from_bytes(objects.get(shape_set_name(job, chunks), 0, MAX_SET_BYTES))
    except (ArchiveDamaged, ValueError):
        return None


class ShapeSetBuilder:
    """Collects the shapes of the archived log of ``job``, one of its ``chunks`` at a time."""

    def __init__(self, objects: ObjectStore, job: JobRef, chunks: Sequence[Chunk]) -> None:
        self.job: Final = job
        self.name: Final = shape_set_name(job, chunks)
        self.shapes: Final = ShapeSet()
        self._objects = objects
        self._left = list(chunks)
        self._hasher = ShapeHasher()

    @property
    def is_complete(self) -> bool:
        return not self._left or self.shapes.is_full

    def add_chunk(self) -> None:
        """Adds the next chunk. Raises :class:`ArchiveDamaged` and :class:`ArchiveUnavailable`."""
        chunk = self._left.pop(0)
        data = self._objects.get(chunk.name)
        for frame in chunk.frames:
            lines = decode_lines(frame_text(frame, data))
            self.shapes.add(self._hasher.hashes([line["message"] for line in lines]))
