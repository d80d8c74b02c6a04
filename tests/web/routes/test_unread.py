"""Answers that nobody reads: they hold little, they are given up in time, and they are in nobody's way."""

import http.client
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.auth.tokens import mint
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import ROOT, SECRET, Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Door, request_bytes

#: Seconds within which the service must say that it is up, whatever else is going on.
HEALTH_SECONDS: Final = 0.3
#: Seconds that an attack lasts unless the test is over before, and for which health is asked for.
ATTACK_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 2.0
#: Descriptors of a worker that is allowed few.
FEW_DESCRIPTORS: Final = 250
#: A line that is six times as long in JSON, where each of its characters is an escape.
LONG_LINE: Final = "\x01" * 2_000
#: Pages of such lines, of 3.6 MB each, that one token asks for; and bytes that a worker may grow by meanwhile.
ASKED: Final = 12
UNREAD_MEMORY: Final = 100 * 2**20
EXPIRED: Final = 'chronoverse_connections_cut_total{reason="expired"}'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service that takes ten streams, and so 210 connections."""
    with serving(tmp_path_factory.mktemp("small"), redis_server.url, max_streams=10) as service:
        yield service


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, small: Service) -> Iterator[Nginx]:
    """nginx before it."""
    with Nginx(tmp_path_factory.mktemp("nginx"), [(small.host, small.port)]) as nginx:
        yield nginx


def token(subject: str, seconds: int = 600) -> str:
    """A token of ``subject``'s for reading anything."""
    return mint(SECRET, subject, ("logs:read",), ("*",), seconds, time.time())


def ask(service: Service, path: str, subject: str) -> httpx.Response:
    """One request, its answer read at once."""
    return httpx.get(f"{service.url}{path}", headers={"Authorization": f"Bearer {token(subject)}"}, timeout=10)


def memory(service: Service) -> int:
    """Bytes of its workers."""
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in service.worker_pids())


def read_all(sock: socket.socket) -> None:
    """Reads on in a chunked body, whose head has been read in part, to its end or where it breaks off."""
    data = b""
    while more := sock.recv(65_536):
        data += more
    if not data.endswith(b"0\r\n\r\n"):
        raise http.client.IncompleteRead(b"")


@contextmanager
def unread(door: Service | Nginx, connections: int, what: str = "requests") -> Iterator[None]:
    """An attack by :mod:`tests.support.unread`, under way in the block."""
    command = [sys.executable, "-m", "tests.support.unread", what, door.host, str(door.port), str(connections)]
    command += [str(ATTACK_SECONDS), *([str(door.certificate)] if isinstance(door, Nginx) else [])]
    attack = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert attack.stdout is not None
        assert attack.stdout.readline() == b"open\n"
        yield
    finally:
        attack.kill()
        attack.communicate()


def health_seconds(door: Door) -> list[float]:
    """How long ``/healthz`` took in :data:`LOOK_SECONDS`, each time on a new connection, the shortest first."""
    found, until = [], time.monotonic() + LOOK_SECONDS
    while time.monotonic() < until:
        began = time.monotonic()
        assert httpx.get(f"{door.url}/healthz", verify=door.verify, timeout=5).status_code == 200
        found.append(time.monotonic() - began)
        time.sleep(0.02)
    return sorted(found)


@pytest.mark.parametrize(
    ("name", "connections"),
    [
        ("direct", 215),
        pytest.param("direct", 2000, marks=pytest.mark.long),
        pytest.param("nginx", 300, marks=pytest.mark.long),
    ],
)
def test_connections_that_read_no_answer_do_not_keep_others_out(
    small: Service, behind: Nginx, name: str, connections: int
) -> None:
    """The service takes fewer connections than these, and answers all the same."""
    door = small if name == "direct" else behind
    with unread(door, connections):
        found = health_seconds(door)
    # One in ten may be due to whatever else this machine does.
    assert found[len(found) * 9 // 10] < HEALTH_SECONDS


def test_long_heads_do_not_keep_others_out(small: Service) -> None:
    """They are refused before they cost much, one at a time."""
    with unread(small, 300, "headers"):
        found = health_seconds(small)
    assert found[len(found) * 9 // 10] < HEALTH_SECONDS


def test_connections_leave_descriptors_to_everything_else(small: Service) -> None:
    """Where the system allows fewer than there are places: the store is still reached, and files are opened."""
    (pid,) = small.worker_pids()
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, allowed[1]))
    try:
        with unread(small, FEW_DESCRIPTORS - 70):
            status = httpx.get(f"{small.url}/readyz", timeout=15).status_code
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)

    assert status == 200
    assert "Too many open files" not in small.logs()


def test_what_one_token_leaves_unread_is_bounded(small: Service, redis_server: RedisServer) -> None:
    """It gets a part of the answers that it asks for, and a time to come back; others get theirs, and it small ones."""
    job = Foreign(redis_server.url, "unread", "long").lines([LONG_LINE] * 300)
    page = f"{job.path}/logs?limit=300"
    before = memory(small)
    with ExitStack() as stack:
        greedy = [stack.enter_context(small.connect(PATIENCE_SECONDS)) for _ in range(ASKED)]
        for sock in greedy:
            # Little is on its way, so that answers wait in the service.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request_bytes(page.encode(), token("greedy")))
        heads = [sock.recv(12) for sock in greedy]
        grown = memory(small) - before
        refused = [sock for sock, head in zip(greedy, heads, strict=True) if head == b"HTTP/1.1 429"]
        assert heads.count(b"HTTP/1.1 200") == ASKED - len(refused) > 0
        assert refused
        assert b"Retry-After: " in refused[0].recv(65_536)
        assert ask(small, f"{job.path}/logs?limit=1", "greedy").status_code == 200
        assert ask(small, page, "other").status_code == 200
    assert grown < UNREAD_MEMORY
    wait_until(lambda: ask(small, page, "greedy").status_code == 200, PATIENCE_SECONDS, "the share is given back")


def test_a_short_page_finds_room_beside_many_answers_that_are_not_read(
    small: Service, redis_server: RedisServer
) -> None:
    """Whatever its ``limit`` would allow, and however many tokens leave as much unread as they may."""
    long = Foreign(redis_server.url, "unread", "held").lines([LONG_LINE] * 300)
    short = Foreign(redis_server.url, "unread", "short").lines(["a line"])
    with ExitStack() as stack:
        for subject in ("first", "second", "third", "fourth"):
            greedy = [stack.enter_context(small.connect(PATIENCE_SECONDS)) for _ in range(5)]
            for sock in greedy:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.sendall(request_bytes(f"{long.path}/logs?limit=300".encode(), token(subject)))
            assert {sock.recv(12) for sock in greedy} - {b"HTTP/1.1 200"}
        assert ask(small, f"{short.path}/logs?limit=1000", "newcomer").status_code == 200


@pytest.mark.long
def test_a_download_ends_with_its_token(small: Service, redis_server: RedisServer) -> None:
    """The client can tell that it is not whole."""
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
