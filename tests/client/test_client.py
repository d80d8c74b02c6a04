"""The client: every number once, over as many connections as it takes, and no longer than there is hope."""

import random
import socket
import threading
from typing import Any

import orjson
import pytest

from chronoverse.client.client import Client
from chronoverse.client.follower import Follower, JobState, LogEvent, Notice
from chronoverse.errors import BadRequest, ChronoverseError, Forbidden, JobNotFound, Unauthorized, Unreachable
from chronoverse.joblog import sse
from chronoverse.joblog.values import End, Gap, Job, JobRef, Line, Status
from tests.support.scripted import answer, problem, scripted, stream
from tests.support.waiting import wait_until

JOB = JobRef("wf_1", "job_1")
TIME = "2026-03-03T10:00:05.123Z"
CONNECTED = sse.frame("connected", b'{"status":"connected"}', retry_ms=1)
END = End(3, Status.COMPLETED, 0, 2, 0, TIME)
DONE = Job(JOB, Status.COMPLETED, attempt=1, finished_at=TIME, exit_code=0, lines=2, last=2, end=END)
OVER = DONE.to_frame() + END.to_frame(30)


class Hurry(threading.Event):
    """A stop whose waits take no time, and are remembered."""

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
    """Every look at it is a while later than the one before."""

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
    """Everything that following yields, without waiting between attempts."""
    client = Client(url, "a.b.c", chance=lambda: 0.5)
    try:
        return list(client.follow(JOB, stop=stop or Hurry(), **request))
    finally:
        client.close()


def numbers(items: list[LogEvent]) -> list[int]:
    return [item.sequence_num for item in items if isinstance(item, Line)]


def test_a_log_is_followed_to_its_end() -> None:
    """Lines, gaps and states come as values, and then it is over."""
    gap = Gap(2, 4, "trimmed")
    with scripted(stream(CONNECTED, frames(1, 1), gap.to_frame() + frames(5, 5), OVER)) as service:
        items = follow(service.url)

    state = JobState(Status.COMPLETED, 1, 1, 2, None, 0, 2, 0, TIME)
    assert items == [line(1), gap, line(5), state]


def test_the_first_request_asks_for_what_was_asked_for() -> None:
    """The token in its header, everything else in the query."""
    with scripted(stream(CONNECTED, OVER)) as service:
        follow(service.url, tail=5, stream="stderr", wait=20)

    (asked,) = service.asked
    assert asked.path == "/workflows/wf_1/jobs/job_1/events"
    assert asked.query == {"tail": "5", "stream": "stderr", "wait": "20"}
    assert asked.headers["authorization"] == "Bearer a.b.c"
    assert asked.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in asked.headers


def test_a_dropped_connection_is_resumed_behind_the_last_line() -> None:
    """By Last-Event-ID, with no offset to contradict it; the filter stays."""
    with scripted(stream(CONNECTED, frames(1, 3), whole=False), stream(frames(4, 5), OVER, after=3)) as service:
        items = follow(service.url, offset=0, stream="stdout")

    assert numbers(items) == [1, 2, 3, 4, 5]
    assert service.asked[1].query == {"stream": "stdout"}
    assert service.asked[1].headers["last-event-id"] == "3"


@pytest.mark.parametrize("cut", range(0, len(frames(1, 2)), 7))
def test_a_torn_frame_is_neither_shown_nor_counted(cut: int) -> None:
    """Wherever the bytes end, each line comes once."""
    torn = stream(CONNECTED, frames(1, 2)[:cut], whole=False)
    first = frames(1, 2)[:cut].count(b"\n\n")
    with scripted(torn, stream(frames(first + 1, 3), OVER, after=first)) as service:
        items = follow(service.url)

    assert numbers(items) == [1, 2, 3]
    assert service.asked[1].headers["last-event-id"] == str(first)


def test_lines_that_come_again_are_not_shown_again() -> None:
    """A service that starts too early repeats what is known already."""
    with scripted(stream(frames(1, 3), whole=False), stream(frames(1, 5), Gap(4, 6, "x").to_frame(), OVER)) as service:
        items = follow(service.url)

    assert [item for item in items if not isinstance(item, JobState)] == [*map(line, range(1, 6)), Gap(6, 6, "x")]


def test_no_line_of_a_hundred_thousand_is_lost_or_doubled_by_fifty_cuts() -> None:
    """At random places, in the middle of lines as well."""
    rng = random.Random(7)
    whole = [line(number).to_frame() for number in range(1, 100_001)]
    answers, start = [], 0
    for cut in sorted(rng.sample(range(1, 100_000), 50)):
        said = b"".join(whole[start:cut])
        answers.append(stream(CONNECTED, said + whole[cut][: rng.randrange(len(whole[cut]))], after=start, whole=False))
        start = cut
    with scripted(*answers, stream(CONNECTED, b"".join(whole[start:]), OVER, after=start)) as service:
        items = follow(service.url)

    assert numbers(items) == list(range(1, 100_001))
    assert not [item for item in items if isinstance(item, Notice)]


def test_a_filtered_reader_resumes_behind_the_lines_it_skipped() -> None:
    """A block of nothing but an id moves the cursor, and is never seen."""
    said = stream(line(1, "stderr").to_frame(), sse.cursor(40), whole=False)
    with scripted(said, stream(OVER)) as service:
        items = follow(service.url, stream="stderr")

    assert numbers(items) == [1]
    assert service.asked[1].headers["last-event-id"] == "40"


def test_where_a_stream_starts_is_taken_from_its_header() -> None:
    """Else a cut before the first line would start the last five lines anew."""
    with scripted(stream(CONNECTED, after=95, whole=False), stream(frames(96, 97), OVER, after=95)) as service:
        assert numbers(follow(service.url, tail=5)) == [96, 97]

    assert service.asked[1].headers["last-event-id"] == "95"
    assert service.asked[1].query == {}


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_nothing_is_asked_for_after_the_end(status: str) -> None:
    """The service would have nobody left to answer."""
    with scripted(stream(CONNECTED, frames(1, 2), OVER), answer(status)) as service:
        follow(service.url)

        assert len(service.asked) == 1


def test_a_lost_job_ends_with_the_reason() -> None:
    """An error with the terminal entry's id: there is nothing to come back for."""
    lost = End(2, Status.LOST, None, 1, 0, TIME)
    with scripted(stream(frames(1, 1), lost.to_frame(30))) as service:
        items = follow(service.url)

    assert items == [line(1), Notice("runner lost: nothing heard from it for 30 s")]


def test_no_content_is_the_end() -> None:
    """The connection was cut between the last line and the end, and the end is past."""
    with scripted(stream(frames(1, 1), whole=False), answer("204 No Content")) as service:
        assert numbers(follow(service.url)) == [1]


def test_an_error_without_an_id_is_a_passing_trouble() -> None:
    """The store was away; next time it is not."""
    away = sse.frame("error", b"the store does not answer")
    with scripted(stream(CONNECTED, away), stream(CONNECTED, frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert items[0] == Notice("the store does not answer; trying again in 0.0 s")
    assert numbers(items) == [1]


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
    """It is raised with the service's own words."""
    with scripted(problem(status, "this is why", Location="http://127.0.0.1:1/")) as service:
        with pytest.raises(error) as caught:
            follow(service.url)

        assert str(caught.value) == "this is why"
        assert len(service.asked) == 1


def test_a_token_that_expires_on_the_way_ends_it() -> None:
    """The stream says so, and the next attempt is refused."""
    expired = sse.frame("error", b"the token has expired")
    with (
        scripted(stream(frames(1, 1), expired), problem("401 Unauthorized", "the token has expired")) as service,
        pytest.raises(Unauthorized, match="expired"),
    ):
        follow(service.url)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Internal Server Error", "502 Bad Gateway"])
def test_a_refusal_that_may_pass_is_tried_again(status: str) -> None:
    """A proxy without a service behind it, a service without room, an accident."""
    with scripted(problem(status, "not now"), stream(frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert items[:2] == [Notice("not now; trying again in 0.8 s"), line(1)]


def test_a_page_of_a_proxy_is_not_shown() -> None:
    """Only problem documents are worth reading; of others, the status is."""
    with scripted(answer("502 Bad Gateway", b"<html>nginx</html>"), stream(OVER)) as service:
        assert follow(service.url)[0] == Notice("the service answers 502 Bad Gateway; trying again in 0.8 s")


@pytest.mark.parametrize(("value", "delay"), [("7", 7), ("86400", 120), ("0", 0.75), ("soon", 0.75), ("-5", 0.75)])
def test_retry_after_is_honoured_within_reason(value: str, delay: float) -> None:
    """Whoever is at capacity says when to come back; a day is too long for anybody at a terminal."""
    stop = Hurry()
    with scripted(problem("503 Service Unavailable", "full", Retry_After=value), stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [delay]


def test_the_services_reconnection_time_is_kept() -> None:
    """It is drawn for each connection, so that not all clients come back at once."""
    stop = Hurry()
    with scripted(stream(sse.retry(2_417), frames(1, 1)), stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [2.417]


def test_delays_double_while_it_is_in_vain_and_start_anew_when_it_was_not() -> None:
    """With a maximum, and jittered."""
    stop = Hurry()
    full = [problem("503 Service Unavailable", "full")] * 7
    with scripted(*full, stream(frames(1, 1)), None, stream(OVER)) as service:
        follow(service.url, stop)

    assert stop.waits == [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 1, 0.75]


def test_a_planned_close_is_no_trouble() -> None:
    """Streams have a maximum age; a reader need not know."""
    with scripted(stream(CONNECTED, frames(1, 1)), stream(CONNECTED, frames(2, 2), OVER)) as service:
        items = follow(service.url)

    assert [type(item) for item in items] == [Line, Line, JobState]


def test_a_heartbeat_is_a_sign_of_health() -> None:
    """A quiet job's stream may be closed for its age any number of times."""
    quiet = stream(CONNECTED, sse.HEARTBEAT)
    with scripted(*[quiet] * 20, stream(OVER)) as service:
        client = Client(service.url, max_retry_seconds=50, clock=Clock(step=10))
        items = list(client.follow(JOB, stop=Hurry()))

    assert [type(item) for item in items] == [JobState]


def test_patience_ends() -> None:
    """With the last reason, and not before its time."""
    with scripted(*[problem("503 Service Unavailable", "full")] * 9) as service:
        client = Client(service.url, max_retry_seconds=50, clock=Clock(step=5))
        with pytest.raises(Unreachable, match="full"):
            list(client.follow(JOB, stop=Hurry()))

        assert len(service.asked) > 2


def test_a_service_that_is_not_there_is_named() -> None:
    """With what the network said."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    stop = Hurry(limit=1)

    (trouble,) = follow(url, stop)
    assert trouble == Notice(f"{url} does not answer: Connection refused; trying again in 0.8 s")


def test_a_silent_connection_is_given_up_after_three_heartbeats() -> None:
    """Half-open connections never say that they are dead."""
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
        items = list(Client(url, heartbeat_seconds=0.05).follow(JOB, stop=Hurry(limit=1)))
        hold.set()
        thread.join()

    assert [type(item) for item in items] == [Notice]
    assert str(items[0]).startswith("Notice(reason='the connection was lost")


def test_a_job_that_does_not_come_in_time_is_not_found() -> None:
    """Each attempt waits for what is left, and the one after that not at all."""
    late = stream(CONNECTED, sse.frame("error", b"the job did not come"), after=None)
    with scripted(late, problem("404 Not Found", "no such job")) as service:
        client = Client(service.url, clock=Clock(step=2))
        with pytest.raises(JobNotFound, match="the job did not come"):
            list(client.follow(JOB, wait=3, stop=Hurry()))

    assert [asked.query.get("wait") for asked in service.asked] == ["1", None]


def test_an_answer_that_is_no_stream_is_final() -> None:
    """A login page, most likely."""
    with (
        scripted(answer("200 OK", b"<html>", Content_Type="text/html")) as service,
        pytest.raises(ChronoverseError, match="right address"),
    ):
        follow(service.url)


@pytest.mark.parametrize("data", [b"{", b"{}", b"[]", b'{"sequence_num":"1"}', b"7", b"null"])
@pytest.mark.parametrize("event", ["log", "gap", "job"])
def test_an_unreadable_frame_is_a_bad_connection(event: str, data: bytes) -> None:
    """Perhaps the next one is better; the program does not die of it."""
    with scripted(stream(sse.frame(event, data)), stream(frames(1, 1), OVER)) as service:
        items = follow(service.url)

    assert isinstance(items[0], Notice)
    assert numbers(items) == [1]


def test_events_of_other_names_are_passed_over() -> None:
    """The contract may grow."""
    with scripted(stream(sse.frame("news", b"{}"), frames(1, 1), OVER)) as service:
        assert numbers(follow(service.url)) == [1]


@pytest.mark.parametrize("job", [JobRef("..", "job_1"), JobRef("wf_1", "a/b"), JobRef("wf_1", ""), JobRef("é", "j")])
def test_what_cannot_be_an_id_is_not_even_asked_for(job: JobRef) -> None:
    """It would become another path."""
    client = Client("http://127.0.0.1:1")
    with pytest.raises(JobNotFound):
        next(client.follow(job))
    with pytest.raises(JobNotFound):
        client.job(job)


def test_a_stop_ends_the_delay() -> None:
    """At once, from another thread."""
    stop = threading.Event()
    with scripted(problem("503 Service Unavailable", "full", Retry_After="100")) as service:
        items: list[LogEvent] = []
        thread = threading.Thread(target=lambda: items.extend(Client(service.url).follow(JOB, stop=stop)))
        thread.start()
        wait_until(lambda: service.asked, 20, "the service is asked")
        stop.set()
        thread.join(20)

    assert not thread.is_alive()


def test_a_token_may_be_made_for_each_attempt() -> None:
    """So that a job may run longer than any one token."""
    tokens = iter(["first", "second"])
    with scripted(None, stream(OVER)) as service:
        list(Client(service.url, lambda: next(tokens)).follow(JOB, stop=Hurry()))

    assert [asked.headers["authorization"] for asked in service.asked] == ["Bearer first", "Bearer second"]


def page(first: int, last: int, cursor: str | None) -> bytes:
    logs = [line(number).to_json() for number in range(first, last + 1)]
    return answer("200 OK", orjson.dumps({"workflow_id": "wf_1", "id": "job_1", "logs": logs, "cursor": cursor}))


def test_pages_are_read_to_the_last() -> None:
    """The cursor goes with the order and the filter it was made for, and replaces the offset."""
    with scripted(page(8, 9, "c1"), page(10, 11, "c2"), page(12, 12, None)) as service:
        lines = list(Client(service.url).logs(JOB, stream="stdout", offset=7))

    assert lines == [line(number) for number in range(8, 13)]
    assert service.asked[0].query == {"limit": "1000", "order": "asc", "stream": "stdout", "offset": "7"}
    assert service.asked[1].query == {"limit": "1000", "order": "asc", "stream": "stdout", "cursor": "c1"}


def test_a_page_is_asked_for_again_when_it_did_not_arrive() -> None:
    """A few times, as somebody waits for it."""
    waits: list[float] = []
    torn = page(1, 2, None)[:-9]
    answers = (problem("503 Service Unavailable", "full"), torn, page(1, 2, None))
    with scripted(*answers) as service:
        lines = list(Client(service.url, sleep=waits.append, chance=lambda: 0.5).logs(JOB))

    assert lines == [line(1), line(2)]
    assert waits == [0.75, 1.5]


def test_a_page_is_not_asked_for_for_ever() -> None:
    """After the fourth attempt it is an error."""
    with scripted(*[problem("503 Service Unavailable", "full")] * 4) as service:
        with pytest.raises(Unreachable, match="full"):
            list(Client(service.url, sleep=lambda seconds: None).logs(JOB))

        assert len(service.asked) == 4


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"logs":[{}],"cursor":null}', b'{"logs":7,"cursor":null}'])
def test_a_page_that_is_none_is_an_error(body: bytes) -> None:
    """Of our tree, so that the command line can say it."""
    with scripted(answer("200 OK", body)) as service, pytest.raises(ChronoverseError):
        list(Client(service.url).logs(JOB))


def test_a_job_is_what_its_route_says() -> None:
    """And it can be read as a state."""
    with scripted(answer("200 OK", orjson.dumps(DONE.to_json()))) as service:
        found = Client(service.url).job(JOB)

    assert JobState.from_json(found).exit_code == 0
    assert service.asked[0].path == "/workflows/wf_1/jobs/job_1"


def test_a_follower_reads_bytes_however_they_are_cut() -> None:
    """One by one, even."""
    follower = Follower()
    follower.start_connection("0")
    said = CONNECTED + frames(1, 2) + Gap(3, 4, "missing").to_frame() + frames(5, 5) + OVER
    items = [item for byte in said for item in follower.feed(bytes([byte]))]

    assert items[:4] == [line(1), line(2), Gap(3, 4, "missing"), line(5)]
    assert follower.ended


def test_an_expired_token_that_can_be_renewed_costs_no_pause() -> None:
    """The next connection comes at once, and nobody is told: nothing is wrong."""
    expired = stream(CONNECTED, frames(1, 1), sse.frame("error", sse.TOKEN_EXPIRED.encode()))
    stop = Hurry()
    with scripted(expired, stream(CONNECTED, frames(2, 2), OVER)) as service:
        client = Client(service.url, lambda: "a.b.c")
        items = list(client.follow(JOB, stop=stop))
        client.close()

    assert (numbers(items), stop.waits) == ([1, 2], [0.0])
    assert not [item for item in items if isinstance(item, Notice)]
