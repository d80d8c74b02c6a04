"""The vocabulary of a job's log: frozen values, no I/O.

One integer runs through everything. A line's ``sequence_num`` is its Redis entry id (``7-0``), its
SSE ``id:``, its place in a page and its permalink, and an *offset* always means "strictly after".

A line has one shape and three spellings, side by side in :class:`Line`: Redis fields, SSE frame, JSON.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from chronoverse import sse

#: Workflow and job ids. Nothing that matches can escape a Redis key, a path or a log line.
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

#: The largest number a client may name (15 digits), well inside what JSON and Redis carry exactly.
MAX_NUMBER: Final = 999_999_999_999_999

#: What a foreign entry without a timestamp is shown with: valid, and plainly not a real time.
NO_TIMESTAMP: Final = "1970-01-01T00:00:00.000Z"

_EXIT_CODE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


def parse_number(text: str) -> int | None:
    """The one parser for numbers from outside: 1 to 15 ASCII digits, or None."""
    return int(text) if _NUMBER.fullmatch(text) else None


def parse_exit_code(text: str) -> int | None:
    """An exit code as a store holds it, or None where it is absent or no number."""
    return int(text) if _EXIT_CODE.fullmatch(text) else None


def iso_timestamp(seconds: float) -> str:
    """Unix time as ISO 8601 UTC with milliseconds, ``2026-03-03T10:00:05.123Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class JobRef(NamedTuple):
    """Which job: both parts match :data:`IDENTIFIER`."""

    workflow_id: str
    job_id: str

    def __str__(self) -> str:
        return f"{self.workflow_id}/{self.job_id}"


class Status(StrEnum):
    """A job's state. The last four are terminal."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    LOST = "LOST"

    @property
    def terminal(self) -> bool:
        """Whether nothing more can come."""
        return self not in (Status.PENDING, Status.RUNNING)


class Line(NamedTuple):
    """One line, or a piece of a long one (``partial``: it goes on in the stream's next line).

    ``message`` has no newline at its end. It is text: bytes that are not UTF-8 were replaced once.
    """

    sequence_num: int
    timestamp: str
    message: str
    stream: str
    partial: bool = False

    def to_fields(self) -> list[str]:
        """The Redis spelling: field, value, field, value, …"""
        fields = ["timestamp", self.timestamp, "message", self.message, "stream", self.stream]
        return [*fields, "partial", "1"] if self.partial else fields

    def to_json(self) -> dict[str, Any]:
        """The JSON spelling, keys in the published order."""
        line: dict[str, Any] = {
            "timestamp": self.timestamp,
            "message": self.message,
            "sequence_num": self.sequence_num,
            "stream": self.stream,
        }
        if self.partial:
            line["partial"] = True
        return line

    def to_frame(self) -> bytes:
        """The SSE spelling."""
        return b"event: log\ndata: %b\nid: %d\n\n" % (orjson.dumps(self.to_json()), self.sequence_num)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Line":
        """A line out of its JSON spelling, as a client receives it."""
        return cls(line["sequence_num"], line["timestamp"], line["message"], line["stream"], line.get("partial", False))


class Run(NamedTuple):
    """Lines in a row that differ only in their text, which is UTF-8: what an append is made of."""

    timestamp: str
    stream: str
    partial: bool
    messages: list[bytes]


def lines_of(runs: Iterable[Run], first: int) -> list[Line]:
    """The runs' lines, numbered from ``first``."""
    lines: list[Line] = []
    for timestamp, stream, partial, messages in runs:
        numbered = enumerate(messages, first + len(lines))
        lines += [Line(number, timestamp, message.decode(), stream, partial) for number, message in numbered]
    return lines


class Gap(NamedTuple):
    """Numbers ``first`` to ``last``, both included, that cannot be had any more.

    ``reason`` is ``trimmed`` (the store let them go), ``missing`` (nobody ever wrote them) or
    ``malformed`` (an entry is there, but there is nothing in it that could be shown).
    """

    first: int
    last: int
    reason: str

    def to_frame(self) -> bytes:
        """The SSE spelling."""
        return sse.frame("gap", orjson.dumps({"from": self.first, "to": self.last, "reason": self.reason}))


class End(NamedTuple):
    """The terminal entry: always a log's last, its number one past the last line's."""

    sequence_num: int
    status: Status
    exit_code: int | None
    lines: int
    dropped: int
    timestamp: str

    def to_frame(self, lease_seconds: int) -> bytes:
        """The SSE spelling: ``end``, or for a lost job the ``error`` that closes it."""
        if self.status is Status.LOST:
            reason = f"runner lost: nothing heard from it for {lease_seconds} s"
            return sse.frame("error", reason.encode(), id=self.sequence_num)
        return sse.frame("end", b'{"status":"stream_ended"}', id=self.sequence_num)


class Stray(NamedTuple):
    """An entry that has no place in the numbering, such as ``5-1`` after ``5-0``. It is named, never shown."""

    entry_id: str


Entry = Line | Gap | End | Stray
#: An entry as the store hands it over: id, then field, value, field, value, …
RawEntry = Sequence[Any]


def read_entries(entries: Iterable[RawEntry], after: int, first: int = 1) -> Iterator[Entry]:
    """What the raw ``entries`` that follow line ``after`` say, in order, every number accounted for.

    Anybody may have written them, so nothing here can fail: what can be shown is a Line, numbers that
    are not there are a Gap (``trimmed`` below ``first``, the first number the store still has), and an
    entry without a number of its own is a Stray. Nothing follows an End.
    """
    cursor = after
    for entry_id, fields in entries:
        number = _number(entry_id)
        if number is None or number <= cursor:
            yield Stray(_text(entry_id))
            continue
        if number > cursor + 1:
            yield from _gaps(cursor + 1, number - 1, first)
        cursor = number
        entry = _entry(number, fields)
        yield entry
        if type(entry) is End:
            return


def in_sequence(entries: Sequence[RawEntry], after: int) -> bool:
    """Whether the entries' ids look like one number after the other from ``after`` on, so that no gap is among them."""
    return not entries or _number(entries[-1][0]) == after + len(entries)


def _gaps(start: int, stop: int, first: int) -> Iterator[Gap]:
    if start < first:
        yield Gap(start, min(stop, first - 1), "trimmed")
    if stop >= first:
        yield Gap(max(start, first), stop, "missing")


def _number(entry_id: bytes) -> int | None:
    whole, _, _ = entry_id.partition(b"-")
    number = int(whole)
    return number if 0 < number <= MAX_NUMBER else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _entry(number: int, fields: Sequence[bytes]) -> Line | Gap | End:
    if len(fields) == 6 and fields[0] == b"timestamp" and fields[2] == b"message" and fields[4] == b"stream":
        stream = "stderr" if fields[5] == b"stderr" else "stdout"
        return Line(number, fields[1].decode("utf-8", "replace"), fields[3].decode("utf-8", "replace"), stream)
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    if named.get(b"event") == b"end":
        return read_terminal(number, fields)
    if b"message" not in named:
        return Gap(number, number, "malformed")
    return Line(
        number,
        _text(named.get(b"timestamp", NO_TIMESTAMP.encode())),
        _text(named[b"message"]),
        "stderr" if named.get(b"stream") == b"stderr" else "stdout",
        named.get(b"partial") == b"1",
    )


def read_terminal(number: int, fields: Sequence[bytes]) -> End:
    """The terminal entry out of its Redis fields. What a foreign runner left out is filled in."""
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
        _text(named.get(b"timestamp", NO_TIMESTAMP.encode())),
    )


def _count(value: bytes | None, default: int) -> int:
    number = parse_number(_text(value)) if value is not None else None
    return default if number is None else number


class Attempt(NamedTuple):
    """A runner's hold on a job: ``token`` in the lease, and the number its next line gets."""

    job: JobRef
    token: str
    attempt: int
    next: int


@dataclass(frozen=True, slots=True)
class Job:
    """What the store knows of a job at one instant.

    ``first`` is the first number that can still be had and ``last`` the last line's; there is no line
    to be had when ``first > last``. ``end`` is the terminal entry, once there is one.
    """

    ref: JobRef
    status: Status
    attempt: int = 0
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    exit_code: int | None = None
    lines: int | None = None
    dropped: int = 0
    first: int = 1
    last: int = 0
    end: End | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The JSON spelling, as ``GET /workflows/{w}/jobs/{j}`` answers it."""
        return {
            "workflow_id": self.ref.workflow_id,
            "id": self.ref.job_id,
            "status": self.status,
            "attempt": self.attempt,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "exit_code": self.exit_code,
            "lines": self.last if self.lines is None else self.lines,
            "dropped": self.dropped,
            "first_sequence_num": self.first,
            "last_sequence_num": self.last,
        }

    def to_frame(self) -> bytes:
        """The SSE spelling; the last four keys only once the job has ended."""
        state: dict[str, Any] = {
            "status": self.status,
            "attempt": self.attempt,
            "first_sequence_num": self.first,
            "last_sequence_num": self.last,
            "started_at": self.started_at,
        }
        if self.status.terminal:
            whole = self.to_json()
            state |= {key: whole[key] for key in ("exit_code", "lines", "dropped", "finished_at")}
        return sse.frame("job", orjson.dumps(state))
