"""The values of a job's log. Immutable, without I/O.

Each line has a number, ``sequence_num``. It is also the line's Redis entry id (``7-0``) and its SSE ``id:``, and is
used in pages and links. An *offset* is a number after which reading starts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog import events
from chronoverse.joblog.labels import Labels

#: Workflow and job ids. A match is safe in a Redis key, a path and a log line.
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

#: Default maximum bytes of a line published as one entry. Longer lines are cut.
MAX_LINE_BYTES: Final = 65_536
#: The largest number accepted from clients (15 digits). JSON and Redis still represent larger ones exactly.
MAX_NUMBER: Final = 999_999_999_999_999
REDACTED_MESSAGE: Final = "[redacted]"

#: A line as JSON: timestamp, message, number, stream, ``partial``. The archive's search depends on this form.
LINE_JSON: Final = b'{"timestamp":%b,"message":%b,"sequence_num":%d,"stream":"%b"%b}'

_EXIT_CODE = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
STREAMS: Final = ("stdout", "stderr")
TIMESTAMP: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)


def parse_number(text: str) -> int | None:
    """Parses an untrusted number: 1 to 15 ASCII digits. None for any other text."""
    return int(text) if _NUMBER.fullmatch(text) else None


def parse_exit_code(text: str) -> int | None:
    """Parses an exit code from the store. None if absent or not a number."""
    return int(text) if _EXIT_CODE.fullmatch(text) else None


def iso_timestamp(seconds: float) -> str:
    """Unix time as ISO 8601 UTC with milliseconds, ``2026-03-03T10:00:05.123Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def seconds_of(text: str | None) -> float | None:
    """Unix seconds of an ISO 8601 time (without a zone: UTC). None if ``text`` is None or invalid."""
    try:
        found = datetime.fromisoformat(text or "")
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def iso_or_none(milliseconds: float) -> str | None:
    """Unix ms as ISO 8601 UTC. None for a time beyond the calendar, which a foreign runner can write."""
    try:
        return iso_timestamp(milliseconds / 1000)
    except (OverflowError, ValueError, OSError):
        return None


def read_time(text: str) -> str | None:
    """Parses an untrusted ISO 8601 time, and returns it in the format of :func:`iso_timestamp`. None if invalid."""
    seconds = seconds_of(text)
    if seconds is None:
        return None
    return text if TIMESTAMP.fullmatch(text) else iso_or_none(1000 * seconds)


class TimeRange(NamedTuple):
    """Times from ``since`` to ``until``, inclusive, in the format of :func:`read_time`. None: no limit."""

    since: str | None = None
    until: str | None = None

    def has(self, timestamp: str) -> bool:
        """Whether a line's time is in the range. An invalid time is only in an unlimited range."""
        if self.since is None and self.until is None:
            return True
        # Times in our format compare as strings.
        time = timestamp if TIMESTAMP.fullmatch(timestamp) else read_time(timestamp)
        return time is not None and (self.since or "") <= time and (self.until is None or time <= self.until)


class JobRef(NamedTuple):
    """The two ids that identify a job. Both match :data:`IDENTIFIER`."""

    workflow_id: str
    job_id: str

    def __str__(self) -> str:
        return f"{self.workflow_id}/{self.job_id}"


#: A position in a listing: creation time in Unix ms, and id, of a job or workflow.
ListingPosition = tuple[float, str]


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
        """Whether the job can no longer change."""
        return self not in (Status.PENDING, Status.RUNNING)


class Line(NamedTuple):
    """One line of a log. ``message`` has no newline at the end; bytes that were not UTF-8 have been replaced.

    A long line is cut into several lines. All but the last are ``partial``: the stream's next line continues them.
    """

    sequence_num: int
    timestamp: str
    message: str
    stream: str
    partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """The line as JSON, with the keys in the published order."""
        line: dict[str, Any] = {
            "timestamp": self.timestamp,
            "message": self.message,
            "sequence_num": self.sequence_num,
            "stream": self.stream,
        }
        if self.partial:
            line["partial"] = True
        return line

    def encode(self) -> bytes:
        """:meth:`to_json` as bytes, at half the cost."""
        number, timestamp, message, stream, partial = self
        rest = b',"partial":true' if partial else b""
        return LINE_JSON % (orjson.dumps(timestamp), orjson.dumps(message), number, stream.encode(), rest)

    def to_frame(self) -> bytes:
        """The line as an SSE frame."""
        return events.LOG_FRAME % (self.encode(), self.sequence_num)

    @classmethod
    def decode(cls, json: bytes) -> "Line":
        """Parses the output of :meth:`encode`."""
        return cls.from_json(orjson.loads(json))

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Line":
        """A line from the JSON that a client receives."""
        return cls(line["sequence_num"], line["timestamp"], line["message"], line["stream"], line.get("partial", False))


class LineRun(NamedTuple):
    """Consecutive lines that differ only in text, the unit of appends. ``messages`` are UTF-8."""

    timestamp: str
    stream: str
    partial: bool
    messages: list[bytes]


def runs_of(lines: Iterable[Line]) -> list[LineRun]:
    """Groups consecutive ``lines`` into runs."""
    return [
        LineRun(timestamp, stream, partial, [line.message.encode() for line in alike])
        for (timestamp, stream, partial), alike in groupby(lines, key=itemgetter(1, 3, 4))
    ]


def split_runs(runs: Iterable[LineRun], most: int) -> Iterator[list[LineRun]]:
    """Splits ``runs`` into parts of up to ``most`` lines."""
    part: list[LineRun] = []
    room = most
    for timestamp, stream, partial, messages in runs:
        start = 0
        while start < len(messages):
            taken = messages[start : start + room]
            part.append(LineRun(timestamp, stream, partial, taken))
            start, room = start + len(taken), room - len(taken)
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part


def count_lines(runs: Iterable[LineRun]) -> int:
    return sum(len(run.messages) for run in runs)


def lines_of(runs: Iterable[LineRun], first: int) -> list[Line]:
    """The lines of ``runs``, numbered from ``first``."""
    lines: list[Line] = []
    for timestamp, stream, partial, messages in runs:
        numbered = enumerate(messages, first + len(lines))
        lines += [Line(number, timestamp, message.decode(), stream, partial) for number, message in numbered]
    return lines


class Gap(NamedTuple):
    """Numbers ``first`` to ``last``, inclusive, whose lines cannot be shown.

    ``reason``: ``trimmed`` (deleted by the store), ``missing`` (never written, or deleted by someone), ``lost`` (both
    the store and the runner lost them), ``quota`` (dropped by a quota) or ``malformed`` (entries without a message).
    """

    first: int
    last: int
    reason: str

    def to_frame(self) -> bytes:
        return events.gap_frame(self.first, self.last, self.reason)


class End(NamedTuple):
    """The terminal entry: the last entry of a log, numbered one past the last line."""

    sequence_num: int
    status: Status
    exit_code: int | None
    lines: int
    dropped: int
    timestamp: str | None

    def to_frame(self, lease_seconds: int) -> bytes:
        """The SSE frame: ``end``, or for a lost job an ``error``."""
        if self.status is Status.LOST:
            return events.error_frame(f"runner lost: nothing heard from it for {lease_seconds} s", self.sequence_num)
        return events.end_frame(self.sequence_num)


class OutOfSequence(NamedTuple):
    """An entry without a number of its own, such as ``5-1`` after ``5-0``. Readers get its id, but not its text.

    ``last``: reading stops here, because the entry's number is too large.
    """

    entry_id: str
    last: bool = False

    def to_frame(self) -> bytes:
        """The SSE frame: an ``error``. Unless ``last``, the stream continues after the frame."""
        following = " and all entries after it" if self.last else ""
        return events.error_frame(
            f"entry {self.entry_id}{following} has no place in this log's numbering and cannot be shown"
        )


class Attempt(NamedTuple):
    """A runner's attempt at a job. The lease contains ``token``. ``next``: the number of its next line."""

    job: JobRef
    token: str
    attempt: int
    next: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job's state when it was fetched.

    ``first`` is the first readable number, ``last`` the last line's number; if ``first > last``, no line is left. The
    archive has numbers from ``first`` to ``archived``, the store has numbers from ``first_stored``. ``archive_sha256``,
    the hash of the chunks' hashes, is set once all of an ended log is archived.
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
    first_stored: int = 1
    labels: Labels = ()
    archive_sha256: str | None = None

    @property
    def age(self) -> tuple[int, bool]:
        """The attempt, and whether it has started. A larger age means a newer state of a running job."""
        return self.attempt, self.status is not Status.PENDING

    @property
    def created_seconds(self) -> float | None:
        """The creation time in Unix seconds, or else the start time. None if a foreign job has neither."""
        return seconds_of(self.created_at) or seconds_of(self.started_at)

    @property
    def position(self) -> ListingPosition | None:
        """The job's position in its workflow's listing. None (the listing's start) for a foreign job without times."""
        created = self.created_seconds
        return None if created is None else (round(1000 * created), self.ref.job_id)

    def listed(self, created_ms: float) -> "Job":
        """The job with its missing times filled in. ``created_ms`` is when the job was listed.

        ``created_at`` becomes ``created_ms``, and ``started_at`` becomes ``created_at``, unless the job is pending.
        """
        created_at = self.created_at or iso_or_none(created_ms)
        begun_at = None if self.status is Status.PENDING else created_at
        return replace(self, created_at=created_at, started_at=self.started_at or begun_at)

    def ended(self, end: End) -> "Job":
        """The job's state after its terminal entry."""
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

    def includes(self, number: int) -> bool:
        """Whether the state includes entry ``number``. False after a failover that lost the entry."""
        return self.end is not None or min(number, MAX_NUMBER) <= self.last

    def is_past_end(self, cursor: int) -> bool:
        """Whether ``cursor`` is at or past the end. A foreign runner's entries after the end are not shown."""
        return self.end is not None and cursor >= self.end.sequence_num

    def closing_frames(self, end: End, lease_seconds: float) -> bytes:
        """The last frames of a stream: the job's final state, then ``end``, or ``error`` if the job was lost."""
        return self.ended(end).to_frame() + end.to_frame(round(lease_seconds))

    def end_of_log(self, cursor: int, lease_seconds: float) -> bytes | None:
        """The last frames for a reader that has all lines up to ``cursor``. None while more lines can follow.

        A reader past the terminal entry gets an ``error``, because the store has lost lines.
        """
        end = self.end
        if end is None or end.sequence_num > cursor + 1:
            return None
        if end.sequence_num <= cursor:
            return events.error_frame(f"the store lost lines {end.sequence_num} to {cursor} of this log")
        return self.closing_frames(end, lease_seconds)

    def to_json(self) -> dict[str, Any]:
        """The answer of ``GET /workflows/{w}/jobs/{j}``."""
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
            "labels": dict(self.labels),
        }

    def to_frame(self) -> bytes:
        """The ``job`` frame. Has the fields of the end only if the job has ended."""
        state: dict[str, Any] = {
            "status": self.status,
            "attempt": self.attempt,
            "first_sequence_num": self.first,
            "last_sequence_num": self.last,
            "started_at": self.started_at,
        }
        if self.status.terminal:
            fields = self.to_json()
            state |= {key: fields[key] for key in ("exit_code", "lines", "dropped", "finished_at")}
        state["labels"] = dict(self.labels)
        return events.job_frame(state)
