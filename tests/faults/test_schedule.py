"""Random schedules of faults: one that is always the same, and the one that FAULT_SEED names."""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.faults.schedule import Report, play

SECONDS: Final = 5.0
SEEDS: Final = [20261124, *(int(seed) for seed in [os.environ.get("FAULT_SEED")] if seed)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.long
def test_a_schedule_of_faults_is_clean(tmp_path: Path, seed: int) -> None:
    """Three jobs, five viewers each: nothing lost, doubled, reordered, changed or invented."""
    report = play(tmp_path, Report(seed, SECONDS))
    print(report)
    assert report.clean, str(report)
