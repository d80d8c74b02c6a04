"""``python -m tests.simulation --seed N --hours H``: runs simulations, and prints what they found."""

import argparse
import sys
from dataclasses import replace

from tests.simulation.plan import Plan, Result, Simulator, small
from tests.simulation.shrink import shrink


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 when no simulation has found anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="The first seed.")
    parser.add_argument("--seeds", type=int, default=1, help="How many seeds.")
    parser.add_argument("--hours", type=float, help="Virtual hours of each. Without it, one round of a small world.")
    for name in ("--nodes", "--jobs", "--viewers", "--quota"):
        parser.add_argument(name, type=int)
    parser.add_argument("--round", type=float, help="Virtual seconds of faults before all must rest.")
    parser.add_argument("--plain", action="store_true", help="All faults and all features, for each seed.")
    parser.add_argument("--only", help="Only the faults with these numbers, or `none`.")
    parser.add_argument("--shrink", action="store_true", help="Find the smallest plan that fails.")
    args = parser.parse_args(argv)
    names = ("hours", "nodes", "jobs", "viewers", "round", "quota")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    only = None if args.only is None else tuple(map(int, args.only.split(","))) if args.only != "none" else ()
    failed = 0
    with Simulator() as simulator:
        for seed in range(args.seed, args.seed + args.seeds):
            plan = replace(Plan(seed) if args.plain else small(seed), **given, only=only, plain=args.plain)
            result = simulator.run(plan)
            print(summary(plan, result), flush=True)
            if result.violations:
                failed = 1
                if args.shrink:
                    plan = shrink(plan, result, simulator.run)
                print(story(plan, simulator.run(replace(plan, story=True))), flush=True)
    return failed


def summary(plan: Plan, result: Result) -> str:
    """One line about a simulation."""
    speed = result.hours * 3600 / max(result.cpu, 0.001)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(result.counts.items()))
    return (
        f"seed {plan.seed}: {'FAILED' if result.violations else 'clean'}, trace {result.digest}, "
        f"{result.hours:.2f} h in {result.cpu:.1f} s of CPU ({speed:.0f} x); {counts}"
    )


def story(plan: Plan, result: Result) -> str:
    """The events of the last 30 s before the violation, with one column per process."""
    end = result.story[-1][0] if result.story else 0.0
    events = [each for each in result.story if each[0] >= end - 30.0][-400:]
    names = list(dict.fromkeys(who for _, who, _ in events))
    lines = [f"{'seconds':>12}  " + "  ".join(f"[{name}]" for name in names)]
    lines += [f"{at:12.6f}  {'    ' * names.index(who)}[{who}] {text}"[:240] for at, who, text in events]
    return "\n".join([*lines, *result.violations, result.trace, f"Again: python -m tests.simulation {plan}"])


if __name__ == "__main__":
    sys.exit(main())
