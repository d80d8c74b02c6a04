"""``Client`` yields every number once, over as many connections as needed, and eventually gives up."""

import contextlib
import gzip
import re
import socket
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest

from chronoverse import api
from chronoverse.client.client import WAIT_SECONDS, Client
from chronoverse.client.follower import JobState, LogEvent, Notice, WorkflowFollower
from chronoverse.errors import BadRequest, ChronoverseError, Forbidden, JobNotFound, Unauthorized, Unreachable
from chronoverse.joblog import sse
from chronoverse.joblog.events import TOKEN_EXPIRED
from chronoverse.joblog.model import End, Gap, Job, JobRef, Line, OutOfSequence, Status
from tests.support.scripted import ScriptedService, answer, problem, stream
from tests.support.waiting import NoDelay, wait_until

JOB = JobRef("wf_1", "job_1")
TIME = "2026-03-03T10:00:05.123Z"
CONNECTED = sse.frame("connected", b'{"status":"connected"}', retry_ms=1)
END = End(3, Status.COMPLETED, 0, 2, 0, TIME)
DONE = Job(JOB, Status.COMPLETED, attempt=1, finished_at=TIME, exit_code=0, lines=2, last=2, end=END)
OVER = DONE.to_frame() + END.to_frame(30)


class Clock:
    """A clock that advances by ``step`` seconds with each reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def line(number: int, stream: str = "stdout") -> Line:
    return Line(number, TIME, f"line {number}", stream)


def frames(first: int, last: int) -> bytes:
    return b"".join(line(number).to_frame() for number in range(first, last + 1))


def follow(url: str, stop: threading.Event | None = None, **request: Any) -> list[LogEvent]:
    """Everything that ``Client.follow`` yields, without delays between attempts."""
    client = Client(url, "a.b.c", chance=lambda: 0.5)
    try:
        return list(client.follow(JOB, stop=stop or NoDelay(), **request))
    finally:
        client.close()


def numbers(items: list[LogEvent]) -> list[int]:
    return [item.sequence_num for item in items if isinstance(item, Line)]


STATE = JobState(Status.COMPLETED, 1, 2, 0)
GAP = Gap(2, 4, "trimmed")
LOST = End(2, Status.LOST, None, 1, 0, TIME)
AGAIN = stream(frames(1, 1), OVER)
WAIT: dict[str, Any] = {"q": None, "regex": False, "stream": None, "offset": None, "seconds": None}


def retried(detail: str) -> Notice:
    return Notice(f"{detail}; trying again in 0.8 s")


@pytest.mark.parametrize(
    ("answers", "items"),
    [
        ([stream(CONNECTED, frames(1, 1), GAP.to_frame() + frames(5, 5), OVER)], [line(1), GAP, line(5), STATE]),
        # Streams have a maximum age: reconnecting then is not worth a notice.
        ([stream(CONNECTED, frames(1, 1)), stream(CONNECTED, frames(2, 2), OVER)], [line(1), line(2), STATE]),
        (
            [stream(frames(1, 3), whole=False), stream(frames(1, 5), Gap(4, 6, "x").to_frame(), OVER)],
            [*map(line, range(1, 6)), Gap(6, 6, "x"), STATE],
        ),
        ([stream(frames(1, 1), LOST.to_frame(30))], [line(1), Notice("runner lost: nothing heard from it for 30 s")]),
        # The service answers 204 if the connection was cut after the last line but before the end.
        ([stream(frames(1, 1), whole=False), answer("204 No Content")], [line(1)]),
        # A reconnect for each entry without a number would fall behind the log. The id is of filtered-out lines.
        (
            [stream(CONNECTED, frames(1, 1), sse.cursor(3) + OutOfSequence("3-1").to_frame(), frames(4, 4), OVER)],
            [line(1), Notice("entry 3-1 has no place in this log's numbering and cannot be shown"), line(4), STATE],
        ),
        ([stream(sse.frame("news", b"{}"), frames(1, 1), OVER)], [line(1), STATE]),
        (
            [stream(CONNECTED, sse.frame("error", b"the store does not answer")), AGAIN],
            [Notice("the store does not answer; trying again in 0.0 s"), line(1), STATE],
        ),
        *(
            ([problem(f"{status} Reason", "not now"), AGAIN], [retried("not now"), line(1), STATE])
            for status in (429, 408, 425, 500)
        ),
        (
            [answer("502 Bad Gateway", b"<html>nginx</html>"), AGAIN],
            [retried("the service returned 502 Bad Gateway"), line(1), STATE],
        ),
    ],
    ids=["values", "closed", "twice", "lost", "204", "entry", "unknown", "error", "429", "408", "425", "500", "HTML"],
)
def test_a_log_is_followed_to_its_end(answers: list[bytes], items: list[LogEvent]) -> None:
    """Over as many connections as needed: each number once, and then no further request."""
    with ScriptedService(*answers, answer("404 Not Found")) as service:
        assert follow(service.url) == items
        assert len(service.requests) == len(answers)


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        *(
            ([problem("503 Service Unavailable", "full", Retry_After=value)], [delay])
            for value, delay in (("7", 7), ("86400", 120), ("0", 0.75), ("soon", 0.75), ("-5", 0.75))
        ),
        # The service chooses the reconnection time at random so that clients do not all reconnect at once.
        ([stream(sse.retry(2_417), frames(1, 1))], [2.417]),
        ([stream(sse.retry(0), frames(1, 1))], [1]),
        (
            [*[problem("503 Service Unavailable", "full")] * 7, stream(frames(1, 1)), None],
            [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 1, 0.75],
        ),
    ],
)
def test_delays_are_those_of_the_service_or_double(answers: list[bytes | None], waits: list[float]) -> None:
    """With each failure, up to a maximum. They start again after a success."""
    stop = NoDelay()
    with ScriptedService(*answers, stream(OVER)) as service:
        follow(service.url, stop)
    assert stop.waits == waits


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (stream(CONNECTED, frames(1, 3), whole=False), "3"),
        # A filtered reader: a block with only an id moves the cursor without an event.
        (stream(frames(1, 1), sse.cursor(40), whole=False), "40"),
        # Otherwise ``tail`` would select other lines after an early disconnect.
        (stream(CONNECTED, after=95, whole=False), "95"),
    ],
    ids=["line", "cursor", "header"],
)
def test_a_lost_connection_is_resumed_after_the_last_line(first: bytes, last: str) -> None:
    """The second request has a Last-Event-ID, the filter and another token, but no conflicting offset."""
    tokens = iter(["first", "second"])
    with ScriptedService(first, stream(OVER, after=int(last))) as service:
        client = Client(service.url, lambda: next(tokens))
        list(client.follow(JOB, stop=NoDelay(), tail=5, stream="stdout", wait=1_000))
    asked, again = service.requests
    expected = {"tail": "5", "stream": "stdout", "wait": "300"}
    assert (asked.query, asked.headers.get("last-event-id")) == (expected, None)
    assert {name: again.query[name] for name in again.query if name != "wait"} == {"stream": "stdout"}
    assert again.headers["last-event-id"] == last
    assert [each.headers["authorization"] for each in service.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("cut", range(0, len(frames(1, 2)), 7))
def test_an_incomplete_frame_is_ignored(cut: int) -> None:
    """Each line is yielded once, wherever the connection is cut."""
    torn = stream(CONNECTED, frames(1, 2)[:cut], whole=False)
    first = frames(1, 2)[:cut].count(b"\n\n")
    with ScriptedService(torn, stream(frames(first + 1, 3), OVER, after=first)) as service:
        items = follow(service.url)

    assert numbers(items) == [1, 2, 3]
    assert service.requests[1].headers["last-event-id"] == str(first)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("400 Bad Request", BadRequest),
        ("401 Unauthorized", Unauthorized),
        ("403 Forbidden", Forbidden),
        ("404 Not Found", JobNotFound),
        ("405 Method Not Allowed", ChronoverseError),
        ("302 Found", ChronoverseError),
    ],
)
def test_a_refusal_that_no_retry_can_change_is_final(status: str, error: type[ChronoverseError]) -> None:
    """It is raised immediately, with the service's detail as its message, even if the token could be renewed."""
    with ScriptedService(problem(status, "this is why", Location="http://127.0.0.1:1/")) as service:
        with pytest.raises(error) as caught:
            list(Client(service.url, lambda: "a.b.c").follow(JOB, stop=NoDelay()))
        assert str(caught.value) == "this is why"
        assert len(service.requests) == 1
    # Probably a login page.
    html = answer("200 OK", b"<html>", Content_Type="text/html")
    with ScriptedService(html) as service, pytest.raises(Unreachable, match="right address"):
        follow(service.url)


def test_a_heartbeat_counts_as_success() -> None:
    """A quiet job's stream can reach its maximum age any number of times."""
    quiet = stream(CONNECTED, sse.HEARTBEAT)
    with ScriptedService(*[quiet] * 20, stream(OVER)) as service:
        client = Client(service.url, max_retry_seconds=50, clock=Clock(step=10))
        items = list(client.follow(JOB, stop=NoDelay()))

    assert [type(item) for item in items] == [JobState]


def test_following_gives_up_in_the_end() -> None:
    """After its time limit, with the last failure."""
    with ScriptedService(*[problem("503 Service Unavailable", "full")] * 9) as service:
        client = Client(service.url, max_retry_seconds=50, clock=Clock(step=5))
        with pytest.raises(Unreachable, match="full"):
            list(client.follow(JOB, stop=NoDelay()))

        assert len(service.requests) > 2


def test_an_unreachable_service_is_named() -> None:
    """The message contains the URL and the network error. Silence again suggests that a proxy buffers the stream."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    stop = NoDelay(limit=1)

    (notice,) = follow(url, stop)
    assert notice == Notice(f"{url} is not responding: Connection refused; trying again in 0.8 s")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        notices = list(Client(url, heartbeat_seconds=0.05).follow(JOB, stop=NoDelay(limit=2)))
    assert ["a proxy buffers the stream" in str(each) for each in notices] == [False, True]


def test_a_connection_without_heartbeats_is_given_up() -> None:
    """After three missing heartbeats: a half-open connection never reports an error."""
    hold = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(stream(CONNECTED, whole=False))
                assert hold.wait(20)

        thread = threading.Thread(target=accept)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        items = list(Client(url, heartbeat_seconds=0.05).follow(JOB, stop=NoDelay(limit=1)))
        hold.set()
        thread.join()

    assert [type(item) for item in items] == [Notice]
    assert str(items[0]).startswith(f"Notice(reason='the connection to {url} was lost")


def test_a_job_that_does_not_appear_in_time_is_not_found() -> None:
    """Each attempt asks the service to wait for the remaining time."""
    late = stream(CONNECTED, sse.frame("error", b"the job did not come"), after=None)
    with ScriptedService(late, problem("404 Not Found", "no such job")) as service:
        client, stop = Client(service.url, clock=Clock(step=2)), NoDelay()
        with pytest.raises(JobNotFound, match="the job did not come"):
            list(client.follow(JOB, wait=3, stop=stop))

    assert stop.waits == [0.0]
    assert [asked.query.get("wait") for asked in service.requests] == ["1", None]


@pytest.mark.parametrize(("coding", "left_out"), [("gzip", 1), ("gzip", 8), ("identity", 1)])
def test_a_download_that_is_cut_off_is_an_error(coding: str, left_out: int) -> None:
    """Even if its length is unknown, as is that of a compressed one."""
    body = gzip.compress(b"line 1\n") if coding == "gzip" else b"line 1\n"
    length = {} if coding == "gzip" else {"Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Content-Encoding": coding, **length}.items())
    whole = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body
    with ScriptedService(whole, whole[:-left_out]) as service:
        client = Client(service.url)
        assert b"".join(client.download(JOB, format="txt")) == b"line 1\n"
        with pytest.raises(Unreachable, match="cut off"):
            list(client.download(JOB, format="txt"))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        *product(["log", "gap", "job"], [b"{", b"{}", b"[]", b"7", b"null"]),
        *(("log", line(1).encode().replace(b":1,", b":%b," % value)) for value in (b'"1"', b"1.5", b"0", b"1e20")),
        *(("gap", b'{"from":1,"to":%b,"reason":"x"}' % value) for value in (b'"1"', b"1.5", b"0", b"true")),
        ("log", line(1).encode().replace(b'"stdout"', b"7")),
        ("job", b'{"status":"FAILED","first_sequence_num":1,"last_sequence_num":0,"exit_code":1e99}'),
    ],
)
def test_an_unreadable_frame_is_followed_by_a_retry(event: str, data: bytes) -> None:
    """It counts as a failed connection."""
    with ScriptedService(stream(sse.frame(event, data)), stream(frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert isinstance(items[0], Notice)
    assert numbers(items) == [1]


@pytest.mark.parametrize("job", [JobRef("..", "job_1"), JobRef("wf_1", "a/b"), JobRef("wf_1", ""), JobRef("é", "j")])
def test_an_invalid_id_is_never_requested(job: JobRef) -> None:
    """It would lead to another path."""
    client = Client("http://127.0.0.1:1")
    with pytest.raises(JobNotFound):
        next(client.follow(job))
    with pytest.raises(JobNotFound):
        client.job(job)


def test_a_stop_ends_the_delay() -> None:
    """Another thread sets the stop event."""
    stop = threading.Event()
    with ScriptedService(problem("503 Service Unavailable", "full", Retry_After="100")) as service:
        items: list[LogEvent] = []
        thread = threading.Thread(target=lambda: items.extend(Client(service.url).follow(JOB, stop=stop)))
        thread.start()
        wait_until(lambda: service.requests, 20, "the service is asked")
        stop.set()
        thread.join(20)

    assert not thread.is_alive()


def page(first: int, last: int, cursor: str | None) -> bytes:
    logs = [line(number).to_json() for number in range(first, last + 1)]
    return answer("200 OK", orjson.dumps({"workflow_id": "wf_1", "id": "job_1", "logs": logs, "cursor": cursor}))


def test_all_pages_are_read() -> None:
    """A cursor is sent with the order and filter of its page, but without the offset. One that repeats is the last."""
    with ScriptedService(page(8, 9, "c1"), page(10, 11, "c2"), page(12, 12, "c2"), page(13, 13, None)) as service:
        lines = list(Client(service.url).logs(JOB, stream="stdout", offset=7))

    assert lines == [line(number) for number in range(8, 13)]
    assert service.requests[0].query == {"limit": "1000", "order": "asc", "stream": "stdout", "offset": "7"}
    assert service.requests[1].query == {"limit": "1000", "order": "asc", "stream": "stdout", "cursor": "c1"}


def test_a_request_for_a_page_is_retried() -> None:
    """When no answer arrives. The fourth failure raises an error."""
    waits: list[float] = []
    full = problem("503 Service Unavailable", "full")
    with ScriptedService(full, page(1, 2, None)[:-9], page(1, 2, None), *[full] * 4) as service:
        client = Client(service.url, sleep=waits.append, chance=lambda: 0.5)
        assert list(client.logs(JOB)) == [line(1), line(2)]
        assert waits == [0.75, 1.5]
        with pytest.raises(Unreachable, match="full"):
            list(client.logs(JOB))
        assert len(service.requests) == 7


def test_retries_end_at_the_deadline() -> None:
    """However long the delays have become."""
    clock = Clock()
    options: dict[str, Any] = {"clock": clock, "sleep": clock.sleep, "chance": lambda: 1}
    with ScriptedService(*[None] * 9) as service:
        client = Client(service.url, max_attempts=9, max_retry_seconds=20, **options)
        with pytest.raises(Unreachable):
            client.job(JOB)

        assert (len(service.requests), clock.now) == (6, 20)


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    """The error has the problem document's title."""
    with ScriptedService(problem("503 Service Unavailable", "full", Retry_After="30")) as service:
        client = Client(service.url, max_attempts=9, max_retry_seconds=20, sleep=lambda seconds: None)
        with pytest.raises(Unreachable, match="full") as refused:
            client.job(JOB)

    assert refused.value.title == "Service Unavailable"


def test_a_page_is_read_by_its_route() -> None:
    """Including the number that the page reached. Invalid ids are refused without a request."""
    reached = answer("200 OK", b'{"logs":[]}', Last_Event_ID="9")
    with ScriptedService(reached) as service:
        client = Client(service.url)
        found = client.read("/workflows/{}/jobs/{}/logs", "wf_1", "job_1", limit=2, stream=None)
        with pytest.raises(JobNotFound):
            client.read("/workflows/{}/jobs", "wf_1/..")

    assert found == {"logs": [], "reached": 9}
    assert (service.requests[0].path, service.requests[0].query) == ("/workflows/wf_1/jobs/job_1/logs", {"limit": "2"})


@pytest.mark.parametrize(
    ("lost", "fails"),
    [
        ([None], False),
        ([answer("200 OK", orjson.dumps(DONE.to_json()), Connection="keep-alive")], False),
        ([], True),
    ],
    ids=["new", "idle", "none"],
)
def test_a_retried_deletion_that_finds_no_job_has_succeeded(lost: list[bytes | None], fails: bool) -> None:
    """The first request deleted the job, but its answer was lost. It was sent once per attempt."""
    with ScriptedService(*lost, problem("404 Not Found", "There is nothing here.")) as service:
        client = Client(service.url, sleep=lambda seconds: None)
        if lost and lost[0]:
            assert JobState.from_json(client.job(JOB)).exit_code == 0
        with pytest.raises(JobNotFound) if fails else contextlib.nullcontext():
            client.delete(JOB)
    assert len(service.requests) == 1 + len(lost)


def waited(outcome: str, cursor: int, **more: Any) -> bytes:
    body = {"outcome": outcome, "log": None, "cursor": cursor, "job": DONE.to_json(), **more}
    return answer("200 OK", orjson.dumps(body))


def test_a_wait_continues_with_a_renewed_token() -> None:
    """It rereads the token file. A token refused at first is an error."""
    expired = problem("401 Unauthorized", "token expired")
    with ScriptedService(expired, waited("timeout", 7), expired, waited("matched", 9), expired, expired) as service:
        client = Client(service.url, token=lambda: "a.b.c")
        found = client.wait(JOB, q="x", regex=False, stream=None, offset=3, seconds=5)
        assert found["outcome"] == "matched"
        with pytest.raises(Unauthorized):
            client.wait(JOB, q="x", regex=False, stream=None, offset=9, seconds=5)

    assert [asked.query["offset"] for asked in service.requests] == ["3", "3", "7", "7", "9", "9"]


@pytest.mark.parametrize(("q", "offsets"), [("x", [*["3"] * 6, *["7"] * 6]), (None, [*["3"] * 6, *[None] * 6])])
def test_a_wait_repeats_requests_until_its_own_timeout(q: str | None, offsets: list[str | None]) -> None:
    """A single request has a shorter limit. Only a search has a position to continue from, also after disconnects.

    These, and refusals for too many waits, are retried more often than other requests. All gaps are reported.
    """
    waits: list[float] = []
    gaps = [{"from": 4, "to": 5, "reason": "missing"}, {"from": 8, "to": 8, "reason": "lost"}]
    first, last = waited("timeout", 7, gaps=gaps[:1]), waited("matched", 9, gaps=gaps[1:])
    full = problem("429 Too Many Requests", "full", Retry_After="7")
    with ScriptedService(*[full] * 5, first, *[None] * 5, last) as service:
        client = Client(service.url, sleep=waits.append, chance=lambda: 0.5)
        found = client.wait(JOB, q=q, regex=False, stream=None, offset=3, seconds=None)

    assert (found["outcome"], found["gaps"]) == ("matched", gaps)
    assert [asked.query.get("offset") for asked in service.requests] == offsets
    assert waits == [7, 7, 7, 7, 12, 0.75, 1.5, 3, 6, 12]


def test_a_wait_ends_when_the_service_stops_waiting_for_the_job() -> None:
    """A deleted job is Not Found at once; a service that shuts down reports it once."""
    waits: list[float] = []
    missing = problem("404 Not Found", "no such job")
    with ScriptedService(*[missing] * 9) as service:
        client = Client(service.url, sleep=waits.append, chance=lambda: 0.5)
        with pytest.raises(JobNotFound):
            client.wait(JOB, **WAIT)
        asked = len(service.requests)
    assert (asked, waits) == (4, [0.75, 1.5, 3])


def test_a_wait_continues_while_the_service_waits_for_the_job() -> None:
    """Without a delay after requests that took their full time."""
    clock = Clock(step=WAIT_SECONDS)
    missing = problem("404 Not Found", "no such job")
    with ScriptedService(*[missing] * 6, waited("ended", 9)) as service:
        client = Client(service.url, clock=clock, sleep=lambda seconds: pytest.fail(f"it sleeps for {seconds} s"))
        found = client.wait(JOB, **WAIT)

    assert found["outcome"] == "ended"


def test_a_wait_ends_at_its_deadline_even_during_an_outage() -> None:
    """It requests only the remaining time, and makes no attempt beyond it."""
    clock = Clock()
    with ScriptedService(None, None, None) as service:
        client = Client(service.url, clock=clock, sleep=clock.sleep, chance=lambda: 0.5)
        with pytest.raises(Unreachable):
            client.wait(JOB, **{**WAIT, "seconds": 3})

    assert [asked.query["timeout"] for asked in service.requests] == ["3", "3", "1"]


PAGES = (b"<html>", b"{}", b"[]", b'{"logs":[{}],"cursor":null}', b'{"logs":7,"cursor":null}')


@pytest.mark.parametrize(
    ("call", "body"),
    [
        *((lambda client: list(client.logs(JOB)), body) for body in PAGES),
        # As from a proxy that answers JSON of its own.
        (lambda client: client.wait(JOB, **WAIT), b"{}"),
        (lambda client: client.state(JOB), b"{}"),
        (lambda client: client.redact(JOB, q="x"), b"{}"),
    ],
)
def test_an_unreadable_answer_is_an_error(call: Callable[[Client], object], body: bytes) -> None:
    """It is one of our errors, so the command line can show it."""
    with (
        ScriptedService(answer("200 OK", body)) as service,
        pytest.raises(ChronoverseError, match=r"did not return JSON|unreadable"),
    ):
        call(Client(service.url))


@pytest.mark.parametrize(("error", "refusals"), [("token expired", 1), (TOKEN_EXPIRED, 0)], ids=["too late", "in time"])
def test_a_token_that_expires_during_a_stream_is_renewed(error: str, refusals: int) -> None:
    """At once, without a notice. The file can still contain the expired token. A fixed token ends the stream."""
    expired, stop = stream(CONNECTED, frames(1, 1) + sse.frame("error", error.encode())), NoDelay()
    refused = problem("401 Unauthorized", "the token has expired")
    with ScriptedService(expired, *[refused] * refusals, stream(frames(2, 2), OVER, after=1)) as service:
        items = list(Client(service.url, lambda: "a.b.c", chance=lambda: 0.5).follow(JOB, stop=stop))
    assert (numbers(items), len(stop.waits)) == ([1, 2], 1 + refusals)
    assert any(isinstance(item, Notice) for item in items) == bool(refusals)
    assert refusals or stop.waits == [0.0]
    with ScriptedService(expired, refused) as service, pytest.raises(Unauthorized, match="expired"):
        follow(service.url)


def test_the_public_iterator_resumes_after_a_disconnect() -> None:
    """The example in the documentation runs as printed, except for its address."""
    first = stream(CONNECTED, line(1).to_frame(), whole=False)
    with ScriptedService(first, stream(CONNECTED, line(2).to_frame(), OVER, after=1)) as service:
        events = list(api.follow(service.url, *JOB, offset=0))

    assert [event.message for event in events if isinstance(event, api.Line)] == ["line 1", "line 2"]
    assert [asked.headers.get("last-event-id") for asked in service.requests] == [None, "1"]

    page = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n([^`]*follow\([^`]*)^```$", page, re.MULTILINE)
    shown: list[str] = []
    with ScriptedService(stream(CONNECTED, frames(1, 2), OVER)) as service:
        names = {"token": "a.b.c", "print": lambda *words: shown.append(" ".join(map(str, words)))}
        exec(example.replace("http://127.0.0.1:8000", service.url), names)

    assert shown == ["1 line 1", "2 line 2"]
    assert names["status"] == Status.COMPLETED


def test_the_jobs_of_a_connection_that_ended_too_early_are_forgotten() -> None:
    """One can be deleted before the next connection, which starts with all jobs again."""
    follower, connected = WorkflowFollower(), b'event: connected\ndata: {"status":"connected"}\n\n'
    job = b'event: job\ndata: {"id":"job_%d","status":"RUNNING"}\n\n'
    found = []
    for chunk in (connected + job % 1, connected + job % 2 + b"id: 7\n\n", connected):
        follower.start_connection("7")
        found.append([type(event).__name__ for event in follower.feed(chunk)])
    assert found == [["JobChange"], ["Reset", "JobChange", "UpToDate"], []]
