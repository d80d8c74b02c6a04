"""Whether the page of a failed job opens at the cause: ``python -m bench.causes`` prints a table.

``--data DIR`` measures labelled failures instead: see :mod:`bench.labelled`. Without good runs, each fifth of the
projects is measured with weights learned from the other four. ``--learn`` prints the weights learned from all projects,
and ``--cpu`` the CPU time per line.

``bench/failures/set.txt`` contains failed runs of some thirty tools, modelled on real ones. Each is compared with three
good runs. The first screen has 40 lines, and begins five lines above ``cause.from``.

The set is text. ``=== name`` begins a run, whose job is lost if followed by ``(LOST)``. A line's first character is the
runs that contain it: a space for all, ``-`` for good ones, ``+`` for the failed one; ``!`` is the failed run's
most telling line. ``*N`` instead of the space, or after another of these characters, repeats the line N times. ``{n}``
is a number and ``{h}`` a hash, different each time, ``{w}`` a word, the same in all runs, and ``{c}`` a commit's
subject. The sections ``before CI`` and ``after CI`` are the output of a CI system before and after a run.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from bench.labelled import (
    ABOVE,
    SCREEN,
    Labelled,
    example,
    labelled,
    learn,
    outcome,
    print_outcomes,
    print_weights,
    unseen,
)
from chronoverse.archive.codec import decode_lines
from chronoverse.archive.prefilter import matching_lines
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.comparison import NewLines
from chronoverse.history.scans.summary_scan import SummaryProgress, SummaryReader
from chronoverse.history.tiered_log import Search
from chronoverse.joblog.causes import Clues, LineReader
from chronoverse.joblog.entries import Batch
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import FoundLines, compose

SET: Final = Path(__file__).parent / "failures" / "set.txt"
#: Runs written once the rule seemed ready. It then showed the telling lines of four of them on the first screen.
HELD_OUT: Final = SET.with_name("held_out.txt")
GOOD_RUNS: Final = 3
SUBJECTS: Final = ("Bump the cache", "Round half up", "Sort imports", "Fix errors in the checkout of vouchers")
_LINE: Final = re.compile(r"([-+! ]|(?=\*))(?:\*([0-9]+) )?(.*)")


class Failure(NamedTuple):
    """A failed run's messages, its most telling line's number, and the messages of earlier good runs."""

    name: str
    messages: list[str]
    telling: int
    good: list[list[str]]

    @property
    def status(self) -> Status:
        return Status.LOST if "(LOST)" in self.name else Status.FAILED


def failures(path: Path = SET) -> Iterator[Failure]:
    """The runs of a set. ``{n}`` and ``{h}`` are reproducible."""
    choice = random.Random(29)
    sections, common = _sections(path), _sections(SET)
    around = [(common[f"before {each}"], common[f"after {each}"]) for each in ("github", "gitlab")]
    sections = {name: lines for name, lines in sections.items() if not name.startswith(("before ", "after "))}
    for number, (name, lines) in enumerate(sections.items()):
        before, after = around[number % 2]
        # Lost jobs have no end.
        whole = [*before, *lines, *([] if "(LOST)" in name else after)]
        subjects = iter(SUBJECTS)
        good = [_run(whole, " -", choice, next(subjects))[0] for _ in range(GOOD_RUNS)]
        messages, telling = _run(whole, " +!", choice, next(subjects))
        yield Failure(name, messages, telling, good)


def _sections(path: Path) -> dict[str, list[str]]:
    _, *parts = re.split(r"^=== (.*)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return {name: text.rstrip("\n").split("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _run(lines: list[str], kinds: str, choice: random.Random, subject: str) -> tuple[list[str], int]:
    """The messages of one run, and the number of its telling line, or 0."""
    messages: list[str] = []
    telling = 0
    words = map(_word, count())
    for line in lines:
        found = _LINE.fullmatch(line or " ")
        assert found is not None, line
        kind, repeated, text = found[1] or " ", int(found[2] or 1), found[3]
        for _ in range(repeated):
            word = next(words)
            if kind in kinds:
                text_with = text.replace("{w}", word).replace("{c}", subject)
                for sign, value in (("{n}", "%d"), ("{h}", "%08x")):
                    while sign in text_with:
                        number = choice.randrange(1, 999) if sign == "{n}" else choice.randrange(2**28, 2**29)
                        text_with = text_with.replace(sign, value % number, 1)
                messages.append(text_with)
                telling = len(messages) if kind == "!" else telling
    return messages, telling


def _word(number: int) -> str:
    return "".join("bdfgklmnpr"[int(digit)] + "aeiou"[int(digit) % 5] for digit in f"{number:02d}")


def summarize(failure: Failure) -> dict[str, Any]:
    """The service's summary of the run, with the numbers of all new lines as ``new_numbers``."""
    lines = [
        Line(number, "2026-11-26T18:00:00.000Z", text, "stdout") for number, text in enumerate(failure.messages, 1)
    ]
    job = Job(JobRef("wf", "job"), failure.status, last=len(lines))

    def read(
        job: Job, position: int, *, descending: bool = False, limit: int | None = None, search: Search | None = None
    ) -> Iterator[Batch]:
        found = lines[: position - 1][::-1] if descending else lines[position:]
        yield Batch([*found[:limit]], 0 if descending else len(lines), True)

    hasher = ShapeHasher()
    new = NewLines({shape for messages in failure.good for shape in hasher.hashes(messages)}, hasher)
    summaries = SummaryReader(read, hasher, SummaryProgress())
    json = compose(
        job, summaries.find(job, new, ["good"], PageBudget(), PageBudget), 65_536, partial(summaries.line, job)
    )
    return {**orjson.loads(json), "new_numbers": [line.sequence_num for line in lines if new.is_new(line)]}


def is_on_first_screen(failure: Failure, first: int) -> bool:
    """Whether the first screen shows the telling line, if the page opens at line ``first``."""
    top = max(first - ABOVE, 1)
    return top <= failure.telling < top + SCREEN


def opened_before(failure: Failure, summary: dict[str, Any]) -> int:
    """Where versions without causes opened the page: at the first new line among the last hundred, or at the end."""
    length = len(failure.messages)
    late = [number for number in summary["new_numbers"] if number > length - 100]
    return late[0] if late and failure.status is Status.FAILED else length - SCREEN + ABOVE + 1


def cpu(messages: list[str], reader: LineReader) -> list[float]:
    """CPU seconds for an archived log: errors and cause; new lines if no shape is known; new lines if all are."""
    lines = [Line(number, "2026-11-26T18:00:00.000Z", text, "stdout") for number, text in enumerate(messages, 1)]
    frames = [b"".join(each.encode() + b"\n" for each in lines[at : at + 1_000]) for at in range(0, len(lines), 1_000)]
    new, others, clues = NewLines(set(), ShapeHasher()), ShapeHasher(), Clues()
    errors = FoundLines(lambda text: others.hashes([text])[0], lambda _: -1, 1, len(lines))
    known: set[int] = set()
    times = [time.process_time()]
    found = (Batch([], 0, False, matching_lines(reader.signal, frame)) for frame in frames)
    for line in (line for batch in found for line in batch.lines):
        features, is_error = reader.read(line.message)
        clues.add(line.sequence_num, features)
        if is_error:
            errors.add(line)
    times.append(time.process_time())
    for frame in frames:
        known.update(new.hasher.hashes([each["message"] for each in decode_lines(frame)]))
    times.append(time.process_time())
    for frame in frames:
        new._replace(known=known).matching_lines(frame)
    times.append(time.process_time())
    return [after - before for before, after in pairwise(times)]


def print_cpu(runs: list[Labelled]) -> None:
    """Prints the CPU time per line of the failed runs."""
    print(
        "| set | lines | errors and cause, us a line | shapes never seen | shapes seen before |\n|---|---|---|---|---|"
    )
    reader = LineReader()
    spent = [(run.kind, len(run.messages), cpu(run.messages, reader)) for run in runs]
    for kind in [*sorted({each for each, _, _ in spent}), "all"]:
        some = [row for row in spent if kind in (row[0], "all")]
        lines = sum(count for _, count, _ in some)
        cells = (f"{1e6 * sum(each) / lines:.2f}" for each in zip(*(times for _, _, times in some), strict=True))
        print(f"| {kind} | {lines:,} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="Directory of labelled failures.")
    parser.add_argument("--learn", action="store_true", help="Print the weights that they teach.")
    parser.add_argument("--cpu", action="store_true", help="Print what a line costs.")
    options = parser.parse_args()
    if options.data is None:
        for path in (SET, HELD_OUT):
            print_table(list(failures(path)))
        return
    runs = list(labelled(options.data))
    if options.cpu:
        print_cpu(runs)
        return
    reader = LineReader()
    examples = [example(run, reader) for run in runs]
    if options.learn:
        print_weights(learn(examples))
        return
    print("| set | good runs | logs | screen | line | last 40 lines | screen if confidence is high | if it is low |")
    print("|---|---|---|---|---|---|---|---|")
    print_outcomes("no", list(unseen(examples)))
    new: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for title, most in (("one", 1), ("all", 5)):
        outcomes = []
        for run in runs:
            if run.good:
                summary = summarize(Failure(run.name, run.messages, 0, run.good[:most]))
                cause, found = summary["cause"], set(summary["new_numbers"])
                is_high = cause["confidence"] == "high"
                outcomes.append(outcome(run, cause["from"], cause["line"]["sequence_num"], is_high))
                right = len(found & run.marked)
                new.setdefault((run.kind, title), []).append((right / len(found), right / len(run.marked)))
        print_outcomes(title, outcomes)
    print("\n| set | good runs | new lines that are marked | marked lines that are new |\n|---|---|---|---|")
    for (kind, title), rates in new.items():
        precision, recall = (f"{100 * sum(each) / len(rates):.1f} %" for each in zip(*rates, strict=True))
        print(f"| {kind} | {title} | {precision} | {recall} |")


def print_table(rows: list[Failure]) -> None:
    print("| failed run | lines | telling line | cause | kind | its line | on the first screen | before |")
    print("|---|---|---|---|---|---|---|---|")
    totals = [0, 0, 0]
    for failure in rows:
        summary = summarize(failure)
        cause = summary["cause"]
        named = cause["line"]["sequence_num"]
        seen = is_on_first_screen(failure, cause["from"])
        before = is_on_first_screen(failure, opened_before(failure, summary))
        for index, each in enumerate((named == failure.telling, seen, before)):
            totals[index] += each
        where = f"{cause['from']}-{cause['to']} | {cause['kind']} | {named}"
        numbers = f"{len(failure.messages)} | {failure.telling}"
        print(f"| {failure.name} | {numbers} | {where} | {_yes(seen)} | {_yes(before)} |")
    exact, seen_count, before_count = totals
    print(f"| {len(rows)} runs | | | | | {exact} right | **{seen_count}** | {before_count} |\n")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    main()
