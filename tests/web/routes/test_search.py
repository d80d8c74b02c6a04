"""``/logs/search`` and ``/logs/raw``: searches find what Python's ``re`` finds; downloads equal what was written."""

import contextlib
import itertools
import re
import select
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx
import orjson
import pytest

from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.support.parameters import long_after
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, PatientClient, Stream, request_bytes

STREAMS: Final = ("stdout", "stderr", "stderr")
WORDS: Final = ("Straße", "ERROR 🙂 error", "plain", "a.b*c", "Ünïcode \\d+", "error", "", "tab\there", "x" * 300)
MESSAGES: Final = [f"{number} {WORDS[number % len(WORDS)]} {number % 7}" for number in range(1, 601)]
#: A backtracking engine would need longer on this line than the age of the universe.
EVIL: Final = "a" * 50 + "b"


@pytest.fixture
def client(service: Service, auth: dict[str, str]) -> Iterator[httpx.Client]:
    """As in other modules, but it retries while the service is busy."""
    with PatientClient(base_url=service.url, headers=auth, timeout=30, verify=service.verify) as client:
        yield client


@pytest.fixture(scope="module")
def log(service: Service) -> Foreign:
    """600 lines on both streams, a line for backtracking engines, a line that is not UTF-8, and the end."""
    job = Foreign(str(service.redis_url), "search", "log").lines(MESSAGES, STREAMS)
    return job.lines([EVIL, b"no \xff UTF-8"]).end()


def find(client: httpx.Client, job: Foreign, at_most: int = 100, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """The pages of a search, by ``Link``."""
    response = client.get(f"{job.path}/logs/search", params=query)
    for _ in range(at_most):
        assert response.status_code == 200, response.text
        body = response.json()
        assert list(body) == ["workflow_id", "id", "logs", "cursor"]
        yield body["logs"]
        assert ("next" in response.links) == (body["cursor"] is not None)
        if body["cursor"] is None:
            return
        response = client.get(response.links["next"]["url"])
    raise AssertionError("no last page")


def numbers(client: httpx.Client, job: Foreign, **query: Any) -> list[int]:
    """The numbers of all matching lines."""
    return [line["sequence_num"] for line in itertools.chain(*find(client, job, **query))]


@pytest.mark.parametrize("order", long_after(1, ["desc", "asc"]))
@pytest.mark.parametrize(
    ("query", "pattern"),
    [
        ({"q": "error"}, "(?i)error"),
        ({"q": "a.b*c", "limit": 7}, r"a\.b\*c"),
        ({"q": "straße", "stream": "stderr", "limit": 1}, "(?i)straße"),
        ({"q": "\\d+"}, r"\\d\+"),
        ({"q": r"^\d*7 .*\b[0-3]$", "regex": "true", "limit": 10}, r"^\d*7 .*\b[0-3]$"),
        ({"q": "(error|here)", "regex": "true", "stream": "stdout"}, "(?i)(error|here)"),
        ({"q": "nowhere to be found"}, "nowhere to be found"),
        ({"q": "no � utf"}, "(?i)no � utf"),
    ],
)
def test_a_search_finds_what_python_finds(
    client: httpx.Client, log: Foreign, query: dict[str, Any], pattern: str, order: str
) -> None:
    """In both orders, with any page size, in one stream or both."""
    written = [*MESSAGES, EVIL, "no � UTF-8"]
    streams = [STREAMS[(number - 1) % 3] for number in range(1, 601)] + ["stdout"] * 2
    expected = [
        number
        for number, (message, stream) in enumerate(zip(written, streams, strict=True), 1)
        if re.search(pattern, message) and query.get("stream") in (None, stream)
    ]

    assert numbers(client, log, order=order, **query) == (expected if order == "asc" else expected[::-1])


def test_highlights_are_in_characters(client: httpx.Client, log: Foreign) -> None:
    """Not in bytes or UTF-16 units. An empty match has no highlight."""
    (first, *_), *_ = find(client, log, q="error")
    plain = {key: value for key, value in first.items() if key != "highlights"}

    assert plain == {"timestamp": TIMESTAMP, "message": MESSAGES[0], "sequence_num": 1, "stream": "stdout"}
    assert [first["message"][start:end] for start, end in first["highlights"]] == ["ERROR", "error"]
    (anything, *_), *_ = find(client, log, q="z*", regex="true")
    assert (anything["sequence_num"], anything["highlights"]) == (1, [])


def test_colours_within_a_word_do_not_hide_it(client: httpx.Client, job: Foreign) -> None:
    """Lines are searched as written, and also without control sequences."""
    job.lines(["\x1b[1mFAI\x1b[31mLED\x1b[0m \x1b]0;title\x07\x1b[1A", "\x1b]0;failed", "failed"]).end()
    (lines,) = find(client, job, q="failed")

    assert [line["sequence_num"] for line in lines] == [1, 2, 3]
    assert lines[0]["highlights"] == [[4, 15]]
    assert lines[1]["highlights"] == [[4, 10]]
    assert numbers(client, job, q="[31m") == numbers(client, job, q="title") == [1]
    assert numbers(client, job, q="d $", regex="true") == [1]


def test_a_search_starts_after_its_offset(client: httpx.Client, log: Foreign) -> None:
    """The answer contains the last number that was searched."""
    path = f"{log.path}/logs/search"

    assert numbers(client, log, q="error", offset=590) == [595, 599]
    assert numbers(client, log, q="error", offset=10, order="desc") == [5, 1]
    assert client.get(path, params={"q": "error"}).headers["last-event-id"] == "446"
    assert client.get(path, params={"q": "nowhere"}).headers["last-event-id"] == "602"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "x" * 257}, "q"),
        ({"q": "(a", "regex": "true"}, "q"),
        ({"q": "(?=a)", "regex": "true"}, "q"),
        ({"q": r"(a)\1", "regex": "true"}, "q"),
        ({"q": "(?:.?){1000}b", "regex": "true"}, "q"),
        ({"q": "x", "regex": "yes"}, "regex"),
        ({"q": "x", "limit": "1001"}, "limit"),
        ({"q": "x", "stream": "both"}, "stream"),
    ],
)
def test_an_invalid_search_is_refused(
    client: httpx.Client, log: Foreign, query: dict[str, str], parameter: str
) -> None:
    """400 with the parameter's name."""
    response = client.get(f"{log.path}/logs/search", params=query)

    assert response.status_code == 400
    assert [error["parameter"] for error in response.json()["errors"]] == [parameter]


def test_an_expression_takes_linear_time(client: httpx.Client, log: Foreign, job: Foreign) -> None:
    """The classic example, and an expression that is slow on long lines."""
    started = time.monotonic()

    assert numbers(client, log, q="^(a+)+$", regex="true") == []
    assert time.monotonic() - started < 10
    job.lines(["ab" * 30_000, "ab" * 30_000 + "z"])
    assert numbers(client, job, q="(?:a.{0,50}){4}z", regex="true") == [2]


def test_a_cursor_is_valid_only_for_its_own_query(client: httpx.Client, log: Foreign) -> None:
    """400 for other words, for the same words as an expression, and on another route."""
    page = client.get(f"{log.path}/logs/search", params={"q": "error", "limit": 1}).json()
    for query in ({"q": "errors"}, {"q": "error", "regex": "true"}, {"q": "error", "order": "desc"}):
        asked = {**query, "cursor": page["cursor"], "limit": 1}
        assert client.get(f"{log.path}/logs/search", params=asked).status_code == 400
    assert client.get(f"{log.path}/logs", params={"cursor": page["cursor"]}).status_code == 400


@pytest.fixture(scope="module")
def long(redis_server: RedisServer) -> Foreign:
    """A job of 210,000 lines, of which only the last one contains the word."""
    store, job = Store(redis_server.url), Foreign(redis_server.url, "search", "long")
    attempt = store.open(JobRef(job.workflow_id, job.job_id), "token")
    for start in range(1, 210_001, 1000):
        store.append(attempt, [Line(number, TIMESTAMP, "hay", "stdout") for number in range(start, start + 1000)])
    store.append(attempt, [Line(210_001, TIMESTAMP, "needle", "stdout")])
    store.finish(attempt, Status.COMPLETED, 0, 0, 210_002)
    store.close()
    return job


@pytest.mark.long
def test_a_request_searches_a_limited_part(client: httpx.Client, long: Foreign) -> None:
    """The page is empty, with the last number that was searched and a cursor."""
    first = client.get(f"{long.path}/logs/search", params={"q": "NEEDLE"})

    assert first.json()["logs"] == []
    assert 0 < int(first.headers["last-event-id"]) <= 201_000
    assert numbers(client, long, q="needle") == [210_001]


@pytest.mark.long
def test_long_lines_make_short_pages(client: httpx.Client, redis_server: RedisServer, job: Foreign) -> None:
    """The characters of a page are limited, whatever its ``limit``. No line is lost between pages."""
    lines = [("XADD", job.key, f"{number}-0", "message", "x" * 100_000) for number in range(1, 251)]
    ask_all(redis_server.url, lines)
    found = [[line["sequence_num"] for line in page] for page in find(client, job, q="X" * 200, limit=1000)]

    assert [*itertools.chain(*found)] == [*range(1, 251)]
    # Pages have many lines, but can end early on a busy machine, at the time limit.
    assert 1 < len(found) < 100
    first = client.get(f"{job.path}/logs/search", params={"q": "x", "limit": 1}).json()["logs"][0]
    assert len(first["highlights"]) == 1000


def test_a_running_job_is_searched_as_it_grows(client: httpx.Client, job: Foreign) -> None:
    """The next search starts at the number that the last one reached."""
    job.lines(["error", "fine"])
    first = client.get(f"{job.path}/logs/search", params={"q": "error"})
    job.lines(["fine", "error"])
    offset = first.headers["last-event-id"]

    assert (first.json()["cursor"], offset) == (None, "2")
    assert numbers(client, job, q="error", offset=offset) == [4]


def raw(client: httpx.Client, job: Foreign, **query: Any) -> httpx.Response:
    """A download."""
    return client.get(f"{job.path}/logs/raw", params=query)


def test_a_download_is_what_was_written(client: httpx.Client, log: Foreign) -> None:
    """As text, as one JSON document, and as JSON lines."""
    text, document, lines = (raw(client, log, format=kind) for kind in ("txt", "json", "jsonl"))
    written = [*MESSAGES, EVIL, "no � UTF-8"]
    pages = client.get(f"{log.path}/logs", params={"limit": 1000}).json()["logs"]

    assert text.text == "".join(f"{message}\n" for message in written)
    assert document.json() == [orjson.loads(line) for line in lines.content.splitlines()] == pages
    kinds = [response.headers["content-type"] for response in (text, document, lines)]
    assert kinds == ["text/plain; charset=utf-8", "application/json", "application/jsonl"]
    assert text.headers["content-disposition"] == 'attachment; filename="search-log.txt"'
    assert text.headers["cache-control"] == "private, no-store"


def test_a_download_can_be_filtered(client: httpx.Client, log: Foreign) -> None:
    """By stream, text or expression."""
    found = numbers(client, log, q="error", stream="stderr")
    lines = raw(client, log, q="error", stream="stderr", format="json").json()

    assert [line["sequence_num"] for line in lines] == found
    assert raw(client, log, q="^600 ", regex="true").text == f"{MESSAGES[599]}\n"
    assert raw(client, log, q="nowhere", format="json").json() == []
    assert raw(client, log, q="nowhere").text == ""
    assert raw(client, log, q="(", regex="true").status_code == 400
    assert raw(client, log, format="csv").status_code == 400


def test_pieces_of_a_long_line_are_joined_in_text(client: httpx.Client, job: Foreign) -> None:
    """Unless a line of the other stream is between them.

    A line without its last piece does not swallow the next line.
    """
    commands = [("out ", "stdout", "1"), ("end", "stdout", "0"), ("half", "stdout", "1"), ("err", "stderr", "0")]
    for message, stream, partial in [*commands, ("rest", "stdout", "0"), ("open", "stderr", "1")]:
        job.last += 1
        job.add(f"{job.last}-0", "timestamp", TIMESTAMP, "message", message, "stream", stream, "partial", partial)

    assert raw(client, job).text == "out end\nhalf\nerr\nrest\nopen\n"


def test_a_text_has_no_control_sequences_unless_asked(client: httpx.Client, job: Foreign) -> None:
    """It can be opened with ``cat``. JSON always contains them, escaped."""
    message = "\x1b[31mred\x1b[0m\x1b]0;title\x07\tend\r"
    job.lines([message])

    assert raw(client, job).text == "red\tend\n"
    assert raw(client, job, control_sequences="true").text == f"{message}\n"
    assert raw(client, job, format="json").json()[0]["message"] == message
    assert b"\x1b" not in raw(client, job, format="jsonl").content
    assert raw(client, job, control_sequences="yes").status_code == 400


def test_a_running_job_can_be_downloaded(client: httpx.Client, job: Foreign) -> None:
    """With the lines so far."""
    job.lines(["one", "two"])
    first = raw(client, job).text
    job.lines(["three"])

    assert (first, raw(client, job).text) == ("one\ntwo\n", "one\ntwo\nthree\n")


def test_a_head_request_starts_no_download(client: httpx.Client, log: Foreign) -> None:
    """It returns only the headers."""
    response = client.head(f"{log.path}/logs/raw")

    assert (response.status_code, response.content) == (200, b"")
    assert "content-length" not in response.headers, "how long the download would be is not known"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/logs/search?q=x", "/logs/raw"])
def test_a_search_needs_read_access(
    service: Service, client: httpx.Client, log: Foreign, job: Foreign, path: str
) -> None:
    """401 without a token; with a token for another workflow, the same as for an unknown job."""
    stranger = {"Authorization": f"Bearer {service.token('elsewhere')}"}

    assert httpx.get(service.url + log.path + path, verify=service.verify).status_code == 401
    foreign, unknown = (
        httpx.get(service.url + log.path + path, headers=stranger, verify=False),
        client.get(job.path + path),
    )
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content == unknown.content


@pytest.mark.long
def test_live_viewers_are_not_delayed_by_downloads(
    service: Service, auth: dict[str, str], long: Foreign, job: Foreign
) -> None:
    """Lines arrive nearly as fast while 420,000 lines are scanned."""
    job.line("begin")
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(Stream(service, f"{job.path}/events", auth)).wait_for(b"id: 1\n\n")

        def delay(number: int) -> float:
            started = time.monotonic()
            job.line("live")
            stream.wait_for(b"id: %d\n\n" % number)
            return time.monotonic() - started

        quiet = statistics.median(map(delay, range(2, 12)))
        downloads = [opened.enter_context(service.connect(PATIENCE_SECONDS)) for _ in range(2)]
        for each, subject in zip(downloads, ("one", "another"), strict=True):
            each.sendall(request_bytes(f"{long.path}/logs/raw?q=nothing".encode(), service.token(subject=subject)))
        delays, until = list[float](), time.monotonic() + 1
        # No line matches, so the first bytes of an answer come at its end.
        while time.monotonic() < until and not select.select(downloads, [], [], 0)[0]:
            delays.append(delay(job.last + 1))

    assert len(delays) >= 5, "the downloads were over too soon"
    assert statistics.median(delays) < 0.25 + 5 * quiet


def times(job: Foreign) -> Foreign:
    """A job with one line per minute, on both streams."""
    for minute in range(60):
        stamp = f"2026-03-03T10:{minute:02}:00.000Z"
        job.line(f"minute {minute}", ("stdout", "stderr")[minute % 2], timestamp=stamp)
    job.line("no time", timestamp="soon")
    return job.end()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("since=2026-03-03T10:57:00Z", (57, 58, 59)),
        ("since=2026-03-03T11:57:00%2B01:00", (57, 58, 59)),
        ("until=2026-03-03T10:01:30", (0, 1)),
        ("since=2026-03-03T10:05:00Z&until=2026-03-03T10:09:00.000Z&stream=stderr", (5, 7, 9)),
        ("since=2026-03-04", ()),
    ],
)
def test_a_search_can_have_a_time_range(
    client: httpx.Client, job: Foreign, query: str, expected: Sequence[int]
) -> None:
    """Both ends are inclusive. A line without a time is in no range."""
    found = client.get(f"{times(job).path}/logs/search?q=m&{query}").json()["logs"]

    assert [line["message"] for line in found] == [f"minute {minute}" for minute in expected]


@pytest.mark.parametrize(
    "query", ["since=yesterday", "since=2026-13-45T99:99:99.999Z", "until=", "before=51", "after=x"]
)
def test_an_invalid_time_or_context_is_refused(client: httpx.Client, job: Foreign, query: str) -> None:
    """With 400."""
    job.line("1")

    assert client.get(f"{job.path}/logs/search?q=1&{query}").status_code == 400
