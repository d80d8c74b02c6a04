"""Compares with another commit of this repository: ``python -m bench.against REV [--rounds 3] [--quick]``.

Runs replay, burst, storm, 4,000 jobs, and publishing to the store and over HTTP, alternating between both commits, in
this one's environment. Prints each round, and the ratios of the medians.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import live, runner, stored
from bench.machine import raise_limits
from bench.peers.ours import Ours
from bench.processes import ROOT
from bench.scenario import Side

#: The compared results.
KEYS: Final = {
    "replay": (stored.replay, ("lines_per_s",)),
    "burst": (live.burst, ("deliveries_per_s",)),
    "storm": (stored.storm, ("connects_per_s",)),
    "many": (live.many, ("all_cpu_us_per_delivery", "p50_ms", "p99_ms")),
}
BURST_LINES: Final = 20_000


def measure(name: str, root: Path, quick: bool) -> Iterator[tuple[str, float]]:
    if name == "publish":
        for way in ("store", "http"):
            # Separate directories: the archiver works for two seconds after a job.
            with runner.data_directory(root) as at, runner.serving(at) as environ:
                to = at if way == "store" else runner.through_service(at, environ)
                argv = to.run(sys.executable, "-c", runner.FLAT)
                yield f"lines_per_s, {way}", runner.LINES / runner.execute(argv, to).seconds
                assert to.published() == runner.LINES + 1, to.published()
        return
    run, keys = KEYS[name]
    side = type("Side", (Ours,), {"root": root})
    found = run(Side(side, lines=BURST_LINES if name == "burst" else 0), quick)
    assert not found["wrong"], found["stories"]
    yield from ((key, found[key]) for key in keys)
    yield "reader's share of a core", found["share"]


@contextlib.contextmanager
def checkout(rev: str) -> Iterator[Path]:
    """A worktree of ``rev`` within the ``with`` block."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, rev], cwd=ROOT, check=True)
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__)
    parser.add_argument("rev", help="the other commit")
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join([*KEYS, 'publish'])}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="less load and no ratios, to see that it works")
    flags = parser.parse_args()
    raise_limits()
    # Both from checkouts: from the working tree, publishing was 5 to 18 % slower than from a checkout of its commit.
    with checkout("HEAD") as ours, checkout(flags.rev) as theirs:
        changes = subprocess.check_output(["git", "diff", "--binary", "HEAD"], cwd=ROOT)
        subprocess.run(["git", "apply", "--allow-empty"], input=changes, cwd=ours, check=True)
        for name in flags.scenarios or [*KEYS, "publish"]:
            values: dict[str, tuple[list[float], list[float]]] = {}
            for number in range(flags.rounds):
                for which, root in enumerate((ours, theirs)):
                    for key, value in measure(name, root, flags.quick):
                        values.setdefault(key, ([], []))[which].append(value)
                        side = ("this", flags.rev)[which]
                        print(f"  {name} {number + 1} {side}: {key} {value:,.2f}", flush=True)
            # A quick replay lasts 10 ms.
            for key, sides in () if flags.quick else values.items():
                this, that = map(statistics.median, sides)
                print(f"{name}: {key} {this:,.2f} and {that:,.2f}, ratio {this / that:.2f}", flush=True)


if __name__ == "__main__":
    main()
