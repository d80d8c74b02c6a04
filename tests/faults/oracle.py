"""Judges what viewers saw against what was printed, as Jepsen's checkers do. Pure: records in, a verdict out.

Two countings must agree. The log numbers its lines 1, 2, 3, …; each number comes to a viewer once, in order, or a
gap names it. And every writer numbers what it prints; each of its lines is there once, in order, or the log itself
says at that place how many were dropped. https://jepsen.io
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Final, NamedTuple

from tests.faults.emitter import line

LINE: Final = "line"
GAP: Final = "gap"
JOB: Final = "job"

#: Missing numbers that are told of one view.
MOST: Final = 1_000

_PROOF = re.compile(r"w=([A-Za-z0-9-]+) n=([0-9]+) h=[0-9a-f]{40}( \.*)?")
_MARKER = re.compile(
    r"\[chronoverse\] ([0-9]+) lines(?: \([0-9]+ bytes\))? dropped between line ([0-9]+) and line ([0-9]+): .*"
)


class Seen(NamedTuple):
    """One thing that a viewer was told: a LINE (its number, its text), a GAP (``number`` to ``last``) or a JOB state.

    ``connection`` counts the viewer's connections, ``at`` is monotonic; ``state`` is the job frame's JSON.
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
    """What a writer began to print, and how many of these lines may not be missing. Each has ``padding`` bytes more."""

    begun: int
    required: int
    padding: int = 0


@dataclass
class Verdict:
    """Everything that is wrong, in words. ``misstated`` is what the log says of itself and is not so."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)
    misstated: list[str] = field(default_factory=list)
    #: Lines that were checked, over all views, and those that the log says were dropped.
    checked: int = 0
    dropped: int = 0

    @property
    def faults(self) -> dict[str, list[str]]:
        """The lists that are not empty."""
        lists = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: found for name, found in lists if isinstance(found, list) and found}

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __str__(self) -> str:
        told = [f"{len(found)} {name}: {'; '.join(found[:5])}" for name, found in self.faults.items()]
        return " | ".join(told) or f"clean: {self.checked} lines"


def judge(
    printed: Mapping[str, Printed],
    views: Mapping[str, Sequence[Seen]],
    history: Sequence[Seen],
    *,
    foreign: frozenset[str] = frozenset(),
) -> Verdict:
    """The verdict on all ``views`` and on the log's own ``history``. ``foreign`` messages are nobody's of ours.

    A view begins at line 1 and goes to the log's end.
    """
    verdict = Verdict()
    last = max((seen.number for seen in history if seen.kind == LINE), default=0)
    said: dict[int, tuple[str, str]] = {}
    for name, view in {"/logs": history, **views}.items():
        _Reading(name, printed, foreign, said, verdict).read(view, last)
    verdict.dropped = sum(dropped(seen.message) for seen in history)
    return verdict


def dropped(message: str) -> int:
    """How many lines a marker says were dropped; 0 when it is none."""
    found = _MARKER.fullmatch(message)
    return int(found[1]) if found else 0


class _Reading:
    """One view, read from its beginning."""

    def __init__(
        self,
        name: str,
        printed: Mapping[str, Printed],
        foreign: frozenset[str],
        said: dict[int, tuple[str, str]],
        verdict: Verdict,
    ) -> None:
        self._name = name
        self._printed = printed
        self._foreign = foreign
        self._said = said
        self._verdict = verdict
        self._numbers: set[int] = set()
        self._gaps: list[tuple[int, int]] = []
        self._highest = 0
        self._reached: dict[str, int] = dict.fromkeys(printed, 0)
        self._met: dict[str, set[int]] = {writer: set() for writer in printed}
        self._writer = ""
        self._left: set[str] = set()
        #: Numbers that gaps have named since the last line, and lines that markers said were dropped; in all.
        self._named = self._announced = self._dropped = 0

    def read(self, view: Sequence[Seen], last: int) -> None:
        """All of it; then what is missing up to the log's ``last`` line."""
        for seen in view:
            if seen.kind == LINE:
                self._line(seen)
            elif seen.kind == GAP:
                self._gap(seen)
            elif seen.state is not None and "lines" in seen.state:
                self._end(seen.state)
        for number in islice(self._missing(max(last, self._highest)), MOST):
            self._verdict.lost.append(f"{self._name}: number {number}")
        for writer, printed in self._printed.items():
            self._jump(writer, max(printed.required, self._reached[writer]) + 1)
        self._settled(self._highest)

    def _line(self, seen: Seen) -> None:
        self._verdict.checked += 1
        if seen.number in self._numbers:
            self._verdict.doubled.append(f"{self._name}: number {seen.number}")
            return
        if seen.number < self._highest:
            self._verdict.reordered.append(f"{self._name}: number {seen.number} behind {self._highest}")
        self._numbers.add(seen.number)
        self._highest = max(self._highest, seen.number)
        spelling = (seen.message, seen.timestamp)
        if self._said.setdefault(seen.number, spelling) != spelling:
            self._verdict.changed.append(f"{self._name}: number {seen.number} is {spelling}")
        elif marker := _MARKER.fullmatch(seen.message):
            self._marker(seen.number, *map(int, marker.groups()))
        elif seen.message not in self._foreign:
            self._own(seen)

    def _marker(self, number: int, count: int, before: int, behind: int) -> None:
        self._announced += count
        self._dropped += count
        if (before, behind) != (number - 1, number + 1):
            self._verdict.misstated.append(f"{self._name}: the marker {number} stands between {before} and {behind}")

    def _own(self, seen: Seen) -> None:
        found = _PROOF.fullmatch(seen.message)
        writer, number = (found[1], int(found[2])) if found else ("", 0)
        printed = self._printed.get(writer)
        where = f"{self._name}: number {seen.number}, {seen.message[:60]!r}"
        if found is None or (printed and seen.message != line(writer, number, printed.padding)):
            (self._verdict.changed if "w=" in seen.message else self._verdict.phantom).append(where)
        elif printed is None or not 0 < number <= printed.begun:
            self._verdict.phantom.append(where)
        else:
            self._take(writer, number, where)

    def _take(self, writer: str, number: int, where: str) -> None:
        if number in self._met[writer]:
            self._verdict.doubled.append(where)
        elif number < self._reached[writer] or writer in self._left:
            self._verdict.reordered.append(where)
        else:
            self._jump(writer, number)
            self._settled(number)
            self._reached[writer] = number
        self._met[writer].add(number)
        if writer != self._writer:
            self._left.add(self._writer)
            self._writer = writer

    def _jump(self, writer: str, number: int) -> None:
        """The writer's lines between the last one and ``number`` must have been announced."""
        missing = number - self._reached[writer] - 1
        explained = min(missing, self._announced)
        self._announced -= explained
        for lost in range(number - missing + explained + self._named, number):
            self._verdict.lost.append(f"{self._name}: line {lost} of {writer}")
        self._named = 0

    def _settled(self, number: int) -> None:
        """What was announced as dropped must have been missing."""
        if self._announced:
            self._verdict.misstated.append(f"{self._name}: {self._announced} too many dropped before {number}")
        self._announced = 0

    def _gap(self, seen: Seen) -> None:
        if seen.number <= self._highest or seen.last < seen.number:
            self._verdict.reordered.append(f"{self._name}: gap {seen.number} to {seen.last} behind {self._highest}")
            return
        self._gaps.append((seen.number, seen.last))
        self._highest = seen.last
        self._named += seen.last - seen.number + 1

    def _end(self, state: Mapping[str, object]) -> None:
        lost = state["status"] == "LOST"
        if not lost and (state["lines"], state["dropped"]) != (self._highest, self._dropped):
            self._verdict.misstated.append(
                f"{self._name}: {state['lines']} lines and {state['dropped']} dropped at the end, "
                f"not {self._highest} and {self._dropped}"
            )

    def _missing(self, last: int) -> Iterator[int]:
        number = 1
        for first, until in [*sorted(self._gaps), (last + 1, last + 1)]:
            yield from (each for each in range(number, first) if each not in self._numbers)
            number = max(number, until + 1)


def count(verdict: Verdict) -> Counter[str]:
    """How many of each kind are wrong."""
    return Counter({name: len(found) for name, found in verdict.faults.items()})
