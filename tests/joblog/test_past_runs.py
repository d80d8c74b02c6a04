"""What earlier runs reveal about a line and a failure."""

from typing import Final

import pytest

from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.joblog.past_runs import MAX_LISTED, PastRuns, Run

SHAPE: Final = 7
_STATUSES: Final = {"C": Status.COMPLETED, "F": Status.FAILED, "X": Status.CANCELED, "L": Status.LOST}


def past(runs: str, is_whole: bool = True) -> PastRuns:
    """Runs, oldest first (``job_0``), in two characters each: the status, and whether it has the line.

    ``+``: it has a line of the shape; ``-``: it has none; ``?``: unknown.
    """
    found = []
    for index, run in enumerate(runs.split()):
        status, kind = run[0], run[1]
        first_lines = {"?": None, "+": {SHAPE: index + 10}, "-": {}}[kind]
        job = Job(JobRef("wf", f"job_{index}"), _STATUSES[status], started_at=f"2026-11-01T00:00:{index:02}.000Z")
        found.append(Run(job, first_lines))
    return PastRuns(found[::-1], is_whole)


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ("F+", ("new", None)),
        ("C- F- X- L- F+", ("new", None)),
        # Canceled runs are ignored, whether they have the line, lack it, or cannot be read.
        ("C- X+ F+", ("new", None)),
        ("X? F+", ("new", None)),
        ("C- F+ X? F+", ("since", "job_1")),
        ("C- F+ F+", ("since", "job_1")),
        ("F+ L+ L+", ("since", "job_0")),
        # A canceled run neither extends nor breaks the series.
        ("C- F+ X- F+ X+ F+", ("since", "job_1")),
        ("F- F+ F+", ("since", "job_1")),
        # Older good runs had it, but not the last one before the series.
        ("C+ C- F+ F+", ("since", "job_2")),
        ("F+ C- F+", ("recurring", None)),
        ("F+ C- C- F+ F+", ("recurring", None)),
        ("L+ C+ F+", ("recurring", None)),
        # What good runs also print says nothing about a failure.
        ("C+ F+", None),
        ("C+ F+ F+", None),
        # It was there, then another failure came first: neither an unbroken series, nor a good run in between.
        ("C- F+ F- F+", None),
        # Not everything is known, but what is found is true.
        ("C? C- F+", None),
        ("C? F+ F+", None),
        ("F? F+", None),
        ("F+ C? F+", ("recurring", None)),
        ("C- F? F+ C- F+", ("recurring", None)),
    ],
)
def test_verdicts(runs: str, verdict: tuple[str, str | None] | None) -> None:
    """The rule of ``docs/answers.md``, case by case."""
    found = past(runs)
    expected = verdict and {"kind": verdict[0], "id": verdict[1]}
    assert found.verdict(found.runs[0].job, SHAPE) == expected
    partial = past(runs, is_whole=False)
    assert partial.verdict(partial.runs[0].job, SHAPE) == (expected if verdict == ("recurring", None) else None)


def test_counts() -> None:
    """Every run is counted once: by its status, or as one without shapes."""
    found = past("C- L+ C+ F? X+ F+ C-")
    looked_at = {"COMPLETED": 3, "FAILED": 1, "CANCELED": 1, "LOST": 1, "without_shapes": 1}
    first, last = (
        {"id": f"job_{at}", "sequence_num": at + 10, "started_at": f"2026-11-01T00:00:0{at}.000Z", "status": status}
        for at, status in ((1, "LOST"), (5, "FAILED"))
    )
    history = found.history(SHAPE)
    assert history["looked_at"] == looked_at
    assert history["seen"] == {"COMPLETED": 1, "FAILED": 1, "CANCELED": 1, "LOST": 1}
    assert (history["first"], history["last"]) == (first, last)
    assert [place["id"] for place in history["jobs"]] == ["job_5", "job_4", "job_2", "job_1"]
    assert found.seen(SHAPE) == {
        "COMPLETED": 1,
        "FAILED": 1,
        "CANCELED": 1,
        "LOST": 1,
        "first_started_at": first["started_at"],
        "first_id": "job_1",
        "first_sequence_num": 11,
        "looked_at": 6,
        "without_shapes": 1,
    }
    first = {"first_started_at": None, "first_id": None, "first_sequence_num": None}
    assert past("C- F+").seen(99) == {"COMPLETED": 0, "FAILED": 0, **first, "looked_at": 2}
    assert found.history(99)["first"] is None
    assert len(past("C+ " * (MAX_LISTED + 1)).history(SHAPE)["jobs"]) == MAX_LISTED
