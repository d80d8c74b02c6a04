"""Runs random schedules of faults, one after the other. See :mod:`tests.faults.schedule`."""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.faults.schedule import Report, run_schedule


def main() -> int:
    parser = argparse.ArgumentParser(description="Random schedules of faults, judged by the oracle.")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="of the first run; the others follow")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = []
    for seed in range(first, first + options.runs):
        print(f"seed {seed} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="cv-faults-") as directory:
            report = Report(seed, options.seconds)
            try:
                run_schedule(Path(directory), report)
            except AssertionError as error:
                report.problems.append(str(error))
        print(report, flush=True)
        if not report.clean:
            failed.append(seed)
    print(f"{options.runs - len(failed)} of {options.runs} runs clean; not clean: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
