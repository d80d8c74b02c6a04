"""Finds the smallest plan that still fails: fewer faults, then fewer viewers, jobs and nodes, then less time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.plan import Plan, Result


def shrink(plan: Plan, result: Result, run: Callable[[Plan], Result], tries: int = 60) -> Plan:
    """A plan no larger than ``plan`` that also fails, perhaps differently, after up to ``tries`` calls of ``run``."""
    # Nothing happens after the violation.
    plan = replace(plan, hours=min(plan.hours, math.ceil(result.hours * 6) / 6))

    def fails(candidate: Plan) -> bool:
        nonlocal tries
        tries -= 1
        return tries >= 0 and bool(run(candidate).violations)

    faults = _fewest(result.faults, lambda only: fails(replace(plan, only=tuple(only))))
    plan = replace(plan, only=tuple(faults))
    for name, least in (("viewers", 1), ("jobs", 1), ("nodes", 1)):
        while (size := getattr(plan, name)) > least:
            smaller = replace(plan, **{name: max(size // 2, least)})
            if not fails(smaller):
                break
            plan = smaller
    return plan


def _fewest(faults: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """As few of ``faults`` as still fail: delta debugging (Zeller and Hildebrandt, 2002)."""
    parts = 2
    while faults:
        size = math.ceil(len(faults) / parts)
        for start in range(0, len(faults), size):
            rest = [*faults[:start], *faults[start + size :]]
            if fails(rest):
                faults, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                return faults
            parts = min(2 * parts, len(faults))
    return faults
