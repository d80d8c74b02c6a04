"""The fast path and Flask give the same answers to ``/events``, byte for byte."""

import re
import socket
import time
from collections.abc import Callable
from typing import Final

import httpx
import pytest
import redis

from chronoverse.web.streaming.fastpath import parse_query
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

OpenStream = Callable[..., Stream]

#: The same query without and with an escape. With one, the fast path leaves the request to Flask.
PLAIN_QUERY: Final = "wait=5"
ESCAPED_QUERY: Final = "wait=%35"


@pytest.fixture
def watched(job: Foreign, open_stream: OpenStream) -> Foreign:
    """A running job with ten lines and one viewer."""
    job.lines([f"line {number}" for number in range(1, 11)], ("stdout", "stderr"))
    open_stream(job).wait_for(b"id: 10\n\n")
    return job


@pytest.fixture
def ended(job: Foreign, client: httpx.Client) -> Foreign:
    """A job that has ended after ten lines, and whose state was just read."""
    job.lines([f"line {number}" for number in range(1, 11)], ("stdout", "stderr")).end("FAILED", 3)
    assert client.head(f"{job.path}/events").status_code == 200
    return job


@pytest.fixture
def answer(service: Service, job: Foreign) -> Callable[..., bytes]:
    """A function that returns an answer up to ``until``, without the parts that differ from answer to answer."""

    def answer(query: str, token: str | None, until: bytes, *lines: str) -> bytes:
        head = [f"GET {job.path}/events?{query} HTTP/1.1", "Host: localhost", *lines]
        if token is not None:
            head.append(f"Authorization: Bearer {token}")
        found = b""
        with socket.create_connection((service.host, service.port), PATIENCE_SECONDS) as sock:
            sock.sendall("\r\n".join([*head, "", ""]).encode())
            deadline = time.monotonic() + PATIENCE_SECONDS
            while until not in found:
                more = sock.recv(65_536)
                found += more
                assert more, f"hung up: {found!r}"
                assert time.monotonic() < deadline, found
        found = found[: found.index(until) + len(until)].replace(b"2\r\n:\n\r\n", b"")
        # Chunks may begin anywhere, so only the head and the frames are compared.
        found = re.sub(rb"(?m)^[0-9a-f]+\r\n|\r\n(?=[0-9a-f]+\r\n|\Z)", b"", found)
        found = re.sub(rb"(?m)^(Date|X-Request-ID): .*\r\n", rb"\1\r\n", found)
        return re.sub(rb'retry: \d+|"request_id":"\w+"', b"", found)

    return answer


@pytest.fixture
def both_answers(service: Service, answer: Callable[..., bytes]) -> Callable[..., tuple[bytes, bytes]]:
    """A function that returns the answers of the fast path and of Flask."""

    def both_answers(query: str, lines: list[str], until: bytes) -> tuple[bytes, bytes]:
        queries = ["&".join(filter(None, [query, way])) for way in (PLAIN_QUERY, ESCAPED_QUERY)]
        short, long = (answer(each, service.token(), until, *lines) for each in queries)
        return short, long

    return both_answers


@pytest.mark.parametrize(
    ("query", "lines", "until"),
    [
        ("", [], b"id: 10\n\n"),
        ("", ["Last-Event-ID: 4"], b"id: 10\n\n"),
        ("", ["Last-Event-ID: "], b"id: 10\n\n"),
        ("", ["Last-Event-ID: 10"], b'"last_sequence_num":10'),
        ("offset=7", [], b"id: 10\n\n"),
        ("offset=7", ["Last-Event-ID: 8"], b"id: 10\n\n"),
        ("offset=latest", [], b'"last_sequence_num":10'),
        ("tail=3", [], b"id: 10\n\n"),
        ("tail=2&stream=stderr", [], b"id: 10\n\n"),
        ("stream=stdout", [], b"id: 10\n\n"),
        ("", ["X-Request-ID: mine"], b"id: 10\n\n"),
        ("", ["X-Request-ID: not mine"], b"id: 10\n\n"),
        ("", ["Last-Event-ID: +4"], b'"errors"'),
        ("offset=+7", [], b'"errors"'),
        ("offset=7&offset=8", [], b'"errors"'),
        ("offset=7&tail=8", [], b'"errors"'),
        ("nonsense=1", [], b'"errors"'),
    ],
)
@pytest.mark.usefixtures("watched")
def test_both_give_the_same_answer(
    both_answers: Callable[..., tuple[bytes, bytes]], query: str, lines: list[str], until: bytes
) -> None:
    """That holds wherever the stream starts, and for refusals."""
    short, long = both_answers(query, lines, until)

    assert short == long


@pytest.mark.parametrize(
    ("query", "lines", "until"),
    [
        ("", [], b"\r\n0\r\n\r\n"),
        ("", ["Last-Event-ID: 4"], b"\r\n0\r\n\r\n"),
        ("", ["Last-Event-ID: 10"], b"\r\n0\r\n\r\n"),
        ("", ["Last-Event-ID: 11"], b"\r\n\r\n"),
        ("offset=latest", [], b"\r\n0\r\n\r\n"),
        ("offset=11", [], b"\r\n0\r\n\r\n"),
        ("tail=3", [], b"\r\n0\r\n\r\n"),
        ("tail=2&stream=stderr", [], b"\r\n0\r\n\r\n"),
        ("stream=stdout", [], b"\r\n0\r\n\r\n"),
    ],
)
@pytest.mark.usefixtures("ended")
def test_both_give_the_same_answer_for_an_ended_job(
    both_answers: Callable[..., tuple[bytes, bytes]], query: str, lines: list[str], until: bytes
) -> None:
    """The answer has the rest of the log, or is 204 when the client has all of it."""
    short, long = both_answers(query, lines, until)

    assert short == long
    assert short.startswith(b"HTTP/1.1 204 " if lines == ["Last-Event-ID: 11"] else b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("ended")
def test_few_of_many_viewers_of_an_ended_job_read_its_state(
    service: Service, redis_server: RedisServer, answer: Callable[..., bytes]
) -> None:
    """This is about opening. At the end each replay reads the job again, because of redactions."""
    token, viewers = service.token(), 20

    def job_reads() -> int:
        with redis.Redis.from_url(redis_server.url, protocol=2) as store:
            store.config_resetstat()
            for _ in range(viewers):
                answer(PLAIN_QUERY, token, b"\r\n0\r\n\r\n")
            return int(store.info("commandstats")["cmdstat_evalsha"]["calls"])

    wait_until(lambda: job_reads() < 1.5 * viewers, PATIENCE_SECONDS, "at least half of them need no read")


@pytest.mark.usefixtures("watched")
def test_the_fast_path_admits_nobody_without_a_valid_token(service: Service, answer: Callable[..., bytes]) -> None:
    """Without a token, with an invalid one, without the scope, and with one for another workflow."""
    refused = [
        (None, b" 401 "),
        ("a.b.c", b" 401 "),
        (service.token(scopes=["logs:write"]), b" 403 "),
        (service.token("wf_other"), b" 404 "),
    ]

    assert all(status in answer(PLAIN_QUERY, token, status)[:20] for token, status in refused)


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("", {"wait": 0}),
        ("offset=latest", {"wait": 0, "offset": "latest"}),
        ("tail=5&wait=300", {"wait": 300, "tail": 5}),
        ("wait=301", None),
        ("wait=%35", None),
        ("offset=1&offset=1", None),
        ("offset=1&tail=1", None),
        ("offset", None),
        ("&", None),
        ("token=abc", None),
    ],
)
def test_only_plain_queries_are_parsed(query: str, meant: dict[str, object] | None) -> None:
    """All other queries are left to Flask."""
    assert parse_query(query) == meant
