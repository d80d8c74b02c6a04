"""Random schedules of faults: three jobs with three viewers each, and one fault after another, chosen at random.

Every fault is shorter than the runners' lease, so no job may be declared LOST: each viewer must receive every line once
and in order.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chronoverse.joblog.model import JobRef
from tests.faults.emitter import EXIT_CODE
from tests.faults.fault_injector import FaultInjector
from tests.faults.oracle import Verdict
from tests.faults.runner import Runner
from tests.faults.testbed import FaultTestbed, sleep

JOBS: Final = 3
VIEWERS: Final = 3
#: Lines/s of each job.
RATES: Final = (50, 150, 400)
#: Whole seconds of the lease. It outlasts a fault and the pause before the runner's next attempt to reach the store.
LEASE_SECONDS: Final = 10
#: Seconds between two faults.
PAUSE_SECONDS: Final = (0.1, 1.0)
#: Seconds in which all jobs and viewers must end after the last fault.
END_SECONDS: Final = 60.0


@dataclass
class Report:
    """The faults of a run, and what it found. ``problems`` are those that do not concern lines."""

    seed: int
    seconds: float
    done: list[str] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and all(verdict.clean for verdict in self.verdicts.values())

    def __str__(self) -> str:
        verdicts = [f"  {job}: {verdict}" for job, verdict in self.verdicts.items()]
        head = (
            f"seed {self.seed}, {self.seconds:g} s, {len(self.done)} faults: {'clean' if self.clean else 'NOT CLEAN'}"
        )
        return "\n".join([head, f"  {', '.join(self.done)}", *verdicts, *(f"  {each}" for each in self.problems)])


def run_schedule(directory: Path, report: Report) -> Report:
    """Runs the schedule of the report's seed. Returns the report, filled with the faults and the verdicts."""
    with FaultTestbed(directory, lease=LEASE_SECONDS, workers=2) as testbed:
        jobs = [JobRef("schedule", f"job-{number}") for number in range(1, JOBS + 1)]
        for job, rate in zip(jobs, RATES, strict=True):
            testbed.start_runner(job, rate=rate)
            testbed.start_watchers(job, VIEWERS)
        for job in jobs:
            testbed.wait_for_line(testbed.watchers[job], 1)
        chance = random.Random(report.seed)
        injector = FaultInjector(testbed, chance)
        until = time.monotonic() + report.seconds
        while time.monotonic() < until:
            report.done.append(injector.inject())
            sleep(chance.uniform(*PAUSE_SECONDS))
        report.problems += [problem for runner in testbed.runners for problem in _end(testbed, runner)]
        report.verdicts = {job.job_id: testbed.verdict(job) for job in jobs}
    return report


def _end(testbed: FaultTestbed, runner: Runner) -> Iterator[str]:
    """Makes the job end. Yields what is wrong then."""
    name = runner.job.job_id
    runner.end_job()
    if (code := runner.wait(END_SECONDS)) != EXIT_CODE:
        yield f"{name}: exit code {code}"
    if len(runner.output_lines) != runner.begun:
        yield f"{name}: {len(runner.output_lines)} of {runner.begun} lines shown"
    status = testbed.status(runner.job).get("status")
    if status != "FAILED":
        yield f"{name}: {status}; stderr of its runner: {runner.stderr_text[-2000:]!r}"
    for number, watcher in enumerate(testbed.watchers[runner.job]):
        if not watcher.join(END_SECONDS):
            yield f"{name}: viewer {number} has only line {watcher.highest}: {watcher.errors[-5:]}"
