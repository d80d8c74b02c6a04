"""``/events`` has the same answer whatever the worker knows of a job, and describes what is wrong with a request."""

import re
import socket
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.support.service import Service
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

OpenStream = Callable[..., Stream]

#: The starts of a stream: the query and further lines of the request.
STARTS: Final = [
    ("", []),
    ("", ["Last-Event-ID: 4"]),
    ("", ["Last-Event-ID: "]),
    ("", ["Last-Event-ID: 10"]),
    ("offset=7", []),
    ("offset=%37", []),
    ("offset=7", ["Last-Event-ID: 8"]),
    ("offset=latest", []),
    ("tail=3&wait=5", []),
    ("tail=2&stream=stderr", []),
    ("stream=stdout", []),
]


@pytest.fixture
def running(job: Foreign) -> Foreign:
    return job.lines([f"line {number}" for number in range(1, 11)], ("stdout", "stderr"))


@pytest.fixture
def ended(job: Foreign) -> Foreign:
    return job.lines([f"line {number}" for number in range(1, 11)], ("stdout", "stderr")).end("FAILED", 3)


@pytest.fixture
def answer(service: Service, job: Foreign) -> Callable[..., bytes]:
    """A function that returns an answer up to ``until``, without its variable parts."""

    def answer(query: str, until: bytes, *lines: str) -> bytes:
        token = f"Authorization: Bearer {service.token()}"
        head = [f"GET {job.path}/events?{query} HTTP/1.1", "Host: localhost", *lines, token]
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
        # Chunks can start anywhere, so only the head and the frames are compared.
        found = re.sub(rb"(?m)^[0-9a-f]+\r\n|\r\n(?=[0-9a-f]+\r\n|\Z)", b"", found)
        found = re.sub(rb"(?m)^(Date|X-Request-ID): .*\r\n", rb"\1\r\n", found)
        return re.sub(rb'retry: \d+|"request_id":"\w+"', b"", found)

    return answer


@pytest.mark.parametrize(("query", "lines"), STARTS)
def test_a_watched_job_and_an_unknown_one_have_the_same_answer(
    answer: Callable[..., bytes], open_stream: OpenStream, running: Foreign, query: str, lines: list[str]
) -> None:
    """The first viewer's request reads the job. For the next one, the tail knows it and has cached the newest lines."""
    is_at_the_end = "latest" in query or "Last-Event-ID: 10" in lines
    until = b'"last_sequence_num":10' if is_at_the_end else b"id: 10\n\n"
    alone = answer(query, until, *lines)

    open_stream(running).wait_for(b"id: 10\n\n")
    assert answer(query, until, *lines) == alone
    assert alone.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("query", "lines"), [*STARTS, ("offset=11", []), ("", ["Last-Event-ID: 11"])])
@pytest.mark.usefixtures("ended")
def test_an_ended_job_has_the_same_answer_when_its_lines_are_cached(
    answer: Callable[..., bytes], query: str, lines: list[str]
) -> None:
    """The rest of the log, or 204 for a client that has all of it."""
    is_whole = "Last-Event-ID: 11" in lines
    until = b"\r\n\r\n" if is_whole else b"\r\n0\r\n\r\n"
    found = {answer(query, until, *lines) for _ in range(3)}

    assert len(found) == 1
    assert found.pop().startswith(b"HTTP/1.1 204 " if is_whole else b"HTTP/1.1 200 ")
