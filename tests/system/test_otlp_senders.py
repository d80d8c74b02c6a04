"""Senders of log records behind a faulty proxy: no line is duplicated or out of order."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Gap, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.lossy import FAULTS, LossyProxy, lossy
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.web.otlp.messages import numbered, request

pytestmark = pytest.mark.long

#: Records per request.
BATCH = 100


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A store that keeps most of its data when killed and restarted."""
    with RedisServer(tmp_path_factory.mktemp("store"), None, "--appendonly", "yes") as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with two workers."""
    service = Service(tmp_path_factory.mktemp("service"), redis_server.url, workers=2).start()
    yield service
    service.stop()


@pytest.fixture
def other_node(tmp_path: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A second node on the same store."""
    with Service(tmp_path / "node", redis_server.url) as node:
        yield node


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Store]:
    store = Store(redis_server.url)
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


class Sender(threading.Thread):
    """Sends batches of a file's records until each is accepted, several concurrently and in any order."""

    def __init__(self, proxy: LossyProxy, token: str, job: JobRef, firsts: list[int], seed: int) -> None:
        super().__init__()
        self._port = proxy.server_address[1]
        self._headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
        self._resource = {"chronoverse.workflow": job.workflow_id, "chronoverse.job": job.job_id}
        self._firsts = firsts
        self._rng = random.Random(seed)
        self.rejected: list[bytes] = []

    def run(self) -> None:
        ends_at = time.monotonic() + 150
        while self._firsts and time.monotonic() < ends_at:
            # Like a queue, it mostly retries the oldest ones first.
            first = self._firsts[min(int(self._rng.expovariate(1)), len(self._firsts) - 1)]
            if self._send(first):
                self._firsts.remove(first)
            else:
                time.sleep(0.05)

    def _send(self, first: int) -> bool:
        body = request(self._resource, *numbered(first, first + BATCH - 1)).SerializeToString()
        connection: Any = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/logs", body, self._headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status in (200, 502, 503, 504), (response.status, answer)
            if response.status == 200 and answer:
                self.rejected.append(answer)
            return bool(response.status == 200)
        return False


def test_numbered_records_arrive_once_and_in_order_or_are_reported(
    service: Service, other_node: Service, redis_server: RedisServer, store: Store
) -> None:
    """Four concurrent senders, two nodes, requests that overtake each other, lost batches, and kills.

    One of each node's workers is killed, and so is the store.
    """
    job, batches = JobRef("files", "a"), 40
    rng = random.Random(5)
    missing = {1 + BATCH * each for each in rng.sample(range(1, batches - 1), 2)}
    firsts = [first for first in range(1, batches * BATCH, BATCH) if first not in missing]
    shares = [firsts[number::4] for number in range(4)]
    with lossy(service.port, other_node.port, seed=2) as proxy:
        senders = [Sender(proxy, service.token("*"), job, share, seed) for seed, share in enumerate(shares)]
        for sender in senders:
            sender.start()
        wait_until(lambda: lines_so_far(store, job) > 1_000, 60, "a part of the lines is there")
        for node in (service, other_node):
            os.kill(node.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: lines_so_far(store, job) > 2_000, 60, "more of the lines are there")
        redis_server.kill()
        redis_server.start()
        for sender in senders:
            sender.join(160)
    assert not any(sender.is_alive() or sender.rejected for sender in senders)
    found = content(store, job)
    texts = [entry.message for entry in found if isinstance(entry, Line)]
    numbers = [int(text.removeprefix("line ")) for text in texts]
    assert numbers == sorted(set(numbers))
    gaps = [entry for entry in found if isinstance(entry, Gap)]
    assert all(gap.reason == "missing" for gap in gaps)
    # Every number of the log is a line or in a gap, and so is every record.
    assert len(numbers) + sum(gap.last - gap.first + 1 for gap in gaps) == batches * BATCH
    lost = set(range(1, batches * BATCH + 1)) - set(numbers)
    assert {number for first in missing for number in range(first, first + BATCH)} <= lost
    named = {number for gap in gaps for number in range(gap.first, gap.last + 1)}
    assert lost == named


def reached(store: Store, job: JobRef, count: int) -> bool:
    return lines_so_far(store, job) >= count


def lines_so_far(store: Store, job: JobRef) -> int:
    found = store.get_job(job)
    return found.last if found else 0


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
    for texts, count in ((before, len(before)), (after, len(before + after))):
        with file.open("a", encoding="utf-8") as log:
            log.writelines(f"{text}\n" for text in texts)
        with subprocess.Popen(command, cwd=tmp_path) as process:
            wait_until(partial(reached, store, job, count), 60, "the lines are there")
            process.terminate()
    assert [line[2] for line in content(store, job)] == before + after
    ended = store.get_job(job)
    assert ended is not None
    assert (ended.status, ended.exit_code) == (Status.FAILED, 3)
