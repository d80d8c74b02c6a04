"""Senders of log records behind a faulty proxy: no line is duplicated or out of order."""

import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Gap, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.lossy import FAULTS, lossy
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service
from tests.support.tools import tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: Records per request.
BATCH = 100


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


def test_the_python_exporter_duplicates_nothing(service: Service, store: Store) -> None:
    """It sends batches, and retries unanswered ones. The proxy loses, delays or repeats one request in five."""
    job, count = JobRef("sdk", "python"), 30 * BATCH
    with lossy(service.port) as proxy:
        headers = {"Authorization": f"Bearer {service.token('*')}"}
        exporter = OTLPLogExporter(f"{proxy.url}/v1/logs", headers=headers, timeout=60)
        provider = LoggerProvider(Resource({"chronoverse.workflow": job.workflow_id, "chronoverse.job": job.job_id}))
        processor = BatchLogRecordProcessor(
            exporter, schedule_delay_millis=50, max_export_batch_size=BATCH, max_queue_size=count + 1
        )
        provider.add_log_record_processor(processor)
        logger = provider.get_logger("test")
        for number in range(count):
            logger.emit(LogRecord(timestamp=time.time_ns(), body=f"line {number}"))
        logger.emit(LogRecord(timestamp=time.time_ns(), body="last", attributes={"chronoverse.exit_code": 0}))
        wait_until(lambda: content(store, job)[-1:] and content(store, job)[-1][2] == "last", 100, "the job has ended")
        provider.shutdown()
    assert [line[2] for line in content(store, job)] == [*(f"line {number}" for number in range(count)), "last"]
    assert sum(proxy.counts[fault] for fault in FAULTS) > 3, proxy.counts


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
