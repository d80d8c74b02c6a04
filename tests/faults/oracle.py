"""Compares what viewers received with what was printed, like Jepsen's checkers. Pure functions. https://jepsen.io

Two kinds of numbers are checked. The log numbers its lines 1, 2, 3, …: a viewer receives each number once and in order,
or in a gap. Every writer numbers the lines that it prints: each is in the log once and in order, or its number is in a
gap. The last event has the number of lines that the runner dropped: at most those in gaps with the reason ``lost``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple

from tests.faults.emitter import line

LINE: Final = "line"
GAP: Final = "gap"
JOB: Final = "job"

#: Maximum number of missing numbers reported for one view.
MAX_REPORTED: Final = 1_000

_EMITTED = re.compile(r"w=([A-Za-z0-9-]+) n=([0-9]+) h=[0-9a-f]{40}")


class Seen(NamedTuple):
    """An event that a viewer received: a LINE, a GAP from ``number`` to ``last``, or a JOB state.

    ``connection`` is the number of the viewer's connection, from 1. ``at`` is in seconds on the monotonic clock.
    ``state`` is the JSON of a ``job`` event.
    """

    connection: int
    at: float
    kind: str
    number: int = 0
    last: int = 0
    message: str = ""
    timestamp: str = ""
    state: Mapping[str, object] | None = None


class Printed(NamedTuple):
    """How many lines a writer started to print, and how many are required."""

    begun: int
    required: int


@dataclass
class Verdict:
    """All errors, as sentences by kind. ``misstated`` has the log's false statements about itself."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)
    misstated: list[str] = field(default_factory=list)
    #: Number of lines checked in all views.
    checked: int = 0
    #: Number of lines that gaps report as lost.
    named: int = 0
    #: Number of lines that gaps report as over quota.
    dropped: int = 0

    @property
    def faults(self) -> dict[str, list[str]]:
        """The lists that are not empty."""
        lists = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: found for name, found in lists if isinstance(found, list) and found}

    @property
    def clean(self) -> bool:
        """Whether there are no errors."""
        return not self.faults

    def __str__(self) -> str:
        kinds = [f"{len(found)} {name}: {'; '.join(found[:5])}" for name, found in self.faults.items()]
        return " | ".join(kinds) or f"clean: {self.checked} lines"


def judge(printed: Mapping[str, Printed], views: Mapping[str, Sequence[Seen]], history: Sequence[Seen]) -> Verdict:
    """Checks each view, which is what a viewer received, and ``history``, the log as returned by its pages.

    A view runs from line 1 to the end of the log. Pages omit lost lines: their gaps are those of the first view.
    """
    verdict = Verdict()
    last = max((seen.number for seen in history if seen.kind == LINE), default=0)
    contents: dict[int, tuple[str, str]] = {}
    gaps = [seen for seen in next(iter(views.values()), ()) if seen.kind == GAP and seen.message in ("lost", "quota")]
    verdict.named = sum(seen.last - seen.number + 1 for seen in gaps if seen.message == "lost")
    verdict.dropped = sum(seen.last - seen.number + 1 for seen in gaps if seen.message == "quota")
    pages = list(merge(history, gaps, key=attrgetter("number")))
    for name, view in {"/logs": pages, **views}.items():
        _ViewCheck(name, printed, contents, verdict).run(view, last)
    return verdict


class _ViewCheck:
    """The check of one view, from its beginning, which adds errors to ``verdict``.

    ``contents`` is shared by all views: the message and time that the first of them had under each number.
    """

    def __init__(
        self,
        name: str,
        printed: Mapping[str, Printed],
        contents: dict[int, tuple[str, str]],
        verdict: Verdict,
    ) -> None:
        self._name = name
        self._printed = printed
        self._contents = contents
        self._verdict = verdict
        self._numbers: set[int] = set()
        self._gaps: list[tuple[int, int]] = []
        self._highest = 0
        #: By writer: its highest line and all of its lines so far.
        self._reached: dict[str, int] = dict.fromkeys(printed, 0)
        self._found: dict[str, set[int]] = {writer: set() for writer in printed}
        #: The last line's writer, and the writers that it replaced.
        self._writer = ""
        self._replaced: set[str] = set()
        #: How many numbers gaps have covered since the last line.
        self._named = 0
        #: How many numbers gaps have reported as lost.
        self._lost = 0
        #: How many numbers gaps have reported as over quota.
        self._dropped = 0

    def run(self, view: Sequence[Seen], last: int) -> None:
        """Checks all events, then what is missing up to the log's ``last`` line."""
        connection = 0
        for seen in view:
            is_first, connection = seen.connection != connection, seen.connection
            if seen.kind == LINE:
                self._line(seen)
            elif seen.kind == GAP:
                self._gap(seen)
            elif not is_first and seen.state is not None and "lines" in seen.state:
                # A connection's first state is sent before the lines that the viewer missed, even if the job has ended.
                self._end(seen.state)
        for number in islice(self._missing(max(last, self._highest)), MAX_REPORTED):
            self._verdict.lost.append(f"{self._name}: number {number}")
        for writer, printed in self._printed.items():
            self._check_skipped(writer, max(printed.required, self._reached[writer]) + 1)

    def _line(self, seen: Seen) -> None:
        self._verdict.checked += 1
        if seen.number in self._numbers:
            self._verdict.doubled.append(f"{self._name}: number {seen.number}")
            return
        if seen.number <= self._highest:
            self._verdict.reordered.append(f"{self._name}: number {seen.number} after {self._highest}")
        self._numbers.add(seen.number)
        self._highest = max(self._highest, seen.number)
        content = (seen.message, seen.timestamp)
        if self._contents.setdefault(seen.number, content) != content:
            self._verdict.changed.append(f"{self._name}: number {seen.number} is {content}")
        else:
            self._printed_line(seen)

    def _printed_line(self, seen: Seen) -> None:
        found = _EMITTED.fullmatch(seen.message)
        writer, number = (found[1], int(found[2])) if found else ("", 0)
        printed = self._printed.get(writer)
        where = f"{self._name}: number {seen.number}, {seen.message[:60]!r}"
        if found is None or (printed and seen.message != line(writer, number)):
            (self._verdict.changed if "w=" in seen.message else self._verdict.phantom).append(where)
        elif printed is None or not 0 < number <= printed.begun:
            self._verdict.phantom.append(where)
        else:
            self._writers_number(writer, number, where)

    def _writers_number(self, writer: str, number: int, where: str) -> None:
        if number in self._found[writer]:
            self._verdict.doubled.append(where)
        elif number < self._reached[writer] or writer in self._replaced:
            self._verdict.reordered.append(where)
        else:
            self._check_skipped(writer, number)
            self._named = 0
            self._reached[writer] = number
        self._found[writer].add(number)
        if writer != self._writer:
            self._replaced.add(self._writer)
            self._writer = writer

    def _check_skipped(self, writer: str, number: int) -> None:
        """Checks that the writer's lines between its last one and ``number`` were in a gap."""
        missing = range(self._reached[writer] + 1, number)
        self._verdict.lost += [f"{self._name}: line {lost} of {writer}" for lost in missing[self._named :]]
        # At the end, a gap can have lines of several writers.
        self._named = max(self._named - len(missing), 0)

    def _gap(self, seen: Seen) -> None:
        if seen.number <= self._highest or seen.last < seen.number:
            self._verdict.reordered.append(f"{self._name}: gap {seen.number} to {seen.last} after {self._highest}")
            return
        self._gaps.append((seen.number, seen.last))
        self._highest = seen.last
        self._named += seen.last - seen.number + 1
        self._lost += (seen.last - seen.number + 1) * (seen.message == "lost")
        self._dropped += (seen.last - seen.number + 1) * (seen.message == "quota")

    def _end(self, state: Mapping[str, object]) -> None:
        lost = state["status"] == "LOST"
        if not lost and (
            state["lines"] != self._highest
            or state["dropped"] not in range(self._dropped, self._dropped + self._lost + 1)
        ):
            self._verdict.misstated.append(
                f"{self._name}: {state['lines']} lines and {state['dropped']} dropped at the end, "
                f"not {self._highest} and {self._dropped} to {self._dropped + self._lost}"
            )

    def _missing(self, last: int) -> Iterator[int]:
        number = 1
        for first, until in [*sorted(self._gaps), (last + 1, last + 1)]:
            yield from (each for each in range(number, first) if each not in self._numbers)
            number = max(number, until + 1)
