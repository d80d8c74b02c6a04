"""Connections: detecting disconnects, limits for slow clients, and making room for new connections."""

import math
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Final

import gevent
import gevent.socket
import pytest
from gunicorn.http.errors import LimitRequestHeaders
from prometheus_client import REGISTRY

from chronoverse.fair_lock import FairLock
from chronoverse.web.guards.connection import (
    MIN_IDLE_SECONDS,
    SEND_BUFFER_BYTES,
    USER_TIMEOUT_SECONDS,
    Connection,
    Connections,
    HangupWatch,
    SendLimits,
    set_socket_options,
)
from chronoverse.web.guards.event_loop import yield_to_loop

#: Rounds of the event loop after which all pending events have been handled.
LOOP_ROUNDS: Final = 10


def run_loop() -> None:
    """Lets the event loop poll its sockets a few times."""
    for _ in range(LOOP_ROUNDS):
        yield_to_loop()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_hangup_callback_can_block(pair: tuple[socket.socket, socket.socket]) -> None:
    """On a lock, for example. In the hub's own greenlet, that would raise an error."""
    reasons = []

    def on_leave(why: str) -> None:
        gevent.sleep(0)
        reasons.append(why)

    watch = HangupWatch(pair[0], on_leave)
    pair[1].close()
    with gevent.Timeout(5):
        while not reasons:
            run_loop()

    assert reasons == ["left"]
    watch.close()


def test_no_callback_after_the_watch_is_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """Even if the peer has just disconnected and the callback is already scheduled."""
    reasons: list[str] = []
    watch = HangupWatch(pair[0], reasons.append)
    pair[1].close()
    gevent.get_hub().loop.run_callback(watch.close)
    run_loop()

    assert reasons == []


def test_bytes_from_the_peer_are_not_a_hangup(pair: tuple[socket.socket, socket.socket]) -> None:
    """They stay unread, for the next reader."""
    reasons: list[str] = []
    watch = HangupWatch(pair[0], reasons.append)
    pair[1].send(b"x")
    run_loop()
    # Otherwise the event loop would keep watching a closed socket.
    watch.close()

    assert (reasons, pair[0].recv(1)) == ([], b"x")


#: More bytes than the kernel buffers of both ends hold.
LARGE: Final = bytes(2**20)


class Client:
    """A client with a small receive buffer, and the server's end of its connection."""

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
        """Reads to the end, at most ``chunk`` bytes at a time. Returns the number of bytes."""
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
        self.sock.close()
        self.connection.close()


@pytest.fixture
def connections() -> Connections:
    """Limited to two."""
    return Connections(2, FairLock(1, TimeoutError))


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    client = Client(connections)
    yield client
    client.close()


def test_accepted_connections_inherit_the_listeners_options(client: Client) -> None:
    """The kernel doubles the buffer size for its own use: see socket(7)."""
    connection = client.connection

    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_SECONDS * 1000


@pytest.mark.parametrize(
    ("limits", "until", "why"),
    [
        (SendLimits(stall_seconds=0.3), math.inf, "slow"),
        (SendLimits(seconds=0.1, bytes_per_second=len(LARGE) * 5), math.inf, "slow"),
        (SendLimits(), 0.3, "expired"),
    ],
    ids=["nothing taken", "too long", "expired"],
)
def test_a_client_that_reads_nothing_is_cut(client: Client, limits: SendLimits, until: float, why: str) -> None:
    """After too long without progress, after the time for the whole answer, or at ``until``. It is counted."""
    cuts = partial(REGISTRY.get_sample_value, "chronoverse_connections_cut_total", {"reason": why})
    before, began = cuts() or 0, time.monotonic()
    client.connection.begin_long_answer(limits, began + until)
    with pytest.raises(ConnectionResetError):
        client.connection.sendall(LARGE)

    assert 0.3 <= time.monotonic() - began < 20
    assert cuts() == before + 1
    # The unsent data was discarded.
    client.connection.close()
    assert client.read(65_536, 0) < len(LARGE)


def test_a_slow_reader_of_a_stream_receives_all_of_it(client: Client) -> None:
    """Any progress resets the timeout, and the total time is unlimited."""
    client.connection.begin_long_answer(SendLimits(stall_seconds=0.3))
    reading = gevent.spawn(client.read, 8_192, 0.01)
    began = time.monotonic()
    assert client.connection.send(b"x") == 1
    client.connection.sendall(LARGE)
    client.connection.close()

    assert time.monotonic() - began > 0.6
    assert reading.get() == 1 + len(LARGE)


@pytest.mark.parametrize(("acknowledged", "why"), [(1, "expired"), (0, "slow")])
def test_acknowledged_bytes_are_progress(
    client: Client, monkeypatch: pytest.MonkeyPatch, acknowledged: int, why: str
) -> None:
    """Even while the buffer is too full to send more: a slow client's kernel acknowledges a little now and then."""
    unsent = count(10**6, -acknowledged)
    monkeypatch.setattr("chronoverse.web.guards.connection._unsent_bytes", lambda _: next(unsent))
    client.connection.begin_long_answer(SendLimits(stall_seconds=0.2), time.monotonic() + 0.7)
    with pytest.raises(ConnectionResetError, match=why):
        client.connection.sendall(LARGE)


def test_a_slow_reader_of_an_ordinary_answer_is_cut(client: Client) -> None:
    """Unlike a stream, it occupies memory until it is sent, so its total time is limited."""
    client.connection.begin_request(SendLimits(seconds=0.1, bytes_per_second=len(LARGE) * 5))
    reading = gevent.spawn(client.read, 8_192, 0.01)
    with pytest.raises(ConnectionResetError):
        client.connection.sendall(LARGE)
    client.connection.close()

    assert 0 < reading.get() < len(LARGE)


def test_the_time_of_an_answer_is_that_of_all_its_parts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(time.monotonic(), 0.01)
    monkeypatch.setattr("chronoverse.web.guards.connection.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    client.connection.begin_request(SendLimits(seconds=0.1))

    def send_parts() -> None:
        for _ in range(100):
            client.connection.sendall(b"part")

    with pytest.raises(ConnectionResetError):
        send_parts()


def start_answer(client: Client, limits: SendLimits | None = None) -> gevent.Greenlet:
    """Starts an answer that blocks until the client reads."""
    client.connection.begin_request()
    if limits:
        client.connection.begin_long_answer(limits)
    answering = gevent.spawn(client.connection.sendall, LARGE)
    run_loop()
    return answering


def wait_longer(clients: list[Client], seconds: float) -> None:
    for client in clients:
        client.connection.progress_at -= seconds


def test_the_longest_waiting_connection_makes_room(connections: Connections) -> None:
    """Streams, requests in progress and new connections stay open."""
    clients = [Client(connections) for _ in range(2)]
    stream, stuck = start_answer(clients[0], SendLimits()), start_answer(clients[1])
    # However long this takes: they are new now, and have waited long below.
    wait_longer(clients, -60)
    clients.append(Client(connections))
    clients[2].connection.begin_request()
    assert not stuck.ready()
    wait_longer(clients, 60 + MIN_IDLE_SECONDS)
    for _ in range(2):
        # At most one connection is closed per millisecond.
        gevent.sleep(0.01)
        clients.append(Client(connections))
        wait_longer(clients[-1:], -60)

    with pytest.raises(OSError, match=r"pipe|reset"):
        stuck.get(timeout=5)
    assert not stream.ready()
    assert [each.connection in list(connections) for each in clients] == [True, False, True, True, True]
    stream.kill()
    for client in clients:
        client.close()


def test_many_new_connections_make_room_only_gradually(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that reconnect as soon as they are cut get no further than the others."""
    now = [100.0]
    monkeypatch.setattr("chronoverse.web.guards.connection.time", SimpleNamespace(monotonic=lambda: now[0]))
    connections = Connections(10, FairLock(1.0, TimeoutError))
    left = []
    with ExitStack() as stack:
        for _ in range(70):
            stack.enter_context(closing(Client(connections)))
        now[0] += 2 * MIN_IDLE_SECONDS
        for seconds in (0.0, 0.0, 0.003):
            now[0] += seconds
            stack.enter_context(closing(Client(connections)))
            left.append(len(connections))
    assert left == [21, 22, 20]


def test_a_pipelined_request_is_detected(client: Client) -> None:
    """Even if it is still in the kernel while the previous answer is sent."""
    connection = client.connection
    connection.end_request(pipelined=False)
    before = connection.is_pipelined
    client.sock.send(b"GET")
    run_loop()
    connection.end_request(pipelined=False)

    assert (before, connection.is_pipelined) == (False, True)


def test_a_reset_connection_is_read_and_not_closed_to_make_room(client: Client) -> None:
    """Like one that the client has closed: its greenlet ends by itself."""
    assert client.connection.may_be_closed()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    run_loop()
    assert not client.connection.may_be_closed()


def test_the_size_limit_applies_to_each_head(client: Client) -> None:
    """On a keep-alive connection, all heads together can exceed it."""
    connection = client.connection

    def read_head(size: int) -> None:
        client.sock.sendall(bytes(size))
        while size:
            size -= len(connection.recv(size))

    for _ in range(6):
        read_head(8_192)
        connection.begin_request()
        connection.end_request(pipelined=False)
    read_head(40_960)
    with pytest.raises(LimitRequestHeaders):
        read_head(1)


def test_others_run_while_a_body_of_small_chunks_is_read(client: Client) -> None:
    """gunicorn reads it chunk by chunk, without waiting if all of them have arrived."""
    client.connection.begin_request()
    client.sock.sendall(bytes(10_000))
    run_loop()
    other = gevent.spawn(bool)
    for _ in range(10_000):
        client.connection.recv(1)
    assert other.ready()


@pytest.mark.parametrize("is_body", [False, True])
def test_a_dripping_head_makes_room(connections: Connections, is_body: bool) -> None:
    """Its bytes are no progress; otherwise a client could hold its connection forever with a byte now and then.

    Those of a body are.
    """
    dripping = Client(connections)
    if is_body:
        dripping.connection.begin_request()
    reading = gevent.spawn(lambda: [dripping.connection.recv(1) for _ in range(5)])
    run_loop()
    # Newer, and waiting for its client, too.
    waiting = Client(connections)
    for _ in range(4):
        gevent.sleep(MIN_IDLE_SECONDS / 4)
        dripping.sock.send(b"x")
    run_loop()
    newest = Client(connections)
    left = [each.connection in list(connections) for each in (dripping, waiting, newest)]
    assert left == [is_body, not is_body, True]
    reading.kill()
    for client in (dripping, waiting, newest):
        client.close()
