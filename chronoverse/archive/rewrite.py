"""A chunk in which some lines say something else. Pure."""

import hashlib
from collections.abc import Callable

import orjson

from chronoverse.archive.codec import pack, seek_table, unpack
from chronoverse.joblog.chunk import Chunk, Frame, object_name
from chronoverse.joblog.values import JobRef, Line

#: What a line is to say: another line with its number, or None to leave it as it is.
Change = Callable[[Line], Line | None]


def rewrite(
    job: JobRef, chunk: Chunk, data: bytes, first: int, last: int, change: Change, pause: Callable[[], object] = bool
) -> tuple[Chunk, bytes, list[int]] | None:
    """``chunk`` with the lines ``first`` to ``last`` changed: its record, its object, and the numbers of those.

    None when no line was. ``data`` is its object; ``pause`` is called for each frame. Raises :class:`ArchiveDamaged`.
    """
    changed: list[int] = []
    texts: dict[Frame, bytes] = {}
    for frame in chunk.frames:
        if frame.last >= first and frame.first <= last:
            pause()
            text = _changed(_unpacked(frame, data), first, last, change, changed)
            if text is not None:
                texts[frame] = text
    if not changed:
        return None
    said, frames, packed, offset = hashlib.sha256(), [], [], 0
    for frame in chunk.frames:
        pause()
        text = texts.get(frame)
        if text is None:
            said.update(_unpacked(frame, data))
            part = data[frame.offset : frame.offset + frame.size]
            frames.append(frame._replace(offset=offset))
        else:
            said.update(text)
            part = pack(text)
            frames.append(frame._replace(offset=offset, size=len(part), text_size=len(text)))
        packed.append(part)
        offset += len(part)
    whole = b"".join([*packed, seek_table(frames)])
    digest = said.hexdigest()
    # By its bytes, as a chunk that was packed.
    name = object_name(job, chunk.first, chunk.last, hashlib.sha256(whole).hexdigest())
    return Chunk(chunk.first, chunk.last, name, len(whole), digest, tuple(frames)), whole, changed


def _unpacked(frame: Frame, data: bytes) -> bytes:
    return unpack(frame, data[frame.offset : frame.offset + frame.size])


def _changed(text: bytes, first: int, last: int, change: Change, changed: list[int]) -> bytes | None:
    """``text`` with its lines changed, their numbers added to ``changed``; None where none was."""
    before = len(changed)
    lines = text.splitlines()
    for place, spelt in enumerate(lines):
        said = orjson.loads(spelt)
        if "message" not in said or not first <= said["sequence_num"] <= last:
            continue
        line = change(Line.from_json(said))
        if line is not None:
            lines[place] = orjson.dumps(line.to_json())
            changed.append(line.sequence_num)
    return b"\n".join([*lines, b""]) if len(changed) > before else None
