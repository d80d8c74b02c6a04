"""The fault proxy causes the faults that it promises, with plain sockets and a real server."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.faultproxy import DOWN, UP, FaultProxy
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: Seconds to wait for something that must happen, and for something that must not.
SOON: Final = 10.0
QUIET: Final = 0.2

#: A retry policy of redis-py that repeats no command.
ONCE: Final = Retry(NoBackoff(), 0)


class EchoServer:
    """A TCP server that sends back what it receives, and records it."""

    def __init__(self) -> None:
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._peers: list[threading.Thread] = []

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._peers.append(threading.Thread(target=self._answer, args=(peer,), daemon=True))
                self._peers[-1].start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(65_536):
                self.received += data
                peer.sendall(data)

    def __enter__(self) -> "EchoServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._thread, *self._peers]:
            thread.join(SOON)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as echo:
        yield echo


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[FaultProxy]:
    """A proxy in front of the echo server."""
    with FaultProxy(echo.address) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    """Connects to the proxy. All connections are closed at the end."""
    with contextlib.ExitStack() as stack:
        address = proxy.address
        assert not isinstance(address, Path)
        yield lambda: stack.enter_context(socket.create_connection(address, SOON))


Connect = Callable[[], socket.socket]


def read(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing arrives for a while, not even the end of the connection."""
    sock.settimeout(QUIET)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(SOON)
    return False


def test_bytes_and_ends_pass_both_ways(proxy: FaultProxy, connect: Connect) -> None:
    """There are more bytes than any buffer holds. A half-closed connection still gets its answers."""
    sock, sent = connect(), bytes(range(256)) * 8192

    def send() -> None:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()

    assert read(sock, len(sent)) == sent
    sender.join(SOON)
    assert sock.recv(1) == b""
    assert proxy.traffic[3:] == (len(sent), len(sent))
    wait_until(lambda: proxy.traffic.open == 0, SOON, "the connection is forgotten")


def test_cut_resets_open_connections_and_nothing_else(proxy: FaultProxy, connect: Connect) -> None:
    """A new connection works."""
    sock = connect()
    sock.sendall(b"a")
    assert sock.recv(1) == b"a"

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    again = connect()
    again.sendall(b"b")
    assert again.recv(1) == b"b"
    assert proxy.traffic[:3] == (2, 1, 1)


def test_refuse_refuses_until_healed(proxy: FaultProxy, connect: Connect) -> None:
    """Connections that are already open continue to work."""
    earlier = connect()
    earlier.sendall(b"a")
    assert earlier.recv(1) == b"a"
    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        connect()
    earlier.sendall(b"b")
    assert earlier.recv(1) == b"b"

    proxy.heal()
    assert connect().fileno() > 0


@pytest.mark.parametrize(("direction", "arrives"), [(UP, b""), (DOWN, b"hello")])
def test_stalled_bytes_arrive_after_healing(
    proxy: FaultProxy, echo: EchoServer, connect: Connect, direction: str, arrives: bytes
) -> None:
    """Only the stalled direction is stalled. New connections are still accepted."""
    proxy.stall(direction)
    sock = connect()
    sock.sendall(b"hello")

    assert is_silent(sock)
    assert echo.received == arrives

    proxy.heal()
    assert read(sock, 5) == b"hello"


def test_throttling_bounds_the_rate(proxy: FaultProxy, connect: Connect) -> None:
    """Ten thousand bytes at 20,000 a second take half a second. After healing there is no limit."""
    proxy.throttle(20_000)
    sock, started = connect(), time.monotonic()
    sock.sendall(b"x" * 10_000)
    assert len(read(sock, 10_000)) == 10_000
    assert time.monotonic() - started > 0.4

    proxy.throttle(1, DOWN)
    sock.sendall(b"x" * 10_000)
    assert len(read(sock, 1)) == 1
    proxy.heal()
    assert len(read(sock, 9_999)) == 9_999


def test_the_request_of_a_dropped_reply_has_arrived(proxy: FaultProxy, echo: EchoServer, connect: Connect) -> None:
    """The given number of bytes of the answer arrive, and then the connection is reset. This happens once."""
    proxy.drop_reply(3)
    sock = connect()
    sock.sendall(b"request")

    with pytest.raises(ConnectionResetError):
        read(sock, 7)
    assert echo.received == b"request"
    again = connect()
    again.sendall(b"again")
    assert read(again, 5) == b"again"
    assert proxy.traffic.down == 3 + 5


def test_a_dropped_request_arrives_in_part(proxy: FaultProxy, echo: EchoServer, connect: Connect) -> None:
    """The given number of its bytes arrive. This happens the given number of times."""
    proxy.drop_request(2, times=2)
    for _ in range(2):
        sock = connect()
        sock.sendall(b"request")
        with contextlib.suppress(ConnectionResetError):
            read(sock, 7)

    again = connect()
    again.sendall(b"!")
    assert again.recv(1) == b"!"
    wait_until(lambda: sorted(echo.received) == sorted(b"rere!"), SOON, "two parts and a whole request")


def test_only_the_reply_to_the_given_request_is_dropped(proxy: FaultProxy, echo: EchoServer, connect: Connect) -> None:
    """Also if the request arrives in two parts."""
    proxy.drop_reply(request=b"secret")
    sock = connect()
    for part in (b"open", b"sec"):
        sock.sendall(part)
        assert read(sock, len(part)) == part

    sock.sendall(b"ret")

    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert echo.received == b"opensecret"


def test_a_request_is_dropped_after_the_given_text(proxy: FaultProxy, echo: EchoServer, connect: Connect) -> None:
    """The bytes that still arrive are counted from the end of the text. So a test can cut any one message."""
    proxy.drop_request(1, request=b"BEGIN")
    sock = connect()
    sock.sendall(b"one BEGIN two")
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(16):
            pass

    wait_until(lambda: echo.received == b"one BEGIN ", SOON, "the beginning")


def test_healing_cancels_faults_that_have_not_happened(proxy: FaultProxy, connect: Connect) -> None:
    """Also on a connection on which the fault has already begun to count bytes."""
    proxy.drop_reply(2)
    proxy.drop_request(request=b"never")
    sock = connect()
    sock.sendall(b"ab")
    assert read(sock, 2) == b"ab"
    proxy.heal()

    sock.sendall(b"never")
    assert read(sock, 5) == b"never"


def test_a_stopped_server_looks_stopped_through_the_proxy(
    proxy: FaultProxy, echo: EchoServer, connect: Connect
) -> None:
    """The connection is reset or closed as soon as it is made, or before."""
    echo.__exit__()

    with contextlib.suppress(ConnectionResetError):
        assert connect().recv(1) == b""


def test_it_works_with_unix_sockets_and_a_real_server(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The command whose answer was lost has been executed. The socket's file is removed in the end."""
    path = tmp_path_factory.mktemp("p") / "s"
    with FaultProxy(server.socket, path) as proxy, redis.Redis.from_url(proxy.redis_url, retry=ONCE) as client:
        client.ping()
        proxy.drop_reply(request=b"faultproxy:key")
        with pytest.raises(redis.ConnectionError):
            client.incr("faultproxy:key")
        assert client.getdel("faultproxy:key") == b"1"
        proxy.refuse()
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()

    assert not path.exists()


def test_stopping_twice_does_nothing(echo: EchoServer) -> None:
    """Nobody listens afterwards."""
    with FaultProxy(echo.address) as proxy:
        proxy.stop()

    assert not isinstance(proxy.address, Path)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address, SOON)
