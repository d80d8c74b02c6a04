"""The records of an archived log: its chunks, and the frames of each chunk.

A *chunk* is an object: a sequence of zstd *frames* of JSON Lines, so that reading a line decompresses only one frame.
The store has a record of each chunk, scored by its last number. Only chunks with a record are part of the log.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.model import MAX_NUMBER, JobRef

#: Bytes of JSON Lines per frame: the least that a page reads. Larger frames do not compress better.
FRAME_BYTES: Final = 256 * 2**10
#: Maximum bytes per frame. A frame ends with the line that fills it; only foreign runners write lines of megabytes.
MAX_FRAME_BYTES: Final = 64 * 2**20
#: Approximate bytes of JSON Lines per chunk, which an archiver holds in memory and writes as a whole.
CHUNK_BYTES: Final = 16 * 2**20
_SUFFIX: Final = ".jsonl.zst"
#: Valid names of objects in a job's folder: one path segment, but not ``.`` or ``..``.
_OBJECT: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}")

_NUMBERS: Final = re.compile(r"/\d{15}-(\d{15})-[^/]*\.jsonl\.zst$", re.ASCII)
_REDACTED: Final = re.compile(r"-[0-9a-f]{16}([0-9a-f]{8})\.jsonl\.zst$")
_LOST: Final = re.compile(r"-lost[^/]*$")

_last_number = attrgetter("last")


class Frame(NamedTuple):
    """A zstd frame of ``size`` bytes at ``offset`` of its object, with lines ``first`` to ``last``.

    ``text_size``: bytes of its JSON Lines. ``earliest`` and ``latest``: the range of its lines' times, or empty if a
    time is not in the format of ``iso_timestamp``. ``plain``: the frame has a line for each number, and nothing else.
    """

    first: int
    last: int
    offset: int
    size: int
    text_size: int
    earliest: str
    latest: str
    plain: bool


class Chunk(NamedTuple):
    """The record of a chunk: the object ``name`` of ``size`` bytes. ``sha256``: hash of its JSON Lines, in hex."""

    first: int
    last: int
    name: str
    size: int
    sha256: str
    frames: tuple[Frame, ...]

    @property
    def text_size(self) -> int:
        """The size of the chunk's JSON Lines in bytes."""
        return sum(frame.text_size for frame in self.frames)

    @property
    def is_lost(self) -> bool:
        """Whether the object only declares lines lost. An import can restore such lines."""
        return _LOST.search(self.name) is not None

    def frame_index(self, number: int) -> int:
        """The index of the frame with line ``number`` (at most ``last``). 0 if the line precedes all frames."""
        return bisect_left(self.frames, number, key=_last_number)

    def to_json(self) -> bytes:
        """The record as JSON. A frame is a list: last number, size, text size, earliest, latest, plain as 0 or 1."""
        frames = [[*each[1:2], *each[3:7], int(each.plain)] for each in self.frames]
        fields = {"first": self.first, "last": self.last, "object": self.name, "bytes": self.size}
        return orjson.dumps({**fields, "sha256": self.sha256, "frames": frames})

    def with_unique_name(self, unique: str, redactions: int = 0) -> "Chunk":
        """The chunk under a name never used before, so that a late deletion of an older object cannot hit it."""
        count = f"{redactions:08x}" if redactions else ""
        return self._replace(name=f"{self.name.removesuffix(_SUFFIX)}-{unique}{count}{_SUFFIX}")

    @classmethod
    def from_json(cls, job: JobRef, text: bytes) -> "Chunk":
        """Parses a record of ``job``. Raises :class:`ArchiveDamaged` if it is invalid or names another job's object."""
        try:
            fields: dict[str, Any] = orjson.loads(text)
            frames: list[Frame] = []
            first, offset = fields["first"], 0
            for last, size, text_size, earliest, latest, plain, *_ in fields["frames"]:
                frames.append(Frame(first, last, offset, size, text_size, earliest, latest, bool(plain)))
                first, offset = last + 1, offset + size
            name, sha256 = fields["object"], fields["sha256"]
            chunk = cls(fields["first"], fields["last"], name, fields["bytes"], sha256, tuple(frames))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ArchiveDamaged(f"the record of a chunk of {job} cannot be read") from error
        if wrong := _invalidity(job, chunk):
            raise ArchiveDamaged(f"the record of a chunk of {job} {wrong}")
        return chunk


def _invalidity(job: JobRef, chunk: Chunk) -> str:
    """What is wrong with a record. Empty if it is valid."""
    lasts = [frame.last for frame in chunk.frames]
    numbers = [chunk.first, chunk.last, *lasts]
    sizes = [chunk.size, *(size for frame in chunk.frames for size in (frame.size, frame.text_size))]
    texts = [chunk.name, chunk.sha256, *(text for frame in chunk.frames for text in (frame.earliest, frame.latest))]
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers) or chunk.first < 1:
        return "has numbers that no line has"
    if not all(type(size) is int and 0 <= size <= MAX_NUMBER for size in sizes) or any(
        frame.text_size > MAX_FRAME_BYTES for frame in chunk.frames
    ):
        return "has sizes that no object has"
    if not all(isinstance(text, str) for text in texts):
        return "has other values where texts should be"
    # A frame with only out-of-sequence entries ends with the same number as the previous frame.
    if not lasts or lasts != sorted(lasts) or lasts[-1] != chunk.last or not chunk.first <= lasts[0] + 1:
        return "has frames that do not follow each other"
    return "" if is_object_of(job, chunk.name) else "names an object of another job"


def combined_sha256(chunks: Sequence[Chunk]) -> str:
    """The SHA-256 of the chunks' concatenated hexadecimal hashes."""
    return hashlib.sha256("".join(chunk.sha256 for chunk in chunks).encode()).hexdigest()


def folder(job: JobRef) -> str:
    """The prefix of a job's object names. Ids contain no slash and do not begin with a dot."""
    return f"{job.workflow_id}/{job.job_id}/"


def is_object_of(job: JobRef, name: str) -> bool:
    """Whether ``name`` is a valid name in the job's folder."""
    prefix = folder(job)
    return name.startswith(prefix) and _OBJECT.fullmatch(name[len(prefix) :]) is not None


def redactions_in(names: Iterable[str]) -> int:
    """The number of a job's redactions, from its objects' names. 0 if no name contains it."""
    return max((int(found[1], 16) for name in names if (found := _REDACTED.search(name))), default=0)


def last_number_in(name: str) -> int:
    """The last line number of a chunk, from its object's name. 0 for other objects."""
    found = _NUMBERS.search(name)
    return int(found[1]) if found else 0


def object_name(job: JobRef, first: int, last: int, sha256: str, *, is_lost: bool = False) -> str:
    """A chunk's name without its unique part: see :meth:`Chunk.with_unique_name`. ``sha256`` is the object's hash."""
    return f"{folder(job)}{first:015d}-{last:015d}-{sha256[:16]}{'-lost' * is_lost}{_SUFFIX}"
