"""A runner under a quota: its job continues, its log is exact up to the limit, and others are unaffected."""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.errors import QuotaReached
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, JobRef, Line, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.store import Durability, Store
from tests.support.archivers import archive
from tests.support.jobs import RunningJob, key
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

SOON: Final = 30.0
LINES: Final = 5_000
#: Common quota of a job in bytes; its lines have five each.
BOUND: Final = 1_000
PRINT: Final = f"for number in range({LINES}): print(f'{{number:05}}')"
OTHERS: Final = [JobRef("wf_2", f"job_{number}") for number in range(3)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("server")
    with running(directory, None, "--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server


@pytest.fixture(scope="module")
def service(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), server.url, max_job_bytes=BOUND) as service:
        bounds = ["HMGET", "chronoverse:limits", "job_bytes", "day_bytes"]
        wait_until(lambda: server.ask(*bounds) == [b"%d" % BOUND, b"0"], SOON, "the service has set the quota")
        yield service


@pytest.mark.long
@pytest.mark.parametrize("way", ["store", "service"])
def test_a_job_that_prints_endlessly(server: RedisServer, service: Service, way: str, tmp_path: Path) -> None:
    """Store and archive stay small. Three jobs of a workflow without a quota lose nothing. Reported once."""
    job = JobRef("wf_1", way)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(server.url, durability=Durability.FSYNCED)))
        store.catalog.change_settings("wf_2", job_bytes=0)
        writer: Any = store
        if way == "service":
            writer = HttpLogWriter(service.url, service.token(), durable=True)
            stack.enter_context(contextlib.closing(writer))
        jobs = [job, *(other._replace(job_id=f"{other.job_id}-{way}") for other in OTHERS)]
        running_jobs = [stack.enter_context(RunningJob(PRINT, writer, tmp_path, each)) for each in jobs]
        assert [each.result() for each in running_jobs] == [0, 0, 0, 0]
    assert len(re.findall("quota", running_jobs[0].stderr_text)) == 1
    assert "the job continues" in running_jobs[0].stderr_text
    *lines, gap, end = read_entries(server.ask("XRANGE", key("log", job), "-", "+"), 0)
    assert [line.message for line in lines if isinstance(line, Line)] == [f"{n:05}" for n in range(BOUND // 5)]
    assert len(lines) == BOUND // 5
    assert gap == Gap(BOUND // 5 + 1, LINES, "quota")
    assert isinstance(end, End)
    assert (end.status, end.lines, end.dropped) == (Status.COMPLETED, LINES, LINES - BOUND // 5)
    for each, other in zip(jobs[1:], running_jobs[1:], strict=True):
        assert "quota" not in other.stderr_text
        *entries, last = read_entries(server.ask("XRANGE", key("log", each), "-", "+"), 0)
        assert [entry.message for entry in entries if isinstance(entry, Line)] == [f"{n:05}" for n in range(LINES)]
        assert isinstance(last, End)
        assert last.dropped == 0
    url = f"{service.url}/workflows/{job.workflow_id}/jobs/{job.job_id}/events"
    events = httpx.get(url, headers={"Authorization": f"Bearer {service.token()}"}, timeout=SOON, verify=False).text
    assert re.findall("event: gap\ndata: (.*)\n", events) == [f'{{"from":201,"to":{LINES},"reason":"quota"}}']
    # As much as the limit allows, and not 5,000 lines.
    assert server.ask("MEMORY", "USAGE", key("log", job), "SAMPLES", 0) < 64 * BOUND
    objects = FileObjectStore(tmp_path / "archive")
    with contextlib.closing(Store(server.url)) as store:
        assert archive(store, objects) == 0
    assert 0 < sum(each.size for each in objects.list(f"{job.workflow_id}/{job.job_id}/")) < 10 * BOUND


@pytest.mark.long
def test_an_emptied_store_gets_its_quotas_back(service: Service, server: RedisServer) -> None:
    """Without restarting the service. They apply to later jobs and to jobs that were opened again before."""
    ask = partial(server.ask, "HGET", "chronoverse:{wf_3}:settings", "common_job_bytes")
    lines = [Line(number, "2026-03-03T10:00:05.123Z", "x" * 100, "stdout") for number in range(1, 21)]
    with contextlib.closing(Store(server.url)) as store:
        store.open(JobRef("wf_3", "before"), "token")
        server.ask("FLUSHALL")
        before = store.open(JobRef("wf_3", "before"), "token")
        wait_until(lambda: ask() == b"%d" % BOUND, SOON, "the quota is back")
        for attempt in (before, store.open(JobRef("wf_4", "after"), "token")):
            with pytest.raises(QuotaReached):
                store.append(attempt, lines)
