"""A thousand viewers start at once at the beginning of a log of a million lines, while others watch a live job.

    python -m bench.soak.storm [--viewers 1000] [--lines 1000000] [--seconds 20] [--direct] [--contend] [--rate BYTES]

All of them connect through nginx as shipped, unless ``--direct``. In real life the viewers' computers are not the
service's. Therefore their process has idle priority here, unless it is to ``--contend``. ``--rate`` sets
CHRONOVERSE_MAX_REPLAY_RATE. Prints the growth of the workers' memory, the store's response times for others, and the
delay of live lines. Exits with 1 when a worker grows by more than 64 MB.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import selectors
import socket
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import redis

from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.support.nginx import nginx_for
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.wire import Endpoint, request_bytes

WORKERS: Final = 2
LIVE_VIEWERS: Final = 10
#: Live lines a second, and lines of one append to the long log.
RATE: Final = 20
BATCH: Final = 500
#: Bytes by which each worker may grow.
GROWTH_BYTES: Final = 64 * 2**20


class Progress(NamedTuple):
    """The results of the viewers' process: the monotonic time when all were connected, and the bytes received."""

    connected_at: Any
    received: Any


def run_viewers(endpoint: Endpoint, request: bytes, count: int, progress: Progress, stop: Any, contend: bool) -> None:
    """``count`` viewers that read as fast as they can."""
    if not contend:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    selector = selectors.DefaultSelector()
    for _ in range(count):
        sock = endpoint.connect(30)
        sock.sendall(request)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    progress.connected_at.value = time.monotonic()
    while not stop.is_set():
        for key, _ in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(ssl.SSLWantReadError):
                progress.received.value += len(key.fileobj.recv(65_536))


def live(endpoint: Endpoint, request: bytes, stop: Any, results: Any) -> None:
    """The viewers of the live job. Puts the time and the delay of each received line into ``results``."""
    selector, seen = selectors.DefaultSelector(), []
    for _ in range(LIVE_VIEWERS):
        sock = endpoint.connect(30)
        sock.sendall(request)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    while not stop.is_set():
        for key, _ in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(ssl.SSLWantReadError):
                data, now = key.fileobj.recv(65_536), time.monotonic()
                seen += [(now, now - float(part.split(b'"')[0])) for part in data.split(b"sent=")[1:]]
    results.put(seen)


def fill(url: str, job: JobRef, lines: int) -> None:
    """Writes the long log, and ends it."""
    store = Store(url)
    attempt = store.open(job, "storm")
    for first in range(1, lines + 1, BATCH):
        batch = [Line(n, TIMESTAMP, f"line {n} {'.' * 60}", "stdout") for n in range(first, first + BATCH)]
        store.append(attempt, batch)
    store.finish(attempt, Status.COMPLETED, 0, 0, lines + 1)
    store.close()


def watch(service: Service, store: RedisServer, job: Foreign, seconds: float) -> dict[str, Any]:
    """Writes live lines for ``seconds``, and measures the store and the workers' memory. Returns times and maxima."""
    began, probes, memory = time.monotonic(), [], dict.fromkeys(service.worker_pids(), 0)
    # Like a runner, this uses one connection all the time.
    with redis.Redis.from_url(store.url, protocol=2) as client:
        while (now := time.monotonic()) < began + seconds:
            client.exists(job.key)
            probes.append(time.monotonic() - now)
            memory = {pid: max(most, psutil.Process(pid).memory_info().rss) for pid, most in memory.items()}
            job.last += 1
            line = {"timestamp": TIMESTAMP, "message": f"sent={time.monotonic()}", "stream": "stdout"}
            client.xadd(job.key, line, id=f"{job.last}-0")
            time.sleep(1 / RATE)
    return {"span": (began, time.monotonic()), "store": percentile(probes), "memory": memory}


def percentile(seconds: list[float]) -> float:
    """The 99th percentile, in ms."""
    return round(1000 * statistics.quantiles(seconds, n=100)[98], 1)


def play(service: Service, endpoint: Endpoint, store: RedisServer, asked: argparse.Namespace) -> dict[str, Any]:
    """Runs the viewers and measures. Returns the report."""
    fill(store.url, JobRef("storm", "long"), asked.lines)
    job = Foreign(store.url, "storm", "live").lines(["x"])
    stop, progress = (
        multiprocessing.Event(),
        Progress(multiprocessing.Value("d", float("inf")), multiprocessing.Value("q", 0)),
    )
    results: multiprocessing.Queue[list[tuple[float, float]]] = multiprocessing.Queue()
    requests = [
        request_bytes(path.encode(), service.token()).replace(b"Connection: close\r\n", b"")
        for path in (f"{job.path}/events", "/workflows/storm/jobs/long/events")
    ]
    processes = [
        multiprocessing.Process(target=live, args=(endpoint, requests[0], stop, results)),
        multiprocessing.Process(
            target=run_viewers, args=(endpoint, requests[1], asked.viewers, progress, stop, asked.contend)
        ),
    ]
    try:
        processes[0].start()
        wait_until(
            lambda: service.metric("chronoverse_streams_open") == LIVE_VIEWERS, 30, "the live viewers are connected"
        )
        calm = watch(service, store, job, asked.seconds)
        processes[1].start()
        storm = watch(service, store, job, asked.seconds)
        streams = service.metric("chronoverse_streams_open")
    finally:
        stop.set()
        seen = results.get(timeout=60)
        for process in processes:
            process.join()
    (began, ended), connected_at = storm["span"], progress.connected_at.value
    spans = {
        "before": calm["span"],
        "with": (began, ended),
        "connecting": (began, connected_at),
        "reading": (connected_at, ended),
    }
    late = {name: percentile([late for at, late in seen if span[0] <= at < span[1]]) for name, span in spans.items()}
    return {
        "streams open at the end": int(streams),
        "all connected after s": round(connected_at - began, 1),
        "received, MB/s": round(progress.received.value / asked.seconds / 1e6),
        "workers grow by MB": [round((storm["memory"][pid] - most) / 2**20, 1) for pid, most in calm["memory"].items()],
        "live lines' p99 before it, ms": late["before"],
        "live lines' p99 with it, ms": late["with"],
        "of that while they connect, and then, ms": [late["connecting"], late["reading"]],
        "times as late": round(late["with"] / late["before"], 2),
        "the store's p99 before and during it, ms": [calm["store"], storm["store"]],
    }


def main() -> int:
    """Runs everything, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("viewers", 1000), ("lines", 1_000_000), ("seconds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("direct", "contend"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rate", type=int)
    asked = parser.parse_args()
    settings = {} if asked.rate is None else {"max_replay_rate": asked.rate}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cv-")))
        store = stack.enter_context(running(directory / "store"))
        service = stack.enter_context(serving(directory, store.url, workers=WORKERS, **settings))
        report = play(
            service, service if asked.direct else stack.enter_context(nginx_for(directory, service)), store, asked
        )
    print(json.dumps(report, indent=2))
    return int(max(report["workers grow by MB"]) * 2**20 > GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
