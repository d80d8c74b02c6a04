"""What a scenario is: sides that are run in turns, numbers that are compared, targets that may be missed."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.peers.base import Peer

#: One round of one side: name of the number to number; texts and lists are kept for the record.
Round = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Who takes part. ``lines`` are a burst's. ``skip`` says why it cannot, by its nature."""

    peer: type[Peer]
    workers: int = 1
    label: str = ""
    lines: int = 0
    skip: str = ""

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return self.label or self.peer.name


@dataclass(frozen=True)
class Metric:
    """A number that is shown. ``more`` is whether more of it is better; ``compared`` whether ratios of it mean much."""

    key: str
    label: str
    unit: str
    more: bool = False
    compared: bool = True


@dataclass(frozen=True)
class Target:
    """A promise: the ratio of ours to ``other`` (or our own value, without it) is at most, or at least, ``bound``."""

    text: str
    key: str
    bound: float
    at_least: bool = False
    other: str = ""
    side: str = "chronoverse"


@dataclass(frozen=True)
class Scenario:
    """``run(side, quick)`` is one round of one side, with servers of its own.

    ``more`` is asked once, in a full run, for what is only to be told: lines of text.
    """

    name: str
    title: str
    about: str
    sides: tuple[Side, ...]
    metrics: tuple[Metric, ...]
    run: Callable[[Side, bool], Round]
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    more: Callable[[], list[str]] | None = None


@dataclass
class Outcome:
    """All rounds of a scenario. ``versions`` and ``skipped`` are by side."""

    scenario: Scenario
    rounds: list[dict[str, Round]] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)

    def values(self, side: str, key: str) -> list[float]:
        """That number in every round that has it."""
        found = [each[side].get(key) for each in self.rounds if side in each]
        return [float(value) for value in found if isinstance(value, int | float) and value == value]

    def median(self, side: str, key: str) -> float | None:
        """None when there is none."""
        values = self.values(side, key)
        return statistics.median(values) if values else None

    def ratios(self, key: str, side: str, other: str) -> list[float]:
        """``side`` as a multiple of ``other``, round by round."""
        pairs = [(each[side].get(key), each[other].get(key)) for each in self.rounds if side in each and other in each]
        return [one / two for one, two in pairs if one is not None and two and one == one and two == two]

    def sides(self) -> list[str]:
        """Those that have at least one round."""
        return [side.name for side in self.scenario.sides if any(side.name in each for each in self.rounds)]


#: Sides whose values differ by no more than this share are not told apart.
ALIKE: Final = 0.02
#: A producer that takes so many times as long as planned has fallen behind.
LATE: Final = 1.1
#: A limit, not a peer: that it is better goes without saying.
FLOOR: Final = "floor"


def judge(outcome: Outcome, target: Target) -> tuple[bool | None, float | None]:
    """Whether a target is met, and by what; None where it was not measured."""
    if target.other:
        ratios = outcome.ratios(target.key, target.side, target.other)
        value = statistics.median(ratios) if ratios else None
    else:
        value = outcome.median(target.side, target.key)
    if value is None:
        return None, None
    return (value >= target.bound if target.at_least else value <= target.bound), value


def verdict(outcome: Outcome) -> list[str]:
    """In words: targets, who is better at what, what went wrong, who was skipped, when the generator was the limit."""
    said = []
    for target in outcome.scenario.targets:
        met, value = judge(outcome, target)
        word = {True: "met", False: "MISSED", None: "not measured"}[met]
        said.append(f"target {word}: {target.text}" + (f" (it is {value:.3g})" if value is not None else ""))
    said += _better(outcome)
    said += _complaints(outcome)
    said += [f"skipped: {side}: {why}" for side, why in outcome.skipped.items()]
    return said


def _better(outcome: Outcome) -> list[str]:
    ours, said = outcome.scenario.sides[0].name, []
    for other in outcome.sides():
        ahead = []
        for metric in outcome.scenario.metrics:
            ratios = outcome.ratios(metric.key, ours, other) if metric.compared else []
            ratio = statistics.median(ratios) if ratios else 1.0
            if abs(ratio - 1) > ALIKE and (ratio < 1) == metric.more:
                ahead.append(f"{metric.label} ({ours} has {ratio:.3g} times its value)")
        if ahead and other not in (ours, FLOOR):
            said.append(f"{other} is better in: {'; '.join(ahead)}")
    return said


def _complaints(outcome: Outcome) -> list[str]:
    said = []
    for number, each in enumerate(outcome.rounds, 1):
        for side, found in each.items():
            short = found.get("viewers", 0) - found.get("complete", 0)
            if wrong := found.get("wrong", 0):
                said.append(
                    f"round {number}, {side}: {wrong} viewers got something else than was sent: {found['stories'][0]}"
                )
            if lost := found.get("refused", 0) + found.get("cut", 0):
                said.append(f"round {number}, {side}: {lost} viewers were refused or cut off: {found['stories'][0]}")
            elif short and not wrong and not found.get("open_ended"):
                said.append(f"round {number}, {side}: {short} viewers were not done when the time was up")
            if found.get("generator_bound"):
                share = found["share"]
                said.append(
                    f"round {number}, {side}: the load generator used {share:.0%} of a core: it was the bottleneck"
                )
            if found.get("publish_seconds", 0) > LATE * found.get("offered_seconds", float("inf")):
                said.append(f"round {number}, {side}: the producer fell behind: lines came more slowly than planned")
            if found.get("workers", 1) > found.get("free_cores", float("inf")):
                free = found["free_cores"]
                said.append(f"round {number}, {side}: the load generator left the workers {free:.1f} cores")
            if found.get("crowd_outlived") is False:
                said.append(f"round {number}, {side}: the crowd was gone before the live part was over")
            if error := found.get("error"):
                said.append(f"round {number}, {side}: failed: {error}")
    return said
