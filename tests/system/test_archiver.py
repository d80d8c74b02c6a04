"""The archiver as a process: started by a service with an embedded server, or by an operator."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.store_history import MARK
from chronoverse.embedded import server as embedded
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.archivers import DAY, all_entries, append, line_numbers, set_ended
from tests.support.bench import JOB, Bench
from tests.support.commands import call_main, environ
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
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


@pytest.fixture
def operator_environ(server: RedisServer, prefix: str, tmp_path: Path) -> dict[str, str]:
    """The environment of an operator with a store and an archive."""
    return environ(
        Service(tmp_path),
        CHRONOVERSE_URL="",
        CHRONOVERSE_REDIS_URL=server.url,
        CHRONOVERSE_KEY_PREFIX=prefix,
        CHRONOVERSE_ARCHIVE_URL=(tmp_path / "an archive").as_uri(),
        CHRONOVERSE_LOG_FORMAT="json",
    )


def run_command(operator_environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs ``chronoverse …`` to completion."""
    return call_main(*arguments, environ=operator_environ)


def test_archive_and_retention_commands(
    server: RedisServer, store: Store, prefix: str, operator_environ: dict[str, str], tmp_path: Path
) -> None:
    """``archive --once``, ``retention`` for one workflow, and ``archive --orphans`` after emptying the store."""
    bench = Bench(server, prefix)
    write_job(store, JOB, 100)
    done = run_command(operator_environ, "archive", "--once")
    assert (done.returncode, done.stdout) == (0, "")
    assert '"message": "archived"' in done.stderr
    objects = FileObjectStore(tmp_path / "an archive")
    names = [each.name for each in objects.list("")]
    # A chunk, the manifest, the set of shapes, and the timeline.
    assert len(names) == 4
    assert run_command(operator_environ, "retention", JOB.workflow_id).stdout == "604800 s (default)\n"
    assert run_command(operator_environ, "retention", JOB.workflow_id, "90d").stdout == "7776000 s\n"
    assert store.catalog.archive_state(JOB).retention_seconds == 7_776_000
    assert run_command(operator_environ, "retention", JOB.workflow_id, "default").stdout == "604800 s (default)\n"
    bench.ask("DEL", *bench.keys())
    for ended_days in (0, 8):
        # The manifest keeps all objects until the job's retention, by its own date, expires.
        assert run_command(operator_environ, "archive", "--orphans", "--delete").stdout == ""
        set_ended(bench, objects, JOB, ended_days * DAY)
        bench.ask("DEL", *bench.keys())
        for name in names:
            os.utime(tmp_path / "an archive" / name, (0, 0))
    listed = run_command(operator_environ, "archive", "--orphans").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == names
    assert [each.name for each in objects.list("")] == names
    objects.put(MARK, json.dumps({"mark": time.time() + 1_000}).encode())
    refused = run_command(operator_environ, "archive", "--orphans", "--delete")
    assert (refused.returncode, refused.stdout) == (os.EX_DATAERR, "")
    assert "the store lost data" in refused.stderr
    objects.delete(MARK)
    run_command(operator_environ, "archive", "--orphans", "--delete")
    assert list(objects.list("")) == []
    bench.close()
