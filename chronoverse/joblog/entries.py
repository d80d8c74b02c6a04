"""Decodes the entries of a log's Redis stream. Pure. Entries are untrusted: foreign runners can write anything."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog.events import LOG_FRAME
from chronoverse.joblog.model import (
    LINE_JSON,
    MAX_NUMBER,
    End,
    Gap,
    Line,
    OutOfSequence,
    Status,
    parse_exit_code,
    parse_number,
    read_time,
    seconds_of,
)

_PLAIN_FRAME: Final = LOG_FRAME.replace(b"%b", LINE_JSON.replace(b'"%b}', b'"}'))
_FRAME_HEAD: Final = LOG_FRAME.index(b"%b")

Entry = Line | Gap | End | OutOfSequence
#: An entry as Redis returns it: its id, and a list of field, value, field, value, …
RawEntry = Sequence[Any]


class Match(NamedTuple):
    """A matching line: its number, its JSON from :meth:`Line.encode`, and the matches in its message."""

    sequence_num: int
    json: bytes
    spans: Sequence[tuple[int, int]]

    def encode(self) -> bytes:
        return self.json


class Batch(NamedTuple):
    """Entries in the requested order.

    ``position`` is the last number read, even if it is not a line. ``is_last``: nothing follows. A search can return
    ``matches``, lines known to match, instead of entries.
    """

    entries: list[Entry]
    position: int
    is_last: bool
    matches: Sequence["Line | Match"] | None = None

    @property
    def is_match(self) -> bool:
        return self.matches is not None

    @property
    def lines(self) -> list[Line]:
        """The lines among the entries, or the matches if the batch has these instead."""
        if self.matches is not None:
            return [each if isinstance(each, Line) else Line.decode(each.json) for each in self.matches]
        return [entry for entry in self.entries if type(entry) is Line]


def read_entries(entries: Iterable[RawEntry], after: int, first: int = 1) -> Iterator[Entry]:
    """Decodes the raw ``entries`` after line ``after``. No other function interprets arbitrary entries.

    Yields every number once and in order, alone or in a Gap (see :func:`missing_numbers`). Stops after an End, or after
    an entry whose number is too large. Never raises, whatever the entries contain.
    """
    cursor = after
    for entry_id, fields in entries:
        number = entry_number(entry_id)
        if number > MAX_NUMBER:
            yield OutOfSequence(_text(entry_id), last=True)
            return
        if number <= cursor:
            yield OutOfSequence(_text(entry_id))
            continue
        entry, start = _entry(number, fields), number
        if type(entry) is Gap:
            start = max(entry.first, cursor + 1)
            entry = Gap(start, number, entry.reason)
        if start > cursor + 1:
            yield from missing_numbers(cursor, start, first)
        cursor = number
        yield entry
        if type(entry) is End:
            return


def plain_frames(entries: Iterable[RawEntry], after: int, most_bytes: int = sys.maxsize) -> list[bytes]:
    """The SSE frames of the plain lines at the beginning of ``entries``, which follow line ``after``.

    A plain line is an entry as our append writes it: the next number, a timestamp, a message and a stream. Returns the
    same as ``Line.to_frame``, in a third of the time. Stops after the frame that reaches ``most_bytes``.
    """
    frames: list[bytes] = []
    number, stamp, stamp_json, left = after, None, b"", most_bytes
    for entry_id, fields in entries:
        number += 1
        if len(fields) != 6 or entry_id != b"%d-0" % number or number > MAX_NUMBER:
            break
        name_1, timestamp, name_2, message, name_3, stream = fields
        if name_1 != b"timestamp" or name_2 != b"message" or name_3 != b"stream":
            break
        if timestamp != stamp:
            stamp = timestamp
            stamp_json = orjson.dumps(_text(stamp))
        stream = b"stderr" if stream == b"stderr" else b"stdout"
        frame = _PLAIN_FRAME % (stamp_json, orjson.dumps(message.decode("utf-8", "replace")), number, stream, number)
        frames.append(frame)
        left -= len(frame)
        if left <= 0:
            break
    return frames


def plain_json_lines(entries: Iterable[RawEntry], after: int) -> list[bytes]:
    """The lines of :func:`plain_frames`, each as JSON and a newline."""
    return [frame[_FRAME_HEAD : frame.rindex(b"id: ")] for frame in plain_frames(entries, after)]


def in_sequence(entries: Sequence[RawEntry], after: int) -> bool:
    """Whether the entries continue after line ``after`` without a gap. Checks only the first and last numbers."""
    if not entries:
        return True
    first, last = entry_number(entries[0][0]), entry_number(entries[-1][0])
    return first == after + 1 and last == after + len(entries)


def missing_numbers(after: int, before: int, first: int) -> Iterator[Gap]:
    """The gaps between ``after`` and ``before``, both excluded. Only this function finds missing numbers.

    Numbers below ``first``, the first readable number, are ``trimmed``; others are ``missing``.
    """
    if after + 1 < min(first, before):
        yield Gap(after + 1, min(first, before) - 1, "trimmed")
    if max(after + 1, first) < before:
        yield Gap(max(after + 1, first), before - 1, "missing")


def stream_name(value: bytes | None) -> str:
    """The output stream that a line's ``stream`` field names. ``stdout`` if the field is missing or invalid."""
    return "stderr" if value == b"stderr" else "stdout"


def entry_number(entry_id: bytes) -> int:
    """The integer part of a Redis entry id."""
    return int(entry_id.partition(b"-")[0])


def written_seconds(entry: RawEntry) -> float | None:
    """An entry's time (Unix seconds), or None."""
    named = dict(zip(entry[1][::2], entry[1][1::2], strict=False))
    return seconds_of(_text(named.get(b"timestamp", b"")))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _entry(number: int, fields: Sequence[bytes]) -> Line | Gap | End:
    if len(fields) == 6 and fields[0] == b"timestamp" and fields[2] == b"message" and fields[4] == b"stream":
        return Line(number, _text(fields[1]), _text(fields[3]), stream_name(fields[5]))
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    if named.get(b"event") == b"end":
        return read_terminal(number, fields)
    if named.get(b"event") == b"lost":
        lost_from = parse_number(_text(named.get(b"from", b""))) or number
        reason = _text(named.get(b"reason", b""))
        return Gap(min(lost_from, number), number, reason if reason in ("missing", "quota") else "lost")
    if b"message" not in named:
        return Gap(number, number, "malformed")
    return Line(
        number,
        _text(named.get(b"timestamp", b"1970-01-01T00:00:00.000Z")),
        _text(named[b"message"]),
        stream_name(named.get(b"stream")),
        named.get(b"partial") == b"1",
    )


def read_terminal(number: int, fields: Sequence[bytes]) -> End:
    """Decodes the terminal entry's fields, with defaults for missing ones."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    status = _text(named.get(b"status", b""))
    known = status in Status.__members__ and Status(status).terminal
    exit_code = named.get(b"exit_code", b"")
    return End(
        number,
        Status(status) if known else (Status.COMPLETED if exit_code in (b"", b"0") else Status.FAILED),
        parse_exit_code(_text(exit_code)),
        _count(named.get(b"lines"), number - 1),
        _count(named.get(b"dropped"), 0),
        read_time(_text(named.get(b"timestamp", b""))),
    )


def _count(value: bytes | None, default: int) -> int:
    number = parse_number(_text(value)) if value is not None else None
    return default if number is None else number
