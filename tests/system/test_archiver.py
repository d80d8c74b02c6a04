"""The archiver's process: beside a service on the embedded default, and by itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.archive.file_store import FileObjectStore
from chronoverse.embedded import server as embedded
from chronoverse.joblog.values import JobRef, Status, iso_timestamp
from chronoverse.store import Store
from tests.support.archivers import DAY, all_entries, append, line_numbers
from tests.support.bench import JOB, Bench, make_lines
from tests.support.commands import chronoverse_argv, environ, run_chronoverse
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

#: Seconds for a process to start, and for what it is to do, on a busy machine.
PATIENCE_SECONDS: Final = 60


def archivers(master: int) -> list[psutil.Process]:
    """The archivers that a master has started."""
    found = []
    for each in psutil.Process(master).children():
        with contextlib.suppress(psutil.Error):
            found += [each] if "archive" in each.cmdline() else []
    return found


def run(store: Store, job: JobRef, count: int) -> None:
    """A job of so many lines."""
    attempt = store.open(job, "token")
    following = append(store, attempt, 1, count)
    store.finish(attempt, Status.COMPLETED, 0, 0, following)


def test_an_archiver_runs_beside_the_service(tmp_path: Path) -> None:
    """It archives, is started again when it is killed, and goes with the master."""
    with serving(tmp_path) as service, embedded.lease_server(service.data_dir) as lease:
        store = Store(lease.url)
        run(store, JOB, 100)
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
        run(store, another, 10)
        wait_until(lambda: store.catalog.archive_state(another).complete, PATIENCE_SECONDS, "the next job is archived")
        (second,) = archivers(service.pid)
        store.close()
        service.stop()
        wait_until(lambda: not second.is_running(), PATIENCE_SECONDS, "the archiver is gone")
        said = service.logs()
    assert "archiver gone" in said
    assert "Traceback" not in said
    assert "Fatal" not in said


@pytest.mark.long
def test_an_archiver_goes_with_a_killed_master(tmp_path: Path) -> None:
    """And with its workers: nothing is left behind."""
    with serving(tmp_path) as service:
        (archiver,) = archivers(service.pid)
        os.kill(service.pid, signal.SIGKILL)
        wait_until(lambda: not archiver.is_running(), PATIENCE_SECONDS, "the archiver is gone")


@pytest.mark.long
def test_no_archive_no_archiver(tmp_path: Path) -> None:
    with serving(tmp_path, archive_url="none") as service:
        assert archivers(service.pid) == []
        done = run_chronoverse(service, "archive", "--once", CHRONOVERSE_ARCHIVE_URL="none")
        assert done.returncode == 78
        assert b"CHRONOVERSE_ARCHIVE_URL" in done.stderr


@pytest.fixture
def outside(server: RedisServer, prefix: str, tmp_path: Path) -> dict[str, str]:
    """The environment of an operator with a store and an archive of their own."""
    return environ(
        Service(tmp_path),
        CHRONOVERSE_URL="",
        CHRONOVERSE_REDIS_URL=server.url,
        CHRONOVERSE_KEY_PREFIX=prefix,
        CHRONOVERSE_ARCHIVE_URL=(tmp_path / "an archive").as_uri(),
        CHRONOVERSE_LOG_FORMAT="json",
    )


def ask(outside: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """``chronoverse …``."""
    argv = chronoverse_argv(*arguments)
    return subprocess.run(argv, env=outside, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@pytest.mark.long
def test_an_operator_s_commands(
    server: RedisServer, store: Store, prefix: str, outside: dict[str, str], tmp_path: Path
) -> None:
    """All that is due at once; what is left in the archive of a store that was emptied; a workflow's own retention."""
    bench = Bench(server, prefix)
    run(store, JOB, 100)
    done = ask(outside, "archive", "--once")
    assert (done.returncode, done.stdout) == (0, "")
    assert '"message": "archived"' in done.stderr
    objects = FileObjectStore(tmp_path / "an archive")
    kept = [each.name for each in objects.list("")]
    assert len(kept) == 2
    assert ask(outside, "retention", JOB.workflow_id).stdout == "604800 s (the default)\n"
    assert ask(outside, "retention", JOB.workflow_id, "90d").stdout == "7776000 s\n"
    assert store.catalog.archive_state(JOB).retention_seconds == 7_776_000
    assert ask(outside, "retention", JOB.workflow_id, "default").stdout == "604800 s (the default)\n"
    bench.ask("DEL", *bench.keys())
    assert ask(outside, "archive", "--orphans", "--delete").stdout == ""
    for name in kept:
        os.utime(tmp_path / "an archive" / name, (0, 0))
    listed = ask(outside, "archive", "--orphans").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == kept
    assert [each.name for each in objects.list("")] == kept
    ask(outside, "archive", "--orphans", "--delete")
    assert list(objects.list("")) == []
    bench.close()


def test_an_archiver_goes_on_beside_hostile_keys(
    server: RedisServer, store: Store, prefix: str, outside: dict[str, str], tmp_path: Path
) -> None:
    """It says once of each of these jobs what is wrong, and archives and deletes the others."""
    with contextlib.closing(Bench(server, prefix)) as bench:
        before, gone, behind = (JobRef("wf_1", name) for name in ("before", "gone", "behind"))
        for job in (before, gone):
            run(store, job, 10)
        bench.set_end_seen(8 * DAY, gone)
        hostile = [JobRef("wf_1", f"hostile_{number}") for number in range(4)]
        bench.ask("XADD", bench.key("archive", hostile[0]), "1-0", "a", "b")
        bench.ask("ZADD", bench.key("archive", hostile[1]), "1", "no record")
        run(store, hostile[2], 3)
        bench.ask("HSET", bench.key("job", hostile[2]), "archived", "2", "archived_first", "1")
        bench.ask("ZADD", bench.key("archive", hostile[2]), "2", "[]")
        bench.ask("SET", bench.key("log", hostile[3]), "no stream")

        with (tmp_path / "said").open("wb") as said:
            argv = [sys.executable, "-m", "chronoverse", "archive"]
            archiver = subprocess.Popen(argv, env=outside, stdin=subprocess.DEVNULL, stderr=said)
        try:
            for job in (before, behind):
                if job is behind:
                    run(store, job, 10)
                is_archived = partial(lambda job: store.catalog.archive_state(job).complete, job)
                wait_until(is_archived, PATIENCE_SECONDS, "it is archived")
            wait_until(lambda: store.get_job(gone) is None, PATIENCE_SECONDS, "the job whose time is over is deleted")
        finally:
            archiver.terminate()
        assert archiver.wait(PATIENCE_SECONDS) == 0
        lines = [json.loads(line) for line in (tmp_path / "said").read_text("utf-8").splitlines()]
        assert sorted(line["job"] for line in lines if line["message"].startswith("not archived")) == [
            *map(str, hostile)
        ]


@pytest.mark.parametrize(
    "writer",
    ["a runner whose clock is behind", pytest.param("a foreign runner with old times", marks=pytest.mark.long)],
)
def test_a_job_is_kept_from_when_the_store_saw_its_end(
    server: RedisServer, prefix: str, outside: dict[str, str], writer: str
) -> None:
    """Whatever time its runner says that it was."""
    with contextlib.closing(Bench(server, prefix)) as bench:
        old = time.time() - 8 * DAY
        if writer.startswith("a runner"):
            with contextlib.closing(Store(server.url, prefix=prefix, clock=lambda: old)) as theirs:
                run(theirs, JOB, 10)
        else:
            for line in make_lines(1, 10):
                bench.xadd(f"{line.sequence_num}-0", "message", line.message, "timestamp", iso_timestamp(old))
            bench.xadd("11-0", "event", "end", "status", "COMPLETED", "timestamp", iso_timestamp(old))
        for _ in range(3):
            assert ask(outside, "archive", "--once").returncode == 0

        job = bench.store.get_job(JOB)
        assert job is not None
        assert (job.status, job.last, job.archived) == (Status.COMPLETED, 10, 10)
        assert job.finished_at == iso_timestamp(old)
        assert 3_000_000 < bench.ttl("log") <= 3_600_000
        bench.set_end_seen(8 * DAY)
        assert ask(outside, "archive", "--once").returncode == 0
        assert bench.store.get_job(JOB) is None


def test_an_archiver_is_told_to_go(server: RedisServer, store: Store, prefix: str, outside: dict[str, str]) -> None:
    """It leaves no lease behind. Another does its work until then."""
    bench = Bench(server, prefix)
    argv = [sys.executable, "-m", "chronoverse", "archive"]
    pair = [subprocess.Popen(argv, env=outside, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    jobs = [JobRef("wf_1", f"job_{each}") for each in range(20)]
    for job in jobs:
        attempt = store.open(job, "token")
        store.append(attempt, make_lines(1, 50))
        store.finish(attempt, Status.COMPLETED, 0, 0, 51)
    wait_until(
        lambda: all(store.catalog.archive_state(job).complete for job in jobs), PATIENCE_SECONDS, "all are archived"
    )
    for each in pair:
        each.terminate()
    assert [each.wait(PATIENCE_SECONDS) for each in pair] == [0, 0]
    left = bench.keys()
    assert not [key for key in left if key.endswith(":sealer")]
    bench.close()
