"""Large answers, and answers that clients do not read: they use limited memory, time out, and delay nobody."""

import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.auth.minting import mint
from chronoverse.web.guards.turns import UNREAD_WAIT_SECONDS
from tests.support.memory import peak_bytes, reset_peak, resident_bytes
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, request_bytes

#: Each test starts processes, so they run in CI.
pytestmark = pytest.mark.long

#: The maximum duration of an attack, and the duration of the health checks, in seconds.
ATTACK_SECONDS: Final = 20.0
#: Six times as long in JSON, because every character is escaped.
LONG_LINE: Final = "\x01" * 2_000
#: The number of pages of such lines per token, each of 3.6 MB, and how much the worker's memory can grow.
ASKED: Final = 12
UNREAD_MEMORY: Final = 100 * 2**20
EXPIRED: Final = 'chronoverse_connections_cut_total{reason="expired"}'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with a limit of ten streams, and so of 210 connections."""
    with serving(tmp_path_factory.mktemp("small"), redis_server.url, max_streams=10) as service:
        yield service


def token(subject: str, seconds: int = 600) -> str:
    return mint(SECRET, subject, ("logs:read",), ("*",), seconds, time.time())


def ask(service: Service, path: str, subject: str) -> httpx.Response:
    """Sends one request and reads the answer immediately."""
    headers = {"Authorization": f"Bearer {token(subject)}"}
    return httpx.get(f"{service.url}{path}", headers=headers, timeout=ATTACK_SECONDS, verify=service.verify)


def memory(service: Service) -> int:
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in service.worker_pids())


def read_all(sock: socket.socket) -> None:
    """Reads the rest of a chunked body, until it ends or is cut off."""
    data = b""
    while more := sock.recv(65_536):
        data += more
    if not data.endswith(b"0\r\n\r\n"):
        raise http.client.IncompleteRead(b"")


def test_unread_answers_of_a_token_are_limited(small: Service, redis_server: RedisServer) -> None:
    """It gets some of them, and 429 with Retry-After for the rest. Others get theirs, and it still gets small ones.

    Pages over its share are not built: after waiting for room for some seconds, they are rejected.
    """
    job = Foreign(redis_server.url, "unread", "long").lines([LONG_LINE] * 300)
    page = f"{job.path}/logs?limit=300"
    before = memory(small)
    with ExitStack() as stack:
        greedy = [stack.enter_context(small.connect(PATIENCE_SECONDS)) for _ in range(ASKED)]
        for sock in greedy:
            # A small receive buffer, so that answers wait in the service.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request_bytes(page.encode(), token("greedy")))
        began = time.monotonic()
        heads = [sock.recv(12) for sock in greedy]
        assert time.monotonic() - began >= UNREAD_WAIT_SECONDS
        grown = memory(small) - before
        refused = [sock for sock, head in zip(greedy, heads, strict=True) if head == b"HTTP/1.1 429"]
        assert heads.count(b"HTTP/1.1 200") == ASKED - len(refused) > 0
        assert refused
        assert b"Retry-After: " in refused[0].recv(65_536)
        assert ask(small, f"{job.path}/logs?limit=1", "greedy").status_code == 200
        assert ask(small, page, "other").status_code == 200
    assert grown < UNREAD_MEMORY
    wait_until(lambda: ask(small, page, "greedy").status_code == 200, PATIENCE_SECONDS, "the share is given back")


def test_a_download_is_cut_off_when_its_token_expires(small: Service, redis_server: RedisServer) -> None:
    """The client can tell that it is incomplete."""
    job = Foreign(redis_server.url, "unread", "download").lines(["x" * 60_000] * 200)
    with small.connect(PATIENCE_SECONDS) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        began = time.monotonic()
        sock.sendall(request_bytes(f"{job.path}/logs/raw".encode(), token("brief", 2)))
        sock.recv(1)
        wait_until(lambda: small.metric(EXPIRED) == 1, PATIENCE_SECONDS, "it is cut")
        ended = time.monotonic() - began
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            read_all(sock)

    assert 1 <= ended < 4
    assert "Traceback" not in small.logs()
    assert small.metric("chronoverse_streams_open") == 0


def test_concurrent_pages_share_limited_memory(service: Service, auth: dict[str, str], job: Foreign) -> None:
    """Pages become shorter, and each has a cursor. Each character takes 6 bytes in JSON: together, 12 MB."""
    job.lines(["\x01" * 65_536] * 30)
    (pid,) = service.worker_pids()
    reset_peak(pid)
    before = resident_bytes(pid)

    def ask(_: int) -> list[int]:
        path = f"{service.url}{job.path}/logs/search?q=%01&limit=1000&before=3"
        response = httpx.get(path, headers=auth, timeout=60, verify=False)
        assert response.status_code in (200, 429), response.text
        return [log["sequence_num"] for log in response.json().get("logs", [])]

    with ThreadPoolExecutor(100) as pool:
        found = [each for each in pool.map(ask, range(100)) if each]

    assert found
    assert all(each == [*range(1, len(each) + 1)] for each in found)
    assert peak_bytes(pid) - before < 150 * 2**20
