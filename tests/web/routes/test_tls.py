"""TLS in gunicorn itself (``--certfile``): everything works as without it, and no errors are logged."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

import httpx
import pytest

from tests.support.nginx import make_certificate
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream, exchange, receive, request_bytes

pytestmark = pytest.mark.long

#: Bytes that a request's body may have.
BODY_LIMIT: Final = 65_536
#: What a client may send that does not speak TLS, or that stops in its handshake.
NO_TLS: Final = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b"")
#: Seconds that a request's head may take here.
HEAD_SECONDS: Final = 1


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service that speaks TLS."""
    directory = tmp_path_factory.mktemp("secure")
    # One second for a request's head, so that a test need not wait for five.
    environ = {"GUNICORN_CMD_ARGS": f"--keep-alive {HEAD_SECONDS}"}
    service = Service(
        directory,
        redis_server.url,
        certificate=make_certificate(directory),
        environ=environ,
        max_streams=10,
        max_body_bytes=BODY_LIMIT,
    )
    with service:
        yield service


@pytest.fixture(autouse=True)
def no_errors_logged(secure: Service) -> Iterator[None]:
    """Checks that the service has logged no error."""
    start = secure.log_size()
    yield
    assert "Traceback" not in secure.logs(start)
    assert " failed with " not in secure.logs(start)


@pytest.fixture
def bearer(secure: Service) -> dict[str, str]:
    """The header with a token for everything."""
    return {"Authorization": f"Bearer {secure.token()}"}


@pytest.fixture
def tls_job(redis_server: RedisServer, request: pytest.FixtureRequest) -> Foreign:
    """A new job for every test."""
    return Foreign(redis_server.url, "tls", request.node.originalname)


def test_pages_downloads_and_refusals_work(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """Several requests on one connection work too."""
    tls_job.lines(["x" * 10_000] * 100).end()
    with httpx.Client(base_url=secure.url, verify=secure.verify, headers=bearer) as client:
        page = client.get(f"{tls_job.path}/logs?limit=100").json()
        text = client.get(f"{tls_job.path}/logs/raw").text
        missing = client.get(f"{tls_job.path}x")

    assert [line["sequence_num"] for line in page["logs"]] == list(range(1, 101))
    assert text == ("x" * 10_000 + "\n") * 100
    assert missing.status_code == 404


def test_a_stream_is_delivered_to_its_end(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """Each line comes as it is written."""
    tls_job.line("first")
    with Stream(secure, f"{tls_job.path}/events", bearer) as stream:
        stream.wait_for(b"id: 1\n\n")
        tls_job.line("second")
        stream.wait_for(b"id: 2\n\n")
        tls_job.end()
        assert stream.wait_end().numbers() == [1, 2]
        assert not stream.cut


def test_a_viewer_who_leaves_is_noticed(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """The service notices it without writing a line."""
    tls_job.line("first")
    with secure.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(request_bytes(f"{tls_job.path}/events".encode(), bearer["Authorization"].removeprefix("Bearer ")))
        sock.recv(1)
        wait_until(lambda: secure.metric("chronoverse_streams_open") == 1, PATIENCE_SECONDS, "it is there")
    wait_until(lambda: secure.metric("chronoverse_streams_open") == 0, 1, "it has left")


def test_the_refusal_of_a_long_body_is_encrypted(secure: Service, tls_job: Foreign) -> None:
    """The answer is encrypted, although the rest of the body is not read."""
    body = b"x" * BODY_LIMIT * 20
    lines = (b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    head = request_bytes(f"{tls_job.path}/logs".encode(), secure.token(), *lines, method=b"POST")
    with secure.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(head)
        for at in range(0, BODY_LIMIT * 3, 16_384):
            sock.sendall(body[at : at + 16_384])
        assert receive(sock)[0] == 413


def test_a_malformed_request_is_refused(secure: Service) -> None:
    """The answer is the same as without TLS."""
    status, headers, _ = exchange(secure, b"nonsense\r\n\r\n")

    assert (status, headers["content-type"]) == (400, "text/html")


def test_a_connection_without_tls_is_closed(secure: Service) -> None:
    """It is closed at once, or after the time for a request's head. Meanwhile others are served."""
    began = time.monotonic()
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((secure.host, secure.port), 10)) for _ in range(3)]
        for sock, data in zip(socks, NO_TLS, strict=True):
            sock.sendall(data)
        assert httpx.get(f"{secure.url}/healthz", verify=secure.verify).status_code == 200
        for sock in socks:
            with suppress(ConnectionResetError):
                while sock.recv(1024):
                    pass
    assert time.monotonic() - began < HEAD_SECONDS + 2


def test_a_client_that_leaves_at_once_does_not_lock_others_out(secure: Service) -> None:
    """The next client is served."""
    for _ in range(20):
        with socket.create_connection((secure.host, secure.port), 10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert httpx.get(f"{secure.url}/healthz", verify=secure.verify).status_code == 200
