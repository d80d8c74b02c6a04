"""Decodes event streams into values. Remembers the last number across reconnects. No I/O."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.entries import missing_numbers
from chronoverse.joblog.events import EventName
from chronoverse.joblog.model import MAX_NUMBER, Gap, Line, Status, parse_number


class JobState(NamedTuple):
    """A job, from a ``job`` event. ``exit_code`` is unknown until ``status`` is terminal."""

    status: Status
    first: int
    last: int
    exit_code: int | None = None

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "JobState":
        """Raises KeyError, TypeError or ValueError if it is malformed."""
        first, last, code = state["first_sequence_num"], state["last_sequence_num"], state.get("exit_code")
        if type(first) is not int or type(last) is not int or not (code is None or type(code) is int):
            raise TypeError
        return cls(Status(state["status"]), first, last, code)


class Notice(NamedTuple):
    """A message for a person: the text of an ``error`` event, or why the client reconnects."""

    reason: str


class RedactedLines(NamedTuple):
    """Lines ``first`` to ``last`` were redacted. Their old text may have been shown."""

    first: int
    last: int


LogEvent = Line | Gap | JobState | Notice | RedactedLines


class JobChange(NamedTuple):
    """A job of a workflow, as listed. ``status`` can also be ``DELETED``."""

    job_id: str
    status: str
    job: dict[str, Any]


class Reset(NamedTuple):
    """Changes were lost: forget all known jobs of the workflow. Jobs that still exist are yielded again."""


class UpToDate(NamedTuple):
    """All changes up to ``number`` were yielded. The first UpToDate follows the workflow's newest jobs."""

    number: int


WorkflowEvent = JobChange | Reset | UpToDate | Notice


class Follower:
    """Decodes the event streams of one job, across connections, and returns each number once.

    Call :meth:`start_connection` for each connection, then :meth:`feed` with its bytes. ``last_number`` is the last
    number returned or skipped, None before the first connection. ``ended``: the log has ended. ``retry_ms`` is the
    reconnection time that the service requested.
    """

    def __init__(self) -> None:
        self.last_number: int | None = None
        self.ended = False
        self.retry_ms: int | None = None
        self._decoder = sse.Decoder()

    def start_connection(self, starts_after: str | None) -> None:
        """Begins a connection whose answer has this ``Last-Event-ID``. Drops the last connection's incomplete event."""
        if self.last_number is None and starts_after is not None:
            self.last_number = parse_number(starts_after)
        self._decoder = sse.Decoder()

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """The events that ``chunk`` completes. Raises ValueError for a malformed event."""
        for event in self._decoder.feed(chunk):
            try:
                item = self._read_event(event)
            except (KeyError, TypeError) as error:
                raise ValueError(f"an unreadable {event.event} frame") from error
            if item is not None:
                yield item
            if self.ended:
                return
        self.retry_ms = self.retry_ms if self._decoder.retry_ms is None else self._decoder.retry_ms
        self._advance(parse_number(self._decoder.last_event_id))

    def _advance(self, number: int | None) -> bool:
        """Moves ``last_number`` forward to ``number``. Returns False if ``number`` was already reached."""
        if number is None or (self.last_number is not None and number <= self.last_number):
            return False
        self.last_number = number
        return True

    def _read_event(self, event: sse.ServerSentEvent) -> Any:
        match event.event:
            case EventName.LOG:
                line = read_line(orjson.loads(event.data))
                return line if self._advance(line.sequence_num) else None
            case EventName.GAP:
                return self._read_gap(orjson.loads(event.data))
            case EventName.REDACT:
                span = orjson.loads(event.data)
                return RedactedLines(span["from"], span["to"])
            case EventName.JOB:
                return JobState.from_json(orjson.loads(event.data))
            case EventName.END:
                self.ended = True
            case EventName.ERROR:
                # An error event with its own, new id means that the job was lost. Other errors end only this stream.
                self.ended = self._decoder.has_id and self._advance(parse_number(event.id))
                return Notice(event.data)
        return None

    def _read_gap(self, gap: dict[str, Any]) -> Gap | None:
        first, last, reason = _valid(gap["from"]), _valid(gap["to"]), gap["reason"]
        if self.last_number is not None:
            first = max(first, self.last_number + 1)
        return Gap(first, last, reason) if self._advance(last) else None


def read_line(fields: dict[str, Any]) -> Line:
    """A line that a service sent. Raises KeyError or TypeError if it is malformed."""
    line = Line.from_json(fields)
    _valid(line.sequence_num)
    if [*map(type, line[1:])] != [str, str, str, bool]:
        raise TypeError
    return line


def _valid(number: Any) -> int:
    """A line's number. Raises TypeError for anything else."""
    if type(number) is not int or not 0 < number <= MAX_NUMBER:
        raise TypeError
    return number


class WorkflowFollower(Follower):
    """A :class:`Follower` for a workflow's event streams, which never end. Event ids number the workflow's changes."""

    _has_begun = False

    def start_connection(self, starts_after: str | None) -> None:
        """Begins a connection. Ignores ``starts_after``, as the number is known once the first jobs have arrived."""
        super().start_connection(None)

    def feed(self, chunk: bytes) -> Iterator[WorkflowEvent]:
        """The events that ``chunk`` completes, then an :class:`UpToDate` if they change ``last_number``."""
        before = self.last_number
        yield from super().feed(chunk)
        if self.last_number is not None and self.last_number != before:
            yield UpToDate(self.last_number)

    def _advance(self, number: int | None) -> bool:
        """Sets ``last_number``, also to a lower number, because the store can lose changes. Returns True."""
        self.last_number = self.last_number if number is None else number
        return True

    def _read_event(self, event: sse.ServerSentEvent) -> WorkflowEvent | None:
        match event.event:
            case EventName.JOB:
                job = orjson.loads(event.data)
                return JobChange(job["id"], job["status"], job)
            case EventName.CONNECTED:
                # If the previous connection ended before all of its jobs arrived, starts over: some may be deleted now.
                is_again, self._has_begun = self._has_begun and self.last_number is None, True
                return Reset() if is_again else None
            case EventName.RESET:
                return Reset()
            case EventName.ERROR:
                return Notice(event.data)
        return None


_Item = TypeVar("_Item")


def name_gaps(
    items: Iterable[_Item],
    number: Callable[[_Item], int],
    start: int,
    end: int | None,
    first: int,
    *,
    descending: bool = False,
) -> Iterator[_Item | Gap]:
    """The ``items`` of pages after number ``start``, with a Gap for each run of missing numbers.

    ``number`` returns an item's number. ``end`` is one past the range's last number (one below it if
    ``descending``); None if more can follow. ``first`` is the first readable number.
    """
    for item in chain(items, (None,)):
        reached = end if item is None else number(item)
        if reached is not None:
            low, high = sorted((start, reached))
            gaps = list(missing_numbers(low, high, first)) if (reached < start) == descending else []
            yield from reversed(gaps) if descending else gaps
            start = reached
        if item is not None:
            yield item
