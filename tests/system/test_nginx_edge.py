"""Requests that nginx itself rejects, with problem documents like the service's. The nodes never answer."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import orjson
import psutil
import pytest

from tests.support.nginx import HOST, PROXY_HOST, Nginx
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.web.routes.wire import receive

pytestmark = pytest.mark.long

PATIENCE_SECONDS: Final = 10.0
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "/workflows/w/jobs/j/events"
DOWNLOAD: Final = "/workflows/w/jobs/j/logs/raw"
#: Client addresses with limits. In the shipped configuration, 127.0.0.1 has none.
STREAMER, FLOODER, WAITER = "127.0.0.3", "127.0.0.4", "127.0.0.5"


@pytest.fixture(scope="module")
def silent() -> Iterator[tuple[str, int]]:
    """A node that never answers. Its kernel accepts connections, but no program reads from them."""
    with socket.create_server((HOST, 0), backlog=1024) as listener:
        yield listener.getsockname()


@pytest.fixture(scope="module")
def nginx(silent: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx in front of the silent node."""
    with Nginx(tmp_path_factory.mktemp("silent"), [silent]) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def nginx_without_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx in front of two nodes that are down."""
    with Nginx(tmp_path_factory.mktemp("without_nodes"), [(HOST, free_port()), (HOST, free_port())]) as nginx:
        yield nginx


def check_problem(status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Checks a problem document and its headers, and returns the document."""
    assert headers["content-type"] == PROBLEM, body
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["server"] == "nginx"
    assert "strict-transport-security" in headers
    document: dict[str, Any] = orjson.loads(body)
    assert document.keys() == {"type", "title", "status", "detail", "request_id"}
    assert document["status"] == status
    assert document["title"] != "Error"
    assert document["request_id"] == headers["x-request-id"]
    return document


@pytest.mark.parametrize(
    ("expected", "request_text"),
    [
        (400, b"GET / HTTP/1.0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET /%2e%2e/x HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"G\x1bT / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (403, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
        (404, b"GET /.problem HTTP/1.1\r\nHost: x\r\n\r\n"),
        (405, b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 33554433\r\n\r\n"),
        (414, b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br\r\n\r\n"),
    ],
)
def test_a_rejection_is_a_problem_document(nginx: Nginx, expected: int, request_text: bytes) -> None:
    """With the response's status and its own title."""
    with nginx.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(request_text)
        status, headers, body = receive(sock)

    assert status == expected
    check_problem(status, headers, body)


def test_plain_http_is_rejected(nginx: Nginx) -> None:
    """A redirect to https would hide from the client that it sent its token unencrypted."""
    with socket.create_connection((nginx.host, nginx.port), PATIENCE_SECONDS) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, body = receive(sock)

    assert status == 400
    check_problem(status, headers, body)


def test_the_access_log_has_the_original_method(nginx: Nginx) -> None:
    """nginx rejects a POST and an unknown method, and logs them under the name received."""
    with nginx.client() as client:
        client.post("/metrics")
        client.request("BREW", "/metrics")
    wait_until(lambda: '"method":"BREW"' in nginx.logs(), PATIENCE_SECONDS, "the last request is logged")
    entries = [orjson.loads(line) for line in nginx.logs().splitlines() if '"path":"/metrics"' in line]

    assert [(each["method"], each["status"]) for each in entries if each["method"] != "GET"] == [
        ("POST", "403"),
        ("BREW", "403"),
    ]


def test_without_a_node_the_answer_says_when_to_retry(nginx_without_nodes: Nginx) -> None:
    """Also when nginx has marked the nodes as failed and tries none."""
    with nginx_without_nodes.client() as client:
        for _ in range(8):
            response = client.get("/healthz")
            assert response.status_code == 502
            assert int(response.headers["retry-after"]) > 0
            check_problem(502, dict(response.headers), response.content)


def open_requests(nginx: Nginx, node: tuple[str, int]) -> int:
    """The number of nginx's connections to ``node``: one for each unanswered request."""
    workers = [psutil.Process(pid) for pid in nginx.workers()]
    return sum(each.raddr == node for worker in workers for each in worker.net_connections())


@pytest.mark.parametrize(
    ("address", "paths", "limit"),
    [(STREAMER, [EVENTS, DOWNLOAD], 300), (WAITER, ["/", "/workflows/w/jobs/j/logs"], 200), (PROXY_HOST, ["/"], 200)],
    ids=["streams", "other requests", "IPv6"],
)
def test_open_requests_are_limited_by_address(
    nginx: Nginx, silent: tuple[str, int], address: str, paths: list[str], limit: int
) -> None:
    """One more is rejected with 429, except from 127.0.0.1, where it waits for the silent node.

    All IPv6 addresses of a /64 are one.
    """
    heads = [
        f"GET {paths[number % len(paths)]} HTTP/1.1\r\nHost: x\r\nX-Client: 2001:db8:a0a:a::{number:x}\r\n\r\n".encode()
        for number in range(limit)
    ]
    with ExitStack() as stack:
        for head in heads:
            stack.enter_context(nginx.connect(PATIENCE_SECONDS, address)).sendall(head)
        # nginx has several workers, so requests are not necessarily forwarded in the order they were sent.
        wait_until(lambda: open_requests(nginx, silent) >= limit, PATIENCE_SECONDS, "all are forwarded")
        sock = stack.enter_context(nginx.connect(PATIENCE_SECONDS, address))
        sock.sendall(heads[0])
        status, headers, body = receive(sock)

        other = stack.enter_context(nginx.connect(0.2))
        other.sendall(heads[0])
        with pytest.raises(TimeoutError):
            other.recv(1)
    assert status == 429
    assert int(headers["retry-after"]) > 0
    check_problem(status, headers, body)


def test_the_rate_of_requests_is_limited_by_address(nginx: Nginx) -> None:
    """400 concurrent requests are served, as when many viewers reconnect. A flood is rejected with 429."""
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    received = b""
    with nginx.connect(PATIENCE_SECONDS, FLOODER) as sock, nginx.connect(PATIENCE_SECONDS) as own:
        # Concurrently: on a busy machine, a client that waits for each answer is too slow.
        sock.sendall(request * 900 + request.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        while data := sock.recv(65_536):
            received += data
        own.sendall(request)
        assert receive(own)[0] == 403

    answers = [answer.partition(b"\r\n\r\n") for answer in received.split(b"HTTP/1.1 ")[1:]]
    assert [int(head[:3]) for head, _, _ in answers].index(429) >= 400
    head, _, body = answers[-1]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head.decode().splitlines()[1:])}
    assert int(head[:3]) == 429
    check_problem(429, headers, body)
