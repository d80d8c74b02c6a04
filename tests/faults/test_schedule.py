"""Two random schedules of faults: one with a fixed seed, and one with the seed in FAULT_SEED if that is set."""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.faults.schedule import Report, run_schedule

SECONDS: Final = float(os.environ.get("FAULT_SECONDS", 5.0))
SEEDS: Final = [20261124, *(int(seed) for seed in [os.environ.get("FAULT_SEED")] if seed)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.long
def test_a_schedule_of_faults_is_clean(tmp_path: Path, seed: int) -> None:
    """Three jobs with three viewers each: no line is lost, doubled, reordered, changed or invented."""
    report = run_schedule(tmp_path, Report(seed, SECONDS))
    print(report)
    assert report.clean, str(report)
