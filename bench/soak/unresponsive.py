"""A viewer that reads 1 KB/s of a job that prints 400 KB/s, and another viewer that reads everything.

    python -m bench.soak.unresponsive

Prints how long the slow viewer stayed connected, and how late the other got lines. Fails when it stayed too long.
"""

import contextlib
import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from chronoverse.web.guards.connection import STALL_SECONDS
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream, request_bytes

#: Lines a second of the job, and bytes of each: more than a viewer can read at 1 KB/s.
RATE, LINE_BYTES = 100, 4_000
#: Seconds by which a busy machine may exceed the bounds.
SLACK_SECONDS: Final = 5.0


def write(job: Foreign, stop: threading.Event) -> None:
    """The job's runner."""
    while not stop.wait(10 / RATE):
        job.lines(["x" * LINE_BYTES] * 10)


def slow_reader(service: Service, job: Foreign) -> tuple[float, float]:
    """How many seconds a viewer at 1 KB/s stays connected, and the longest delay of a line for the other viewer."""
    stop, worst = threading.Event(), 0.0
    headers = {"Authorization": f"Bearer {service.token()}"}
    with socket.socket() as sock, Stream(service, f"{job.path}/events?offset=latest", headers) as other:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((service.host, service.port))
        sock.sendall(request_bytes(f"{job.path}/events".encode(), service.token()))
        writer = threading.Thread(target=write, args=(job, stop))
        writer.start()
        started = time.monotonic()
        name = 'chronoverse_streams_ended_total{reason="slow"}'
        try:
            while service.metric(name) < 1:
                with contextlib.suppress(OSError):
                    sock.recv(100)
                next_id, began = b"\nid: %d\n\n" % (job.last + 1), time.monotonic()
                other.wait_for(next_id, 5)
                worst = max(worst, time.monotonic() - began)
                # The first write may be short enough to end in time, but not the next one.
                assert time.monotonic() - started < 2 * STALL_SECONDS + SLACK_SECONDS, (
                    "the slow viewer is still connected"
                )
        finally:
            stop.set()
            writer.join()
        return round(time.monotonic() - started, 1), round(worst, 3)


def main() -> None:
    """Runs it, and prints the results."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory) / "store") as store,
        serving(Path(directory), store.url) as service,
    ):
        slow, worst = slow_reader(service, Foreign(store.url, "far", "busy").lines(["x"]))
    report = {"connected for s": slow, "the other's longest wait for the next batch, s": worst}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
