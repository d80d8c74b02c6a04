"""Random schedules of faults: three jobs with five viewers each, and one fault after another, chosen at random.

Every fault is shorter than the runners' lease, so no job may be declared LOST: each viewer must receive every line once
and in order. ``python -m bench.soak.schedule`` runs many of them.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chronoverse.joblog.values import JobRef
from tests.faults.emitter import EXIT_CODE
from tests.faults.fault_injector import FaultInjector
from tests.faults.oracle import Verdict
from tests.faults.runner import Runner
from tests.faults.testbed import FaultTestbed, sleep

JOBS: Final = 3
VIEWERS: Final = 5
#: Lines/s of each job.
RATES: Final = (50, 150, 400)
#: Whole seconds of the lease: so much more than a fault lasts that a runner that pauses behind it finds its lease.
LEASE_SECONDS: Final = 10
#: Seconds between two faults.
PAUSE_SECONDS: Final = (0.1, 1.0)
#: Seconds for all to come to an end once nothing more is done to them.
END_SECONDS: Final = 60.0


@dataclass
class Report:
    """What a run did and found. ``wrong`` is what went wrong beside the lines."""

    seed: int
    seconds: float
    done: list[str] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.wrong and all(verdict.clean for verdict in self.verdicts.values())

    def __str__(self) -> str:
        said = [f"  {job}: {verdict}" for job, verdict in self.verdicts.items()]
        head = (
            f"seed {self.seed}, {self.seconds:g} s, {len(self.done)} faults: {'clean' if self.clean else 'NOT CLEAN'}"
        )
        return "\n".join([head, f"  {', '.join(self.done)}", *said, *(f"  {each}" for each in self.wrong)])


def play(directory: Path, report: Report) -> Report:
    """The schedule of the report's seed, from its beginning to the verdict, which goes into the report."""
    with FaultTestbed(directory, lease=LEASE_SECONDS, workers=2) as testbed:
        jobs = [JobRef("schedule", f"job-{number}") for number in range(1, JOBS + 1)]
        for job, rate in zip(jobs, RATES, strict=True):
            testbed.run(job, rate=rate)
            testbed.watch(job, VIEWERS)
        for job in jobs:
            testbed.seen(testbed.watchers[job], 1)
        chance = random.Random(report.seed)
        injector = FaultInjector(testbed, chance)
        until = time.monotonic() + report.seconds
        while time.monotonic() < until:
            report.done.append(injector.inject())
            sleep(chance.uniform(*PAUSE_SECONDS))
        report.wrong += [wrong for runner in testbed.runners for wrong in _end(testbed, runner)]
        report.verdicts = {job.job_id: testbed.verdict(job) for job in jobs}
    return report


def _end(testbed: FaultTestbed, runner: Runner) -> Iterator[str]:
    """Has the job end; what is not as it should be then."""
    name = runner.job.job_id
    runner.end()
    if (code := runner.wait(END_SECONDS)) != EXIT_CODE:
        yield f"{name}: exit code {code}"
    if len(runner.shown) != runner.begun:
        yield f"{name}: {len(runner.shown)} of {runner.begun} lines shown"
    status = testbed.status(runner.job).get("status")
    if status != "FAILED":
        yield f"{name}: {status}; its runner said {runner.stderr_text[-2000:]!r}"
    for number, watcher in enumerate(testbed.watchers[runner.job]):
        if not watcher.join(END_SECONDS):
            yield f"{name}: viewer {number} stands at {watcher.highest}: {watcher.troubles[-5:]}"
