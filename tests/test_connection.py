"""A socket that is watched for its peer's leaving, in gevent's loop."""

import socket
from collections.abc import Iterator
from typing import Final

import gevent
import pytest

from chronoverse.web.connection import on_hangup
from chronoverse.web.fairness import let_others

#: Turns of the loop after which all that was pending has happened.
TURNS: Final = 10


def turn() -> None:
    """Lets the loop look at its sockets a few times."""
    for _ in range(TURNS):
        let_others()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours and the peer's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_who_is_told_of_a_hang_up_may_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    """As for a lock that somebody holds: in the loop itself that would fail, and nobody would be told."""
    told = []

    def left(why: str) -> None:
        gevent.sleep(0)
        told.append(why)

    on_hangup(pair[0], left)
    pair[1].close()
    with gevent.Timeout(5):
        while not told:
            turn()

    assert told == ["left"]


def test_nobody_is_told_who_no_longer_watches(pair: tuple[socket.socket, socket.socket]) -> None:
    """Also when the peer left just before, and the word of it is on its way."""
    told: list[str] = []
    undo = on_hangup(pair[0], told.append)
    pair[1].close()
    gevent.get_hub().loop.run_callback(undo)
    turn()

    assert told == []


def test_a_word_from_the_peer_is_no_hang_up(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is left where it is, for whoever reads next."""
    told: list[str] = []
    undo = on_hangup(pair[0], told.append)
    pair[1].send(b"x")
    turn()
    # Or the loop would be left with a socket that is closed.
    undo()

    assert (told, pair[0].recv(1)) == ([], b"x")
