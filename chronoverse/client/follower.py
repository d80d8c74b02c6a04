"""What a stream's frames say to its reader, however often the stream is cut. Pure: bytes in, values out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.values import Gap, Line, Status, parse_number


@dataclass(frozen=True, slots=True)
class JobState:
    """What a ``job`` frame says: the last four are known once ``status`` is terminal."""

    status: Status
    attempt: int
    first: int
    last: int
    started_at: str | None = None
    exit_code: int | None = None
    lines: int | None = None
    dropped: int | None = None
    finished_at: str | None = None

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "JobState":
        """A state out of its JSON spelling, in a ``job`` frame or as the job's own route answers it."""
        return cls(
            Status(state["status"]),
            state["attempt"],
            state["first_sequence_num"],
            state["last_sequence_num"],
            *(state.get(key) for key in ("started_at", "exit_code", "lines", "dropped", "finished_at")),
        )


class Notice(NamedTuple):
    """Something to tell a person: an ``error`` frame's text, or why a connection is being tried again."""

    reason: str


class Redaction(NamedTuple):
    """Lines ``first`` to ``last``, shown before, may not say any more what they said."""

    first: int
    last: int


LogEvent = Line | Gap | JobState | Notice | Redaction


class Follower:
    """A reader's place in a log. Give it each connection's start and bytes; it says each number once.

    ``number`` is the last number said or passed over, None before the first connection. ``ended`` is True
    once nothing more can come.
    """

    def __init__(self) -> None:
        self.last_number: int | None = None
        self.ended = False
        self.retry_ms: int | None = None
        self._decoder = sse.Decoder()

    def start_connection(self, starts_after: str | None) -> None:
        """A connection has begun, after the number in its ``Last-Event-ID`` header; a torn frame is forgotten."""
        if self.last_number is None and starts_after is not None:
            self.last_number = parse_number(starts_after)
        self._decoder = sse.Decoder("" if self.last_number is None else str(self.last_number))

    def feed(self, chunk: bytes) -> Iterator[LogEvent]:
        """What ``chunk`` completes. Raises ValueError for a frame that is none of the contract's."""
        for event in self._decoder.feed(chunk):
            if (item := self._read_event(event)) is not None:
                yield item
            if self.ended:
                return
        self.retry_ms = self.retry_ms if self._decoder.retry_ms is None else self._decoder.retry_ms
        self._advance(parse_number(self._decoder.last_event_id))

    def _advance(self, number: int | None) -> bool:
        """Moves forward to ``number``. False when it was reached before."""
        if number is None or (self.last_number is not None and number <= self.last_number):
            return False
        self.last_number = number
        return True

    def _read_event(self, event: sse.Event) -> LogEvent | None:
        try:
            match event.event:
                case "log":
                    line = Line.from_json(orjson.loads(event.data))
                    return line if self._advance(line.sequence_num) else None
                case "gap":
                    return self._read_gap(orjson.loads(event.data))
                case "redact":
                    span = orjson.loads(event.data)
                    return Redaction(span["from"], span["to"])
                case "job":
                    return JobState.from_json(orjson.loads(event.data))
                case "end":
                    self.ended = True
                case "error":
                    # An id of its own is the terminal entry's: the job is lost. Without one it is a passing trouble.
                    self.ended = self._advance(parse_number(event.id))
                    return Notice(event.data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"an unreadable {event.event} frame") from error
        return None

    def _read_gap(self, gap: dict[str, Any]) -> Gap | None:
        first, last, reason = gap["from"], gap["to"], gap["reason"]
        if self.last_number is not None:
            first = max(first, self.last_number + 1)
        return Gap(first, last, reason) if self._advance(last) else None


def name_gaps(lines: Iterable[Line], after: int, state: JobState) -> Iterator[Line | Gap]:
    """All lines after line ``after``, as pages give them, with the numbers that pages pass over in silence.

    ``state`` is a look at the job from before the pages were read.
    """
    for line in lines:
        yield from _between(after, line.sequence_num, state.first)
        after = line.sequence_num
        yield line
    yield from _between(after, state.last + 1, state.first)


def _between(after: int, before: int, first: int) -> Iterator[Gap]:
    if after + 1 < min(first, before):
        yield Gap(after + 1, min(first, before) - 1, "trimmed")
    if max(after + 1, first) < before:
        yield Gap(max(after + 1, first), before - 1, "missing")
