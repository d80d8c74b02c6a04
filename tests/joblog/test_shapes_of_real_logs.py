"""New lines of real logs of each kind: three good runs, a further good run, and one with a planted failure.

The logs in ``tests/data/runs`` are from real tools, with names of hosts and directories replaced. Each archive has
good1.log, good2.log, good3.log, further.log and failed.log.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.joblog.shapes import ShapeHasher

RUNS: Final = Path(__file__).parents[1] / "data" / "runs"
ANSWERS: Final = Path(__file__).parents[2] / "docs" / "answers.md"
#: The lines of the planted failure, and lines between which all others are part of it.
FAILURES: Final = {
    "pytest": (r" FAILED |^FAILED |[0-9] failed", r"^=+ FAILURES =", r"^=+ slowest"),
    "npm": (
        "\u2716|AssertionError|!==|^ +at |generatedMessage|code: |actual: |expected: |operator: |^test at",
        None,
        None,
    ),
    "make": (r"module_37\.c:[78]:|^ +[78] \||Error 1|not remade", None, None),
    "pip": (r"rror|missing_header", r"^ +building 'locallib' extension|error: subprocess-exited", r"^Package +Version"),
    "java": (r" ERROR |^[^2]", None, None),
    "journal": (r"\[error\]", None, None),
}


def read_run(kind: str, run: str) -> list[str]:
    """The lines of one run's log."""
    with tarfile.open(RUNS / f"{kind}.tar.xz") as archive:
        member = archive.extractfile(f"{run}.log")
        assert member is not None
        return member.read().decode().splitlines()


def planted(kind: str, lines: list[str]) -> Iterator[int]:
    """The indices of the planted failure's lines. Ignores lines without letters and digits."""
    pattern, first, last = FAILURES[kind]
    inside = False
    for index, line in enumerate(lines):
        inside = first is not None and (inside or bool(re.search(first, line))) and not re.search(last or "$^", line)
        if (inside or re.search(pattern, line)) and re.search(r"\w", line):
            yield index


@pytest.mark.parametrize("kind", FAILURES)
def test_almost_only_the_planted_failure_is_new(kind: str) -> None:
    """At least 95 % of its lines, and at most 1 % of the further good run's. The documented table has both."""
    hasher = ShapeHasher()
    known: set[int] = set()
    for run in ("good1", "good2", "good3"):
        known.update(hasher.hashes(read_run(kind, run)))
    further, failed = read_run(kind, "further"), read_run(kind, "failed")
    wrong = sum(found not in known for found in hasher.hashes(further))
    new = [found not in known for found in hasher.hashes(failed)]
    failure = list(planted(kind, failed))
    right = sum(new[index] for index in failure)
    row = f"| {kind} | {len(further)} | {wrong} ({wrong / len(further):.1%}) | {len(failed)} | {sum(new)} |"
    row += f" {right} of {len(failure)} |"
    print(row)
    assert len(failure) > 10
    assert right >= 0.95 * len(failure)
    assert wrong <= 0.01 * len(further)
    assert row in ANSWERS.read_text(encoding="utf-8")
