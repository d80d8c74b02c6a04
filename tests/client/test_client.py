"""``Client`` yields every number once, over as many connections as needed, and eventually gives up."""

import gzip
import random
import re
import socket
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from chronoverse import api
from chronoverse.client.client import WAIT_SECONDS, Client
from chronoverse.client.follower import Follower, JobState, LogEvent, Notice, WorkflowFollower
from chronoverse.errors import BadRequest, ChronoverseError, Forbidden, JobNotFound, Unauthorized, Unreachable
from chronoverse.joblog import sse
from chronoverse.joblog.events import TOKEN_EXPIRED
from chronoverse.joblog.model import End, Gap, Job, JobRef, Line, OutOfSequence, Status
from tests.support.scripted import ScriptedService, answer, problem, stream
from tests.support.waiting import wait_until

JOB = JobRef("wf_1", "job_1")
TIME = "2026-03-03T10:00:05.123Z"
CONNECTED = sse.frame("connected", b'{"status":"connected"}', retry_ms=1)
END = End(3, Status.COMPLETED, 0, 2, 0, TIME)
DONE = Job(JOB, Status.COMPLETED, attempt=1, finished_at=TIME, exit_code=0, lines=2, last=2, end=END)
OVER = DONE.to_frame() + END.to_frame(30)


class NoDelay(threading.Event):
    """A stop event whose waits take no time. Records their timeouts. Set after ``limit`` waits."""

    def __init__(self, limit: int = 1_000) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.limit = limit

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        if len(self.waits) >= self.limit:
            self.set()
        return self.is_set()


class Clock:
    """A clock that advances by ``step`` seconds with each reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


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


def test_a_log_is_followed_to_its_end() -> None:
    """Lines, gaps and states are yielded as values until the log ends."""
    gap = Gap(2, 4, "trimmed")
    with ScriptedService(stream(CONNECTED, frames(1, 1), gap.to_frame() + frames(5, 5), OVER)) as service:
        items = follow(service.url)

    state = JobState(Status.COMPLETED, 1, 2, 0)
    assert items == [line(1), gap, line(5), state]


def test_the_first_request_has_the_arguments() -> None:
    """The token is in a header, everything else in the query."""
    with ScriptedService(stream(CONNECTED, OVER)) as service:
        follow(service.url, tail=5, stream="stderr", wait=20)

    (asked,) = service.requests
    assert asked.path == "/workflows/wf_1/jobs/job_1/events"
    assert asked.query == {"tail": "5", "stream": "stderr", "wait": "20"}
    assert asked.headers["authorization"] == "Bearer a.b.c"
    assert asked.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in asked.headers


def test_a_lost_connection_is_resumed_after_the_last_line() -> None:
    """The second request has a Last-Event-ID and the same filter, but no conflicting offset."""
    with ScriptedService(stream(CONNECTED, frames(1, 3), whole=False), stream(frames(4, 5), OVER, after=3)) as service:
        items = follow(service.url, offset=0, stream="stdout")

    assert numbers(items) == [1, 2, 3, 4, 5]
    assert service.requests[1].query == {"stream": "stdout"}
    assert service.requests[1].headers["last-event-id"] == "3"


@pytest.mark.parametrize("cut", range(0, len(frames(1, 2)), 7))
def test_an_incomplete_frame_is_ignored(cut: int) -> None:
    """Each line is yielded once, wherever the connection is cut."""
    torn = stream(CONNECTED, frames(1, 2)[:cut], whole=False)
    first = frames(1, 2)[:cut].count(b"\n\n")
    with ScriptedService(torn, stream(frames(first + 1, 3), OVER, after=first)) as service:
        items = follow(service.url)

    assert numbers(items) == [1, 2, 3]
    assert service.requests[1].headers["last-event-id"] == str(first)


def test_repeated_lines_are_ignored() -> None:
    """A stream that starts too early repeats lines."""
    with ScriptedService(
        stream(frames(1, 3), whole=False), stream(frames(1, 5), Gap(4, 6, "x").to_frame(), OVER)
    ) as service:
        items = follow(service.url)

    assert [item for item in items if not isinstance(item, JobState)] == [*map(line, range(1, 6)), Gap(6, 6, "x")]


@pytest.mark.long
def test_no_line_of_a_hundred_thousand_is_lost_or_doubled_by_fifty_cuts() -> None:
    """The connection is cut at random positions, also within lines."""
    rng = random.Random(7)
    whole = [line(number).to_frame() for number in range(1, 100_001)]
    answers, start = [], 0
    for cut in sorted(rng.sample(range(1, 100_000), 50)):
        part = b"".join(whole[start:cut])
        answers.append(stream(CONNECTED, part + whole[cut][: rng.randrange(len(whole[cut]))], after=start, whole=False))
        start = cut
    with ScriptedService(*answers, stream(CONNECTED, b"".join(whole[start:]), OVER, after=start)) as service:
        items = follow(service.url)

    assert numbers(items) == list(range(1, 100_001))
    assert not [item for item in items if isinstance(item, Notice)]


def test_a_filtered_reader_resumes_after_the_lines_that_it_skipped() -> None:
    """A block with only an id moves the cursor without an event."""
    response = stream(line(1, "stderr").to_frame(), sse.cursor(40), whole=False)
    with ScriptedService(response, stream(OVER)) as service:
        items = follow(service.url, stream="stderr")

    assert numbers(items) == [1]
    assert service.requests[1].headers["last-event-id"] == "40"


def test_the_start_of_a_stream_is_taken_from_its_header() -> None:
    """Otherwise ``tail=5`` would select other lines after an early disconnect."""
    with ScriptedService(stream(CONNECTED, after=95, whole=False), stream(frames(96, 97), OVER, after=95)) as service:
        assert numbers(follow(service.url, tail=5)) == [96, 97]

    assert service.requests[1].headers["last-event-id"] == "95"
    assert service.requests[1].query == {}


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_no_request_is_made_after_the_end(status: str) -> None:
    """No matter how the job ended."""
    with ScriptedService(stream(CONNECTED, frames(1, 2), OVER), answer(status)) as service:
        follow(service.url)

        assert len(service.requests) == 1


def test_a_lost_job_ends_with_the_reason() -> None:
    """An error event with the terminal entry's id ends the stream."""
    lost = End(2, Status.LOST, None, 1, 0, TIME)
    with ScriptedService(stream(frames(1, 1), lost.to_frame(30))) as service:
        items = follow(service.url)

    assert items == [line(1), Notice("runner lost: nothing heard from it for 30 s")]


def test_no_content_is_the_end() -> None:
    """The service answers 204 if the connection was cut after the last line but before the end."""
    with ScriptedService(stream(frames(1, 1), whole=False), answer("204 No Content")) as service:
        assert numbers(follow(service.url)) == [1]


def test_an_error_without_an_id_is_followed_by_a_retry() -> None:
    """The store is unreachable at first, but not on the next attempt."""
    error = sse.frame("error", b"the store does not answer")
    with ScriptedService(stream(CONNECTED, error), stream(CONNECTED, frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert items[0] == Notice("the store does not answer; trying again in 0.0 s")
    assert numbers(items) == [1]


def test_an_error_about_an_entry_does_not_end_the_stream() -> None:
    """The service continues after an entry that has no number. A reconnect for each would fall behind the log."""
    error = OutOfSequence("1-1").to_frame()
    with ScriptedService(stream(CONNECTED, frames(1, 1), error, frames(2, 2), OVER)) as service:
        items = follow(service.url)

    assert items[:3] == [line(1), Notice("entry 1-1 has no place in this log's numbering and cannot be shown"), line(2)]
    assert len(service.requests) == 1


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
    """It is raised immediately, with the service's detail as its message."""
    with ScriptedService(problem(status, "this is why", Location="http://127.0.0.1:1/")) as service:
        with pytest.raises(error) as caught:
            follow(service.url)

        assert str(caught.value) == "this is why"
        assert len(service.requests) == 1


def test_a_token_that_expires_during_a_stream_ends_it() -> None:
    """The stream ends with an error event, and the reconnection is refused."""
    expired = sse.frame("error", b"the token has expired")
    with (
        ScriptedService(stream(frames(1, 1), expired), problem("401 Unauthorized", "the token has expired")) as service,
        pytest.raises(Unauthorized, match="expired"),
    ):
        follow(service.url)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Internal Server Error", "502 Bad Gateway"])
def test_a_temporary_refusal_is_retried(status: str) -> None:
    """The proxy cannot reach the service, or the service is full or failed."""
    with ScriptedService(problem(status, "not now"), stream(frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert items[:2] == [Notice("not now; trying again in 0.8 s"), line(1)]


def test_the_html_of_a_proxy_is_not_shown() -> None:
    """Only a problem document's text is shown; otherwise the status."""
    with ScriptedService(answer("502 Bad Gateway", b"<html>nginx</html>"), stream(OVER)) as service:
        assert follow(service.url)[0] == Notice("the service answers 502 Bad Gateway; trying again in 0.8 s")


@pytest.mark.parametrize(("value", "delay"), [("7", 7), ("86400", 120), ("0", 0.75), ("soon", 0.75), ("-5", 0.75)])
def test_retry_after_is_honoured_within_reason(value: str, delay: float) -> None:
    """Retry-After is respected up to a maximum."""
    stop = NoDelay()
    with ScriptedService(problem("503 Service Unavailable", "full", Retry_After=value), stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [delay]


def test_the_reconnection_time_of_the_service_is_used() -> None:
    """The service chooses it at random so that clients do not all reconnect at once."""
    stop = NoDelay()
    with ScriptedService(stream(sse.retry(2_417), frames(1, 1)), stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [2.417]


def test_delays_double_with_each_failure_and_start_again_after_a_success() -> None:
    """Delays are jittered and have a maximum."""
    stop = NoDelay()
    full = [problem("503 Service Unavailable", "full")] * 7
    with ScriptedService(*full, stream(frames(1, 1)), None, stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 1, 0.75]


def test_a_planned_close_yields_no_notice() -> None:
    """Streams have a maximum age; reconnecting then is not worth a notice."""
    with ScriptedService(stream(CONNECTED, frames(1, 1)), stream(CONNECTED, frames(2, 2), OVER)) as service:
        items = follow(service.url)

    assert [type(item) for item in items] == [Line, Line, JobState]


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
    """The message contains the URL and the network error."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    stop = NoDelay(limit=1)

    (notice,) = follow(url, stop)
    assert notice == Notice(f"{url} does not answer: Connection refused; trying again in 0.8 s")


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


def test_a_request_waits_no_longer_than_the_service_allows() -> None:
    with ScriptedService(stream(CONNECTED, OVER)) as service:
        follow(service.url, wait=1_000)
    assert service.requests[0].query == {"wait": "300"}


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


def test_an_answer_that_is_not_a_stream_is_final() -> None:
    """It is probably a login page, so the address is wrong."""
    with (
        ScriptedService(answer("200 OK", b"<html>", Content_Type="text/html")) as service,
        pytest.raises(ChronoverseError, match="right address"),
    ):
        follow(service.url)


@pytest.mark.parametrize("data", [b"{", b"{}", b"[]", b'{"sequence_num":"1"}', b"7", b"null"])
@pytest.mark.parametrize("event", ["log", "gap", "job"])
def test_an_unreadable_frame_is_followed_by_a_retry(event: str, data: bytes) -> None:
    """It counts as a failed connection."""
    with ScriptedService(stream(sse.frame(event, data)), stream(frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert isinstance(items[0], Notice)
    assert numbers(items) == [1]


def test_unknown_events_are_ignored() -> None:
    """Later versions of the service may send other events."""
    with ScriptedService(stream(sse.frame("news", b"{}"), frames(1, 1), OVER)) as service:
        assert numbers(follow(service.url)) == [1]


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


def test_a_token_may_be_made_for_each_attempt() -> None:
    """A log can be followed for longer than a token is valid."""
    tokens = iter(["first", "second"])
    with ScriptedService(None, stream(OVER)) as service:
        list(Client(service.url, lambda: next(tokens)).follow(JOB, stop=NoDelay()))

    assert [asked.headers["authorization"] for asked in service.requests] == ["Bearer first", "Bearer second"]


def page(first: int, last: int, cursor: str | None) -> bytes:
    logs = [line(number).to_json() for number in range(first, last + 1)]
    return answer("200 OK", orjson.dumps({"workflow_id": "wf_1", "id": "job_1", "logs": logs, "cursor": cursor}))


def test_all_pages_are_read() -> None:
    """A cursor is sent with the order and filter of its page, but without the offset."""
    with ScriptedService(page(8, 9, "c1"), page(10, 11, "c2"), page(12, 12, None)) as service:
        lines = list(Client(service.url).logs(JOB, stream="stdout", offset=7))

    assert lines == [line(number) for number in range(8, 13)]
    assert service.requests[0].query == {"limit": "1000", "order": "asc", "stream": "stdout", "offset": "7"}
    assert service.requests[1].query == {"limit": "1000", "order": "asc", "stream": "stdout", "cursor": "c1"}


def test_a_request_for_a_page_is_retried() -> None:
    """When no answer arrives."""
    waits: list[float] = []
    torn = page(1, 2, None)[:-9]
    answers = (problem("503 Service Unavailable", "full"), torn, page(1, 2, None))
    with ScriptedService(*answers) as service:
        lines = list(Client(service.url, sleep=waits.append, chance=lambda: 0.5).logs(JOB))

    assert lines == [line(1), line(2)]
    assert waits == [0.75, 1.5]


def test_a_request_for_a_page_is_retried_three_times() -> None:
    """The fourth failure raises an error."""
    with ScriptedService(*[problem("503 Service Unavailable", "full")] * 4) as service:
        with pytest.raises(Unreachable, match="full"):
            list(Client(service.url, sleep=lambda seconds: None).logs(JOB))

        assert len(service.requests) == 4


def test_retries_end_at_the_deadline() -> None:
    """However long the delays have become."""
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    with ScriptedService(*[None] * 9) as service:
        client = Client(service.url, max_attempts=9, max_retry_seconds=20, clock=clock, sleep=sleep, chance=lambda: 1)
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
    "lost", [None, answer("200 OK", orjson.dumps(DONE.to_json()), Connection="keep-alive")], ids=["new", "idle"]
)
def test_a_retried_deletion_that_finds_no_job_has_succeeded(lost: bytes | None) -> None:
    """The first request deleted the job, but its answer was lost."""
    with ScriptedService(lost, problem("404 Not Found", "There is nothing here.")) as service:
        client = Client(service.url, sleep=lambda seconds: None)
        if lost:
            client.job(JOB)
        client.delete(JOB)

    assert len(service.requests) == 2


def test_a_deletion_that_finds_no_job_has_failed() -> None:
    with ScriptedService(problem("404 Not Found", "There is nothing here.")) as service, pytest.raises(JobNotFound):
        Client(service.url).delete(JOB)


def waited(outcome: str, cursor: int) -> bytes:
    return answer("200 OK", orjson.dumps({"outcome": outcome, "log": None, "cursor": cursor, "job": DONE.to_json()}))


def test_a_wait_resumes_after_disconnects() -> None:
    """With the last answer's cursor, and more often than other requests are retried."""
    waits: list[float] = []
    cuts = [None] * 5
    with ScriptedService(waited("timeout", 7), *cuts, waited("ended", 9)) as service:
        client = Client(service.url, sleep=waits.append, chance=lambda: 0.5)
        found = client.wait(JOB, q="x", regex=False, stream=None, offset=3, seconds=None)

    assert found["outcome"] == "ended"
    assert [asked.query["offset"] for asked in service.requests] == ["3"] + ["7"] * 6
    assert waits == [0.75, 1.5, 3, 6, 12]


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


@pytest.mark.parametrize(("q", "offsets"), [("x", ["3", "7"]), (None, ["3", None])])
def test_a_wait_repeats_requests_until_its_own_timeout(q: str | None, offsets: list[str | None]) -> None:
    """A single request has a shorter limit. Only a search has a position to continue from."""
    with ScriptedService(waited("timeout", 7), waited("matched", 9)) as service:
        found = Client(service.url).wait(JOB, q=q, regex=False, stream=None, offset=3, seconds=5)

    assert found["outcome"] == "matched"
    assert [asked.query.get("offset") for asked in service.requests] == offsets


def test_a_wait_ends_when_the_service_stops_waiting_for_the_job() -> None:
    """A deleted job is Not Found at once; a service that shuts down reports it once."""
    waits: list[float] = []
    missing = problem("404 Not Found", "no such job")
    with ScriptedService(*[missing] * 9) as service:
        client = Client(service.url, sleep=waits.append, chance=lambda: 0.5)
        with pytest.raises(JobNotFound):
            client.wait(JOB, q=None, regex=False, stream=None, offset=None, seconds=None)
        asked = len(service.requests)
    assert (asked, waits) == (4, [0.75, 1.5, 3])


def test_a_wait_continues_while_the_service_waits_for_the_job() -> None:
    """Without a delay after requests that took their full time."""
    clock = Clock(step=WAIT_SECONDS)
    missing = problem("404 Not Found", "no such job")
    with ScriptedService(*[missing] * 6, waited("ended", 9)) as service:
        client = Client(service.url, clock=clock, sleep=refuse_to_sleep)
        found = client.wait(JOB, q=None, regex=False, stream=None, offset=None, seconds=None)

    assert found["outcome"] == "ended"


def refuse_to_sleep(seconds: float) -> None:
    pytest.fail(f"it sleeps for {seconds} s")


def test_a_wait_ends_at_its_deadline_even_during_an_outage() -> None:
    """It requests only the remaining time, and makes no attempt beyond it."""
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    with ScriptedService(None, None, None) as service:
        client = Client(service.url, clock=clock, sleep=sleep, chance=lambda: 0.5)
        with pytest.raises(Unreachable):
            client.wait(JOB, q=None, regex=False, stream=None, offset=None, seconds=3)

    assert [asked.query["timeout"] for asked in service.requests] == ["3", "3", "1"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"logs":[{}],"cursor":null}', b'{"logs":7,"cursor":null}'])
def test_an_unreadable_page_is_an_error(body: bytes) -> None:
    """It is one of our errors, so the command line can show it."""
    with ScriptedService(answer("200 OK", body)) as service, pytest.raises(ChronoverseError):
        list(Client(service.url).logs(JOB))


def test_a_job_is_the_json_of_its_route() -> None:
    """It can be converted to a ``JobState``."""
    with ScriptedService(answer("200 OK", orjson.dumps(DONE.to_json()))) as service:
        found = Client(service.url).job(JOB)

    assert JobState.from_json(found).exit_code == 0
    assert service.requests[0].path == "/workflows/wf_1/jobs/job_1"


def test_a_follower_accepts_chunks_of_any_size() -> None:
    """Even chunks of one byte."""
    follower = Follower()
    follower.start_connection("0")
    received = CONNECTED + frames(1, 2) + Gap(3, 4, "missing").to_frame() + frames(5, 5) + OVER
    items = [item for byte in received for item in follower.feed(bytes([byte]))]

    assert items[:4] == [line(1), line(2), Gap(3, 4, "missing"), line(5)]
    assert follower.ended


def test_a_token_renewed_slightly_too_late_ends_no_stream() -> None:
    """The file can still contain the expired token when the stream ends."""
    tokens = iter(["first", "first", "second"])
    expired = stream(CONNECTED, frames(1, 1) + sse.frame("error", b"token expired"))
    refused = problem("401 Unauthorized", "the token has expired")
    with ScriptedService(expired, refused, stream(frames(2, 2), OVER, after=1)) as service:
        items = list(Client(service.url, lambda: next(tokens)).follow(JOB, stop=NoDelay()))
    assert numbers(items) == [1, 2]


def test_a_refused_first_token_is_an_error_at_once() -> None:
    """Waiting makes no sense for a token that was never accepted."""
    with ScriptedService(problem("401 Unauthorized", "no")) as service, pytest.raises(Unauthorized):
        list(Client(service.url, lambda: "first").follow(JOB, stop=NoDelay()))


def test_an_expired_token_that_can_be_renewed_causes_no_delay() -> None:
    """The client reconnects immediately, without a notice."""
    expired = stream(CONNECTED, frames(1, 1), sse.frame("error", TOKEN_EXPIRED.encode()))
    stop = NoDelay()
    with ScriptedService(expired, stream(CONNECTED, frames(2, 2), OVER)) as service:
        client = Client(service.url, lambda: "a.b.c")
        items = list(client.follow(JOB, stop=stop))
        client.close()

    assert (numbers(items), stop.waits) == ([1, 2], [0.0])
    assert not [item for item in items if isinstance(item, Notice)]


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


@pytest.mark.parametrize("call", ["wait", "redact"])
def test_an_answer_without_its_members_is_an_error(call: str) -> None:
    """As from a proxy that answers JSON of its own."""
    options: dict[str, dict[str, Any]] = {
        "wait": {"q": None, "regex": False, "stream": None, "offset": None, "seconds": 1},
        "redact": {"q": "x"},
    }
    with (
        ScriptedService(answer("200 OK", b"{}")) as service,
        pytest.raises(ChronoverseError, match="unreadable answer"),
    ):
        getattr(Client(service.url), call)(JOB, **options[call])
