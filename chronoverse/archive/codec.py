"""Lines to the bytes of an archived chunk, and back. Pure.

A chunk is in zstd's standard seekable format: frames that follow each other, and behind them, as a skippable frame,
the table of their sizes. Any zstd reads it whole as JSON Lines.
https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

A line is spelt as everywhere (``Line.to_json``). What else a log may say has a key of its own:
``{"gap":{"from":2,"to":900,"reason":"missing"}}`` and ``{"stray":"5-1"}``.
"""

import hashlib
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import FRAME_BYTES, Chunk, Frame, object_name
from chronoverse.joblog.entries import Entry, RawEntry, plain_frames, read_entries
from chronoverse.joblog.values import End, Gap, JobRef, Line, OutOfSequence

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: A fifth smaller than with zstd's own default, 3, and faster to unpack; 400,000 lines a second, a fifth as many.
COMPRESSION_LEVEL: Final = 9
#: For when the store waits for room: half the time.
FAST_COMPRESSION_LEVEL: Final = 3
_SKIPPABLE: Final = 0x184D2A5E
_SEEKABLE: Final = 0x8F92EAB1
#: What an SSE frame puts around a line's JSON.
_SSE_HEAD_BYTES: Final = len(b"event: log\ndata: ")
_SSE_TAIL_BYTES: Final = len(b"id: \n\n")
#: A line's JSON up to its time, and the time with the quote behind it, as ``iso_timestamp`` spells it.
_TIME: Final = re.compile(rb'\{"timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"')
_TIME_BYTES: Final = 39
#: What other entries start with. They have no time.
_ENTRIES_WITHOUT_TIME: Final = (b'{"gap":', b'{"stray":')
#: What a line is to say: another line with its number, or None to leave it as it is.
LineChange = Callable[[Line], Line | None]


class ChunkBuilder:
    """One chunk of the log of ``job``, from line ``first`` on. It has reached ``last``, and ``text_size`` bytes."""

    def __init__(self, job: JobRef, first: int, frame_bytes: int = FRAME_BYTES, level: int = COMPRESSION_LEVEL) -> None:
        self.first: Final = first
        self.last = first - 1
        self.text_size = 0
        #: Set when the log holds something behind which nothing has a number: the chunk cannot go further.
        self.closed = False
        self._job = job
        self._frame_bytes = frame_bytes
        self._level: Final = level
        self._hash = hashlib.sha256()
        self._frames: list[Frame] = []
        self._compressed: list[bytes] = []
        self._text: list[bytes] = []
        self._size = 0
        self._first = first
        self._plain = True

    @property
    def added_size(self) -> int:
        """Bytes of JSON Lines taken so far, also of the frame that is not full yet."""
        return self.text_size + self._size

    def add(self, entries: Sequence[RawEntry], lowest: int = 1) -> None:
        """Takes what the raw ``entries`` behind ``last`` say. ``lowest`` is the first number that the store has.

        A terminal entry is not taken: it is the job's, and stays where the job is.
        """
        plain = plain_frames(entries, self.last)
        self._add_plain_lines(plain)
        for entry in read_entries(entries[len(plain) :], self.last, lowest):
            self._add_entry(entry)

    def finish(self) -> tuple[Chunk, bytes]:
        """The chunk's record, and the object. One number at least must have been added."""
        self._close_frame()
        data = b"".join([*self._compressed, seek_table(self._frames)])
        digest = self._hash.hexdigest()
        # By its bytes: another level, or another zstd, packs the same lines otherwise, and frames lie elsewhere then.
        name = object_name(self._job, self.first, self.last, hashlib.sha256(data).hexdigest())
        return Chunk(self.first, self.last, name, len(data), digest, tuple(self._frames)), data

    def _add_plain_lines(self, frames: Sequence[bytes]) -> None:
        """:meth:`_line` for the JSON in each of these, at half the cost."""
        text, size, number = self._text, self._size, self.last
        behind, enough = -_SSE_TAIL_BYTES - len(str(number)), self._frame_bytes
        following = 10 ** len(str(number))
        for frame in frames:
            number += 1
            if number == following:
                behind, following = behind - 1, following * 10
            line = frame[_SSE_HEAD_BYTES:behind]
            text.append(line)
            size += len(line)
            if size >= enough:
                self._size, self.last = size, number
                self._close_frame()
                text, size = self._text, 0
        self._size, self.last = size, number

    def _add_entry(self, entry: Entry) -> None:
        if isinstance(entry, End) or (isinstance(entry, OutOfSequence) and entry.last):
            self.closed = True
        elif isinstance(entry, Line):
            self._append_line(orjson.dumps(entry.to_json()) + b"\n")
        elif isinstance(entry, Gap):
            self._plain = False
            gap = {"from": entry.first, "to": entry.last, "reason": entry.reason}
            self._append_line(orjson.dumps({"gap": gap}) + b"\n", entry.last)
        else:
            self._plain = False
            self._append_line(orjson.dumps({"stray": entry.entry_id}) + b"\n", self.last)

    def _append_line(self, text: bytes, last: int | None = None) -> None:
        self._text.append(text)
        self._size += len(text)
        self.last = self.last + 1 if last is None else last
        if self._size >= self._frame_bytes:
            self._close_frame()

    def _close_frame(self) -> None:
        if not self._text:
            return
        earliest, latest = _time_bounds(self._text)
        text = b"".join(self._text)
        packed = compress_frame(text, self._level)
        self._hash.update(text)
        offset = self._frames[-1].offset + self._frames[-1].size if self._frames else 0
        span = (self._first, self.last, offset, len(packed), len(text))
        self._frames.append(Frame(*span, earliest, latest, self._plain))
        self._compressed.append(packed)
        self.text_size += len(text)
        self._text, self._size, self._plain = [], 0, True
        self._first = self.last + 1


def _time_bounds(lines: Iterable[bytes]) -> tuple[str, str]:
    """The earliest and the latest time of JSON Lines, or nothing where one of them cannot be compared."""
    starts = {line[:_TIME_BYTES] for line in lines}
    found = [_TIME.fullmatch(start) for start in starts if not start.startswith(_ENTRIES_WITHOUT_TIME)]
    times = [each[1].decode() for each in found if each]
    return (min(times), max(times)) if times and len(times) == len(found) else ("", "")


def seek_table(frames: Sequence[Frame]) -> bytes:
    """What stands behind a chunk's frames."""
    rows = b"".join(struct.pack("<II", frame.size, frame.text_size) for frame in frames)
    footer = struct.pack("<IBI", len(frames), 0, _SEEKABLE)
    return struct.pack("<II", _SKIPPABLE, len(rows) + len(footer)) + rows + footer


def compress_frame(text: bytes, level: int = COMPRESSION_LEVEL) -> bytes:
    """A frame of these JSON Lines, with a sum by which a changed byte is noticed: it costs nothing to be measured."""
    options: Mapping[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.compress(text, options=options)


def decompress_frame(frame: Frame, packed: bytes) -> bytes:
    """The JSON Lines of a frame. Raises :class:`ArchiveDamaged`.

    A small frame may say that it holds gigabytes, so no more is unpacked than the record says and one byte. Nothing
    else in the program unpacks frames. https://docs.python.org/3.14/library/compression.zstd.html
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(packed, max_length=frame.text_size + 1)
    except zstd.ZstdError as error:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} cannot be unpacked: {error}") from error
    if len(text) != frame.text_size or not decompressor.eof:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} are not what was archived")
    return text


def text_sha256(chunk: Chunk, data: bytes) -> str:
    """The SHA-256 of the JSON Lines in an object, in hexadecimal. Raises :class:`ArchiveDamaged`."""
    found = hashlib.sha256()
    for frame in chunk.frames:
        found.update(decompress_frame(frame, data[frame.offset : frame.offset + frame.size]))
    return found.hexdigest()


def decode_entries(text: bytes) -> Iterable[Entry]:
    """What JSON Lines say, in order."""
    return map(decode_entry, text.splitlines())


def split_lines(frame: Frame, text: bytes) -> list[bytes]:
    """The JSON Lines of a frame, one by one.

    Raises :class:`ArchiveDamaged` where their numbers are not those that the record says: readers count on it.
    """
    lines = text.splitlines()
    if frame.plain:
        sound = 0 < len(lines) == frame.last + 1 - frame.first and _entry_number(lines[0]) == frame.first
    else:
        numbers = [number for line in lines if (number := _entry_number(line))]
        sound = numbers == sorted(numbers) and (not numbers or frame.first <= numbers[0] <= numbers[-1] <= frame.last)
    if not sound:
        raise ArchiveDamaged(f"lines {frame.first} to {frame.last} have other numbers than their record says")
    return lines


def _entry_number(line: bytes) -> int:
    """The number of one of the JSON Lines, of a gap its last; 0 for a stray."""
    entry = decode_entry(line)
    if isinstance(entry, Line):
        return entry.sequence_num
    return entry.last if isinstance(entry, Gap) else 0


def decode_entry(line: bytes) -> Entry:
    """What one of the JSON Lines says."""
    said: dict[str, Any] = orjson.loads(line)
    if "message" in said:
        return Line.from_json(said)
    if "gap" in said:
        return Gap(said["gap"]["from"], said["gap"]["to"], said["gap"]["reason"])
    return OutOfSequence(said["stray"])


def rewrite(
    job: JobRef,
    chunk: Chunk,
    data: bytes,
    first: int,
    last: int,
    change: LineChange,
    pause: Callable[[], object] = bool,
) -> tuple[Chunk, bytes, list[int]] | None:
    """``chunk`` with the lines ``first`` to ``last`` changed: its record, its object, and the numbers of those.

    None when no line was. ``data`` is its object; ``pause`` is called for each frame. Raises :class:`ArchiveDamaged`.
    """
    changed: list[int] = []
    texts: dict[Frame, bytes] = {}
    for frame in chunk.frames:
        if frame.last >= first and frame.first <= last:
            pause()
            text = _changed_text(_frame_text(frame, data), first, last, change, changed)
            if text is not None:
                texts[frame] = text
    if not changed:
        return None
    said, frames, packed, offset = hashlib.sha256(), [], [], 0
    for frame in chunk.frames:
        pause()
        text = texts.get(frame)
        if text is None:
            said.update(_frame_text(frame, data))
            part = data[frame.offset : frame.offset + frame.size]
            frames.append(frame._replace(offset=offset))
        else:
            said.update(text)
            part = compress_frame(text)
            frames.append(frame._replace(offset=offset, size=len(part), text_size=len(text)))
        packed.append(part)
        offset += len(part)
    whole = b"".join([*packed, seek_table(frames)])
    digest = said.hexdigest()
    # By its bytes, as a chunk that was packed.
    name = object_name(job, chunk.first, chunk.last, hashlib.sha256(whole).hexdigest())
    return Chunk(chunk.first, chunk.last, name, len(whole), digest, tuple(frames)), whole, changed


def _frame_text(frame: Frame, data: bytes) -> bytes:
    return decompress_frame(frame, data[frame.offset : frame.offset + frame.size])


def _changed_text(text: bytes, first: int, last: int, change: LineChange, changed: list[int]) -> bytes | None:
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
