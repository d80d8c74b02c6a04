"""A client's socket in gevent's loop: watched for the client's leaving, and bounded in what the client may take."""

import math
import socket
import time
from collections.abc import Iterator
from typing import Final

import gevent
import gevent.socket
import pytest

from chronoverse.live.fair_lock import FairLock
from chronoverse.web.http.event_loop import yield_to_loop
from chronoverse.web.streaming.connection import (
    MIN_IDLE_SECONDS,
    SEND_BUFFER_BYTES,
    USER_TIMEOUT_MS,
    Connection,
    Connections,
    SendLimits,
    on_hangup,
    set_socket_options,
)

#: Turns of the loop after which all that was pending has happened.
TURNS: Final = 10


def turn() -> None:
    """Lets the loop look at its sockets a few times."""
    for _ in range(TURNS):
        yield_to_loop()


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


#: More than the kernels of both ends take.
MUCH: Final = bytes(2**20)


class Client:
    """A client of loopback, whose kernel takes little, and the server's end of its connection."""

    def __init__(self, connections: Connections) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            set_socket_options(listener)
            self.sock = gevent.socket.socket()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            self.sock.connect(listener.getsockname())
            accepted = listener.accept()[0]
        self.connection = Connection(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        connections.add(self.connection)

    def read(self, chunk: int, pause: float) -> int:
        """Reads to the end, so many bytes at a time; returns how many there were."""
        read = 0
        with gevent.Timeout(20):
            try:
                while data := self.sock.recv(chunk):
                    read += len(data)
                    gevent.sleep(pause)
            except ConnectionResetError:
                pass
        return read

    def close(self) -> None:
        """Both ends."""
        self.sock.close()
        self.connection.close()


@pytest.fixture
def connections() -> Connections:
    """Two places."""
    return Connections(2, FairLock(1, TimeoutError))


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    """One that is connected."""
    client = Client(connections)
    yield client
    client.close()


def test_what_is_accepted_is_bounded_as_the_listener_is(client: Client) -> None:
    """The kernel doubles the buffer for its own use: see socket(7)."""
    connection = client.connection

    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_MS


@pytest.mark.parametrize(
    ("bounds", "until"),
    [
        (SendLimits(stall_seconds=0.3), math.inf),
        (SendLimits(seconds=0.1, bytes_per_second=len(MUCH) * 5), math.inf),
        (SendLimits(), 0.3),
    ],
    ids=["nothing taken", "too long", "expired"],
)
def test_a_client_that_takes_nothing_is_cut(client: Client, bounds: SendLimits, until: float) -> None:
    """After the time without progress, the time for the whole answer, or when it may not have more."""
    began = time.monotonic()
    client.connection.begin_long_answer(bounds, began + until)
    with pytest.raises(ConnectionResetError):
        client.connection.sendall(MUCH)

    assert 0.3 <= time.monotonic() - began < 3
    # And nothing of it waits in the kernel any longer.
    client.connection.close()
    assert client.read(65_536, 0) < len(MUCH)


def test_a_client_that_reads_slowly_gets_all_of_a_stream(client: Client) -> None:
    """However long it takes: what it takes counts, not what there is room for."""
    client.connection.begin_long_answer(SendLimits(stall_seconds=0.3))
    reading = gevent.spawn(client.read, 8_192, 0.01)
    began = time.monotonic()
    client.connection.sendall(MUCH)
    client.connection.close()

    assert time.monotonic() - began > 0.6
    assert reading.get() == len(MUCH)


def test_a_client_that_reads_an_answer_too_slowly_is_cut(client: Client) -> None:
    """An ordinary answer holds memory: it has its time as a whole."""
    client.connection.begin_request(SendLimits(seconds=0.1, bytes_per_second=len(MUCH) * 5))
    reading = gevent.spawn(client.read, 8_192, 0.01)
    with pytest.raises(ConnectionResetError):
        client.connection.sendall(MUCH)
    client.connection.close()

    assert 0 < reading.get() < len(MUCH)


def blocked(client: Client, bounds: SendLimits | None = None) -> gevent.Greenlet:
    """Answers, and waits for the client."""
    client.connection.begin_request()
    if bounds:
        client.connection.begin_long_answer(bounds)
    answering = gevent.spawn(client.connection.sendall, MUCH)
    turn()
    return answering


def test_who_has_waited_longest_makes_room(connections: Connections) -> None:
    """A stream stays, as does a connection whose request is worked on; so does who has just come."""
    clients = [Client(connections) for _ in range(2)]
    stream, stuck = blocked(clients[0], SendLimits()), blocked(clients[1])
    clients.append(Client(connections))
    clients[2].connection.begin_request()
    assert not stuck.ready()
    gevent.sleep(MIN_IDLE_SECONDS)
    clients.append(Client(connections))
    clients.append(Client(connections))

    with pytest.raises(OSError, match=r"pipe|reset"):
        stuck.get(timeout=5)
    assert not stream.ready()
    assert [each.connection in list(connections) for each in clients] == [True, False, True, True, True]
    stream.kill()
    for client in clients:
        client.close()


def test_a_request_behind_another_is_seen(client: Client) -> None:
    """Whether it has been read already, or waits in the kernel."""
    connection = client.connection
    connection.end_request(pipelined=False)
    before = connection.is_pipelined
    client.sock.send(b"GET")
    turn()
    connection.end_request(pipelined=False)

    assert (before, connection.is_pipelined) == (False, True)
