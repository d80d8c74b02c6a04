"""The simulation itself: the same seed gives the same run, and a failure is shrunk."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation.plan import Plan, Result, Simulator, small
from tests.simulation.planted import DEFECTS, copy_tree, plant
from tests.simulation.shrink import shrink


@pytest.mark.long
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc, which compiles clock.c, is not installed")
def test_a_seed_is_the_same_run_again() -> None:
    """Also in another process, whose objects have other addresses."""
    plain = Plan(seed=7, hours=0.02, nodes=2, jobs=2, viewers=4, round=60.0, plain=True)
    with Simulator() as one, Simulator() as other:
        for plan in (plain, small(9), small(500150)):
            first, second = one.run(plan), other.run(replace(plan, story=True))
            assert first.violations == []
            assert (first.digest, first.counts) == (second.digest, second.counts)
        assert first.digest != one.run(replace(plan, seed=8)).digest


@pytest.mark.long
def test_all_defects_can_be_planted(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    for defect in DEFECTS:
        plant(defect, tmp_path)


def test_a_failure_is_shrunk() -> None:
    """Two of thirteen faults are needed, and one viewer of one job."""

    def run(plan: Plan) -> Result:
        fails = plan.only is None or {1003, 1011} <= set(plan.only)
        return Result(violations=["wrong"] * fails)

    failed = Result(violations=["wrong"], faults=[*range(1000, 1013)], hours=0.4)
    assert shrink(Plan(seed=1, hours=1), failed, run) == Plan(1, 0.5, 1, 1, 1, only=(1003, 1011))
