"""The vocabulary of a job's log: frozen values, no I/O.

One integer runs through everything. A line's ``sequence_num`` is its Redis entry id (``7-0``), its
SSE ``id:``, its place in a page and its permalink, and an *offset* always means "strictly after".

A line has one shape and three spellings, side by side in :class:`Line`: Redis fields, SSE frame, JSON.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog import sse

#: Workflow and job ids. Nothing that matches can escape a Redis key, a path or a log line.
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

#: Bytes of a line that are published as one entry, unless a setting says otherwise; a longer line goes out in pieces.
MAX_LINE_BYTES: Final = 65_536
#: The largest number a client may name (15 digits), well inside what JSON and Redis carry exactly.
MAX_NUMBER: Final = 999_999_999_999_999

#: A line's SSE spelling: timestamp and message as JSON, number, stream, :data:`PARTIAL` or nothing, number again.
LINE_FRAME: Final = b'event: log\ndata: {"timestamp":%b,"message":%b,"sequence_num":%d,"stream":"%b"%b}\nid: %d\n\n'
#: What a piece of a longer line says besides.
PARTIAL: Final = b',"partial":true'

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


def seconds_of(text: str) -> float | None:
    """Unix seconds of an ISO 8601 time, or None where it is none. Without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else datetime.fromisoformat(f"{text}+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None


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
        """The SSE spelling: :meth:`to_json` in a block, put together at half the cost of going by that."""
        number, timestamp, message, stream, partial = self
        rest = PARTIAL if partial else b""
        return LINE_FRAME % (orjson.dumps(timestamp), orjson.dumps(message), number, stream.encode(), rest, number)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Line":
        """A line out of its JSON spelling, as a client receives it."""
        return cls(line["sequence_num"], line["timestamp"], line["message"], line["stream"], line.get("partial", False))


class LineRun(NamedTuple):
    """Lines in a row that differ only in their text, which is UTF-8: what an append is made of."""

    timestamp: str
    stream: str
    partial: bool
    messages: list[bytes]


def lines_of(runs: Iterable[LineRun], first: int) -> list[Line]:
    """The runs' lines, numbered from ``first``."""
    lines: list[Line] = []
    for timestamp, stream, partial, messages in runs:
        numbered = enumerate(messages, first + len(lines))
        lines += [Line(number, timestamp, message.decode(), stream, partial) for number, message in numbered]
    return lines


class Gap(NamedTuple):
    """Numbers ``first`` to ``last``, both included, that cannot be had.

    ``reason``: ``trimmed`` away, ``missing`` (never written, or deleted), ``lost`` (the store lost them, and
    their runner did not keep them), ``malformed`` (nothing in it to show).
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
    timestamp: str | None

    def to_frame(self, lease_seconds: int) -> bytes:
        """The SSE spelling: ``end``, or for a lost job the ``error`` that closes it."""
        if self.status is Status.LOST:
            reason = f"runner lost: nothing heard from it for {lease_seconds} s"
            return sse.frame("error", reason.encode(), id=self.sequence_num)
        return sse.frame("end", b'{"status":"stream_ended"}', id=self.sequence_num)


class OutOfSequence(NamedTuple):
    """An entry that has no place in the numbering, such as ``5-1`` after ``5-0``. It is named, never shown.

    ``last`` when it lies beyond all numbers: whatever follows it lies there too.
    """

    entry_id: str
    last: bool = False

    def to_frame(self) -> bytes:
        """The SSE spelling: an ``error`` that ends nothing, unless it is the last."""
        behind = " and all behind it" if self.last else ""
        text = f"entry {self.entry_id}{behind} has no place in this log's numbering and cannot be shown"
        return sse.frame("error", sse.fold(text))


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
    to be had when ``first > last``. ``end`` is the terminal entry, once there is one. Numbers up to ``archived`` are
    in the archive, from ``first`` on; 0 when none is. The store itself has the numbers from ``hot`` on.
    ``redactions`` is how many times something was redacted.
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
    end: End | None = None
    archived: int = 0
    redactions: int = 0
    hot: int = 1

    @property
    def age(self) -> tuple[int, bool]:
        """Grows as a job that has not ended gets on."""
        return self.attempt, self.status is not Status.PENDING

    def ended(self, end: End) -> "Job":
        """The same job with its terminal entry."""
        return replace(
            self,
            status=end.status,
            finished_at=end.timestamp,
            exit_code=end.exit_code,
            lines=end.lines,
            dropped=end.dropped,
            last=end.sequence_num - 1,
            end=end,
        )

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
