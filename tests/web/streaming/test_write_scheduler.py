"""The write scheduler: writes to a full socket once it has room, and gives up on one that stays full too long."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import gevent
import pytest

from chronoverse.web.guards.connection import STALL_SECONDS
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.streaming.stream_writer import StreamWriter, WriteScheduler
from tests.support.reading import Clock

#: Time limit of any wait, in seconds.
MAX_WAIT_SECONDS: Final = 5.0
#: Rounds of the event loop after which all pending events have been handled. Each round polls all sockets.
LOOP_ROUNDS: Final = 10


class FullSocket:
    """A full socket, watched by ``scheduler``. ``calls`` lists the callbacks that were called."""

    def __init__(self, scheduler: WriteScheduler) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.ours.send(bytes(65536))
        self.calls: list[str] = []
        self.write_more: Callable[[], None] = self.note_write
        self.write_watch: Any = None
        self.writer = cast(StreamWriter, self)
        self._scheduler = scheduler
        scheduler.watch(self.writer)

    def fileno(self) -> int:
        return self.ours.fileno()

    def note_write(self) -> None:
        self.calls.append("write more")

    def give_up(self) -> None:
        self.calls.append("give up")
        self.end_watch()

    def end_watch(self) -> None:
        self._scheduler.remove(self.writer)

    def renew(self) -> None:
        self._scheduler.renew(self.writer)

    def make_room(self) -> None:
        """Reads everything at the peer's end."""
        self.theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.theirs.recv(1 << 20):
                pass

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def full_sockets(clock: Clock) -> Iterator[tuple[FullSocket, FullSocket]]:
    scheduler = WriteScheduler(clock)
    both = FullSocket(scheduler), FullSocket(scheduler)
    yield both
    for each in both:
        each.end_watch()
        each.close()


def wait_for(each: FullSocket, call: str) -> None:
    with gevent.Timeout(MAX_WAIT_SECONDS):
        while call not in each.calls:
            gevent.sleep(0.01)


def run_loop() -> None:
    """Lets the event loop poll its sockets a few times."""
    for _ in range(LOOP_ROUNDS):
        yield_to_loop()


def test_only_a_socket_with_room_is_written_to(full_sockets: tuple[FullSocket, FullSocket]) -> None:
    full_sockets[1].make_room()
    wait_for(full_sockets[1], "write more")

    assert full_sockets[0].calls == []


def test_a_socket_is_written_to_until_it_is_closed(full_sockets: tuple[FullSocket, FullSocket]) -> None:
    """Repeatedly while it has room, and never once it is closed."""
    full_sockets[0].make_room()
    wait_for(full_sockets[0], "write more")
    full_sockets[0].calls.clear()
    wait_for(full_sockets[0], "write more")
    full_sockets[0].end_watch()
    full_sockets[0].calls.clear()
    run_loop()

    assert full_sockets[0].calls == []


def test_a_queued_socket_closed_by_another_is_not_written_to(full_sockets: tuple[FullSocket, FullSocket]) -> None:
    """Both have room at the same time, and the first one written to closes the other."""
    for each, other in (full_sockets, full_sockets[::-1]):

        def write_and_close_other(each: FullSocket = each, other: FullSocket = other) -> None:
            each.note_write()
            other.end_watch()

        each.write_more = write_and_close_other
        each.make_room()
    with gevent.Timeout(MAX_WAIT_SECONDS):
        while not full_sockets[0].calls + full_sockets[1].calls:
            gevent.sleep(0.01)
    run_loop()

    assert [] in (full_sockets[0].calls, full_sockets[1].calls)


def test_a_socket_that_stays_full_is_given_up_on(full_sockets: tuple[FullSocket, FullSocket], clock: Clock) -> None:
    """Unless its write was renewed meanwhile: each write has its own timeout."""
    run_loop()
    clock.now += STALL_SECONDS - 1
    full_sockets[1].renew()
    clock.now += 2
    wait_for(full_sockets[0], "give up")
    run_loop()

    assert full_sockets[1].calls == []


def test_a_socket_that_waits_for_the_scheduler_is_not_given_up_on(
    full_sockets: tuple[FullSocket, FullSocket], clock: Clock
) -> None:
    """It is late because of the worker, not of its client."""

    def write_for_long() -> None:
        full_sockets[1].make_room()
        run_loop()
        clock.now += STALL_SECONDS + 1

    full_sockets[0].write_more = write_for_long
    full_sockets[0].make_room()
    wait_for(full_sockets[1], "write more")

    assert "give up" not in full_sockets[1].calls


def test_an_error_affects_only_its_own_socket(full_sockets: tuple[FullSocket, FullSocket]) -> None:
    """The failing one is not called again; the other is still written to."""

    def fail() -> None:
        full_sockets[0].note_write()
        raise ZeroDivisionError

    full_sockets[0].write_more = fail
    full_sockets[0].make_room()
    wait_for(full_sockets[0], "write more")
    full_sockets[1].make_room()
    wait_for(full_sockets[1], "write more")

    assert full_sockets[0].calls == ["write more"]


def test_an_idle_scheduler_serves_the_next_socket(clock: Clock) -> None:
    """It goes on with the next full socket."""
    scheduler = WriteScheduler(clock)
    for _ in range(2):
        full = FullSocket(scheduler)
        full.make_room()
        wait_for(full, "write more")
        full.end_watch()
        full.close()
        run_loop()
