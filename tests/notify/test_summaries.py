"""Summaries of failed jobs, of which one is read at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from chronoverse.cli.notify import summarizer
from chronoverse.errors import AtCapacity
from chronoverse.fair_lock import FairLock
from chronoverse.joblog.model import JobRef
from tests.support.waiting import wait_until


class Scans:
    """Answers once ``free`` is set."""

    def __init__(self) -> None:
        self.free, self.read = threading.Event(), list[str]()

    def read_summary(self, scan: Any) -> bytes:
        self.read.append(scan.job_id)
        self.free.wait(60)
        return b"{}"


def test_workflows_take_turns() -> None:
    """A workflow with many failed jobs does not delay the summaries of others."""
    scans, lock = Scans(), FairLock(60, AtCapacity)
    summarize = summarizer(cast("Any", scans), lock)

    def came(job_id: int) -> bool:
        return len(scans.read) + lock.waiting > job_id

    with ThreadPoolExecutor(4) as pool:
        for job_id, workflow_id in enumerate(["many", "many", "many", "one"]):
            pool.submit(summarize, JobRef(workflow_id, str(job_id)))
            wait_until(partial(came, job_id), 60, "the thread")
        scans.free.set()
    assert scans.read.index("3") < scans.read.index("2")
