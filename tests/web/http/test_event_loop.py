"""Work of low priority: it continues when the event loop is idle, or after a bounded time."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import gevent
import pytest
from flask import Flask, g
from gevent import monkey

from chronoverse.auth.tokens import READ, Principal
from chronoverse.live.fair_lock import FairLock
from chronoverse.settings import Settings
from chronoverse.web.app import build_app, build_dependencies
from chronoverse.web.http.dependencies import IDLE_SLOT_SECONDS
from chronoverse.web.http.event_loop import MAX_IDLE_WAIT_SECONDS, wait_until_idle, yield_to_loop

#: Seconds that each test may take.
PATIENCE_SECONDS = 5.0
#: The user who sends the requests.
READER = Principal("tests", float("inf"), frozenset({READ}), frozenset({"*"}))
#: Settings of a service whose store is never used.
SETTINGS = Settings.from_env({"CHRONOVERSE_REDIS_URL": "redis://localhost:1", "CHRONOVERSE_JWT_SECRET": "s" * 32})


@contextmanager
def running(*work: Callable[[], object]) -> Iterator[list["gevent.Greenlet[[], object]"]]:
    """Runs a greenlet for each function, and kills them at the end."""
    greenlets = [gevent.spawn(each) for each in work]
    try:
        with gevent.Timeout(PATIENCE_SECONDS):
            yield greenlets
    finally:
        gevent.killall(greenlets)


def test_it_returns_at_once_when_nothing_else_runs() -> None:
    """A thousand times, and never because its time is over.

    The machine may pause this process, so there are five tries.
    """
    assert any(all(wait_until_idle() for _ in range(1000)) for _ in range(5))


def test_other_greenlets_run_first() -> None:
    """Also a greenlet that does several things, and lets the loop check the sockets between them."""
    done: list[int] = []

    def busy() -> None:
        for number in range(10):
            yield_to_loop()
            done.append(number)

    with running(busy):
        assert wait_until_idle()
        assert done == [*range(10)]


def test_a_greenlet_whose_socket_has_data_runs_first() -> None:
    """Also when the data arrived while the low-priority work ran."""
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def receive() -> None:
        gevent.socket.wait_read(ours.fileno())
        received.append(ours.recv(1))

    with ours, theirs, running(receive):
        assert wait_until_idle()
        theirs.send(b"x")
        assert wait_until_idle()
        assert received == [b"x"]


def test_other_greenlets_run_first_after_long_work() -> None:
    """The loop has not updated its clock during the work."""
    done: list[int] = []

    def busy() -> None:
        yield_to_loop()
        done.append(1)

    with running(busy):
        until = time.monotonic() + 2 * MAX_IDLE_WAIT_SECONDS
        while time.monotonic() < until:
            pass
        assert wait_until_idle()
        assert done == [1]


def restless() -> None:
    """A greenlet that always has something to do."""
    while True:
        yield_to_loop()


def test_it_is_not_starved() -> None:
    """In a worker that is never idle, it continues after it has waited for the bounded time."""
    with running(restless):
        began = time.monotonic()
        assert not any(wait_until_idle() for _ in range(3))
        assert time.monotonic() - began > 2 * MAX_IDLE_WAIT_SECONDS


@pytest.mark.skipif(
    not monkey.is_module_patched("threading"), reason="the lock is fair between greenlets only if threading is patched"
)
def test_waiting_greenlets_continue_one_after_the_other() -> None:
    """Between two of them, the loop lets others run."""
    order: list[str] = []
    idle_lock = FairLock(PATIENCE_SECONDS, TimeoutError, wait_until_idle)

    def work(name: str) -> None:
        for _ in range(3):
            with idle_lock:
                pass
            order.append(name)
            gevent.spawn(order.append, "other")

    with running(lambda: work("a"), lambda: work("b")) as greenlets:
        gevent.joinall(greenlets)
        yield_to_loop()

    assert order == ["a", "other", "b", "other"] * 3


def test_a_request_waits_for_idle_slots_for_a_bounded_time() -> None:
    """Afterwards it only yields to the loop, however often it asks. The next request may wait again."""
    now = 100.0
    made = replace(build_dependencies(SETTINGS), monotonic=lambda: now)

    def seconds(times: int) -> float:
        began = time.monotonic()
        for _ in range(times):
            made.wait_for_idle_slot()
        return time.monotonic() - began

    with closing(made.store), running(restless):
        with Flask(__name__).app_context():
            g.principal = READER
            assert seconds(3) > 2 * MAX_IDLE_WAIT_SECONDS
            now += IDLE_SLOT_SECONDS + 1
            assert seconds(100) < 50 * MAX_IDLE_WAIT_SECONDS
        with Flask(__name__).app_context():
            g.principal = READER
            assert seconds(3) > 2 * MAX_IDLE_WAIT_SECONDS


def test_a_client_without_a_token_takes_no_idle_slot() -> None:
    """Otherwise such clients could use up all idle slots."""
    made = build_dependencies(SETTINGS)
    with closing(made.store), made.idle_lock:
        answer = build_app(made).test_client().get("/workflows/wf_1/jobs/job_1/logs/search?q=a")

    assert answer.status_code == 401
