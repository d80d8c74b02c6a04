"""Viewers that read nothing of a log of long lines: each costs the worker a bounded number of bytes."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, request_bytes

#: Viewers, and bytes that each may cost: 256 KiB and a line as JSON, once, and what Python needs around it.
VIEWERS: Final = 12
VIEWER_BYTES: Final = 2**20
#: Bytes that they may cost together beside that: one read of the store, pieces kept for others, and chunks that are
#: framed.
SHARED_BYTES: Final = 40 * 2**20
#: Seconds without a further line after which all sockets are full. A worker tells its metrics twice a second.
STILL_SECONDS: Final = 0.7
#: The longest line that the service's default allows, of characters that JSON spells in six bytes each.
LONG: Final = b"\x01" * 65_536


@pytest.fixture
def own(tmp_path: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service whose memory nothing else has used."""
    with serving(tmp_path, redis_server.url) as service:
        yield service


@pytest.mark.long
@pytest.mark.parametrize(
    ("short", "query"),
    [
        pytest.param(0, "", id="long from the beginning"),
        pytest.param(900, "", id="long behind short ones"),
        pytest.param(900, "?stream=stdout", id="one stream"),
    ],
)
def test_a_stalled_replay_of_long_lines_holds_little(
    own: Service, redis_server: RedisServer, job: Foreign, short: int, query: str
) -> None:
    """However many lines a read of the store brings, and however long they become all of a sudden."""
    messages = [b"short"] * short + [LONG] * 200
    entries = [
        ("XADD", job.key, f"{number}-0", "timestamp", TIMESTAMP, "message", message, "stream", "stdout")
        for number, message in enumerate(messages, 1)
    ]
    ask_all(redis_server.url, entries)
    pid = own.worker_pids()[0]
    before = resident_bytes(pid)
    with ExitStack() as stack:
        for _ in range(VIEWERS):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((own.host, own.port))
            sock.sendall(request_bytes(f"{job.path}/events{query}".encode(), own.token()))
        wait_until(lambda: delivered(own) >= VIEWERS * (short + 1), PATIENCE_SECONDS, "all have come to the long lines")
        wait_until(lambda: stands_still(own), PATIENCE_SECONDS, "no socket takes more")
        held = resident_bytes(pid) - before

    assert held < VIEWERS * VIEWER_BYTES + SHARED_BYTES


def delivered(service: Service) -> float:
    """Lines handed to all viewers together."""
    return service.metric("chronoverse_lines_delivered_total")


def stands_still(service: Service) -> bool:
    """Whether nothing was handed out for a while."""
    before = delivered(service)
    time.sleep(STILL_SECONDS)
    return delivered(service) == before


def resident_bytes(pid: int) -> int:
    """What the process takes of the machine's memory."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
