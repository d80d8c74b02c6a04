"""What the service asks of its clients."""

import contextlib
import gc
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chronoverse.client.client import Client
from chronoverse.client.service_connection import RequestFailed, ServiceConnection, failure, make_connection
from chronoverse.errors import ChronoverseError
from chronoverse.joblog.model import JobRef
from tests.support.certificates import Authority
from tests.support.scripted import ScriptedService, answer


def test_a_pipeline_ends_with_an_answer_that_closes_the_connection() -> None:
    """The next request is not sent in vain. The service's URL can end with a slash."""
    with ScriptedService(*[answer("200 OK", b"1")] * 2) as scripted:
        service = ServiceConnection(f"{scripted.url}/", None, ca_file=None, connect_seconds=10, read_seconds=10)
        assert [service.post_ahead("/jobs", {}, b"")() for _ in range(2)] == [b"1", b"1"]
    assert [asked.path for asked in scripted.requests] == ["/jobs", "/jobs"]


def test_a_connection_with_unread_bytes_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        service = ServiceConnection(url, None, ca_file=None, connect_seconds=10, read_seconds=10)

        def leave() -> None:
            with service.stream("GET", "/", {}, {}) as response:
                response.read(1)

        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(leave)
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(60)
                assert accepted.recv(65_536)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")
                left.result(60)
                assert accepted.recv(1) == b""


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "),
        (b"HTTP/1.1 503 No\r\nContent-Length: 9999\r\n\r\n", b" "),
    ],
    ids=["interim", "head", "body", "refusal"],
)
def test_a_short_answer_must_arrive_in_time(begin: bytes, more: bytes) -> None:
    """However slowly its bytes arrive."""
    asked_at = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        service = ServiceConnection(
            f"http://127.0.0.1:{listener.getsockname()[1]}", None, ca_file=None, connect_seconds=60, read_seconds=0.5
        )
        asked = pool.submit(service.request, "GET", "/", {}, {}, None, 100)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(begin)
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < asked_at + 20:
                    accepted.sendall(more)
                    time.sleep(0.05)
            assert time.monotonic() < asked_at + 20
            with pytest.raises(RequestFailed, match=r"timed out|was lost"):
                asked.result(60)


def test_a_slow_head_does_not_shorten_the_time_for_a_stream() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        service = ServiceConnection(url, None, ca_file=None, connect_seconds=60, read_seconds=3)

        def read() -> bytes:
            with service.stream("GET", "/", {}, {}) as response:
                return response.read()

        asked = pool.submit(read)
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(9999)
            for part, pause in ((b"HTTP/1.1 200 OK\r\n", 2), (b"X: 1\r\n", 0.1), (b"\r\n", 2), (b"event", 0)):
                accepted.sendall(part)
                time.sleep(pause)
        assert asked.result(60) == b"event"


def test_an_endless_answer_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        service = ServiceConnection(url, None, ca_file=None, connect_seconds=60, read_seconds=60)
        asked = pool.submit(service.request, "GET", "/", {}, {})
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with pytest.raises(ConnectionError):
                accepted.sendall(bytes(100 * 2**20))
            assert len(asked.result(60)[0]) == 64 * 2**20


@pytest.mark.parametrize("said", [None, b"\x15\x03\x01\x00\x02\x02\x46", answer("400 Bad Request", b"HTTPS port")])
def test_http_at_a_port_with_tls_is_reported_as_such(said: bytes | None) -> None:
    """It closes the connection, sends a TLS alert, or answers over plain HTTP."""
    with ScriptedService(said) as scripted:
        service = ServiceConnection(scripted.url, None, ca_file=None, connect_seconds=60, read_seconds=60)
        with pytest.raises(ChronoverseError, match="use https://"):
            service.request("GET", "/", {}, {})


def test_https_at_a_port_without_tls_is_reported_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        service = ServiceConnection(url, None, ca_file=None, connect_seconds=60, read_seconds=60)
        asked = pool.submit(service.request, "GET", "/", {}, {})
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(65_536)
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(RequestFailed, match=r"is not responding: no TLS at this port: use http://"):
                asked.result(60)


@pytest.mark.parametrize("is_followed", [False, True], ids=["deleted", "followed"])
def test_idle_connections_are_closed(is_followed: bool) -> None:
    """With what has them, even without ``close``: the other side reads the end, and Python does not warn.

    Also before a stream begins: a dead one would delay it by three heartbeats.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(20)
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        asked = pool.submit(client.job, JobRef("wf_1", "job_1"))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(20)
            assert accepted.recv(65_536).startswith(b"GET /workflows/wf_1/jobs/job_1 HTTP/1.1\r\n")
            accepted.sendall(answer("200 OK", b"{}", Connection="keep-alive"))
            assert asked.result(20) == {}
            followed = pool.submit(next, client.follow(JobRef("wf_1", "job_1")), "ended") if is_followed else None
            if not is_followed:
                del client, asked
                gc.collect()
            assert accepted.recv(1) == b""
        if followed:
            with listener.accept()[0] as accepted:
                accepted.recv(65_536)
                accepted.sendall(answer("204 No Content"))
                assert followed.result(20) == "ended"


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
def test_a_request_on_a_connection_that_was_closed_while_idle_is_sent_again(is_secure: bool, tmp_path: Path) -> None:
    """A proxy's page that names HTTPS is a hint only over plain HTTP."""
    authority = Authority(tmp_path)
    kept, closed = (answer("200 OK", b"{}", Connection=value) for value in ("keep-alive", "close"))
    page = answer("403 Forbidden", b"HTTPS traffic is inspected")
    with ScriptedService(kept, closed, page, tls=authority.context("server") if is_secure else None) as scripted:
        service = ServiceConnection(scripted.url, None, ca_file=authority.path, connect_seconds=20, read_seconds=20)
        for _ in range(2):
            assert service.request("POST", "/", {}, {}, b"")[0] == b"{}"
        with pytest.raises(ChronoverseError, match="the right address" if is_secure else "; use https://"):
            service.request("POST", "/", {}, {}, b"")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(111, "refused"), "refused"), (TimeoutError("timed out"), "timed out"), (EOFError("x"), "EOFError")],
    ids=repr,
)
def test_a_failure_has_a_reason(error: Exception, reason: str) -> None:
    assert str(failure(error, "http://h", "the issuer")) == f"the issuer is not responding: {reason}"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[::1]/logs", "::1", 80),
        ("https://[::1]:8443", "::1", 8443),
        ("https://logs.example.com", "logs.example.com", 443),
    ],
)
def test_a_url_says_where_the_server_is(url: str, host: str, port: int) -> None:
    """An IPv6 address contains colons even without a port."""
    connection = make_connection(url, None, 1.0)

    assert (connection.host, connection.port) == (host, port)
