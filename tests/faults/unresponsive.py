"""Viewers who do not answer: one that reads 1 KB/s among others that read, and one behind a link that goes silent.

    python -m tests.faults.unresponsive

The second needs a network namespace, so root. Prints how long each was kept, and what the others noticed; exits with 1
when either was kept for too long.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chronoverse.web.connection import SEND_SECONDS, USER_TIMEOUT_MS
from tests.http.foreign import Foreign
from tests.http.wire import Stream, request_bytes
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

NAMESPACE: Final = "chronoverse-far"
NEAR, FAR = "198.18.0.1", "198.18.0.2"
#: Lines/s of the job, and bytes of each: more than anybody reads at 1 KB/s.
RATE, LINE_BYTES = 100, 4_000
#: Seconds between heartbeats, and what a machine may take beyond the bounds.
HEARTBEAT_SECONDS: Final = 1
SLACK_SECONDS: Final = 5.0

_FAR_VIEWER: Final = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.sendall(sys.stdin.buffer.read())
while sock.recv(65536):
    pass
"""


@contextlib.contextmanager
def far_away() -> Iterator[None]:
    """A namespace at the other end of a pair of links."""
    commands = [
        f"ip netns add {NAMESPACE}",
        f"ip link add cvnear type veth peer name cvfar netns {NAMESPACE}",
        f"ip addr add {NEAR}/30 dev cvnear",
        "ip link set cvnear up",
        f"ip -n {NAMESPACE} addr add {FAR}/30 dev cvfar",
        f"ip -n {NAMESPACE} link set cvfar up",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        # The namespace itself lives on for as long as a socket in it does.
        for command in ("ip link del cvnear", f"ip netns del {NAMESPACE}"):
            subprocess.run(command.split(), check=False)


def write(job: Foreign, stop: threading.Event) -> None:
    """The job's runner."""
    while not stop.wait(10 / RATE):
        job.lines(["x" * LINE_BYTES] * 10)


def kept(service: Service, reason: str, since: float, bound: float) -> float:
    """Seconds until a stream has ended for that reason."""
    name = f'chronoverse_streams_ended_total{{reason="{reason}"}}'
    wait_until(lambda: service.metric(name) >= 1, bound + SLACK_SECONDS, name)
    return round(time.monotonic() - since, 1)


def silent_link(service: Service, path: str) -> float:
    """Seconds for which a viewer is kept whose packets stop coming, and who is sent no line either, but heartbeats."""
    request = request_bytes(path.encode(), service.token())
    command = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-c", _FAR_VIEWER, NEAR, str(service.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as viewer:
        assert viewer.stdin is not None
        viewer.stdin.write(request)
        viewer.stdin.close()
        wait_until(lambda: service.metric("chronoverse_streams_open") == 1, 10, "it watches")
        subprocess.run(["ip", "link", "set", "cvnear", "down"], check=True)
        try:
            return kept(service, "slow", time.monotonic(), USER_TIMEOUT_MS / 1000 + HEARTBEAT_SECONDS)
        finally:
            viewer.kill()


def slow_reader(service: Service, job: Foreign) -> tuple[float, float]:
    """Seconds for which a viewer is kept who reads 1 KB/s, and the longest that a line took to another meanwhile."""
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
            while service.metric(name) < 2:
                with contextlib.suppress(OSError):
                    sock.recv(100)
                wanted, asked = b"\nid: %d\n\n" % (job.last + 1), time.monotonic()
                other.wait_for(wanted, 5)
                worst = max(worst, time.monotonic() - asked)
                # Its first write may be so short that it ends in time, but not the next.
                assert time.monotonic() - started < 2 * SEND_SECONDS + SLACK_SECONDS, "the slow one is kept"
        finally:
            stop.set()
            writer.join()
        return round(time.monotonic() - started, 1), round(worst, 3)


def main() -> int:
    """The whole run."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(running(directory / "store"))
        stack.enter_context(far_away())
        service = stack.enter_context(
            serving(directory, store.url, heartbeat_seconds=HEARTBEAT_SECONDS, bind="0.0.0.0:0")
        )
        silent = silent_link(service, f"{Foreign(store.url, 'far', 'quiet').lines(['x']).path}/events")
        slow, worst = slow_reader(service, Foreign(store.url, "far", "busy").lines(["x"]))
    report = {
        "behind a silent link, kept for s": silent,
        "reading 1 KB/s, kept for s": slow,
        "another viewer's longest wait for the next batch, s": worst,
    }
    print(json.dumps(report, indent=2))
    return int(silent > USER_TIMEOUT_MS / 1000 + 2 * HEARTBEAT_SECONDS + SLACK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
