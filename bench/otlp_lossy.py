"""Sends many log records with the SDK of Python, through a proxy that spoils one request in five, and checks the log.

``python -m bench.otlp_lossy --records 1000000``: none may be doubled, and they must be in order. Those of a batch that
the exporter has given up are missing.
"""

import argparse
import tempfile
import time
from pathlib import Path

from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from tests.support.lossy import lossy
from tests.support.servers import running
from tests.support.service import Service

JOB = JobRef("bench", "lossy")


def emit(url: str, token: str, records: int) -> None:
    """Emits the records, and waits until the exporter has sent or given up all of them."""
    exporter = OTLPLogExporter(f"{url}/v1/logs", headers={"Authorization": f"Bearer {token}"}, timeout=120)
    provider = LoggerProvider(Resource({"chronoverse.workflow": JOB.workflow_id, "chronoverse.job": JOB.job_id}))
    processor = BatchLogRecordProcessor(
        exporter, schedule_delay_millis=20, max_export_batch_size=512, max_queue_size=records, export_timeout_millis=1e9
    )
    provider.add_log_record_processor(processor)
    logger = provider.get_logger("bench")
    for number in range(records):
        logger.emit(LogRecord(timestamp=time.time_ns(), body=f"line {number}"))
    provider.force_flush(3_600_000)
    provider.shutdown()


def numbers(store: Store) -> list[int]:
    """The numbers of the lines, as the log has them."""
    found: list[int] = []
    while entries := store.read(JOB, len(found), 10_000):
        found += [int(fields[3].split()[1]) for _, fields in entries]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as server:
        service = Service(Path(name) / "service", server.url, workers=2)
        service.directory.mkdir()
        service.start()
        started = time.perf_counter()
        with lossy(service.port) as proxy:
            emit(proxy.url, service.token("*"), options.records)
        store = Store(server.url)
        found = numbers(store)
        store.close()
        service.stop()
    print(
        f"{options.records:,} emitted, {len(found):,} lines, {len(found) - len(set(found))} doubled,"
        f" in order: {found == sorted(found)}, {time.perf_counter() - started:.0f} s, requests: {dict(proxy.counts)}"
    )


if __name__ == "__main__":
    main()
