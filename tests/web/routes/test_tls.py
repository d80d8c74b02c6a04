"""TLS in gunicorn itself (``--certfile``): everything as without, and nothing in its log."""

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

#: Bytes that a request's body may have.
BODY_LIMIT: Final = 65_536
#: What a client may say that does not speak TLS, or begins to and stops.
NO_TLS: Final = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b"")
#: Seconds that a request's head may take here.
HEAD_SECONDS: Final = 1


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service that speaks TLS."""
    directory = tmp_path_factory.mktemp("secure")
    # A second for a request's head, so that a test does not wait for five.
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
def _quiet(secure: Service) -> Iterator[None]:
    """Nothing in a log that nobody asked for."""
    start = secure.log_size()
    yield
    assert "Traceback" not in secure.logs(start)
    assert " failed with " not in secure.logs(start)


@pytest.fixture
def bearer(secure: Service) -> dict[str, str]:
    """The header of somebody who may do anything."""
    return {"Authorization": f"Bearer {secure.token()}"}


@pytest.fixture
def tls_job(redis_server: RedisServer, request: pytest.FixtureRequest) -> Foreign:
    """A job of the test's own."""
    return Foreign(redis_server.url, "tls", request.node.originalname)


def test_pages_downloads_and_refusals(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """Also several on one connection."""
    tls_job.lines(["x" * 10_000] * 100).end()
    with httpx.Client(base_url=secure.url, verify=secure.verify, headers=bearer) as client:
        page = client.get(f"{tls_job.path}/logs?limit=100").json()
        text = client.get(f"{tls_job.path}/logs/raw").text
        missing = client.get(f"{tls_job.path}x")

    assert [line["sequence_num"] for line in page["logs"]] == list(range(1, 101))
    assert text == ("x" * 10_000 + "\n") * 100
    assert missing.status_code == 404


def test_a_stream_to_its_end(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """Line by line."""
    tls_job.line("first")
    with Stream(secure, f"{tls_job.path}/events", bearer) as stream:
        stream.wait_for(b"id: 1\n\n")
        tls_job.line("second")
        stream.wait_for(b"id: 2\n\n")
        tls_job.end()
        assert stream.wait_end().numbers() == [1, 2]
        assert not stream.cut


def test_a_viewer_who_leaves_is_noticed(secure: Service, bearer: dict[str, str], tls_job: Foreign) -> None:
    """By itself, not by the next line."""
    tls_job.line("first")
    with secure.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(request_bytes(f"{tls_job.path}/events".encode(), bearer["Authorization"].removeprefix("Bearer ")))
        sock.recv(1)
        wait_until(lambda: secure.metric("chronoverse_streams_open") == 1, PATIENCE_SECONDS, "it is there")
    wait_until(lambda: secure.metric("chronoverse_streams_open") == 0, 1, "it has left")


def test_a_body_that_is_too_long_is_refused_in_private(secure: Service, tls_job: Foreign) -> None:
    """The answer goes out encrypted, though the rest of the body is not read."""
    body = b"x" * BODY_LIMIT * 20
    lines = (b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    head = request_bytes(f"{tls_job.path}/logs".encode(), secure.token(), *lines, method=b"POST")
    with secure.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(head)
        for at in range(0, BODY_LIMIT * 3, 16_384):
            sock.sendall(body[at : at + 16_384])
        assert receive(sock)[0] == 413


def test_what_is_no_request_is_refused(secure: Service) -> None:
    """As without TLS."""
    status, headers, _ = exchange(secure, b"nonsense\r\n\r\n")

    assert (status, headers["content-type"]) == (400, "application/problem+json")


def test_what_is_no_tls_is_closed(secure: Service) -> None:
    """At once, or in the time that a request's head has; and meanwhile it is in nobody's way."""
    began = time.monotonic()
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((secure.host, secure.port), 10)) for _ in range(3)]
        for sock, said in zip(socks, NO_TLS, strict=True):
            sock.sendall(said)
        assert httpx.get(f"{secure.url}/healthz", verify=secure.verify).status_code == 200
        for sock in socks:
            with suppress(ConnectionResetError):
                while sock.recv(1024):
                    pass
    assert time.monotonic() - began < HEAD_SECONDS + 2


def test_a_client_that_is_gone_at_once(secure: Service) -> None:
    """Does not keep the next one out."""
    for _ in range(20):
        with socket.create_connection((secure.host, secure.port), 10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert httpx.get(f"{secure.url}/healthz", verify=secure.verify).status_code == 200
