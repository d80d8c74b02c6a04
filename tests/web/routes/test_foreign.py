"""Invalid logs of foreign runners.

What can be shown is shown, everything else is reported as a gap, and no stream stops.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, Stream, pages

OpenStream = Callable[..., Stream]

LINE = ("timestamp", TIMESTAMP, "message", "x", "stream", "stdout")


def is_silent(stream: Stream) -> bool:
    """Whether the stream has ended or has sent nothing for a second."""
    return stream.ended or b"\n:\n" in stream.body


def named(stream: Stream, event: str) -> list[Any]:
    return [block["data"] for block in stream.blocks() if block.get("event") == event]


def test_ids_made_by_the_server_are_shown_after_a_gap(open_stream: OpenStream, job: Foreign) -> None:
    """``*`` generates numbers of 13 digits. The lines are shown, and the missing numbers are a gap."""

    live = open_stream(job, "?wait=60").wait_for(b"\n\n")
    job.line("before")
    job.add("1770000000000-0", *LINE)
    job.add("1770000000000-1", *LINE)
    job.add("1770000000001-0", *LINE)
    job.add("1770000000002-0", "event", "end", "status", "COMPLETED")
    for stream in (live.wait_end(), open_stream(job).wait_end()):
        assert [block["event"] for block in stream.blocks()[:3]] == ["connected", "job", "log"]
        assert stream.numbers() == [1, 1770000000000, 1770000000001]
        assert named(stream, "gap") == [{"from": 2, "to": 1769999999999, "reason": "missing"}]
        assert stream.blocks()[-1]["id"] == "1770000000002"


@pytest.mark.parametrize("entry_id", ["1000000000000000-0", "18446744073709551615-18446744073709551615"])
def test_an_id_beyond_all_numbers_is_reported_a_limited_number_of_times(
    open_stream: OpenStream, job: Foreign, entry_id: str
) -> None:
    """It cannot be shown, and a viewer gets a limited number of gaps for it."""
    live = open_stream(job, "?wait=60").wait_for(b"\n\n")
    job.line("before")
    live.wait_for(b"id: 1\n\n")
    job.add(entry_id, *LINE)
    replay = open_stream(job).wait_for(b"id: 1\n\n")

    for stream in (live, replay):
        stream.wait_until(partial(is_silent, stream), PATIENCE_SECONDS, "silence")
        assert stream.numbers() == [1]
        assert len(stream.body) < 2000


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_no_page_contains_a_number_beyond_the_maximum(client: httpx.Client, job: Foreign, order: str) -> None:
    """Paging by one line ends, and neither pages nor the job contain numbers that a request cannot contain."""
    job.lines(["one", "two"]).add("18446744073709551615-18446744073709551615", *LINE)
    found = []
    for answer in pages(client, f"{job.path}/logs", limit=1, order=order):
        assert len(answer.headers["last-event-id"]) <= 15
        found += [line["sequence_num"] for line in answer.json()["logs"]]
    assert found == ([1, 2] if order == "asc" else [2, 1])
    assert client.get(job.path).json()["last_sequence_num"] == 10**15 - 1


def test_a_line_after_the_end_is_in_no_answer(client: httpx.Client, open_stream: OpenStream, job: Foreign) -> None:
    """All routes agree that the job ended after line 1 and has no other line."""
    job.line("one")
    job.end("FAILED", 7)
    job.last += 1
    job.line("two")

    found = client.get(job.path).json()
    assert (found["status"], found["exit_code"], found["last_sequence_num"], found["lines"]) == ("FAILED", 7, 1, 1)
    for query in ("", "?order=desc", "?offset=1", "?offset=2", "?offset=3", "?offset=9&order=desc", "/search?q=o"):
        page = client.get(f"{job.path}/logs{query}").json()
        assert page["cursor"] is None
        is_upwards_from_later = query.startswith("?offset") and "desc" not in query
        assert [line["sequence_num"] for line in page["logs"]] == ([] if is_upwards_from_later else [1]), query
    assert client.get(f"{job.path}/logs/raw").text == "one\n"
    assert client.get(f"{job.path}/logs/raw?format=jsonl").text.count("\n") == 1
    for query, seen in (("", [1]), ("?tail=5", [1]), ("?offset=1", []), ("?offset=2", []), ("?offset=3", [])):
        stream = open_stream(job, query).wait_end()
        assert (stream.numbers(), stream.blocks()[-1]["event"]) == (seen, "end"), query
    waited = client.get(f"{job.path}/wait?q=two&timeout=5").json()
    assert (waited["outcome"], waited["log"], waited["job"]["status"]) == ("ended", None, "FAILED")


def test_a_key_of_another_type_is_rejected(client: httpx.Client, job: Foreign, redis_server: RedisServer) -> None:
    """Every route answers 409 with a reason."""
    redis_server.ask("SET", job.key, "not a stream")

    for path in ("", "/logs", "/events", "/events?wait=5"):
        response = client.get(job.path + path)
        assert response.status_code == 409
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("key", ["jobs", "job_1:job", "job_1:lease"])
def test_other_keys_of_the_wrong_type_cause_no_500(
    client: httpx.Client, job: Foreign, redis_server: RedisServer, key: str, method: str
) -> None:
    """Every route answers 409, or does not need the key."""
    job.line("one")
    ask_all(
        redis_server.url,
        [("HSET", f"chronoverse:{{{job.workflow_id}}}:job_1:job", "status", "RUNNING", "attempt", "1")],
    )
    wrong = f"chronoverse:{{{job.workflow_id}}}:{key}"
    ask_all(redis_server.url, [("DEL", wrong), ("SADD", wrong, "not what it should be")])

    paths = [job.path] if method == "PUT" else [job.path, f"{job.path}/logs", f"/workflows/{job.workflow_id}/jobs"]
    answers = [client.request(method, path).status_code for path in paths]
    assert set(answers) <= {200, 201, 409}
