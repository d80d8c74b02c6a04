"""The service's quotas in the store."""

import contextlib
from pathlib import Path

import pytest

from chronoverse.errors import QuotaReached
from chronoverse.joblog.model import JobRef, Line
from chronoverse.store import Store
from tests.support.servers import running
from tests.support.service import serving
from tests.support.waiting import wait_until


@pytest.mark.long
def test_an_emptied_store_gets_its_quotas_back(tmp_path: Path) -> None:
    """Without restarting the service. They apply to later jobs and to jobs that were opened again before."""
    lines = [Line(number, "2026-03-03T10:00:05.123Z", "x" * 100, "stdout") for number in range(1, 21)]
    with (
        running(tmp_path / "server") as server,
        serving(tmp_path / "service", server.url, max_job_bytes=1_000),
        contextlib.closing(Store(server.url)) as store,
    ):

        def wait_for(*fields: str) -> None:
            wait_until(lambda: server.ask("HGET", *fields) == b"1000", 30, "the service has set the quota")

        wait_for("chronoverse:limits", "job_bytes")
        store.open(JobRef("wf_3", "before"), "token")
        server.ask("FLUSHALL")
        before = store.open(JobRef("wf_3", "before"), "token")
        wait_for("chronoverse:{wf_3}:settings", "common_job_bytes")
        for attempt in (before, store.open(JobRef("wf_4", "after"), "token")):
            with pytest.raises(QuotaReached):
                store.append(attempt, lines)
