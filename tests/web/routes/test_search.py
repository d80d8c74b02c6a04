"""``/logs/search`` and ``/logs/raw``: searches find what Python's ``re`` finds; downloads equal what was written."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.support.parameters import long_after
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.wire import PatientClient, everything

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


def numbers(client: httpx.Client, job: Foreign, **query: Any) -> list[int]:
    return [line["sequence_num"] for line in everything(client, f"{job.path}/logs/search", **query)]


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


def test_a_search_starts_after_its_offset(client: httpx.Client, log: Foreign) -> None:
    """The answer contains the last number that was searched."""
    path = f"{log.path}/logs/search"

    assert numbers(client, log, q="error", offset=590) == [595, 599]
    assert numbers(client, log, q="error", offset=10, order="desc") == [5, 1]
    first, nothing = (client.get(path, params={"q": words}) for words in ("error", "nowhere"))
    assert (first.headers["last-event-id"], nothing.headers["last-event-id"]) == ("446", "602")
    assert [*first.json()] == ["workflow_id", "id", "logs", "cursor"]


def raw(client: httpx.Client, job: Foreign, **query: Any) -> httpx.Response:
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
    plain = client.get(f"{log.path}/logs/raw", headers={"Accept-Encoding": ""})
    assert (text.headers["content-encoding"], plain.content) == ("gzip", text.content)


def test_a_download_can_be_filtered(client: httpx.Client, log: Foreign) -> None:
    found = numbers(client, log, q="error", stream="stderr")
    lines = raw(client, log, q="error", stream="stderr", format="json").json()

    assert [line["sequence_num"] for line in lines] == found
    assert raw(client, log, q="^600 ", regex="true").text == f"{MESSAGES[599]}\n"
    assert raw(client, log, q="nowhere", format="json").json() == []
    assert raw(client, log, q="nowhere").text == ""


def test_pieces_of_a_long_line_are_joined_in_text(client: httpx.Client, job: Foreign) -> None:
    """Unless missing lines, or a line of the other stream, are between them.

    A line without its last piece does not swallow the next line.
    """
    commands = [("out ", "stdout", "1"), ("end", "stdout", "0"), ("half", "stdout", "1"), ("err", "stderr", "0")]
    for message, stream, partial in [
        *commands,
        ("rest", "stdout", "1"),
        ("later", "stdout", "0"),
        ("open", "stderr", "1"),
    ]:
        job.last += 1 + (message == "later")
        job.add(f"{job.last}-0", "timestamp", TIMESTAMP, "message", message, "stream", stream, "partial", partial)

    assert raw(client, job).text == "out end\nhalf\nerr\nrest\nlater\nopen\n"
    assert raw(client, job, stream="stdout").text == "out end\nhalfrest\nlater\n"
    assert raw(client, job, q="h|l", regex="true").text == "half\nlater\n"


def test_a_text_has_no_control_sequences_unless_asked(client: httpx.Client, job: Foreign) -> None:
    """It can be opened with ``cat``. JSON always contains them, escaped."""
    message = "\x1b[31mred\x1b[0m\x1b]0;title\x07\tend\r"
    job.lines([message])

    assert raw(client, job).text == "red\tend\n"
    assert raw(client, job, control_sequences="true").text == f"{message}\n"
    assert raw(client, job, format="json").json()[0]["message"] == message
    assert b"\x1b" not in raw(client, job, format="jsonl").content


def test_a_head_request_starts_no_download(client: httpx.Client, log: Foreign) -> None:
    response = client.head(f"{log.path}/logs/raw")

    assert (response.status_code, response.content) == (200, b"")
    assert "content-length" not in response.headers, "how long the download would be is not known"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


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
