"""A sender of log records that is not ours: no line is lost, duplicated or out of order."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Gap, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service
from tests.support.tools import tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), server.url) as service:
        yield service


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    store = Store(server.url)
    yield store
    store.close()


def content(store: Store, job: JobRef) -> list[Line | Gap]:
    """The lines and gaps of a log, as its readers see them."""
    found = read_entries(store.read(job, 0, 1_000_000), 0)
    return [entry for entry in found if isinstance(entry, Line | Gap)]


def test_syslog_ng_sends_the_lines_of_a_file_to_a_job(service: Service, store: Store, tmp_path: Path) -> None:
    """With the shipped configuration, across its own restart, until a line has the job's outcome."""
    file, data = tmp_path / "nightly.log", tmp_path / "data"
    data.mkdir()
    config = (ROOT / "deploy" / "syslog-ng.conf").read_text("utf-8")
    for old, new in {
        "http://127.0.0.1:8000": service.url,
        "Bearer TOKEN": f"Bearer {service.token('*')}",
        "/var/log/nightly.log": str(file),
        "/var/lib/syslog-ng": str(data),
    }.items():
        assert old in config
        config = config.replace(old, new)
    (tmp_path / "syslog-ng.conf").write_text(config, "utf-8")
    command = [tool("syslog-ng"), "--foreground", "--no-caps", "-f", "syslog-ng.conf"]
    command += ["-R", "persist", "-p", "pid", "-c", "control"]
    job = JobRef("backups", "today")
    before = ['a "quoted" \\ line', "  é\t", "", '{"a":1}', "same", "same", "# chronoverse.exit_code=1", "$END"]
    after = ["after the restart", "same", "chronoverse.exit_code=3"]

    def has(count: int) -> bool:
        return len(content(store, job)) >= count

    for texts, count in ((before, len(before)), (after, len(before + after))):
        with file.open("a", encoding="utf-8") as log:
            log.writelines(f"{text}\n" for text in texts)
        with subprocess.Popen(command, cwd=tmp_path) as process:
            wait_until(partial(has, count), 60, "the lines are there")
            process.terminate()
    assert [line[2] for line in content(store, job)] == before + after
    ended = store.get_job(job)
    assert ended is not None
    assert (ended.status, ended.exit_code) == (Status.FAILED, 3)
