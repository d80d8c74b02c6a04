"""The bytes of the spool: lines in memory and in the file, and the file's slots and state. No I/O.

    file     two copies of the state (2 KiB each), then slots of equal size
    slot     1 KiB for its header and for the records of a drop marker; then records
    record   length and checksum, timestamp, number of lines, stream; then the lines' bytes, a newline between them

A slot is used many times, each time with a higher *order*. The checksum of a record includes the slot's order, so a
record of an earlier use is never taken for one of this use. The state is written to its two copies in turn. Of the
copies that are complete, the newer one counts.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.runner.capture.line_splitter import LineBatch

#: Bytes of one copy of the state. There are two, and then the slots begin.
STATE_BYTES: Final = 2048
SLOTS_AT: Final = 2 * STATE_BYTES
#: Bytes of a slot before its records: the header and the drop marker.
SLOT_HEAD_BYTES: Final = 1024

_MAGIC: Final = b"CVSPOOL1"
_STATE: Final = struct.Struct("<8sIIQ")
_SLOT: Final = struct.Struct("<4sIQqQI")
_RECORD: Final = struct.Struct("<II24sIB3x")
_USED: Final = b"SLOT"
_TIMESTAMP: Final = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_STDERR: Final = 1
_PARTIAL: Final = 2
#: Bytes of a record before its text.
RECORD_HEAD_BYTES: Final = _RECORD.size


class SlotHead(NamedTuple):
    """The header of a slot in use. ``order`` is that of its segment, and grows from segment to segment.

    ``start`` is the index of its first line, or -1 while that is not known. ``ordinal`` counts the lines that the job
    had printed before it, so it jumps where lines were dropped. ``marker`` is the records of a drop marker.
    """

    order: int
    start: int
    ordinal: int
    marker: bytes


class Record(NamedTuple):
    """A batch that was found in a slot, and the position after it."""

    batch: LineBatch
    end: int


def pack_head(batch: LineBatch, order: int) -> bytes:
    """The head of the batch's record. The batch's text follows it."""
    flags = (batch.stream == "stderr") * _STDERR | batch.partial * _PARTIAL
    rest = _RECORD.pack(len(batch.text), 0, batch.timestamp.encode(), batch.lines, flags)[8:]
    check = zlib.crc32(batch.text, zlib.crc32(rest, order & 0xFFFFFFFF))
    return struct.pack("<II", len(batch.text), check) + rest


def pack_record(batch: LineBatch, order: int) -> bytes:
    """The batch's record."""
    return pack_head(batch, order) + batch.text


def count_lines_at(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """How many lines the record at position ``at`` has, and where the next record begins. Nothing is checked."""
    length, _, _, lines, _ = _RECORD.unpack_from(data, at)
    return lines, at + _RECORD.size + length


def batch_at(data: bytes | bytearray | memoryview, at: int) -> LineBatch:
    """The batch at position ``at``. Nothing is checked."""
    length, _, timestamp, lines, flags = _RECORD.unpack_from(data, at)
    start = at + _RECORD.size
    stream = "stderr" if flags & _STDERR else "stdout"
    return LineBatch(
        stream, timestamp.decode("ascii"), bytes(data[start : start + length]), lines, bool(flags & _PARTIAL)
    )


def valid_records(data: bytes, order: int) -> Iterator[Record]:
    """The records at the beginning of ``data``, up to the first that is incomplete, damaged, or of an earlier use.

    They also end at a record that no runner can have written, even if its checksum is right.
    """
    at = 0
    while at + _RECORD.size <= len(data):
        length, check = struct.unpack_from("<II", data, at)
        start = at + _RECORD.size
        if start + length > len(data):
            return
        text = memoryview(data)[start : start + length]
        if check != zlib.crc32(text, zlib.crc32(data[at + 8 : start], order & 0xFFFFFFFF)):
            return
        if not _is_plausible(data, at):
            return
        yield Record(batch_at(data, at), start + length)
        at = start + length


def _is_plausible(data: bytes, at: int) -> bool:
    """Whether the record's head has possible values that agree with its text. A right checksum does not prove that."""
    length, _, timestamp, lines, flags = _RECORD.unpack_from(data, at)
    start = at + _RECORD.size
    if not _TIMESTAMP.fullmatch(timestamp) or flags & ~(_STDERR | _PARTIAL):
        return False
    return lines == data.count(b"\n", start, start + length) + 1 and (lines == 1 or not flags & _PARTIAL)


def pack_slot(head: SlotHead) -> bytes:
    """The bytes of a slot's header with the drop marker."""
    rest = struct.pack("<QqQI", head.order, head.start, head.ordinal, len(head.marker)) + head.marker
    packed = _USED + struct.pack("<I", zlib.crc32(rest)) + rest
    if len(packed) > SLOT_HEAD_BYTES:
        raise ValueError("the drop marker does not fit")
    return packed


def unpack_slot(data: bytes) -> SlotHead | None:
    """The header of a slot; None if the slot is not in use."""
    if len(data) < _SLOT.size:
        return None
    used, check, order, start, ordinal, length = _SLOT.unpack_from(data)
    end = _SLOT.size + length
    if used != _USED or end > len(data) or zlib.crc32(data[8:end]) != check:
        return None
    return SlotHead(order, start, ordinal, bytes(data[_SLOT.size : end]))


def pack_state(state: dict[str, Any], generation: int) -> tuple[int, bytes]:
    """The position in the file of the next copy of the state, and its bytes."""
    text = orjson.dumps(state)
    rest = struct.pack("<IQ", len(text), generation) + text
    packed = _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    if len(packed) > STATE_BYTES:
        raise ValueError("the state does not fit")
    return generation % 2 * STATE_BYTES, packed.ljust(STATE_BYTES, b"\0")


def unpack_state(data: bytes) -> tuple[dict[str, Any], int] | None:
    """The newest complete copy of the state at the beginning of a file, and its generation; None if there is none."""
    found: list[tuple[int, dict[str, Any]]] = []
    for at in (0, STATE_BYTES):
        if len(data) < at + _STATE.size:
            break
        magic, check, length, generation = _STATE.unpack_from(data, at)
        text = data[at + _STATE.size : at + _STATE.size + length]
        if magic == _MAGIC and len(text) == length and zlib.crc32(data[at + 12 : at + _STATE.size] + text) == check:
            with contextlib.suppress(orjson.JSONDecodeError):
                found.append((generation, orjson.loads(text)))
    found = [each for each in found if isinstance(each[1], dict)]
    if not found:
        return None
    generation, state = max(found, key=lambda each: each[0])
    return state, generation
