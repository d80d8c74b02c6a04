"""``clients/js``: follows, pages and waits with the module, in Node.js and in a page of another origin.

The examples of its README also run here, because they need the same service.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from playwright.sync_api import Browser, Error

from chronoverse.auth.rights import ADMIN
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.clients.conftest import options
from tests.clients.javascript import PACKAGE, PATIENCE_SECONDS, Chromium, Engine, Node
from tests.support.bench import NOW
from tests.support.changes import number_from_1
from tests.support.scripted import ScriptedService, answer, stream
from tests.support.service import Service
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign

pytestmark = pytest.mark.long

CONNECTED = b'event: connected\ndata: {"status":"connected"}\nretry: 20\n\n'
JOB = b'event: job\ndata: {"status":"RUNNING","attempt":1,"first_sequence_num":1,"last_sequence_num":0}\n\n'
END = b'event: end\ndata: {"status":"stream_ended"}\nid: %d\n\n'
#: The module's errors.
ERRORS = ("Refused", "StreamError", "Unreachable")
README = PACKAGE / "README.md"
#: The address in its examples.
EXAMPLE_SERVICE = "https://logs.example"
#: A job of a scripted service.
SCRIPTED: dict[str, Any] = {"workflow": "w", "job": "j", "token": "a token"}


def log(number: int) -> bytes:
    """The frame of a line."""
    data = b'{"timestamp":"%b","message":"line %d","sequence_num":%d,"stream":"stdout"}'
    return b"event: log\ndata: " + data % (NOW.encode(), number, number) + b"\nid: %d\n\n" % number


def streams(service: Service) -> float:
    """The number of the service's open streams."""
    return service.metric("chronoverse_streams_open")


def test_reading_resumes_at_a_cursor(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """Missing lines are reported once."""
    job.lines(f"line {number}" for number in range(1, 51)).end(exit_code=3, status="FAILED")
    job.trim(3)
    first = engine.start("follow", **options(reader_service, job, stopAt=10)).result()
    rest = engine.start("follow", **options(reader_service, job, offset=first["cursor"])).result()

    assert first["numbers"] + rest["numbers"] == list(range(4, 51))
    assert first["gaps"] + rest["gaps"] == [{"from": 1, "to": 3, "reason": "trimmed"}]
    assert rest["messages"][-1] == "line 50"
    assert rest["events"] == ["connected", "FAILED", "FAILED", "end"]
    assert (rest["failure"], rest["reconnects"], rest["cursor"]) == (None, [], 51)
    again = engine.start("follow", **options(reader_service, job, offset=51)).result()
    assert (again["numbers"], again["events"][-1], again["failure"]) == ([], "end", None)
    wait_until(lambda: streams(reader_service) == 0, PATIENCE_SECONDS, "the reader that stopped has closed its stream")


def test_filtered_lines_are_omitted(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """The cursor still moves over them. A log can be followed from its last lines, or from its end."""
    job.lines([f"line {number}" for number in range(1, 31)], ("stdout", "stderr"))

    def read(**filters: Any) -> dict[str, Any]:
        # On a busy machine, the first answer may take longer.
        for milliseconds in (700, 10_000):
            found = engine.start(
                "follow", **options(reader_service, job, abortAfterMs=milliseconds, **filters)
            ).result()
            if found["cursor"] == 30:
                break
        return found

    found = read(q="LINE 1")
    assert (found["numbers"], found["cursor"]) == ([1, *range(10, 20)], 30)
    assert found["skipped"] >= 1
    assert read(q="line [12]$", regex=True)["numbers"] == [1, 2]
    assert read(stream="stderr", q="line 2")["numbers"] == [2, 20, 22, 24, 26, 28]
    assert read(tail=3)["numbers"] == [28, 29, 30]
    latest = read(offset="latest")
    assert (latest["numbers"], latest["cursor"]) == ([], 30)
    assert latest["failure"]["name"] == "TimeoutError"


def test_the_ways_a_log_ends_are_distinguished(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """A lost runner, a deleted log, a job that does not appear or exist, a refusal, and an unreachable service."""

    def failure(job: Foreign, /, **more: Any) -> tuple[Any, ...]:
        failed = engine.start("follow", **options(reader_service, job, **more)).result()["failure"]
        return failed["name"], failed.get("status"), failed.get("cursor"), failed["message"]

    with contextlib.closing(Store(job.url)) as store:
        attempt = store.open(JobRef(job.workflow_id, job.job_id), "token")
        store.append(attempt, [Line(1, NOW, "the last words", "stdout")])
        store.finish(attempt, Status.LOST, None, 0, 2)
    name, _, cursor, message = failure(job)
    assert (name, cursor) == ("StreamError", 2)
    assert "runner lost" in message

    deleted = job.sibling(f"{job.job_id}-deleted").lines(["a line"])
    reading = engine.start("follow", **options(reader_service, deleted))
    wait_until(lambda: streams(reader_service) == 1, PATIENCE_SECONDS, "it is followed")
    headers = {"Authorization": f"Bearer {reader_service.token(scopes=[ADMIN])}"}
    assert httpx.delete(f"{reader_service.url}{deleted.path}", headers=headers).status_code == 204
    failed = reading.result()["failure"]
    assert (failed["name"], failed["cursor"]) == ("StreamError", 1)
    assert failed["message"] == "the log is gone from the store: it expired or was deleted"

    absent = job.sibling(f"{job.job_id}-absent")
    assert failure(absent, wait=1) == ("StreamError", None, 0, "the job did not appear within 1 s")
    assert failure(absent)[:2] == ("Refused", 404)
    assert failure(job, token="no token")[:2] == ("Refused", 401)
    assert failure(job, token=reader_service.token(scopes=["logs:write"]))[:2] == ("Refused", 403)
    assert failure(job, q="(", regex=True)[:2] == ("Refused", 400)
    assert failure(job, token="☂")[0] == "TypeError"
    assert failure(job, workflow="../workflows")[0] == "TypeError"
    assert failure(job, service="http://127.0.0.1:1", giveUpAfter=0.1)[0] == "Unreachable"


def test_a_job_can_be_waited_for(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """It is followed as soon as it appears."""
    reading = engine.start("follow", **options(reader_service, job, wait="forever"))
    wait_until(lambda: streams(reader_service) == 1, PATIENCE_SECONDS, "it is waited for")
    job.lines(["one", "two"]).end()
    seen = reading.result()
    assert (seen["numbers"], seen["events"][-1], seen["failure"]) == ([1, 2], "end", None)


def test_an_aborted_reader_leaves_no_connection(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """In the middle of its lines, while it waits for lines, and during a wait request."""
    job.lines(["one", "two"])
    aborted = engine.start("follow", **options(reader_service, job, abortAt=1)).result()
    assert (aborted["numbers"], aborted["failure"]["name"]) == ([1], "AbortError")
    for scenario, more in (("follow", {}), ("wait", {"q": "needle", "timeout": 60})):
        reading = engine.start(scenario, **options(reader_service, job, abortAfterMs=1500, **more))
        wait_until(lambda: streams(reader_service) == 1, PATIENCE_SECONDS, "its stream is open")
        assert reading.result()["failure"]["name"] == "TimeoutError"
        wait_until(lambda: streams(reader_service) == 0, PATIENCE_SECONDS, "its stream is closed")


def test_a_log_is_read_in_pages(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """In both orders, from a number, and only matching lines."""
    job.lines([f"line {number}" for number in range(1, 251)], ("stdout", "stderr"))

    def read(**more: Any) -> dict[str, Any]:
        return engine.start("pages", **options(reader_service, job, **more)).result()

    every = read()
    assert (every["numbers"], every["pages"]) == (list(range(1, 251)), 3)
    assert every["positions"] == [100, 200, 250]
    assert read(order="desc", limit=200)["numbers"] == list(range(250, 0, -1))
    assert read(offset=240, stream="stderr")["numbers"] == [242, 244, 246, 248, 250]
    found = read(q="LINE 24", limit=4)
    assert (found["numbers"], found["highlights"]) == ([24, *range(240, 250)], [[0, 7]] * 11)
    assert read(q="^line 9$", regex=True, before=1, after=1)["numbers"] == [8, 9, 10]
    assert read(limit=0)["failure"]["status"] == 400


def test_a_wait_has_four_outcomes(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """A matching line, the job's end, the timeout, or no such job in time."""

    def start(job: Foreign, **more: Any) -> Any:
        return engine.start("wait", **options(reader_service, job, **more))

    absent = start(job, q="needle", timeout=1).result()
    assert (absent["failure"]["name"], absent["failure"]["status"]) == ("Refused", 404)
    job.lines(["hay"])
    over = start(job, q="needle", timeout=1).result()
    assert (over["answer"]["outcome"], over["answer"]["log"], over["answer"]["cursor"]) == ("timeout", None, 1)
    assert 1 <= over["seconds"] < 10
    matched, ended, unmatched = (start(job, **more) for more in ({"q": "needle"}, {}, {"q": "other"}))
    wait_until(lambda: streams(reader_service) == 3, PATIENCE_SECONDS, "all wait")
    job.lines(["a needle"])
    assert matched.result()["answer"]["log"]["message"] == "a needle"
    both = start(job, q="a", limit=5).result()["answer"]
    assert ([line["message"] for line in both["logs"]], both["cursor"]) == (["hay", "a needle"], 2)
    job.end(exit_code=3, status="FAILED")
    for reading in (ended, unmatched):
        found = reading.result()["answer"]
        assert (found["outcome"], found["job"]["exit_code"], found["gaps"]) == ("ended", 3, [])


def test_a_job_without_a_runner_can_be_ended(node: Node, reader_service: Service, job: Foreign) -> None:
    """Once. A different end is refused."""
    job.lines(["one"])

    def end(**how: Any) -> Any:
        return node.start("end", **options(reader_service, job, **how)).result()

    for _ in range(2):
        ended = end(status="FAILED", exitCode=3)
        assert (ended["job"]["status"], ended["job"]["exit_code"], ended["failure"]) == ("FAILED", 3, None)
    assert end(status="COMPLETED")["failure"]["status"] == 409


def test_a_page_can_import_the_module_from_the_service(browser: Browser, reader_service: Service, origin: str) -> None:
    """If its origin is allowed. The module then has the service's version."""
    module = f"{reader_service.url}/ui/static/client/index.js"
    names = "async (module) => Object.keys(await import(module)).sort()"
    with browser.new_page() as page:
        page.goto(f"{origin}/index.html")
        watches = ["deleteWatch", "putWatch", "testWatch", "watches"]
        expected = sorted([*ERRORS, *watches, "end", "follow", "followWorkflow", "get", "page", "wait"])
        assert page.evaluate(names, module) == expected
        page.goto(f"{origin.replace('127.0.0.1', 'localhost')}/index.html")
        with pytest.raises(Error, match="Failed to fetch dynamically imported module"):
            page.evaluate(names, module)


def test_nothing_is_missed_when_the_service_is_cut_off(
    node: Node, browser: Browser, origin: str, reader_service: Service, job: Foreign
) -> None:
    """Readers in Node.js and in a page reconnect by themselves.

    Each has one that follows, one with a filter, and one that waits.
    """
    job.lines(f"line {number}" for number in range(1, 101))
    with contextlib.closing(Chromium(browser, origin)) as page:
        engines: tuple[Engine, ...] = (node, page)
        readings = [
            (
                engine.start("follow", **options(reader_service, job)),
                engine.start("follow", **options(reader_service, job, q="0")),
                engine.start("wait", **options(reader_service, job, q="needle", timeout=60)),
            )
            for engine in engines
        ]
        wait_until(lambda: streams(reader_service) == 6, PATIENCE_SECONDS, "all are there")
        # First the worker dies, then nothing listens.
        (worker,) = reader_service.worker_pids()
        os.kill(worker, signal.SIGKILL)
        job.lines(f"line {number}" for number in range(101, 201)).trim(110)
        # Whether each reader reconnects meanwhile is not determined.
        time.sleep(0.5)
        reader_service.kill()
        job.lines(f"line {number}" for number in range(201, 301)).trim(210)
        reader_service.start()
        time.sleep(1)
        job.lines(["needle"]).end()
        results = [tuple(reading.result() for reading in each) for each in readings]

    for seen, found, waited in results:
        named = {number for gap in seen["gaps"] for number in range(gap["from"], gap["to"] + 1)}
        assert sorted([*seen["numbers"], *named]) == list(range(1, 302))
        assert seen["numbers"] == sorted(seen["numbers"])
        assert (seen["failure"], seen["events"][-1]) == (None, "end")
        assert seen["reconnects"]
        named = {number for gap in found["gaps"] for number in range(gap["from"], gap["to"] + 1)}
        wanted = [number for number in range(1, 301) if "0" in str(number) and number not in named]
        assert [number for number in found["numbers"] if number not in named] == wanted
        answered = waited["answer"]
        assert (answered["outcome"], answered["cursor"]) == ("matched", 301)


def test_an_answer_of_another_service_is_an_error(node: Node) -> None:
    """An HTML page, as from a proxy, is no empty log. Invalid frames and proxies' errors lose no line, and are
    retried after a delay.
    """
    with ScriptedService(answer("200 OK", b"<!doctype html>", Content_Type="text/html")) as service:
        seen = node.start("follow", service=service.url, **SCRIPTED).result()
    assert seen["failure"]["message"].endswith("/events did not return an event stream")
    away = [answer(status) for status in ("425 Too Early", "500 Internal Server Error", "520 Unknown Error")]
    broken = stream(CONNECTED, b"retry: 0\n\n" + log(1) + b"event: log\ndata: {\n\n")
    with ScriptedService(broken, *away, stream(log(2), END % 3)) as service:
        seen = node.start("follow", service=service.url, **SCRIPTED).result()
    assert (seen["numbers"], [text for text, _ in seen["reconnects"]]) == (
        [1, 2],
        ["the service sent an unreadable frame", "Too Early", "Internal Server Error", "Unknown Error"],
    )
    assert all(delay > 0 for _, delay in seen["reconnects"])


@pytest.mark.parametrize("example", ["follow", "page", "wait"])
def test_an_example_of_the_readme_runs(
    installed: tuple[Path, list[str]], reader_service: Service, job: Foreign, example: str
) -> None:
    """As printed, except for the service's address and the job."""
    job.lines(["line 1", "an error", "ready"]).end(status="FAILED", exit_code=3)
    blocks = re.findall(r"^```js\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (printed,) = [block for block in blocks if f"import {{ {example} }}" in block]
    assert EXAMPLE_SERVICE in printed
    text = printed.replace(EXAMPLE_SERVICE, reader_service.url).replace('"demo"', f'"{job.workflow_id}"')
    path = installed[0] / f"{example}.mjs"
    path.write_text(text.replace('"job-1"', f'"{job.job_id}"'))
    environ = os.environ | {"TOKEN": reader_service.token()}
    done = subprocess.run(
        [tool("node"), str(path)], env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )

    expected = {
        "follow": "1 line 1\n2 an error\n3 ready\nFAILED 3\n",
        "page": "2 an error\n",
        "wait": "ready: line 3\n",
    }
    assert (done.stdout, done.stderr, done.returncode) == (expected[example], "", 0)


def test_a_workflow_is_followed(engine: Engine, reader_service: Service, job: Foreign) -> None:
    """The newest jobs, then each change; with a cursor, the changes since then."""
    name = f"only_{job.job_id}_{type(engine).__name__}"
    workflow = {"service": reader_service.url, "workflow": name, "token": reader_service.token()}
    with contextlib.closing(Store(job.url)) as store, contextlib.closing(redis.Redis.from_url(job.url)) as raw:
        number_from_1(raw.execute_command, f"chronoverse:{{{name}}}:changes")
        attempts = [
            store.open(JobRef(name, job_id), "token", labels=(("branch", branch),))
            for job_id, branch in (("job_1", "main"), ("job_2", "next"))
        ]
        following = engine.start("followWorkflow", **workflow, labels={"branch": "main"}, stopAt=2)
        wait_until(lambda: streams(reader_service) == 1, PATIENCE_SECONDS, "the stream is open")
        wait_until(lambda: reader_service.metric("chronoverse_viewers_behind") == 0, PATIENCE_SECONDS, "it caught up")
        for attempt in reversed(attempts):
            store.finish(attempt, Status.FAILED, 3, 0, 1)
    found = following.result()
    assert found["jobs"] == [["job_1", "RUNNING", None], ["job_1", "FAILED", 4]]
    assert (found["failure"], found["events"][:2]) == (None, ["connected", "cursor"])
    since = engine.start("followWorkflow", **workflow, after=1, stopAt=3).result()
    assert since["jobs"] == [["job_2", "RUNNING", 2], ["job_2", "FAILED", 3], ["job_1", "FAILED", 4]]
    assert engine.start("followWorkflow", **workflow, after=77, jobs=1, stopAt=1).result()["events"][1] == "reset"


def test_watches(node: Node, reader_service: Service) -> None:
    """An administrator creates, tests, lists and deletes them."""
    given = {"service": reader_service.url, "workflow": "watched", "id": "main"}
    watch = {"on": "change", "same": ["branch"], "url": "https://hooks.example/ci"}
    admin = reader_service.token(scopes=[ADMIN])
    seen = node.start("watch", **given, token=admin, watch=watch).result()
    assert seen["failure"] is None
    assert seen["made"].pop("secret").startswith("whsec_")
    assert {name: seen["made"][name] for name in watch} == watch
    assert seen["tested"] == seen["made"]
    assert seen["listed"] == [{**seen["made"], "waiting": 1}]
    assert (seen["deleted"], seen["left"]) == (None, [])
    assert node.start("watch", **given, token=reader_service.token(), watch=watch).result()["failure"]["status"] == 403
    assert (
        node.start("watch", **given, token=admin, watch={**watch, "on": "start"}).result()["failure"]["status"] == 400
    )


def test_a_workflow_is_followed_over_interrupted_connections(node: Node) -> None:
    """The jobs of a connection that was interrupted before they were complete are sent again."""
    state = b'event: job\ndata: {"id":"job_%d","status":"RUNNING"}\n%b\n'
    first = CONNECTED + state % (1, b"")
    second = CONNECTED + state % (1, b"") + state % (2, b"") + b"id: 7\n\n"
    third = CONNECTED + state % (3, b"id: 8\n")
    with ScriptedService(stream(first), stream(second), stream(third)) as service:
        found = node.start("followWorkflow", service=service.url, workflow="w", stopAt=4).result()
    assert [each[0] for each in found["jobs"]] == ["job_1", "job_1", "job_2", "job_3"]
    asked = [request.headers.get("last-event-id") for request in service.requests]
    assert asked == [None, None, "7"]
    assert found["events"][:4] == ["connected", "connected", "reset", "cursor"]
    assert found["reconnects"] == 2
