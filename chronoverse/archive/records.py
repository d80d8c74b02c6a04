"""What is known of an archived log: its chunks, and in each the frames that can be read by themselves.

A job's lines lie in *chunks*, one object each, that follow each other without a hole: the numbers of the first begin
where the log began, those of the next right behind. A chunk is a row of *frames*, each a zstd frame of its own, of
JSON Lines: so any line can be had by reading one frame. The store keeps the record of every chunk, by its last number,
and only what is recorded there is part of the log.
"""

from bisect import bisect_left
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog import JobRef

#: Bytes of JSON Lines in one frame: what is read and unpacked to show any page. Larger ones pack no better.
FRAME_BYTES: Final = 256 * 2**10
#: Bytes of JSON Lines in one chunk, about: what is written at once, and held in memory for it.
CHUNK_BYTES: Final = 16 * 2**20


_last = attrgetter("last")


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

    def place_of(self, number: int) -> int:
        """Which of its frames has ``number``, at most its last; the first, where the number is before all."""
        return bisect_left(self.frames, number, key=_last)

    def to_json(self) -> bytes:
        """The record: each frame as last number, bytes packed, bytes unpacked, times, plain or not."""
        frames = [[*each[1:2], *each[3:7], int(each.plain)] for each in self.frames]
        known = {"first": self.first, "last": self.last, "object": self.name, "bytes": self.size}
        return orjson.dumps({**known, "sha256": self.sha256, "frames": frames})

    @classmethod
    def from_json(cls, text: bytes) -> "Chunk":
        """A chunk out of its record."""
        known: dict[str, Any] = orjson.loads(text)
        rows = known["frames"]
        offsets = accumulate((row[1] for row in rows), initial=0)
        firsts = [known["first"], *(row[0] + 1 for row in rows)]
        spans = zip(firsts, offsets, rows, strict=False)
        frames = tuple(Frame._make((first, row[0], offset, *row[1:5], bool(row[5]))) for first, offset, row in spans)
        return cls(known["first"], known["last"], known["object"], known["bytes"], known["sha256"], frames)


def folder(job: JobRef) -> str:
    """What the names of a job's objects start with. Its ids hold no slash and begin with no dot."""
    return f"{job.workflow_id}/{job.job_id}/"


def object_name(job: JobRef, first: int, last: int, sha256: str) -> str:
    """A chunk's name. ``sha256`` is of the object's bytes, so that writing it twice is writing it once."""
    return f"{folder(job)}{first:015d}-{last:015d}-{sha256[:16]}.jsonl.zst"
