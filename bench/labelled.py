"""Failures with labelled telling lines: reads them, learns the weights of causes, and measures.

Used by ``python -m bench.causes --data DIR``. ``DIR/SET/NAME.log`` is a failed run, ``NAME.good.log`` an optional good
one, and ``NAME.json`` has the labelled lines: ``{"expected_ranges":[[from,to],…],"source":"…"}``.

A line's features and its place are indices in ``chronoverse.joblog.causes.WEIGHTS``. The probability of a line is the
softmax of its score among all lines with a signal. Learning maximizes the probability of the labelled lines: for
``line`` of these lines themselves, for ``screen`` of all lines within :data:`NEAR` lines of them.
"""

import json
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from chronoverse.joblog.causes import AFTER, BEFORE, FEATURES, HIGH, UNIT, WEIGHTS, Clues, LineReader, Weights, place_of

#: Lines of the first screen, and how many of them are above the line at which the page opens.
SCREEN: Final = 40
ABOVE: Final = 5
FOLDS: Final = 5
NEAR: Final = 20
STEPS: Final = 120
#: The strength of the L2 penalty on weights.
PENALTY: Final = 2.0
_PREFIX: Final = re.compile(r"\ufeff?(?:[^\t\n]*\t[^\t\n]*\t)?\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ?")


class Labelled(NamedTuple):
    kind: str
    name: str
    messages: list[str]
    marked: frozenset[int]
    good: list[list[str]]

    @property
    def project(self) -> str:
        """The run's project. Its runs share lines, so either all are used for learning, or all are measured."""
        parts = self.name.split("__") if self.kind == "logchunks" else self.name.split("_")
        whole = self.kind in ("treeherder", "cidiff-dump")
        name = "__".join(parts[:2]) if self.kind == "logchunks" else re.sub(r"-(v2-)?\d+$", "", parts[-1])
        return self.kind if whole else parts[0] if self.kind.startswith("cidiff") else name


def labelled(directory: Path) -> Iterator[Labelled]:
    for path in sorted(directory.glob("*/*.json")):
        kind = path.parent.name
        good = [each for each in [path.with_name(f"{path.stem}.good.log")] if each.exists()]
        if kind == "cidiff-dump":
            # All are runs of two workflows, so each gets its workflow's four nearest good runs.
            others = [
                each for each in path.parent.glob(f"{path.stem.split('_run')[0]}_run*.good.log") if each not in good
            ]
            good += sorted(others, key=lambda each: (abs(_run(each) - _run(path)), each.name))[:4]
        ranges = json.loads(path.read_text("utf-8"))["expected_ranges"]
        marked = frozenset(number for first, last in ranges for number in range(first, last + 1))
        yield Labelled(kind, path.stem, _messages(path.with_suffix(".log")), marked, [*map(_messages, good)])


def _run(path: Path) -> int:
    found = re.search(r"run(\d+)", path.name)
    assert found is not None
    return int(found[1])


def _messages(path: Path) -> list[str]:
    lines = path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
    return [_PREFIX.sub("", line.rstrip("\r"), count=1) if _PREFIX.match(line) else line.rstrip("\r") for line in lines]


class Example(NamedTuple):
    """A run's lines with a signal and their features. ``rows`` count these lines by their weights' indices."""

    run: Labelled
    lines: list[tuple[int, frozenset[int]]]
    rows: list[tuple[tuple[int, ...], tuple[int, int, int]]]


def example(run: Labelled, reader: LineReader) -> Example:
    last = len(run.messages)
    lines = [
        (number, reader.read(text).features)
        for number, text in enumerate(run.messages, 1)
        if number == last or reader.is_signal(text)
    ]
    clues = Clues()
    for number, features in lines:
        clues.add(number, features)
    end = clues.end(last)
    near = {number + each for number in run.marked for each in range(-NEAR, NEAR)}
    counts: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for number, features in lines:
        if number < last or end == last or reader.is_signal(run.messages[-1]):
            row = counts[(*sorted(features), place_of(number, end))]
            for index, each in enumerate((True, number in near, number in run.marked)):
                row[index] += each
    return Example(run, lines, [(key, (row[0], row[1], row[2])) for key, row in counts.items()])


def learn(examples: Sequence[Example]) -> list[tuple[int, int]]:
    projects = Counter(each.run.project for each in examples)
    columns = []
    for column in (1, 2):
        taught = [each for each in examples if any(row[column] for _, row in each.rows)]
        shares = [projects[each.run.project] ** -0.5 for each in taught]
        mean = sum(shares) / len(shares)
        columns.append(_descend([each.rows for each in taught], [share / mean for share in shares], column))
    return [(round(UNIT * screen), round(UNIT * line)) for screen, line in zip(*columns, strict=True)]


def _descend(
    logs: Sequence[Sequence[tuple[tuple[int, ...], tuple[int, int, int]]]], shares: Sequence[float], column: int
) -> list[float]:
    """The weights of one column, by Adam without a library."""
    weights, means, squares = ([0.0] * len(WEIGHTS) for _ in range(3))
    for step in range(1, STEPS + 1):
        slopes = [PENALTY * weight for weight in weights]
        for rows, share in zip(logs, shares, strict=True):
            scores = [sum([weights[index] for index in key]) for key, _ in rows]
            highest = max(scores)
            parts = [math.exp(score - highest) for score in scores]
            total = sum([part * counts[0] for part, (_, counts) in zip(parts, rows, strict=True)])
            right = sum([part * counts[column] for part, (_, counts) in zip(parts, rows, strict=True)]) + 1e-300
            for part, (key, counts) in zip(parts, rows, strict=True):
                slope = share * part * (counts[0] / total - counts[column] / right)
                if slope:
                    for index in key:
                        slopes[index] += slope
        for index, slope in enumerate(slopes):
            means[index] = 0.9 * means[index] + 0.1 * slope
            squares[index] = 0.99 * squares[index] + 0.01 * slope * slope
            mean, square = means[index] / (1 - 0.9**step), squares[index] / (1 - 0.99**step)
            weights[index] -= 0.3 * (1 - step / (STEPS + 1)) * mean / (math.sqrt(square) + 1e-9)
    return weights


def folds(examples: Sequence[Example]) -> Iterator[tuple[Weights, list[Example]]]:
    """For each fifth of the projects: weights learned from the other four, and the fifth's runs."""
    order = sorted({each.run.project for each in examples}, key=lambda name: zlib.crc32(name.encode()))
    parts = [[each for each in examples if order.index(each.run.project) % FOLDS == part] for part in range(FOLDS)]
    for part in parts:
        yield learn([each for other in parts if other is not part for each in other]), part


class Outcome(NamedTuple):
    """Whether a run's first screen shows a labelled line, whether its top line is labelled, and the confidence."""

    kind: str
    screen: bool
    line: bool
    is_high: bool
    end: bool


def outcome(run: Labelled, first: int, telling: int, is_high: bool) -> Outcome:
    """The outcome of a cause; ``end`` is whether the last screen shows a labelled line."""

    def shows(top: int) -> bool:
        return not run.marked.isdisjoint(range(max(top, 1), max(top, 1) + SCREEN))

    end = shows(len(run.messages) - SCREEN + 1)
    return Outcome(run.kind, shows(first - ABOVE), telling in run.marked, is_high, end)


def unseen(examples: Sequence[Example]) -> Iterator[Outcome]:
    """The outcomes without good runs, each with the weights learned from other projects."""
    for weights, part in folds(examples):
        for run, lines, _ in part:
            clues = Clues(weights)
            for number, features in lines:
                clues.add(number, features)
            if (found := clues.best(1, len(run.messages), lines[-1][1])) is not None:
                yield outcome(run, found.first, found.telling, found.share >= HIGH)


def print_outcomes(title: str, outcomes: Sequence[Outcome]) -> None:
    for kind in sorted({each.kind for each in outcomes}):
        some = [each for each in outcomes if each.kind == kind]
        high, low = ([each for each in some if each.is_high is wanted] for wanted in (True, False))
        cells = [_percent(some, "screen"), _percent(some, "line"), _percent(some, "end")]
        sure = [f"{_percent(each, 'screen')} of {len(each)}" for each in (high, low)]
        print(f"| {kind} | {title} | {len(some)} | {' | '.join(cells + sure)} |")


def _percent(outcomes: Sequence[Outcome], name: str) -> str:
    return f"{100 * sum(getattr(each, name) for each in outcomes) / len(outcomes):.0f} %" if outcomes else "-"


def print_weights(weights: Weights) -> None:
    names = [each.name for each in FEATURES]
    names += [f"{table} {row[0]}" for table, rows in (("BEFORE", BEFORE), ("AFTER", AFTER)) for row in rows]
    for name, (screen, line) in zip(names, weights, strict=True):
        print(f"{name}: {screen}, {line}")
