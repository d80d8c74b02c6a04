"""The archiver as a process that a service with an embedded server has started."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.embedded import server as embedded
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.archivers import all_entries, append, line_numbers
from tests.support.bench import JOB
from tests.support.service import serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: Time limit of a process's start and work on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60


def archivers(master: int) -> list[psutil.Process]:
    """The archivers started by a master."""
    found = []
    for each in psutil.Process(master).children():
        with contextlib.suppress(psutil.Error):
            found += [each] if "archive" in each.cmdline() else []
    return found


def write_job(store: Store, job: JobRef, count: int) -> None:
    """Writes a complete job of ``count`` lines."""
    attempt = store.open(job, "token")
    following = append(store, attempt, 1, count)
    store.finish(attempt, Status.COMPLETED, 0, 0, following)


def test_the_service_runs_an_archiver(tmp_path: Path) -> None:
    """It archives jobs, is restarted when killed, and ends with the master, even if that is killed."""
    with serving(tmp_path) as service, embedded.ServerLease(service.data_dir) as lease:
        store = Store(lease.url)
        write_job(store, JOB, 100)
        objects = FileObjectStore(service.data_dir / "archive")
        wait_until(lambda: store.catalog.archive_state(JOB).complete, PATIENCE_SECONDS, "the job is archived")
        assert line_numbers(all_entries(store, objects, JOB)) == list(range(1, 101))
        assert "chronoverse_archive_chunks_total 1.0" in httpx.get(f"{service.url}/metrics").text
        (first,) = archivers(service.pid)
        first.kill()
        wait_until(
            lambda: [each.pid for each in archivers(service.pid)] not in ([], [first.pid]),
            PATIENCE_SECONDS,
            "another archiver runs",
        )
        another = JobRef("wf_1", "job_2")
        write_job(store, another, 10)
        wait_until(lambda: store.catalog.archive_state(another).complete, PATIENCE_SECONDS, "the next job is archived")
        (second,) = archivers(service.pid)
        store.close()
        os.kill(service.pid, signal.SIGKILL)
        wait_until(lambda: not second.is_running(), PATIENCE_SECONDS, "the archiver is gone")
        logs = service.logs()
    assert "archiver stopped" in logs
    assert "Traceback" not in logs
    assert "Fatal" not in logs
