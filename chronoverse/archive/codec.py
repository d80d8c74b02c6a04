"""The format of a chunk: builds, reads and rewrites chunks. No I/O.

A chunk is in zstd's seekable format. Any zstd program decompresses it to JSON Lines.
https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

A line is stored as ``Line.to_json`` returns it. A gap is ``{"gap":{"from":2,"to":900,"reason":"missing"}}``, an
out-of-sequence entry ``{"stray":"5-1"}``.
"""

import hashlib
import re
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import FRAME_BYTES, MAX_FRAME_BYTES, Chunk, Frame, object_name
from chronoverse.joblog.entries import Entry, RawEntry, plain_json_lines, read_entries
from chronoverse.joblog.model import End, Gap, JobRef, Line, OutOfSequence

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: zstd's level. Chunks are a tenth to a sixth smaller than with the default, 3; a line takes 1.5 µs instead of 0.2.
COMPRESSION_LEVEL: Final = 9
#: The first 39 bytes of a line's JSON, with a time in the format of ``iso_timestamp``.
_TIME: Final = re.compile(rb'\{"timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"')


@dataclass(slots=True, eq=False)
class ChunkBuilder:
    """Builds one chunk of ``job``'s log, from line ``first``."""

    job: JobRef
    first: int
    frame_bytes: int = FRAME_BYTES
    level: int = COMPRESSION_LEVEL
    text_size: int = 0
    #: Set by an entry that no numbered entry can follow, so the chunk can no longer grow.
    closed: bool = False
    _frames: list[Frame] = field(default_factory=list)
    _compressed: list[bytes] = field(default_factory=list)
    _text: list[bytes] = field(default_factory=list)
    _size: int = 0
    _plain: bool = True
    last: int = field(init=False)
    _first: int = field(init=False)
    _lost: Gap | None = None
    _hash: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.last, self._first = self.first - 1, self.first

    @property
    def added_size(self) -> int:
        """Bytes of JSON Lines added so far, including the unfinished frame."""
        return self.text_size + self._size

    def add_chunk(self, chunk: Chunk, data: bytes) -> None:
        """Starts with the lines of ``chunk``, whose last frame can still grow. Raises :class:`ArchiveDamaged`."""
        for frame in chunk.frames:
            self.add_frame(frame, frame_text(frame, data).splitlines(keepends=True))
            if frame is not chunk.frames[-1] or self._size >= self.frame_bytes:
                self.close_frame(data[frame.offset : frame.offset + frame.size])

    def add_part(self, chunk: Chunk, data: bytes, last: int) -> None:
        """Adds the lines and gaps of ``chunk`` from ``first`` to ``last``. Raises :class:`ArchiveDamaged`."""
        for frame in chunk.frames:
            if frame.last >= self.first and frame.first <= last:
                for entry in map(decode_entry, frame_text(frame, data).splitlines()):
                    if isinstance(entry, Gap) and entry.first <= last and self.first <= entry.last:
                        self._add_entry(Gap(max(entry.first, self.first), min(entry.last, last), entry.reason))
                    elif self.first <= _number(entry) <= last:
                        self._add_entry(entry)

    def add_frame(self, frame: Frame, lines: list[bytes]) -> None:
        """Adds the lines of ``frame`` as the next frame, which can still grow."""
        self._text, self._size, self._plain = lines, sum(map(len, lines)), frame.plain
        self._first, self.last = frame.first, frame.last

    def add(self, entries: Sequence[RawEntry], first_stored: int = 1) -> None:
        """Adds the raw ``entries`` after ``last``, except the terminal entry, which stays in the store."""
        plain = plain_json_lines(entries, self.last)
        for line in plain:
            self._append_line(line)
        for entry in read_entries(entries[len(plain) :], self.last, first_stored):
            self._add_entry(entry)

    def finish(self) -> tuple[Chunk, bytes]:
        """The chunk's record, and the object's bytes. At least one number must have been added."""
        self.close_frame()
        rows = b"".join(struct.pack("<II", frame.size, frame.text_size) for frame in self._frames)
        footer = struct.pack("<IBI", len(self._frames), 0, 0x8F92EAB1)
        data = b"".join([*self._compressed, struct.pack("<II", 0x184D2A5E, len(rows) + len(footer)), rows, footer])
        # The name contains a hash of the bytes, which differ with another level or zstd version.
        is_lost = self._lost is not None and (self._lost.first, self._lost.last) == (self.first, self.last)
        name = object_name(self.job, self.first, self.last, hashlib.sha256(data).hexdigest(), is_lost=is_lost)
        return Chunk(self.first, self.last, name, len(data), self._hash.hexdigest(), tuple(self._frames)), data

    def _add_entry(self, entry: Entry) -> None:
        if isinstance(entry, End) or (isinstance(entry, OutOfSequence) and entry.last):
            self.closed = True
        elif isinstance(entry, Line):
            self._append_line(entry.encode() + b"\n")
        elif isinstance(entry, Gap):
            self._plain = False
            self._lost = entry if entry.reason == "lost" else None
            gap = {"from": entry.first, "to": entry.last, "reason": entry.reason}
            self._append_line(orjson.dumps({"gap": gap}) + b"\n", entry.last)
        else:
            self._plain = False
            self._append_line(orjson.dumps({"stray": entry.entry_id}) + b"\n", self.last)

    def _append_line(self, text: bytes, last: int | None = None) -> None:
        self._text.append(text)
        self._size += len(text)
        self.last = self.last + 1 if last is None else last
        if self._size >= self.frame_bytes:
            self.close_frame()

    def close_frame(self, compressed: bytes | None = None) -> None:
        """Ends the frame. ``compressed``: the compressed bytes, if known."""
        if not self._text:
            return
        earliest, latest = _time_bounds(self._text)
        text = b"".join(self._text)
        if len(text) > MAX_FRAME_BYTES:
            raise ArchiveDamaged(f"line {self.last} of {self.job} is too long for the archive: {len(text)} bytes")
        compressed = compressed or compress_frame(text, self.level)
        self._hash.update(text)
        offset = self._frames[-1].offset + self._frames[-1].size if self._frames else 0
        span = (self._first, self.last, offset, len(compressed), len(text))
        self._frames.append(Frame(*span, earliest, latest, self._plain))
        self._compressed.append(compressed)
        self.text_size += len(text)
        self._text, self._size, self._plain = [], 0, True
        self._first = self.last + 1


def _time_bounds(lines: Iterable[bytes]) -> tuple[str, str]:
    """The earliest and latest time of JSON Lines. Both are empty if any time has another format."""
    starts = {line[:39] for line in lines}
    found = [_TIME.fullmatch(start) for start in starts if not start.startswith((b'{"gap":', b'{"stray":'))]
    times = [each[1].decode() for each in found if each]
    return (min(times), max(times)) if times and len(times) == len(found) else ("", "")


def read_chunk(
    job: JobRef, name: str, first: int, data: bytes, message: str
) -> tuple[Chunk, list[int], int, tuple[int, int]]:
    """Reads an object. Returns the chunk's record, the numbers of lines equal to ``message``, and the line count.

    The fourth value is for quotas: the size of all messages, and the number of lines that a quota dropped. Raises
    :class:`ArchiveDamaged` if the bytes do not match the object's name.
    """
    if f"-{hashlib.sha256(data).hexdigest()[:16]}" not in name:
        raise ArchiveDamaged(f"{name} does not match what was archived")
    text_hash, frames, found = hashlib.sha256(), list[Frame](), list[int]()
    line_count = message_bytes = left_out = offset = 0
    try:
        count = struct.unpack("<IBI", data[-9:])[0]
        for size, text_size in struct.iter_unpack("<II", data[-9 - 8 * count : -9]):
            frame = Frame(first, first, offset, size, text_size, "", "", plain=True)
            if text_size > MAX_FRAME_BYTES:
                raise ValueError
            text = frame_text(frame, data)
            # A frame ends with the line that fills it. A redaction can lengthen a frame, but by at most a sixth.
            if text.rfind(b"\n", 0, -1) > 2 * FRAME_BYTES:
                raise ValueError
            lines = text.splitlines(keepends=True)
            entries = list(map(decode_entry, lines))
            last = max((_number(each) for each in entries), default=0) or first - 1
            plain = all(isinstance(each, Line) for each in entries) and len(entries) == last - first + 1
            frames.append(Frame(first, last, offset, size, text_size, *_time_bounds(lines), plain))
            found_lines = [each for each in entries if isinstance(each, Line)]
            found += [each.sequence_num for each in found_lines if each.message == message]
            line_count += len(found_lines)
            message_bytes += sum(max(len(each.message.encode()), 1) for each in found_lines)
            gaps = [each for each in entries if isinstance(each, Gap) and each.reason == "quota"]
            left_out += sum(each.last - each.first + 1 for each in gaps)
            text_hash.update(text)
            first, offset = last + 1, offset + size
        chunk = Chunk(frames[0].first, frames[-1].last, name, len(data), text_hash.hexdigest(), tuple(frames))
    except (struct.error, ValueError, TypeError, LookupError) as error:
        raise ArchiveDamaged(f"{name} does not match what was archived") from error
    return Chunk.from_json(job, chunk.to_json()), found, line_count, (message_bytes, left_out)


def compress_frame(text: bytes, level: int = COMPRESSION_LEVEL) -> bytes:
    """Compresses JSON Lines into one frame with a checksum. The checksum costs no measurable time."""
    level_key, checksum_key = zstd.CompressionParameter.compression_level, zstd.CompressionParameter.checksum_flag
    return zstd.compress(text, options={level_key: level, checksum_key: 1})


def frame_text(frame: Frame, data: bytes, start: int = 0) -> bytes:
    """The JSON Lines of a frame. ``data`` is its object, from byte ``start``. Raises :class:`ArchiveDamaged`.

    A small frame can decompress to gigabytes, so this stops one byte after the recorded size.
    """
    offset = frame.offset - start
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(data[offset : offset + frame.size], max_length=frame.text_size + 1)
    except zstd.ZstdError as error:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} cannot be decompressed: {error}") from error
    if len(text) != frame.text_size or not decompressor.eof:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} do not match what was archived")
    return text


def text_sha256(chunk: Chunk, data: bytes) -> str:
    """The SHA-256, in hex, of the JSON Lines in an object. Raises :class:`ArchiveDamaged`."""
    found = hashlib.sha256()
    for frame in chunk.frames:
        found.update(frame_text(frame, data))
    return found.hexdigest()


def decode_lines(text: bytes) -> list[dict[str, Any]]:
    """The JSON of each line; omits other entries. Takes 0.7 µs per line. Raises :class:`ArchiveDamaged`."""
    try:
        entries: list[dict[str, Any]] = orjson.loads(b"[%b]" % text.rstrip(b"\n").replace(b"\n", b","))
        return [entry for entry in entries if isinstance(entry.get("message"), str)]
    except (ValueError, AttributeError) as error:
        raise ArchiveDamaged("a part of the log does not match what was archived") from error


def split_lines(frame: Frame, text: bytes) -> list[bytes]:
    """Splits a frame's JSON Lines. Raises :class:`ArchiveDamaged` if their numbers differ from the frame's record."""
    lines = text.splitlines()
    if frame.plain:
        valid = 0 < len(lines) == frame.last + 1 - frame.first and _number(decode_entry(lines[0])) == frame.first
    else:
        numbers = [number for line in lines if (number := _number(decode_entry(line)))]
        valid = numbers == sorted(numbers) and (not numbers or frame.first <= numbers[0] <= numbers[-1] <= frame.last)
    if not valid:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} do not have the numbers in their record")
    return lines


def _number(entry: Entry) -> int:
    """An entry's number: a gap's last number; 0 for an out-of-sequence entry."""
    if isinstance(entry, Line):
        return entry.sequence_num
    return entry.last if isinstance(entry, Gap) else 0


def decode_entry(line: bytes) -> Entry:
    fields: dict[str, Any] = orjson.loads(line)
    if "message" in fields:
        return Line.from_json(fields)
    if "gap" in fields:
        return Gap(fields["gap"]["from"], fields["gap"]["to"], fields["gap"]["reason"])
    return OutOfSequence(fields["stray"])


def rewrite(
    job: JobRef,
    chunk: Chunk,
    data: bytes,
    numbers: range,
    change: Callable[[Line], Line | None],
    pause: Callable[[], object] = lambda: None,
) -> tuple[Chunk, bytes, list[int]] | None:
    """Replaces lines of ``chunk`` whose numbers are in ``numbers`` with the result of ``change``; None keeps a line.

    ``data`` is the chunk's object. Returns the new record, the new object and the changed lines' numbers, or None if
    nothing changed. Calls ``pause`` before each frame. Raises :class:`ArchiveDamaged`.
    """
    builder, changed = ChunkBuilder(job, chunk.first), list[int]()
    for frame in chunk.frames:
        pause()
        lines, before = frame_text(frame, data).splitlines(keepends=True), len(changed)
        is_affected = numbers.start <= frame.last and frame.first < numbers.stop
        for index, entry in enumerate(map(decode_entry, lines if is_affected else ())):
            if isinstance(entry, Line) and entry.sequence_num in numbers and (line := change(entry)):
                lines[index] = line.encode() + b"\n"
                changed.append(line.sequence_num)
        builder.add_frame(frame, lines)
        builder.close_frame(data[frame.offset : frame.offset + frame.size] if len(changed) == before else None)
    return (*builder.finish(), changed) if changed else None
