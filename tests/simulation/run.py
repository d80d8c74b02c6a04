"""Runs plans' simulations and prints the results, all as JSON lines, for :mod:`tests.simulation.plan`."""

import gc
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.simulation.kernel import boot

boot()

import gevent
from gevent.monkey import get_original

from chronoverse.joblog.model import JobRef
from tests.simulation import parts
from tests.simulation.actions import register, set_quota
from tests.simulation.faults import LONGEST_SECONDS, Faults, schedule
from tests.simulation.install import install
from tests.simulation.judges import awake, judge_round, rest, watch
from tests.simulation.kernel import loop, world
from tests.simulation.plan import Plan, Result, shape_of
from tests.web.routes.model import Query

QUERIES: Final = (Query("n=1"), Query("n=2", stream="stderr"), Query("N=[0-9]*[37] ", regex=True), Query("n=3"))


def run(plan: Plan, clock: Path) -> Result:
    """Runs ``plan`` in this process, which cannot run another. ``clock`` is ``clock.c``, compiled."""
    gc.disable()
    # Including stores' servers that have exited.
    began = math.fsum(os.times()[:4])
    world.seed(plan.seed, with_story=plan.story)
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=shm))
    site = parts.Site(directory, shape_of(plan), clock, plan.quota)
    try:
        _run(plan, site)
    except Exception as error:
        if not world.violations:
            world.violation(f"{type(error).__name__}: {error}", error)
    finally:
        site.store.stop()
        shutil.rmtree(directory, ignore_errors=True)
    trace = "".join(traceback.format_exception(world.errors[0])) if world.errors else ""
    story = list(world.story or ())
    cpu, hours = math.fsum(os.times()[:4]) - began, loop.time / 3600
    return Result(world.digest, world.violations, world.counts, story, world.faults, hours, cpu, trace)


def _run(plan: Plan, site: parts.Site) -> None:
    install(site.network)
    watch(site)
    site.nodes += [parts.Node(site, f"node{number}") for number in range(plan.nodes)]
    site.archivers += [parts.ArchiverProcess(site, "archiver1"), parts.ArchiverProcess(site, "archiver2")]
    for part in site.services:
        part.start()
    set_quota(site)
    number = 0
    while loop.time < plan.hours * 3600 and not world.violations:
        number += 1
        _round(plan, site, number)


def _round(plan: Plan, site: parts.Site, number: int) -> None:
    chance, began = world.chance, loop.time
    runners: list[parts.Runner] = []
    viewers: list[parts.Viewer] = []
    for each in range(plan.jobs):
        job = JobRef(parts.WORKFLOW, f"j{number}-{each}")
        seconds = chance.uniform(0.1, 1.0) * plan.round
        if each % 3 == 0 and site.shape.outlasts:
            seconds = plan.round + LONGEST_SECONDS + 90.0
        how = chance.choice(("store", "http"))
        runners.append(parts.Runner(site, job, how, seconds, pause=chance.choice(site.shape.pauses)))
        if chance.random() < 0.5:
            loop.call_later(chance.uniform(0, min(15.0, 0.1 * plan.round)), register, site, runners[-1])
    for each in range(plan.viewers):
        job, name = runners[each % len(runners)].job, f"v{number}-{each}"
        query = chance.choice(QUERIES)
        if chance.random() < site.shape.filtered:
            kind = chance.choice((parts.FilteredViewer, parts.FilteredViewer, parts.WaitViewer))
            viewers.append(kind(site, job, name, query))
        else:
            viewers.append(parts.Viewer(site, job, name))
    site.runners, site.viewers, site.people = runners, viewers, []
    site.workflow_viewers = [parts.WorkflowViewer(site, f"w{number}-{each}", plan.seed + each) for each in range(2)]
    site.outages, site.began = 0, began
    everyone: list[Any] = [*runners, *viewers, *site.workflow_viewers]
    for part in everyone:
        loop.call_later(chance.uniform(0, min(30.0, 0.2 * plan.round)), part.start)
    faults = Faults(site)
    for fault in schedule(plan.seed, number, began, plan.round, site.shape.rates):
        if plan.only is None or fault.number in plan.only:
            loop.call_at(fault.at, faults.start, fault)
    while loop.time < began + plan.round + LONGEST_SECONDS and not world.violations:
        gevent.sleep(1.0)
        awake(site)
    site.quiet_since = loop.time
    for process in (*(each.process for each in site.services), *(each.process for each in runners)):
        process.offset = 0.0
    rest(site)
    if not world.violations:
        judge_round(site)


def serve() -> None:
    """Runs each plan of the input in its own process."""
    for text in sys.stdin:
        plan = Plan(**json.loads(text))
        child = get_original("os", "fork")()
        if not child:
            seconds = int(100 + 600 * plan.hours)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            print(json.dumps(asdict(run(plan, Path(sys.argv[1])))), flush=True)
            # Otherwise, the remaining greenlets would be ended with exceptions, one after the other.
            os._exit(0)
        if get_original("os", "waitpid")(child, 0)[1]:
            print(json.dumps({"violations": ["the simulation has died, or takes too long"]}), flush=True)


if __name__ == "__main__":
    serve()
