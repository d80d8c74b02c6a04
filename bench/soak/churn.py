"""Many short streams: the service must not use more afterwards than before.

    python -m bench.soak.churn [--streams 100000] [--at-once 64] [--direct]

They go through nginx as shipped, unless ``--direct``. Half of them read an ended job to its end. The others read a live
job's first lines and disconnect, as a closed page does. Prints the resources before and after, and exits with 1 when
something has accumulated.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.nginx import Nginx, nginx_for
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.short_streams import open_short_streams
from tests.web.routes.wire import Endpoint

#: Streams of the warm-up. After it, caches and pools are full, and nothing may grow any more.
WARM_UP: Final = 10_000
#: Bytes by which the worker's memory may grow after the warm-up, because an allocator is not exact.
GROWTH_BYTES: Final = 8 * 2**20
#: Seconds after which no idle connection is left.
IDLE_SECONDS: Final = 6.0
#: The last bytes of a complete stream, and the bytes after which a viewer disconnects.
ENDED: Final = b"0\r\n\r\n"
SEEN: Final = b"id: 3\n\n"


def resources(service: Service, store: RedisServer, endpoint: Endpoint) -> dict[str, int]:
    """The resources of the worker, the store and nginx while nobody is connected."""
    for name in ("chronoverse_streams_open", "chronoverse_jobs_watched"):
        wait_until(lambda name=name: service.metric(name) == 0, 10, f"{name} is 0")  # type: ignore[misc]
    worker = psutil.Process(service.worker_pids()[0])
    clients = store.ask("INFO", "clients").split(b"connected_clients:")[1]
    # nginx closes its idle connections to the service after 4 s, and the worker after 5 s.
    workers = [worker, *(map(psutil.Process, sorted(endpoint.workers())) if isinstance(endpoint, Nginx) else ())]
    time.sleep(IDLE_SECONDS)
    return {
        "file descriptors": sum(each.num_fds() for each in workers),
        "threads": worker.num_threads(),
        "store connections": int(clients.split(b"\r")[0]),
        "memory bytes": worker.memory_info().rss,
    }


def main() -> int:
    """Runs everything, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--direct", action="store_true")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cv-")))
        store = stack.enter_context(running(directory / "store"))
        service = stack.enter_context(serving(directory, store.url, log_format="json"))
        endpoint: Endpoint = service if asked.direct else stack.enter_context(nginx_for(directory, service))
        ended = Foreign(store.url, "churn", "ended").lines(["x"] * 3).end()
        live = Foreign(store.url, "churn", "live").lines(["x"] * 3)
        head = f"HTTP/1.1\r\nHost: churn\r\nAuthorization: Bearer {service.token()}\r\n\r\n"
        requests = [
            (f"GET {job.path}/events {head}".encode(), enough) for job, enough in ((ended, ENDED), (live, SEEN))
        ]
        open_short_streams(endpoint, requests, min(WARM_UP, asked.streams), asked.at_once)
        before = resources(service, store, endpoint)
        started = time.monotonic()
        open_short_streams(endpoint, requests, asked.streams, asked.at_once)
        seconds = time.monotonic() - started
        after = resources(service, store, endpoint)
        counted = {
            name: int(service.metric(f"chronoverse_streams_{name}"))
            for name in ("started_total", 'ended_total{reason="end"}', 'ended_total{reason="left"}')
        }
    report: dict[str, Any] = {"streams": asked.streams, "a second": round(asked.streams / seconds), "counted": counted}
    print(json.dumps({**report, "before": before, "after": after}, indent=2))
    grown = {name: after[name] - before[name] for name in before}
    memory = grown.pop("memory bytes")
    return int(any(growth > 0 for growth in grown.values()) or memory > GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
