"""A scenario: sides that run one after the other, compared results, and targets."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.peers.base import Peer

#: Results of one side's round, by name. Texts and lists are only recorded.
Round = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A participant. ``lines`` is the length of a burst."""

    peer: type[Peer]
    lines: int = 0

    @property
    def name(self) -> str:
        return self.peer.name


@dataclass(frozen=True)
class Metric:
    """A displayed result. ``more``: whether higher is better. ``compared``: whether ratios are useful."""

    key: str
    label: str
    unit: str
    more: bool = False
    compared: bool = True


@dataclass(frozen=True)
class Target:
    """A target: the ratio of ours to ``other`` (without it, our own value) is at most, or at least, ``bound``."""

    text: str
    key: str
    bound: float
    at_least: bool = False
    other: str = ""


@dataclass(frozen=True)
class Scenario:
    """``run(side, quick)`` is one side's round, with its own servers. ``more`` returns lines for the report."""

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
        """This result's values, from every round that has it."""
        found = [each[side].get(key) for each in self.rounds if side in each]
        return [float(value) for value in found if isinstance(value, int | float) and value == value]

    def median(self, side: str, key: str) -> float | None:
        """The median of a side's values, or None."""
        values = self.values(side, key)
        return statistics.median(values) if values else None

    def ratios(self, key: str, side: str, other: str) -> list[float]:
        """The values of ``side`` as multiples of those of ``other``, round by round."""
        pairs = [(each[side].get(key), each[other].get(key)) for each in self.rounds if side in each and other in each]
        return [one / two for one, two in pairs if one is not None and two and one == one and two == two]

    def sides(self) -> list[str]:
        return [side.name for side in self.scenario.sides if any(side.name in each for each in self.rounds)]


#: Sides whose values differ by at most this share are equal.
ALIKE: Final = 0.02
#: A producer that exceeds its planned time by this factor was too slow.
LATE: Final = 1.1
#: The side with targets.
OURS: Final = "chronoverse"
#: A lower limit, not a peer. It is better by design, so the verdict omits it.
FLOOR: Final = "floor"


def judge(outcome: Outcome, target: Target) -> tuple[bool | None, float | None]:
    """Whether a target is met, and the measured value; both None if it was not measured."""
    if target.other:
        ratios = outcome.ratios(target.key, OURS, target.other)
        value = statistics.median(ratios) if ratios else None
    else:
        value = outcome.median(OURS, target.key)
    if value is None:
        return None, None
    return (value >= target.bound if target.at_least else value <= target.bound), value


def verdict(outcome: Outcome) -> list[str]:
    """Sentences about targets, better sides, faults, skipped sides, and the generator's limits."""
    sentences = []
    for target in outcome.scenario.targets:
        met, value = judge(outcome, target)
        word = {True: "met", False: "MISSED", None: "not measured"}[met]
        sentences.append(f"target {word}: {target.text}" + (f" (it is {value:.3g})" if value is not None else ""))
    sentences += _better(outcome)
    sentences += _complaints(outcome)
    sentences += [f"skipped: {side}: {why}" for side, why in outcome.skipped.items()]
    return sentences


def _better(outcome: Outcome) -> list[str]:
    ours, sentences = outcome.scenario.sides[0].name, []
    for other in outcome.sides():
        ahead = []
        for metric in outcome.scenario.metrics:
            ratios = outcome.ratios(metric.key, ours, other) if metric.compared else []
            ratio = statistics.median(ratios) if ratios else 1.0
            if abs(ratio - 1) > ALIKE and (ratio < 1) == metric.more:
                ahead.append(f"{metric.label} ({ours} has {ratio:.3g} times its value)")
        if ahead and other not in (ours, FLOOR):
            sentences.append(f"{other} is better in: {'; '.join(ahead)}")
    return sentences


def _complaints(outcome: Outcome) -> list[str]:
    sentences = []
    for number, each in enumerate(outcome.rounds, 1):
        for side, found in each.items():
            short = found.get("viewers", 0) - found.get("complete", 0)
            if wrong := found.get("wrong", 0):
                sentences.append(
                    f"round {number}, {side}: {wrong} viewers got something else than was sent: {found['stories'][0]}"
                )
            if lost := found.get("refused", 0) + found.get("cut", 0):
                sentences.append(
                    f"round {number}, {side}: {lost} viewers were refused or cut off: {found['stories'][0]}"
                )
            elif short and not wrong and not found.get("open_ended"):
                sentences.append(f"round {number}, {side}: {short} viewers were not done when the time was up")
            if found.get("generator_bound"):
                share = found["share"]
                sentences.append(
                    f"round {number}, {side}: the load generator used {share:.0%} of a core: it was the bottleneck"
                )
            if found.get("publish_seconds", 0) > LATE * found.get("offered_seconds", float("inf")):
                sentences.append(
                    f"round {number}, {side}: the producer fell behind: lines came more slowly than planned"
                )
            if found.get("crowd_outlived") is False:
                sentences.append(f"round {number}, {side}: the crowd was gone before the live part was over")
            if error := found.get("error"):
                sentences.append(f"round {number}, {side}: failed: {error}")
    return sentences
