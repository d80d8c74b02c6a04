"""Forty fixed seeds, and a minute of new ones. Former failures are lines in FAILED."""

import itertools
import secrets
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import pytest

from tests.simulation.plan import Plan, Result, Simulator, small

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc, which compiles clock.c, is not installed")

AT_ONCE: Final = 2  # concurrent simulations, each a process
#: Plans that have failed, in worlds of then.
_FAILED: Final = (63, 180, 500124, 500150, 810032, 830017, 850076, 860083, 973110, 991131, 991447, 992323)
FAILED: Final = (
    *(replace(small(n), quota=0) for n in _FAILED),
    small(991563),
    replace(small(991056), quota=3_000),
    small(998079),
)


def run_all(plans: Iterable[Plan]) -> list[tuple[Plan, Result]]:
    """Each simulator imports the code once, which takes as long as a small world."""
    left = iter(plans)

    def run(_: int) -> list[tuple[Plan, Result]]:
        with Simulator() as simulator:
            return [(plan, simulator.run(plan)) for plan in left]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(itertools.chain(*pool.map(run, range(AT_ONCE))))


def check(found: list[tuple[Plan, Result]]) -> None:
    failed = [f"python -m tests.simulation {plan}: {result.violations}" for plan, result in found if result.violations]
    assert not failed, "\n".join(failed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_forty_seeds() -> None:
    check(run_all([*map(small, range(1, 41)), *FAILED]))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_new_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    until, first = time.monotonic() + 20, secrets.randbelow(10**9)
    seeds = itertools.takewhile(lambda _: time.monotonic() < until, itertools.count(first))
    found = run_all(map(small, seeds))
    with capsys.disabled():
        print(f"\nsimulated seeds {first} to {first + len(found) - 1}: {sum(each.hours for _, each in found):.1f} h")
    check(found)
