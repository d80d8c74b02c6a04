"""``/events?q=``: only matching lines, exact across reconnects, from every tier, for one viewer and for many."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from flask import g

from chronoverse.auth.tokens import Principal
from chronoverse.history.pages import Page
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from chronoverse.web.routes.events import start_offset
from tests.web.routes.conftest import both_ways
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream, blocks

#: Every third line contains the word.
WORDS: Final = ("hay", "hay", "a NEEDLE")


@both_ways
def test_only_matching_lines_are_sent(open_stream: Callable[..., Stream], job: Foreign) -> None:
    """Stored or new. The cursor advances over other lines, and is sent before the end."""
    job.lines(["hay", "a Needle", "hay"])
    stream = open_stream(job, "?q=needle")
    stream.wait_for(b"id: 3\n\n")
    job.lines(["needle", "hay", "hay"])
    stream.wait_for(b"id: 4\n\n").wait_for(b"\n\nid: 6\n\n", 2)
    job.lines(["hay"]).end()
    stream.wait_for(b"event: end")
    assert stream.numbers() == [2, 4]
    assert b"\n\nid: 7\n\nevent: job" in stream.body


def test_a_resumed_stream_misses_nothing(open_stream: Callable[..., Stream], job: Foreign) -> None:
    """Wherever it was cut, even after a block with only an id."""
    job.lines([f"{WORDS[n % 3]} {n}" for n in range(1, 61)])
    found: list[int] = []
    last = "0"
    for more in range(12):
        stream = open_stream(job, "?q=needle", Last_Event_ID=last)
        job.lines([f"{WORDS[n % 3]} {n}" for n in range(job.last + 1, job.last + 4 + more % 3)])
        stream.wait_for(b"id: %d\n\n" % job.last, 3)
        # Only part of it, because clients can read less than was sent.
        parts = stream.body.split(b"\n\n")
        body = b"\n\n".join(parts[: len(parts) // 2 + 1]) + b"\n\n"
        stream.close()
        found += [block["data"]["sequence_num"] for block in blocks(body) if block.get("event") == "log"]
        last = (re.findall(rb"id: ([0-9]+)\n\n", body) or [last.encode()])[-1].decode()
    job.end()
    found += open_stream(job, "?q=needle", Last_Event_ID=last).wait_end().numbers()
    assert found == [n for n in range(1, job.last + 1) if n % 3 == 2]


@both_ways
def test_each_viewer_in_a_crowd_gets_its_own_lines(open_stream: Callable[..., Stream], job: Foreign) -> None:
    """Forty viewers with three queries or none. Viewers with the same query are served as a group."""
    expected: dict[str, Callable[[int], bool]] = {
        "": lambda n: True,
        "?q=hay": lambda n: n % 3 != 0,
        "?q=needle": lambda n: n % 3 == 0,
        "?q=needle&stream=stderr": lambda n: n % 6 == 0,
    }
    job.line(WORDS[0])
    streams = [(query, open_stream(job, query)) for query in [*expected] * 10]
    for _, stream in streams:
        stream.wait_for(b"event: job")
    for _ in range(5):
        words = [WORDS[n % 3] for n in range(job.last, job.last + 12)]
        job.lines(words, ("stdout", "stderr"))
        time.sleep(0.1)
    job.end()
    for query, stream in streams:
        assert stream.wait_end().numbers() == [n for n in range(1, job.last + 1) if expected[query](n)]


def test_a_tail_that_is_not_found_in_time_begins_where_its_search_ended(tmp_path: Path) -> None:
    """Not at the log's beginning. Lines 1 and 2 of the ten were trimmed."""
    asked = list[Any]()
    pages: list[tuple[list[int], bool]] = [
        ([9, 7], True),
        ([9, 7], False),
        ([9], True),
        ([9], False),
        ([], True),
        ([], False),
    ]
    answers = iter(pages)

    @contextlib.contextmanager
    def ask(scan: Any, subject: str) -> Iterator[Any]:
        asked.append((scan.position, scan.descending, scan.limit, subject))
        found, has_more = next(answers)
        page = Page([b"%d" % number for number in found], 5, has_more)
        yield SimpleNamespace(page=lambda: page)

    app = create_app(Settings(data_dir=tmp_path, redis_url="unix:///none", jwt_secret=b"x" * 32))
    deps = replace(app.extensions["chronoverse"], scans=SimpleNamespace(ask=ask))
    with app.test_request_context():
        g.principal = Principal("ada", 0, {})
        job = Job(JobRef("w", "j"), Status.RUNNING, last=10, first=3)
        starts = [start_offset(deps, job, None, 2, LineFilter(q="x")) for _ in pages]
    assert starts == [6, 6, 8, 2, 10, 2]
    assert asked == [(11, True, 2, "ada")] * len(pages)
