"""What is said about the time of a job is right for most runs of five kinds of jobs."""

import pytest

from bench.pauses import KINDS, judge

pytestmark = pytest.mark.long


def test_planted_delays_are_found_and_good_runs_are_left_alone() -> None:
    """A small part of what ``python -m bench.pauses`` judges, whose table the documents have."""
    scores = {name: judge(kind, 20, good_runs=8, delays=4, moments_each=6) for name, kind in KINDS.items()}
    # Nobody sees in the log how one of these workers waits, if the others go on.
    del scores["free workers"]
    assert len(scores) == 5
    assert sum(score.found for score in scores.values()) >= 18
    assert sum(score.alarms for score in scores.values()) <= 1
    for name, score in scores.items():
        assert score.answered == score.moments, name
        assert score.error < score.elapsed_error, name
    assert sum(score.inside for score in scores.values()) >= 0.8 * 5 * 8 * 6
