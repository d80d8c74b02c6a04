"""The scenario with waiters: what viewers notice of a crowd that waits for lines of the same job."""

import http.client
import json
import multiprocessing
import socket
from collections import Counter
from functools import partial
from multiprocessing.connection import Connection
from typing import Final
from urllib.parse import urlencode

from bench.live import CPU, P50, P99, PATIENCE_SECONDS
from bench.load import Load
from bench.machine import memory, raise_limits
from bench.measure import GRACE_SECONDS, live
from bench.peers.ours import Ours
from bench.peers.store import job_ref
from bench.processes import Failed, wait_until
from bench.produce import Plan
from bench.scenario import Metric, Round, Scenario, Side, Target

#: What is waited for: ten texts and ten expressions. No line has any of them, so each line is compared with all.
PATTERNS: Final = (
    *({"q": f"of none, {number}"} for number in range(10)),
    *({"q": f"T={number} .*behind [b-z]", "regex": "true"} for number in range(10)),
)
#: Waits that may begin at the same time.
WINDOW: Final = 64
#: Seconds of a wait: longer than a round.
WAIT_SECONDS: Final = 300

_spawn = multiprocessing.get_context("spawn")


class WithWaiters(Ours):
    """The same service, with waiters."""


class Waiters:
    """Runs :func:`wait_for_lines` in another process. They all wait when the constructor returns."""

    def __init__(self, peer: Ours, count: int) -> None:
        self._pipe, theirs = _spawn.Pipe()
        args = (peer.port, peer.token("waiter"), count, theirs)
        self._process = _spawn.Process(target=wait_for_lines, args=args, daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def outcomes(self) -> "Counter[str]":
        outcomes: Counter[str] = self._receive()
        return outcomes

    def _receive(self) -> "Counter[str]":
        if not self._pipe.poll(GRACE_SECONDS):
            raise Failed("the waiters do not answer")
        try:
            found: Counter[str] = self._pipe.recv()
        except EOFError:
            raise Failed("the waiters died") from None
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def wait_for_lines(port: int, token: str, count: int, pipe: Connection) -> None:
    """The process of all waiters. Sends a message when all of them wait, and then the outcomes."""
    raise_limits()
    waiters: list[socket.socket] = []
    for first in range(0, count, WINDOW):
        waiters += [_begin_wait(port, token, number) for number in range(first, min(first + WINDOW, count))]
        wait_until(partial(_has_streams, port, len(waiters)), "the waits do not begin")
    pipe.send(Counter())
    pipe.send(Counter(_outcome(waiter) for waiter in waiters))


def _begin_wait(port: int, token: str, number: int) -> socket.socket:
    job = job_ref(0)
    query = urlencode({**PATTERNS[number % len(PATTERNS)], "timeout": WAIT_SECONDS})
    waiter = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    head = f"GET /workflows/{job.workflow_id}/jobs/{job.job_id}/wait?{query} HTTP/1.1\r\nHost: localhost\r\n"
    waiter.sendall(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
    return waiter


def _has_streams(port: int, count: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(text.partition("\nchronoverse_streams_open ")[2].partition("\n")[0] or 0) >= count


def _outcome(waiter: socket.socket) -> str:
    with waiter, http.client.HTTPResponse(waiter) as answer:
        answer.begin()
        outcome: str = json.loads(answer.read()).get("outcome", str(answer.status))
        return outcome


def waits(side: Side, quick: bool) -> Round:
    """1 job, 500 viewers, 200 lines a second; and 2,000 waiters, or none."""
    viewers, lines, count = (100, 600, 200) if quick else (500, 2000, 2000)
    with side.peer(side.workers) as peer:
        load = Load([peer.target(0)], peer.grammar, viewers, lines, PATIENCE_SECONDS + lines / 200, warm=200)
        plan = Plan(lines, rate=200, batch=50)
        if not isinstance(peer, WithWaiters):
            return live(peer, load, plan) | {"versions": peer.versions()}
        before = memory(peer.pids.workers)
        waiters = Waiters(peer, count)
        try:
            after = memory(peer.pids.workers)
            found = live(peer, load, plan) | {"versions": peer.versions()}
            outcomes = waiters.outcomes()
        finally:
            waiters.close()
    if outcomes != {"ended": count}:
        found["wrong"] += 1
        found["stories"] = [f"not all waits saw the end: {dict(outcomes)}", *found["stories"]]
    return found | {"kb_per_waiter": (after.anon - before.anon) / count}


SCENARIOS: Final = (
    Scenario(
        "waits",
        "Waiters",
        "1 job, 500 viewers, 200 lines/s; beside them 2,000 waiters with 20 queries that match nothing, or none",
        (Side(WithWaiters), Side(Ours, label="nobody waits")),
        (
            P50,
            P99,
            CPU,
            Metric("worker_cores", "CPU of the worker", "cores"),
            Metric("kb_per_waiter", "memory per waiter (RssAnon)", "KB", compared=False),
        ),
        waits,
        (
            Target("viewers' p99 at most 1.3 times that without waiters", "p99_ms", 1.3, other="nobody waits"),
            Target("memory per waiter at most 8 KB", "kb_per_waiter", 8),
        ),
    ),
)
