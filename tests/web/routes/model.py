"""A reference model of a job's log: a list of entries, and each route as a small pure function of it.

It has no stores, chunks or caches, so the service must answer like the model wherever the log is stored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

#: The time of a line without a timestamp.
NO_TIME: Final = "1970-01-01T00:00:00.000Z"
_CONTROL_SEQUENCE: Final = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")


class Entry(NamedTuple):
    """An entry as written by a runner.

    ``kind`` is ``line``; ``malformed``, without a message; ``lost``, for the numbers from ``start`` on; or ``extra``,
    with the number of the previous entry.
    """

    number: int
    kind: str
    message: str = ""
    stream: str = "stdout"
    timestamp: str | None = None
    partial: bool = False
    start: int = 0

    def fields(self) -> list[str]:
        stamp = [] if self.timestamp is None else ["timestamp", self.timestamp]
        if self.kind == "malformed":
            return [*stamp, "note", "nothing to show"]
        if self.kind == "lost":
            return [*stamp, "event", "lost", "from", str(self.start)]
        partial = ["partial", "1"] if self.partial else []
        return [*stamp, "message", self.message, "stream", self.stream, *partial]

    def line(self) -> dict[str, Any]:
        """The line as returned by the routes."""
        line = {
            "timestamp": self.timestamp or NO_TIME,
            "message": self.message,
            "sequence_num": self.number,
            "stream": self.stream,
        }
        return {**line, "partial": True} if self.partial else line


class Query(NamedTuple):
    """A request's filters. ``q`` means the same to RE2 and to Python, and is case-insensitive."""

    q: str | None = None
    regex: bool = False
    stream: str | None = None
    since: str | None = None
    until: str | None = None
    before: int = 0
    after: int = 0

    def spans(self, message: str) -> list[list[int]]:
        """The matches, both in the message as written and without its control sequences."""
        pattern = self._pattern()
        found = {match.span() for match in pattern.finditer(message)}
        kept = [at for at in range(len(message)) if not _in_sequence(message, at)]
        for match in pattern.finditer("".join(message[at] for at in kept)):
            if match.start() < match.end():
                found.add((kept[match.start()], kept[match.end() - 1] + 1))
        joined: list[list[int]] = []
        for start, end in sorted(span for span in found if span[0] < span[1]):
            if joined and start < joined[-1][1]:
                joined[-1][1] = max(end, joined[-1][1])
            else:
                joined.append([start, end])
        return joined

    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.q or "" if self.regex else re.escape(self.q or ""), re.IGNORECASE)

    def has(self, entry: Entry) -> bool:
        """Whether the entry is a matching line."""
        return (
            entry.kind == "line"
            and self.stream in (None, entry.stream)
            and (self.since or "") <= (entry.timestamp or NO_TIME) <= (self.until or "~")
            and any(map(self._pattern().search, (entry.message, _CONTROL_SEQUENCE.sub("", entry.message))))
        )


#: Matches all lines.
EVERYTHING: Final = Query()


def _in_sequence(message: str, at: int) -> bool:
    return any(match.start() <= at < match.end() for match in _CONTROL_SEQUENCE.finditer(message))


def _gap(first: int, last: int, reason: str) -> dict[str, Any]:
    return {"event": "gap", "data": {"from": first, "to": last, "reason": reason}}


@dataclass(frozen=True)
class Log:
    """A log: its entries in order, and its terminal entry, if any. Numbers up to ``trimmed`` are gone.

    ``times`` are ``created_at`` and ``started_at``.
    """

    entries: tuple[Entry, ...] = ()
    end: dict[str, Any] | None = None
    trimmed: int = 0
    times: dict[str, str | None] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[Entry, ...]:
        return tuple(each for each in self.entries if each.number > self.trimmed)

    @property
    def last(self) -> int:
        """The last number before the end, which follows the last entry unless numbers are missing."""
        return int(self.end["number"]) - 1 if self.end else self.entries[-1].number

    @property
    def first(self) -> int:
        if not self.kept:
            return self.last + 1
        return self.kept[0].start if self.kept[0].kind == "lost" else self.kept[0].number

    def redacted(self, first: int, last: int) -> "Log":
        """The log after these numbers are redacted."""
        hidden = (
            each._replace(message="[redacted]" if first <= each.number <= last else each.message)
            for each in self.entries
        )
        return replace(self, entries=tuple(hidden))

    def lines(self, query: Query = EVERYTHING) -> list[dict[str, Any]]:
        """``/logs`` and ``/logs/raw``: the matching lines."""
        return [each.line() for each in self.kept if query.has(each)]

    def pauses(self) -> list[tuple[float, int]]:
        """``/profile``: the longest pauses in seconds, each with the number of the line after it."""
        lines = [each for each in self.kept if each.kind == "line"]
        known = [datetime.fromisoformat(each.timestamp).timestamp() for each in lines if each.timestamp]
        before, found = (0, known[0] if known else 0.0), []
        for line in lines:
            at = datetime.fromisoformat(line.timestamp).timestamp() if line.timestamp else before[1]
            if line.number == before[0] + 1 and at > before[1]:
                found.append((at - before[1], line.number))
            before = line.number, at
        return sorted(found, key=lambda each: (-each[0], each[1]))[:20]

    def search(self, query: Query) -> list[dict[str, Any]]:
        """``/logs/search``: the matching lines with highlights, and their context."""
        found = {each.number for each in self.kept if query.has(each)}
        result = []
        for line in self.lines(Query(stream=query.stream)):
            number = line["sequence_num"]
            if number in found:
                result.append({**line, "highlights": query.spans(line["message"])})
            elif any(each - query.before <= number <= each + query.after for each in found):
                result.append({**line, "highlights": [], "context": True})
        return result

    def events(self, offset: int, query: Query = EVERYTHING) -> Iterator[dict[str, Any]]:
        """``/events``: the events after ``offset``, without those about the job."""
        cursor = offset
        for entry in self.kept:
            if entry.kind == "extra" and entry.number > offset:
                text = f"entry {entry.number}-1 has no place in this log's numbering and cannot be shown"
                yield {"event": "error", "data": text}
            if entry.kind == "extra" or entry.number <= cursor:
                continue
            start = max(entry.start, cursor + 1) if entry.kind == "lost" else entry.number
            yield from self._missing(cursor, start)
            if entry.kind != "line":
                yield _gap(start, entry.number, entry.kind)
            elif query.has(entry):
                yield {"event": "log", "data": entry.line(), "id": str(entry.number)}
            cursor = entry.number
        if self.end:
            yield from self._missing(cursor, self.last + 1)
            yield {"event": "end", "data": {"status": "stream_ended"}, "id": str(self.last + 1)}

    def _missing(self, cursor: int, start: int) -> Iterator[dict[str, Any]]:
        """The gaps between two numbers: trimmed before the first remaining number, otherwise missing."""
        edge = min(max(self.first - 1, cursor), start - 1)
        if cursor < edge:
            yield _gap(cursor + 1, edge, "trimmed")
        if edge < start - 1:
            yield _gap(edge + 1, start - 1, "missing")

    def wait(self, offset: int, query: Query) -> dict[str, Any]:
        """``/wait`` of an ended job: its outcome, with the gaps before it."""
        gaps: list[dict[str, Any]] = []
        for event in self.events(offset, query):
            if event["event"] == "log":
                return {"outcome": "matched", "log": event["data"], "cursor": int(event["id"]), "gaps": gaps}
            if event["event"] == "gap":
                gaps.append(event["data"])
        return {"outcome": "ended", "log": None, "gaps": gaps}

    def job(self) -> dict[str, Any]:
        """``/jobs/{j}``, without the job's ids."""
        end = self.end or {"status": "RUNNING"}
        return {
            "status": end["status"],
            "attempt": 1,
            **self.times,
            "finished_at": end.get("timestamp"),
            "exit_code": end.get("exit_code"),
            "lines": self.last,
            "dropped": end.get("dropped", 0),
            "first_sequence_num": self.first,
            "last_sequence_num": self.last,
            "labels": {},
        }
