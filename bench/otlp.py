"""How many log records a second one worker takes by OTLP.

``python -m bench.otlp`` sends 512 records in each request, over some connections, to a service with one worker and a
store of its own. It prints records a second, and the processor time of the worker and of the store for each record.
"""

import argparse
import http.client
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.support.servers import running
from tests.support.service import Service
from tests.web.otlp.messages import TIME, record, request

#: Records of a request, as SDKs and the shipped configurations of collectors have them.
BATCH = 512


def bodies(sender: int, count: int, *, with_numbers: bool) -> list[bytes]:
    """The requests of one sender, which has a job of its own. A record is one ms later than the one before it."""
    resource = {"service.name": "bench", "service.instance.id": f"job-{sender}", "host.name": "machine-7"}
    found = []
    for first in range(1, count * BATCH, BATCH):
        records = []
        for number in range(first, first + BATCH):
            numbers = {"log__file__record_number": number} if with_numbers else {"thread__id": number}
            text = f"{number:09} GET /workflows/wf_1/jobs/job_1/logs?limit=100 200 1843 bytes in 12 ms"
            attributes = {"log__file__path": "/var/log/app.log", "log__iostream": "stdout", **numbers}
            records.append(record(text, time=TIME + number // 50 * 1_000_000, **attributes))
        found.append(request(resource, *records).SerializeToString())
    return found


def send(service: Service, requests: list[bytes]) -> None:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=60)
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {service.token('*')}"}
    for body in requests:
        connection.request("POST", "/v1/logs", body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert (response.status, answer) == (200, b""), (response.status, answer)


def measure(senders: int, count: int, *, with_numbers: bool) -> None:
    """Sends ``count`` requests from each of some senders at the same time."""
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as server:
        service = Service(Path(name) / "service", server.url)
        service.directory.mkdir()
        service.start()
        try:
            prepared = [bodies(sender, count, with_numbers=with_numbers) for sender in range(senders)]
            send(service, bodies(99, 1, with_numbers=with_numbers))
            processes = [psutil.Process(service.worker_pids()[0]), psutil.Process(server.pid)]
            before = [sum(process.cpu_times()[:2]) for process in processes]
            threads = [threading.Thread(target=send, args=(service, each)) for each in prepared]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - started
            used = [sum(process.cpu_times()[:2]) - was for process, was in zip(processes, before, strict=True)]
        finally:
            service.stop()
    records = senders * count * BATCH
    kind = "with numbers" if with_numbers else "without numbers"
    worker, store = (1e6 * each / records for each in used)
    print(
        f"{kind}, {senders} senders: {records / seconds:,.0f} records a second;"
        f" processor time of a record: worker {worker:.1f} µs, store {store:.1f} µs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200, help="of each sender")
    options = parser.parse_args()
    for with_numbers in (True, False):
        measure(options.senders, options.requests, with_numbers=with_numbers)


if __name__ == "__main__":
    main()
