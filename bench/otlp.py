"""Delays of three jobs' lines at 50 viewers, under load from senders of log records: ``python -m bench.otlp``.

Rounds alternate between quiet and load from the senders, or with ``--publishers`` from that many runners over HTTP. The
load has idle priority.
"""

import argparse
import contextlib
import http.client
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.hostile import GOOD, JOBS, NUMBER, VIEWERS, ClientEndpoint, Runners, during, percentile, view
from tests.support.commands import chronoverse_argv
from tests.support.servers import running
from tests.support.service import ROOT, Service, serving
from tests.web.otlp.messages import record, request

#: Records per request, as SDKs and the shipped collector configurations send them.
BATCH = 512
#: Seconds of quiet, and of load.
TURN_SECONDS = 3.0
#: A publisher's command: prints until a monotonic time.
PRINTER = """
import sys, time
while time.monotonic() < float(sys.argv[1]):
    sys.stdout.write("".join("%099d\\n" % number for number in range(1_000)))
"""


def send(service: Service, requests: Iterable[bytes]) -> None:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=60)
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {service.token('*')}"}
    for body in requests:
        connection.request("POST", "/v1/logs", body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert (response.status, answer) == (200, b""), (response.status, answer)


def send_on(service: Service, job: str, ends_at: float, sent: Any, interval: float) -> None:
    """A sender's process. Puts into ``sent`` the accepted records per second until ``ends_at``."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    records = [
        record(f"{NUMBER.decode()} GET /workflows/wf_1/jobs/job_1/logs?limit=100 200", x=n) for n in range(BATCH)
    ]
    body = request({"service.name": "bench", "service.instance.id": job}, *records).SerializeToString()

    def requests() -> Iterator[bytes]:
        due = time.monotonic()
        for number in itertools.count():
            if due >= ends_at or time.monotonic() >= ends_at:
                sent.put(number * BATCH / TURN_SECONDS)
                return
            time.sleep(max(0.0, due - time.monotonic()))
            # Otherwise they would be the same request.
            yield body.replace(NUMBER, b"%07d" % number)
            due = max(due + interval, time.monotonic() - 1)

    send(service, requests())


def publish_on(service: Service, job: str, ends_at: float, sent: Any) -> None:
    """A publisher's process. Puts into ``sent`` the published lines of 100 bytes per second."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    began = time.monotonic()
    argv = ("run", "--workflow", "bench", "--job", job, "--server", service.url, "--", sys.executable, "-c", PRINTER)
    environ = {**os.environ, "CHRONOVERSE_TOKEN": service.token("*"), "PYTHONPATH": str(ROOT)}
    environ["CHRONOVERSE_DATA_DIR"] = str(service.directory / job)
    subprocess.run(chronoverse_argv(*argv, str(ends_at)), env=environ, stdout=subprocess.DEVNULL, check=True)
    path = f"{service.url}/workflows/bench/jobs/{job}"
    lines = httpx.get(path, headers={"Authorization": f"Bearer {service.token('*')}"}).json()["lines"]
    sent.put(lines / (time.monotonic() - began))


def beside(senders: int, rounds: int, rate: int, records_per_second: int | None, publishers: int) -> None:
    """Measures the delay of lines, alternately in quiet and under load. By default the senders never pause."""
    interval = senders * BATCH / records_per_second if records_per_second else 0.0
    work = publish_on if publishers else partial(send_on, interval=interval)
    senders = publishers or senders
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory, context = Path(name), multiprocessing.get_context("fork")
        store = stack.enter_context(running(directory / "store"))
        service = stack.enter_context(serving(directory, store.url, workers=2))
        seen, sent = context.Queue(), context.Queue()
        endpoint, token = ClientEndpoint(service, "127.0.0.1"), service.token(GOOD)
        for job, count in zip(JOBS, VIEWERS, strict=True):
            context.Process(target=view, args=(endpoint, job, token, count, seen), daemon=True).start()
        runners = Runners(directory, store.url, service, token, rate)
        stack.callback(runners.kill)
        time.sleep(5)  # until all viewers are connected
        turns, rates = [], 0.0
        for turn in range(rounds):
            began = time.monotonic()
            time.sleep(TURN_SECONDS)
            for number in range(senders):
                arguments = (service, f"job-{turn}-{number}", began + 2 * TURN_SECONDS, sent)
                context.Process(target=work, args=arguments, daemon=True).start()
            rates += sum(sent.get() for _ in range(senders))
            turns.append((began, began + TURN_SECONDS, began + 2 * TURN_SECONDS))
        runners.stop()
        results = [seen.get() for _ in JOBS]
    late = [each for *_, measured in results for each in measured]
    print(f"numbers lost, doubled or out of order: {sum(wrong for _, wrong, *_ in results)}")
    print(f"{'lines' if publishers else 'records'} a second: {rates / rounds:,.0f}")
    ratios = []
    for began, middle, ended in turns:
        quiet, busy = (1000 * percentile(during(late, span)) for span in ((began, middle), (middle, ended)))
        ratios.append(busy / quiet)
        print(f"99th percentile of the delay: {quiet:.1f} ms, beside senders {busy:.1f} ms: {ratios[-1]:.2f} times")
    print(f"in the middle {statistics.median(ratios):.2f} times, at least {min(ratios):.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=10, metavar="LINES", help="that each job prints in a second")
    parser.add_argument("--records", type=int, metavar="N", help="that all senders send in a second, at most")
    parser.add_argument("--publishers", type=int, default=0, help="publish over HTTP, instead of the senders")
    options = parser.parse_args()
    beside(options.senders, options.rounds, options.rate, options.records, options.publishers)


if __name__ == "__main__":
    main()
