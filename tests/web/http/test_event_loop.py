"""Work of no hurry: it goes on when nobody else has anything to do, and in the end all the same."""

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

#: Seconds that anything here may take.
PATIENCE_SECONDS = 5.0
#: Who asks.
READER = Principal("tests", float("inf"), frozenset({READ}), frozenset({"*"}))
#: A service whose store nobody asks.
SETTINGS = Settings.from_env({"CHRONOVERSE_REDIS_URL": "redis://localhost:1", "CHRONOVERSE_JWT_SECRET": "s" * 32})


@contextmanager
def running(*work: Callable[[], object]) -> Iterator[list["gevent.Greenlet[[], object]"]]:
    """A greenlet for each, which all end with this."""
    greenlets = [gevent.spawn(each) for each in work]
    try:
        with gevent.Timeout(PATIENCE_SECONDS):
            yield greenlets
    finally:
        gevent.killall(greenlets)


def test_it_goes_on_at_once_where_there_is_nothing_else() -> None:
    """A thousand times, and never because its time was over. The machine may make this process wait: five tries."""
    assert any(all(wait_until_idle() for _ in range(1000)) for _ in range(5))


def test_everybody_else_goes_first() -> None:
    """Whoever has several things to do one after the other, each of them after a look at the sockets."""
    done: list[int] = []

    def busy() -> None:
        for number in range(10):
            yield_to_loop()
            done.append(number)

    with running(busy):
        assert wait_until_idle()
        assert done == [*range(10)]


def test_a_socket_that_has_news_goes_first() -> None:
    """It is heard before the work goes on, also when it spoke while that went on."""
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []

    def hear() -> None:
        gevent.socket.wait_read(ours.fileno())
        heard.append(ours.recv(1))

    with ours, theirs, running(hear):
        assert wait_until_idle()
        theirs.send(b"x")
        assert wait_until_idle()
        assert heard == [b"x"]


def test_long_work_stands_back_as_well() -> None:
    """Though the loop has not looked at its clock meanwhile."""
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
    """Always has something to do."""
    while True:
        yield_to_loop()


def test_it_is_not_starved() -> None:
    """In a worker that has no rest it goes on each time that it has stood back for so long."""
    with running(restless):
        began = time.monotonic()
        assert not any(wait_until_idle() for _ in range(3))
        assert time.monotonic() - began > 2 * MAX_IDLE_WAIT_SECONDS


@pytest.mark.skipif(
    not monkey.is_module_patched("threading"), reason="turns are for greenlets only where it is patched"
)
def test_those_that_wait_go_on_one_after_the_other() -> None:
    """Between two of them is a round in which somebody else may come."""
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


def test_a_request_stands_back_for_so_long_and_no_longer() -> None:
    """However often it has to: then it only lets others go on. The next request begins anew."""
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


def test_who_may_not_search_stands_back_for_nobody() -> None:
    """Or whoever comes without a token, and often enough, would take every moment there is for that."""
    made = build_dependencies(SETTINGS)
    with closing(made.store), made.idle_lock:
        answer = build_app(made).test_client().get("/workflows/wf_1/jobs/job_1/logs/search?q=a")

    assert answer.status_code == 401
