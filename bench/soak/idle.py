"""Ten thousand viewers of a quiet job, through nginx as shipped, on two workers with exactly that limit.

    python -m bench.soak.idle [--viewers 10000] [--heartbeat 5] [--seconds 25]

They use a hundred addresses, because nginx limits the streams of one address. Prints the memory of a viewer, the
intervals of heartbeats, the time of ``/healthz`` and the answer to one more viewer. Exits with 1 when a value is out of
its bounds.
"""

import argparse
import contextlib
import json
import multiprocessing
import selectors
import ssl
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import psutil

from tests.support.nginx import Nginx, nginx_for
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import request_bytes

WORKERS: Final = 2
#: Processes with viewers, and addresses that each of them uses.
VIEWER_PROCESSES: Final = 2
ADDRESSES: Final = 50
#: Seconds before a refused viewer tries again, and in which all must be connected.
RETRY_SECONDS: Final = 2.0
ARRIVAL_SECONDS: Final = 300.0
#: Seconds that ``/healthz`` may take, and the share by which a heartbeat's interval may differ.
HEALTH_SECONDS: Final = 0.2
TOLERANCE: Final = 0.2


class ViewerResults(NamedTuple):
    """The results of one process: answers by status, and the shortest and longest time between two heartbeats."""

    answers: Counter[str]
    present: int
    shortest: float
    longest: float
    intervals: int


def run_viewers(
    nginx: Nginx, number: int, request: bytes, count: int, present: Any, settled: Any, stop: Any, results: Any
) -> None:
    """``count`` viewers, until ``stop`` is set. ``present`` is how many of them have a stream.

    Heartbeats are timed once ``settled`` is set, because a process that opens connections reads them late.
    """
    selector = selectors.DefaultSelector()
    answers: Counter[str] = Counter()
    waiting, begun = deque((0.0, viewer) for viewer in range(count)), dict[int, float]()
    shortest, longest, intervals = float("inf"), 0.0, 0
    while not stop.is_set():
        if coming := bool(waiting) and time.monotonic() >= waiting[0][0]:
            _, viewer = waiting.popleft()
            sock = nginx.connect(10, f"127.1.{number}.{1 + viewer % ADDRESSES}")
            sock.sendall(request)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, viewer)
        for key, _ in selector.select(0 if coming else 0.05):
            sock, viewer, now = key.fileobj, key.data, time.monotonic()  # type: ignore[assignment]
            if (data := received(sock)) is None:
                continue
            if data.startswith(b"HTTP/1.1 "):
                answers[data[9:12].decode()] += 1
                present.value += data[9:12] == b"200"
            elif b":\n\r\n" in data and settled.is_set():
                if last := begun.get(viewer):
                    intervals += 1
                    shortest, longest = min(shortest, now - last), max(longest, now - last)
                begun[viewer] = now
            if not data or data[9:12] in (b"503", b"429"):
                answers["closed"] += not data
                selector.unregister(sock)
                sock.close()
                waiting.append((now + RETRY_SECONDS, viewer))
    results.put(ViewerResults(answers, present.value, shortest, longest, intervals))


def received(sock: ssl.SSLSocket) -> bytes | None:
    """The bytes that have arrived; empty once the socket is closed, None for a TLS record without data."""
    try:
        data = sock.recv(65_536)
        while sock.pending():
            data += sock.recv(65_536)
    except ssl.SSLWantReadError:
        return None
    except OSError:
        return b""
    return data


def memory(pids: list[int]) -> int:
    """The private memory of processes, in bytes."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


def health(client: httpx.Client) -> float:
    """The seconds of one request for ``/healthz``."""
    started = time.monotonic()
    assert client.get("/healthz").status_code == 200
    return time.monotonic() - started


def memory_of_both(service: Service, nginx: Nginx) -> dict[str, int]:
    """The memory of the service and of nginx."""
    return {"service": memory(service.worker_pids()), "nginx": memory(sorted(nginx.workers()))}


def play(service: Service, nginx: Nginx, path: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Connects the viewers and measures. Returns the report."""
    request = request_bytes(path.encode(), service.token()).replace(b"Connection: close\r\n", b"")
    settled, stop = multiprocessing.Event(), multiprocessing.Event()
    results: multiprocessing.Queue[ViewerResults] = multiprocessing.Queue()
    counts = [multiprocessing.Value("i", 0) for _ in range(VIEWER_PROCESSES)]
    each = asked.viewers // VIEWER_PROCESSES
    before, began, processes = memory_of_both(service, nginx), time.monotonic(), []
    for number, count in enumerate(counts):
        arguments = (nginx, number, request, each, count, settled, stop, results)
        processes.append(multiprocessing.Process(target=run_viewers, args=arguments))
        processes[-1].start()
    try:
        wait_until(
            lambda: sum(count.value for count in counts) >= asked.viewers, ARRIVAL_SECONDS, "all viewers are connected"
        )
        settled.set()
        arrived, after, answers, times = time.monotonic() - began, memory_of_both(service, nginx), [], []
        with nginx.client() as client, httpx.Client(base_url=service.url) as direct:
            until = time.monotonic() + asked.seconds
            while time.monotonic() < until:
                times += [health(client), health(direct)]
                answers.append(client.get(path, headers={"Authorization": f"Bearer {service.token()}"}))
                time.sleep(0.5)
        fds = [psutil.Process(pid).num_fds() for pid in (*service.worker_pids(), *sorted(nginx.workers()))]
        streams = service.metric("chronoverse_streams_open")
    finally:
        stop.set()
        found = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
    return {
        "viewers": asked.viewers,
        "streams open": int(streams),
        "all connected after s": round(arrived, 1),
        "bytes a viewer, service": (after["service"] - before["service"]) // asked.viewers,
        "bytes a viewer, nginx": (after["nginx"] - before["nginx"]) // asked.viewers,
        "descriptors of the service's workers and nginx's": fds,
        "answers": dict(sum((each.answers for each in found), Counter[str]())),
        "heartbeat every s": asked.heartbeat,
        "heartbeats measured": sum(each.intervals for each in found),
        "heartbeats' shortest and longest interval": [
            round(min(each.shortest for each in found), 2),
            round(max(each.longest for each in found), 2),
        ],
        "health's longest ms": round(1000 * max(times)),
        "the answers to another viewer": [
            dict(Counter(answer.status_code for answer in answers)),
            answers[0].headers.get("retry-after"),
            answers[0].headers["content-type"],
        ],
    }


def main() -> int:
    """Runs everything, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("viewers", 10_000), ("heartbeat", 5), ("seconds", 25)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cv-")))
        store = stack.enter_context(running(directory / "store"))
        limit = asked.viewers // WORKERS
        service = stack.enter_context(
            serving(directory, store.url, workers=WORKERS, heartbeat_seconds=asked.heartbeat, max_streams=limit)
        )
        nginx = stack.enter_context(nginx_for(directory, service))
        job = Foreign(store.url, "idle", "job").lines(["x"])
        report = play(service, nginx, f"{job.path}/events", asked)
    print(json.dumps(report, indent=2))
    shortest, longest = report["heartbeats' shortest and longest interval"]
    even = (1 - TOLERANCE) * asked.heartbeat <= shortest <= longest <= (1 + TOLERANCE) * asked.heartbeat
    refusal = report["the answers to another viewer"]
    refused = list(refusal[0]) == [503] and refusal[1]
    fast = report["health's longest ms"] <= 1000 * HEALTH_SECONDS
    return int(not (even and refused and fast and report["streams open"] == asked.viewers))


if __name__ == "__main__":
    sys.exit(main())
