"""The shapes of an archived log's lines, as an object beside its chunks. So comparing with the log need not read it.

The object's name contains a hash of the log's text, so after a redaction the old object is garbage.
"""

from collections.abc import Callable, Sequence
from typing import Final

from chronoverse.archive.codec import decode_lines, frame_text
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, folder
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.shapes import MAX_SET_BYTES, VERSION, PackedShapes, ShapeHasher, ShapeSet


def shape_set_name(job: JobRef, sha256: str, version: int = VERSION) -> str:
    """The name of a job's set. ``sha256`` is that of the whole log, in hexadecimal, as the job's manifest has it."""
    return f"{folder(job)}shapes{version}-{sha256[:32]}"


def shape_set_names(job: JobRef, sha256: str) -> tuple[str, str]:
    """The names that the set may have: that of this version, and that of version 1."""
    return shape_set_name(job, sha256), shape_set_name(job, sha256, 1)


def read_shape_set(get: Callable[[str, int, int], bytes], job: JobRef, sha256: str) -> PackedShapes | None:
    """The shapes of an archived log; None without a set, or for a damaged one.

    ``get`` is that of an object store. Raises :class:`ArchiveUnavailable`.
    """
    for name in shape_set_names(job, sha256):
        try:
            return PackedShapes(get(name, 0, MAX_SET_BYTES), numbered=name == shape_set_name(job, sha256))
        except (ArchiveDamaged, ValueError):
            continue
    return None


class ShapeSetBuilder:
    """Collects the shapes of the archived log of ``job`` from its chunks, in any order."""

    def __init__(self, job: JobRef) -> None:
        self.job: Final = job
        self.shapes: Final = ShapeSet()
        #: The names of the chunks whose lines were added, and the chunks that are to be read next.
        self.chunks: Final[set[str]] = set()
        self.left: list[Chunk] = []
        self._hasher = ShapeHasher()

    def add_text(self, text: bytes) -> None:
        """Adds JSON Lines. Raises :class:`ArchiveDamaged`."""
        lines = decode_lines(text)
        hashes = self._hasher.hashes([line["message"] for line in lines])
        self.shapes.add(hashes, [line["sequence_num"] for line in lines])

    def add_chunk(self, chunk: Chunk, data: bytes) -> None:
        """Adds the lines of a chunk, whose object has the bytes ``data``. Raises :class:`ArchiveDamaged`."""
        for frame in chunk.frames:
            self.add_text(frame_text(frame, data))
        self.chunks.add(chunk.name)

    def missing(self, chunks: Sequence[Chunk]) -> Sequence[Chunk] | None:
        """Those of the job's ``chunks`` that are to be added yet. None when it must begin anew: it has other chunks."""
        if self.chunks - {chunk.name for chunk in chunks}:
            return None
        return [] if self.shapes.is_full else [chunk for chunk in chunks if chunk.name not in self.chunks]
