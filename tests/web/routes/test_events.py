"""``/events``: the exact bytes of the published example, and where a stream starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.web.routes.conftest import both_ways
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint, Stream

pytestmark = both_ways

OpenStream = Callable[..., Stream]

#: Written by hand after the wire contract, not generated.
GOLDEN: Final = Path(__file__).parents[2] / "data" / "published.sse"
#: The published page's example, with one line of each kind and two of ``stdout``, numbered consecutively.
PAGE: Final = GOLDEN.with_name("published-page.sse")
#: The headers of every HTTP response that the contract does not list.
TRANSPORT: Final = {"server", "date", "connection", "transfer-encoding", "x-request-id", "strict-transport-security"}


@pytest.fixture
def published(job: Foreign) -> Foreign:
    job.line("Starting workflow execution", timestamp="2026-03-03T10:00:05.123Z")
    job.line("Loading configuration", timestamp="2026-03-03T10:00:06.456Z")
    job.line("Warning: deprecated option used", "stderr", timestamp="2026-03-03T10:00:07.789Z")
    return job.end("COMPLETED", 0, "timestamp", "2026-03-03T10:15:30.123Z")


@pytest.fixture
def running(job: Foreign) -> Foreign:
    """A job with ten lines, odd ones on stdout, even ones on stderr."""
    return job.lines([f"line {number}" for number in range(1, 11)], ("stdout", "stderr"))


@pytest.fixture
def ten(running: Foreign) -> Foreign:
    """Such a job that has ended. The end's number is 11."""
    return running.end()


def test_the_published_example_is_sent_byte_for_byte(client: httpx.Client, published: Foreign) -> None:
    """Except for the client's reconnection time, which is random for each connection.

    Without the ``job`` blocks and the ``id`` and ``retry`` fields, the bytes equal those of the published page.
    """
    body = client.get(f"{published.path}/events").content

    assert re.sub(rb"retry: [1-5]\d{3}\n", b"retry: 0000\n", body) == GOLDEN.read_bytes()
    body = re.sub(rb"event: job\ndata: .*\n\n", b"", body)
    assert re.sub(rb"(id|retry): \d+\n", b"", body) == PAGE.read_bytes()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_headers_are_those_of_the_contract(
    endpoint: Endpoint, auth: dict[str, str], ten: Foreign, method: str
) -> None:
    """No more and no fewer, including the number after which the stream starts."""
    url = f"{endpoint.url}{ten.path}/events?offset=7"
    headers = httpx.request(method, url, headers=auth, verify=endpoint.verify, timeout=60).headers

    assert {name: value for name, value in headers.items() if name not in TRANSPORT} == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
        "last-event-id": "7",
    }


@pytest.mark.parametrize(
    ("query", "last_event_id", "start", "expected"),
    [
        ("", None, 0, range(1, 11)),
        ("?offset=0", None, 0, range(1, 11)),
        ("?offset=7", None, 7, (8, 9, 10)),
        ("?offset=%37", None, 7, (8, 9, 10)),
        ("?offset=0000000000007", None, 7, (8, 9, 10)),
        ("?offset=10", None, 10, ()),
        ("?offset=latest", None, 10, ()),
        ("?tail=0", None, 10, ()),
        ("?tail=3&wait=5", None, 7, (8, 9, 10)),
        ("?tail=10", None, 0, range(1, 11)),
        ("?tail=999999999999999", None, 0, range(1, 11)),
        ("?stream=stdout", None, 0, (1, 3, 5, 7, 9)),
        ("?stream=stderr&offset=7", None, 7, (8, 10)),
        ("?stream=stdout&tail=2", None, 6, (7, 9)),
        ("?stream=stderr&tail=2", None, 7, (8, 10)),
        ("?stream=stderr&tail=99", None, 0, (2, 4, 6, 8, 10)),
        ("?wait=5", None, 0, range(1, 11)),
        # A browser repeats the query when it reconnects.
        ("?offset=7", "", 0, range(1, 11)),
        ("?offset=2", "7", 7, (8, 9, 10)),
        ("?offset=latest", "7", 7, (8, 9, 10)),
        ("?tail=9", "7", 7, (8, 9, 10)),
        ("?offset=99&stream=stderr", "7", 7, (8, 10)),
        ("", "10", 10, ()),
    ],
)
def test_a_stream_starts_where_requested(
    open_stream: OpenStream, running: Foreign, query: str, last_event_id: str | None, start: int, expected: Any
) -> None:
    """The lines from there on, once and in order, then the end. The header contains the start.

    For the first viewer, for one of a job that is watched, after the end, and with cached lines.
    """
    headers = {} if last_event_id is None else {"Last_Event_ID": last_event_id}
    streams = [open_stream(running, query, **headers).wait_for(b"event: job")]
    open_stream(running).wait_for(b"id: 10\n\n")
    streams.append(open_stream(running, query, **headers).wait_for(b"event: job"))
    running.end()
    streams += [open_stream(running, query, **headers).wait_end() for _ in range(3)]
    for stream in streams:
        stream.wait_end()
        varying = ("date", "x-request-id")
        assert stream.headers | dict.fromkeys(varying) == streams[0].headers | dict.fromkeys(varying)
        # With a filter, any start before the first line of the stream is correct.
        assert start <= int(stream.headers["last-event-id"]) < next(iter(expected), 11)
        assert stream.numbers() == list(expected)
        kinds = [block["event"] for block in stream.blocks() if "event" in block]
        assert kinds == ["connected", "job", *["log"] * len(expected), "job", "end"]
        assert stream.blocks()[-1] == {"event": "end", "data": {"status": "stream_ended"}, "id": "11"}
        assert not stream.cut


def test_a_tail_does_not_reach_before_the_first_line(client: httpx.Client, ten: Foreign) -> None:
    """Otherwise a viewer would get a gap for lines that it did not request."""
    ten.trim(4)
    for tail, start in ((5, "5"), (6, "4"), (8, "4"), (99, "4")):
        assert client.head(f"{ten.path}/events?tail={tail}").headers["last-event-id"] == start


@pytest.mark.parametrize("last_event_id", ["11", "12", "999999999999999"])
def test_a_reconnect_at_or_past_the_end_gets_204(client: httpx.Client, ten: Foreign, last_event_id: str) -> None:
    """204 stops an EventSource permanently."""
    response = client.get(f"{ten.path}/events", headers={"Last-Event-ID": last_event_id})

    assert (response.status_code, response.content) == (204, b"")


def test_a_lost_job_ends_with_an_error_that_stops_the_client(
    open_stream: OpenStream, client: httpx.Client, job: Foreign
) -> None:
    """The error has the end's id, so that the next reconnect gets 204."""
    job.lines(["x"])
    job.add("2-0", "event", "end", "status", "LOST")
    error = open_stream(job).wait_end().blocks()[-1]

    assert error == {"event": "error", "data": "runner lost: nothing heard from it for 30 s", "id": "2"}
    assert client.get(f"{job.path}/events", headers={"Last-Event-ID": "2"}).status_code == 204


def test_a_client_that_accepts_compression_gets_lines_immediately(
    endpoint: Endpoint, auth: dict[str, str], job: Foreign
) -> None:
    """No line waits in a compressor's buffer."""
    job.line("x")
    with Stream(endpoint, f"{job.path}/events", {**auth, "Accept-Encoding": "gzip, br"}) as stream:
        stream.wait_for(b"id: 1\n\n")

    assert "content-encoding" not in stream.headers
