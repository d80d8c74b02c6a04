"""What is known of an archived log: its chunks, and in each the frames that can be read by themselves.

A job's lines lie in *chunks*, one object each, that follow each other without a hole: the numbers of the first begin
where the log began, those of the next right behind. A chunk is a row of *frames*, each a zstd frame of its own, of
JSON Lines: so any line can be had by reading one frame. The store keeps the record of every chunk, by its last number,
and only what is recorded there is part of the log.
"""

import re
from bisect import bisect_left
from operator import attrgetter
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.values import MAX_NUMBER, JobRef

#: Bytes of JSON Lines in one frame: what is read and unpacked to show any page. Larger ones pack no better.
FRAME_BYTES: Final = 256 * 2**10
#: Bytes of JSON Lines in one chunk, about: what is written at once, and held in memory for it.
CHUNK_BYTES: Final = 16 * 2**20
#: What the names of chunks end with.
_SUFFIX: Final = ".jsonl.zst"
#: The object beside a job's chunks that says what they are, for whoever has nothing but the archive.
MANIFEST: Final = "job.json"
#: The names of objects in a job's folder: one part of a path that leads nowhere else.
_OBJECT: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}")

_last_number = attrgetter("last")


class Frame(NamedTuple):
    """A zstd frame at ``offset`` of its object, ``size`` bytes, with numbers ``first`` to ``last``.

    ``earliest`` and ``latest`` are its lines' times as ``iso_timestamp`` spells them, or both empty where a line has
    another spelling. ``plain``: every number is a line, one after the other, and nothing else is there.
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
    """An object ``name`` of ``size`` bytes. ``sha256`` is of the JSON Lines in it, in hexadecimal."""

    first: int
    last: int
    name: str
    size: int
    sha256: str
    frames: tuple[Frame, ...]

    @property
    def text_size(self) -> int:
        """Bytes of JSON Lines."""
        return sum(frame.text_size for frame in self.frames)

    def frame_index(self, number: int) -> int:
        """Which of its frames has ``number``, at most its last; the first, where the number is before all."""
        return bisect_left(self.frames, number, key=_last_number)

    def to_json(self) -> bytes:
        """The record: each frame as last number, bytes packed, bytes unpacked, times, plain or not."""
        frames = [[*each[1:2], *each[3:7], int(each.plain)] for each in self.frames]
        known = {"first": self.first, "last": self.last, "object": self.name, "bytes": self.size}
        return orjson.dumps({**known, "sha256": self.sha256, "frames": frames})

    def with_unique_name(self, unique: str) -> "Chunk":
        """The chunk under a name that nobody has used: ``unique`` is random hex.

        An object's name is written once. So whoever deletes an object, however late, deletes nothing else.
        """
        return self._replace(name=f"{self.name.removesuffix(_SUFFIX)}-{unique}{_SUFFIX}")

    @classmethod
    def from_json(cls, job: JobRef, text: bytes) -> "Chunk":
        """A chunk of ``job`` out of its record.

        Whoever may write the job's keys may have written the record: so nothing in it is believed that could lead out
        of the job's folder, or that a reader would stumble over. Raises: :class:`ArchiveDamaged`.
        """
        try:
            known: dict[str, Any] = orjson.loads(text)
            frames: list[Frame] = []
            first, offset = known["first"], 0
            for last, size, text_size, earliest, latest, plain, *_ in known["frames"]:
                frames.append(Frame(first, last, offset, size, text_size, earliest, latest, bool(plain)))
                first, offset = last + 1, offset + size
            name, sha256 = known["object"], known["sha256"]
            found = cls(known["first"], known["last"], name, known["bytes"], sha256, tuple(frames))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ArchiveDamaged(f"the record of a chunk of {job} cannot be read") from error
        if wrong := _invalidity(found):
            raise ArchiveDamaged(f"the record of a chunk of {job} {wrong}")
        if not is_object_of(job, found.name):
            raise ArchiveDamaged(f"the record of a chunk of {job} names an object that is not the job's")
        return found


def _invalidity(chunk: Chunk) -> str:
    """What is wrong with a record, in words; empty for one that is sound."""
    lasts = [frame.last for frame in chunk.frames]
    numbers = [chunk.first, chunk.last, *lasts]
    sizes = [chunk.size, *(size for frame in chunk.frames for size in (frame.size, frame.text_size))]
    texts = [chunk.name, chunk.sha256, *(text for frame in chunk.frames for text in (frame.earliest, frame.latest))]
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers) or chunk.first < 1:
        return "has numbers that no line has"
    if not all(type(size) is int and 0 <= size <= MAX_NUMBER for size in sizes):
        return "has sizes that no object has"
    if not all(isinstance(text, str) for text in texts):
        return "has other values where texts should be"
    # A frame of strays alone ends with the number that the frame before it ends with.
    if not lasts or lasts != sorted(lasts) or lasts[-1] != chunk.last or not chunk.first <= lasts[0] + 1:
        return "has frames that do not follow each other"
    return ""


def folder(job: JobRef) -> str:
    """What the names of a job's objects start with. Its ids hold no slash and begin with no dot."""
    return f"{job.workflow_id}/{job.job_id}/"


def is_object_of(job: JobRef, name: str) -> bool:
    """Whether ``name`` is that of an object right in the job's folder. Asked before a name from the store is used."""
    prefix = folder(job)
    return name.startswith(prefix) and _OBJECT.fullmatch(name[len(prefix) :]) is not None


def object_name(job: JobRef, first: int, last: int, sha256: str) -> str:
    """What a chunk's name begins with. ``sha256`` is of the object's bytes; see :meth:`Chunk.with_unique_name`."""
    return f"{folder(job)}{first:015d}-{last:015d}-{sha256[:16]}{_SUFFIX}"
