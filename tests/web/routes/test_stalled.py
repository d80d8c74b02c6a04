"""Viewers that do not read a log of long lines: each uses a limited amount of the worker's memory."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.support.memory import resident_bytes
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, request_bytes

#: The number of viewers, and memory per viewer: 256 KiB, one line as JSON, and the overhead of Python.
VIEWERS: Final = 12
VIEWER_BYTES: Final = 2**20
#: Memory for all of them: one read of the store, cached segments, and framed chunks.
SHARED_BYTES: Final = 40 * 2**20
#: All sockets are full if no line is delivered for so many seconds. A worker updates its metrics twice a second.
STILL_SECONDS: Final = 0.7
#: The longest line with the default settings, of characters that take six bytes each in JSON.
LONG: Final = b"\x01" * 65_536


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("stalled"), redis_server.url) as service:
        yield service


@pytest.fixture
def fresh(own: Service) -> Service:
    """The service with a new worker, whose memory is unused."""
    (used,) = own.worker_pids()
    os.kill(used, signal.SIGKILL)
    wait_until(lambda: own.worker_pids() not in ([], [used]), PATIENCE_SECONDS, "another worker is there")
    return own


@pytest.mark.long
@pytest.mark.parametrize(
    ("short", "query"),
    [
        pytest.param(0, "", id="long from the beginning"),
        pytest.param(900, "", id="long after short ones"),
        pytest.param(900, "?stream=stdout", id="one stream"),
    ],
)
def test_a_stalled_replay_of_long_lines_needs_little_memory(
    fresh: Service, redis_server: RedisServer, job: Foreign, short: int, query: str
) -> None:
    """However many lines a read of the store returns, and even if lines suddenly become long."""
    messages = [b"short"] * short + [LONG] * 200
    entries = [
        ("XADD", job.key, f"{number}-0", "timestamp", TIMESTAMP, "message", message, "stream", "stdout")
        for number, message in enumerate(messages, 1)
    ]
    ask_all(redis_server.url, entries)
    # It answers as soon as it has started.
    had = delivered(fresh)
    pid = fresh.worker_pids()[0]
    before = resident_bytes(pid)
    with ExitStack() as stack:
        for _ in range(VIEWERS):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((fresh.host, fresh.port))
            sock.sendall(request_bytes(f"{job.path}/events{query}".encode(), fresh.token()))
        wait_until(
            lambda: delivered(fresh) - had >= VIEWERS * (short + 1), PATIENCE_SECONDS, "all have come to the long lines"
        )
        wait_until(lambda: is_stalled(fresh), PATIENCE_SECONDS, "no socket takes more")
        growth = resident_bytes(pid) - before

    assert growth < VIEWERS * VIEWER_BYTES + SHARED_BYTES


def delivered(service: Service) -> float:
    """The number of lines delivered to all viewers."""
    return service.metric("chronoverse_lines_delivered_total")


def is_stalled(service: Service) -> bool:
    """Whether no line was delivered for :data:`STILL_SECONDS`."""
    before = delivered(service)
    time.sleep(STILL_SECONDS)
    return delivered(service) == before
