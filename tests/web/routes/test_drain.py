"""The drain of a worker during shutdown."""

import http.client
import itertools
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Final

import httpx
import pytest

from chronoverse.auth.minting import mint
from chronoverse.web.guards.admission import DRAIN_STEP_SECONDS
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Endpoint, Stream, receive, request_bytes

#: Starts services of its own.
pytestmark = pytest.mark.long

DRAIN_SECONDS: Final = 4
PROBLEM: Final = "application/problem+json"

_numbers = itertools.count(1)


@pytest.fixture
def job(redis_server: RedisServer) -> Foreign:
    return Foreign(redis_server.url, "drain", f"job_{next(_numbers)}").lines(["x"] * 3)


@pytest.fixture(scope="module")
def draining(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("draining"), redis_server.url, drain_seconds=DRAIN_SECONDS) as service:
        yield service


def token(subject: str) -> str:
    return mint(SECRET, subject, ("logs:read",), ("*",), 600, time.time())


def watch(endpoint: Endpoint, job: Foreign, subject: str, address: str) -> Stream:
    """Opens a stream with ``address`` in X-Forwarded-For. The service trusts proxies on this machine."""
    forwarded = {"X-Forwarded-For": address, "Forwarded": f"for={address}"}
    return Stream(endpoint, f"{job.path}/events", {"Authorization": f"Bearer {token(subject)}", **forwarded})


def answer(sock: socket.socket, target: str, *lines: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends one request on an open connection and returns the answer."""
    request = request_bytes(target.encode(), token("late"), *lines).replace(b"Connection: close\r\n", b"")
    sock.sendall(request)
    return receive(sock)


def test_ctrl_c_stops_the_service_immediately_without_a_traceback(
    tmp_path: Path, redis_server: RedisServer, job: Foreign
) -> None:
    """A terminal sends SIGINT to the master and the workers. There is no drain, which would take ten minutes."""
    with Service(tmp_path, redis_server.url, workers=2, drain_seconds=600) as service:
        wait_until(lambda: len(service.worker_pids()) == 2, 60, "both workers are there")
        stream = Stream(service, f"{job.path}/events", {"Authorization": f"Bearer {service.token()}"})
        stream.wait_for(b"id: 3\n\n")
        for pid in (*service.worker_pids(), service.pid):
            os.kill(pid, SIGINT)
        service.wait(60)
        stream.close()

        assert "Traceback" not in service.logs()


def test_a_drain_ends_all_streams_in_time(draining: Service, job: Foreign) -> None:
    """All guarantees of a drain in one test, because a drain takes long."""
    address = (draining.host, draining.port)
    with ExitStack() as stack:
        streams = [stack.enter_context(watch(draining, job, f"d{n}", f"203.0.113.{n}")) for n in range(20)]
        for stream in streams:
            stream.wait_for(b"id: 3\n\n")
        # For an existing job, and for one that can still be created.
        pool = stack.enter_context(ThreadPoolExecutor())
        jobs, headers = f"{draining.url}/workflows/drain/jobs", {"Authorization": f"Bearer {token('d0')}"}
        waits = [
            pool.submit(httpx.get, f"{jobs}/{name}/wait?timeout=300", headers=headers, timeout=90)
            for name in (job.job_id, "none")
        ]
        idle = http.client.HTTPConnection(*address, timeout=PATIENCE_SECONDS)
        stack.callback(idle.close)
        idle.request("GET", "/readyz")
        assert idle.getresponse().read() == b'{"status":"ready"}\n'
        # Accepted before the drain; the request is sent during it.
        open_ones = [stack.enter_context(socket.create_connection(address, PATIENCE_SECONDS)) for _ in range(3)]
        wait_until(lambda: draining.metric("chronoverse_streams_open") == 22, PATIENCE_SECONDS, "all are there")
        draining.signal(SIGTERM)
        start = time.monotonic()
        wait_until(lambda: refuses_connections(address), DRAIN_SECONDS, "nobody listens any more")
        ends: list[float] = []
        waiting = list(streams)
        while waiting and time.monotonic() < start + DRAIN_SECONDS + 10:
            ends += [time.monotonic() - start for stream in waiting if stream.ended]
            waiting = [stream for stream in waiting if not stream.ended]
            if ends and open_ones:
                check_draining(answer(open_ones.pop(), "/readyz"))
            time.sleep(0.01)
            if open_ones and len(open_ones) < 3 and time.monotonic() > start + 1.2:
                check_draining(answer(open_ones.pop(), f"{job.path}/events"))
                check_draining(answer(open_ones.pop(), f"{job.path}/events", b"Last-Event-ID: 3"))
        for each in waits:
            # Before their timeout.
            assert (each.result().status_code, each.result().headers["Retry-After"]) == (503, "2")
        # Idle connections are closed, so that no proxy sends its next request there.
        assert idle.sock is None or idle.sock.recv(1) == b""
        # Five seconds according to the settings' documentation, more on a busy machine. After 20 s it would be killed.
        assert draining.wait(DRAIN_SECONDS + 15) == 0

    assert not open_ones
    assert len(ends) == 20
    # There are fewer streams than steps of the drain, so each step ends one.
    assert max(ends) - min(ends) > len(ends) * DRAIN_STEP_SECONDS / 2
    assert max(sum(at <= end < at + 0.5 for end in ends) for at in ends) <= 10
    retries = set()
    for stream in streams:
        assert not stream.cut
        last = stream.blocks()[-1]
        assert list(last) == ["retry"]
        retries.add(int(last["retry"]))
    assert len(retries) > 10
    assert min(retries) >= 1000
    assert max(retries) <= 5000
    assert "why=drain" in draining.logs()
    assert "Traceback" not in draining.logs()


def refuses_connections(address: tuple[str, int]) -> bool:
    """Whether the kernel refuses connections, so that a proxy immediately tries another node."""
    try:
        socket.create_connection(address, PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        # The listener was closed during the connect.
        return False
    return False


def check_draining(answered: tuple[int, dict[str, str], Any]) -> None:
    status, headers, _ = answered
    assert (status, headers["content-type"]) == (503, PROBLEM)
    assert int(headers["retry-after"]) > 0
    assert headers["connection"] == "close"
