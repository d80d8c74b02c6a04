"""The comparison: ``python -m bench [scenario …] [--rounds 3] [--quick] [--only side …] [--out DIR]``."""

import argparse
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import live, stored
from bench.machine import describe, raise_limits
from bench.processes import ROOT, Failed
from bench.report import index, shown, table, write
from bench.scenario import Outcome, Scenario, verdict

SCENARIOS = {each.name: each for each in (*live.SCENARIOS, *stored.SCENARIOS)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, to see that it works")
    parser.add_argument("--only", action="append", help="only this side (may be repeated)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    flags = parser.parse_args()
    unknown = [name for name in flags.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    raise_limits()
    machine, date = describe(), time.strftime("%Y-%m-%d", time.gmtime())
    machine |= {"quick": flags.quick, "commit": _commit()}
    everything: list[str] = []
    for name in flags.scenarios or SCENARIOS:
        outcome = run(SCENARIOS[name], flags)
        write(outcome, machine, date, flags.out)
        everything = index(flags.out, SCENARIOS)
        print("\n".join([*table(outcome), *verdict(outcome), *outcome.more, ""]), flush=True)
    print("\n".join(everything))


def run(scenario: Scenario, flags: argparse.Namespace) -> Outcome:
    outcome = Outcome(scenario)
    print(f"{scenario.name}: {scenario.about}", flush=True)
    sides = []
    for side in scenario.sides:
        if flags.only and side.name not in flags.only:
            continue
        why = side.peer.missing()
        if why:
            outcome.skipped[side.name] = why
            print(f"  {side.name}: skipped: {why}", flush=True)
        else:
            sides.append(side)
    for _ in range(flags.rounds):
        found: dict[str, dict[str, Any]] = {}
        for side in sides:
            try:
                found[side.name] = scenario.run(side, flags.quick)
                outcome.versions[side.name] = found[side.name].pop("versions")
            except (Failed, OSError) as error:
                found[side.name] = {"error": str(error)[-1000:]}
            print(shown(side.name, found[side.name], scenario.metrics), flush=True)
        outcome.rounds.append(found)
    if scenario.more and not flags.quick:
        outcome.more = scenario.more()
    return outcome


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip()


if __name__ == "__main__":
    main()
