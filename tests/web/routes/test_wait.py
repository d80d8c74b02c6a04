"""``GET …/wait``: whichever comes first, a matching line, the end or the timeout, without missing a line."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from chronoverse.web.routes.wait import LOOK_SECONDS, MAX_GAPS
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import deadline, wait_until
from tests.web.routes.conftest import both_ways
from tests.web.routes.foreign import Foreign, ask_all

#: Time limit of an answer, in seconds.
LATE: float = 8.0

Asking = Callable[..., Future[httpx.Response]]


@pytest.fixture
def ask(client: httpx.Client) -> Iterator[Asking]:
    with ThreadPoolExecutor(64) as pool:

        def ask(job: Foreign, **query: Any) -> Future[httpx.Response]:
            return pool.submit(client.get, f"{job.path}/wait", params=query, timeout=70)

        yield ask


def wait_for_waits(service: Service, count: int = 1) -> None:
    """Returns when the service serves ``count`` waits, all of them past the stored lines."""

    def gauges() -> tuple[float, ...]:
        return tuple(service.metric(f"chronoverse_{name}") for name in ("streams_open", "viewers_behind"))

    wait_until(lambda: gauges() == (count, 0), 10, f"{count} waits for new lines")


@both_ways
def test_a_matching_line_is_answered_immediately(
    service: Service, client: httpx.Client, ask: Asking, job: Foreign
) -> None:
    """With the line, and with how far the log was searched."""
    job.lines(["hay", "needle one", "hay"])
    first = ask(job, q="NEEDLE").result(LATE)
    assert first.json() == {
        "outcome": "matched",
        "log": client.get(f"{job.path}/logs").json()["logs"][1],
        "cursor": 2,
        "job": client.get(job.path).json(),
    }
    waiting = ask(job, q="needle", offset=2)
    wait_for_waits(service)
    assert not waiting.done()
    job.lines(["hay", "needle two", "needle three"])
    answer = waiting.result(LATE).json()
    assert (answer["outcome"], answer["cursor"], answer["log"]["message"]) == ("matched", 5, "needle two")


@both_ways
def test_the_end_of_the_job_ends_the_wait(service: Service, ask: Asking, job: Foreign) -> None:
    """The job's state contains the status. A wait without a query waits for the end."""
    job.line("hay")
    waits = [ask(job, q="needle"), ask(job), ask(job, q="hay", offset=1)]
    wait_for_waits(service, len(waits))
    job.lines(["more straw"]).end("FAILED", 3)
    for wait in waits:
        answer = wait.result(2 * LATE).json()
        assert (answer["outcome"], answer["log"], answer["cursor"]) == ("ended", None, 2)
        assert (answer["job"]["status"], answer["job"]["exit_code"]) == ("FAILED", 3)
    assert ask(job).result(LATE).json()["outcome"] == "ended"


def test_the_timeout_is_exact(client: httpx.Client, job: Foreign) -> None:
    """The cursor is where the next wait continues. A timeout of 0 only checks the stored lines."""
    job.lines(["hay"] * 7)
    for seconds in (0, 1):
        took, limit = list[float](), max(seconds, LOOK_SECONDS) + 0.4
        # A busy machine can delay one of them.
        while not took or (took[-1] >= limit and len(took) < 3):
            began = time.monotonic()
            answer = client.get(f"{job.path}/wait", params={"q": "needle", "timeout": seconds}).json()
            took.append(time.monotonic() - began)
            assert (answer["outcome"], answer["cursor"]) == ("timeout", 7)
        assert seconds <= took[-1] < limit


def test_a_wait_for_a_future_job(service: Service, ask: Asking, job: Foreign) -> None:
    """Until the timeout, and then it is 404."""
    assert ask(job, q="x", timeout=0).result(LATE).status_code == 404
    assert ask(job, q="x", timeout=1).result(2 + LATE).status_code == 404
    waiting = ask(job, q="needle", timeout=20)
    wait_for_waits(service)
    job.line("needle")
    assert waiting.result(2 * LATE).json()["outcome"] == "matched"


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_loop_of_waits_misses_nothing(ask: Asking, job: Foreign, limit: int) -> None:
    """Each starts at the previous cursor, while lines are being written."""
    total, over = 400, threading.Event()

    def write() -> None:
        for number in range(1, total + 1):
            job.line("needle" if number % 7 == 0 else "hay")
        job.end()
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    found, cursor, outcome = [], 0, ""
    in_time = deadline(60, "the job has ended")
    while outcome != "ended" and in_time():
        answer = ask(job, q="needle", offset=cursor, timeout=1, limit=limit).result(10).json()
        outcome, cursor = answer["outcome"], answer["cursor"]
        found += [line["sequence_num"] for line in answer["logs"]]
    writer.join()
    assert found == [number for number in range(1, total + 1) if number % 7 == 0]


def test_many_waiters_with_few_queries(service: Service, ask: Asking, job: Foreign) -> None:
    """They are served as a group, and each gets its own line, and the gap before it."""
    job.line("first")
    waits = [(n, ask(job, q=f"value {n % 3}", timeout=60)) for n in range(40)]
    wait_for_waits(service, len(waits))
    before = service.metric("chronoverse_lines_delivered_total")
    job.last += 1
    job.line("third")
    wait_until(
        lambda: service.metric("chronoverse_lines_delivered_total") >= before + 2 * len(waits), 60, "all passed the gap"
    )
    job.lines([f"value {n}" for n in (5, 0, 4, 1, 3, 2)])
    for n, wait in waits:
        answer = wait.result(60).json()
        assert (answer["log"]["message"], answer["gaps"][0]["from"]) == (f"value {n % 3}", 2), answer


def test_the_end_of_a_job_with_many_waiters_takes_few_reads_of_the_store(
    service: Service, ask: Asking, redis_server: RedisServer, job: Foreign
) -> None:
    """With one read per waiter, thousands of waiters would get 503."""

    def scripts() -> int:
        stats = redis_server.ask("INFO", "commandstats").decode()
        return int(re.findall(r"cmdstat_evalsha:calls=([0-9]+)", stats)[0])

    job.line("hay")
    waits = [ask(job, q=f"value {n % 3}", timeout=20) for n in range(60)]
    wait_for_waits(service, len(waits))
    before = scripts()
    job.end()
    answers = [wait.result(3 * LATE) for wait in waits]
    assert scripts() - before < 20
    assert {(answer.json()["outcome"], answer.json()["job"]["status"]) for answer in answers} == {
        ("ended", "COMPLETED")
    }


@both_ways
def test_many_gaps_do_not_end_the_wait(service: Service, ask: Asking, job: Foreign) -> None:
    """The answer lists the first gaps and counts the others. It is sent on a match or on timeout."""
    ask_all(job.url, [("XADD", job.key, f"{2 * number}-0", "message", "hay") for number in range(1, 251)])
    began = time.monotonic()
    answer = ask(job, q="needle", timeout=2).result(2 + LATE).json()
    assert (answer["outcome"], answer["cursor"], answer["more_gaps"]) == ("timeout", 500, 250 - MAX_GAPS)
    assert [gap["from"] for gap in answer["gaps"]] == [*range(1, 2 * MAX_GAPS, 2)]
    assert time.monotonic() - began >= 2
    waiting = ask(job, q="needle", timeout=20)
    wait_for_waits(service)
    assert not waiting.done()
    ask_all(job.url, [("XADD", job.key, "501-0", "message", "needle")])
    answer = waiting.result(3 * LATE).json()
    assert (answer["outcome"], answer["cursor"], len(answer["gaps"])) == ("matched", 501, MAX_GAPS)


@both_ways
def test_an_answer_can_contain_all_stored_matches(
    service: Service, client: httpx.Client, ask: Asking, job: Foreign
) -> None:
    """Up to a limit. The cursor is the last match, or the last line that was searched."""
    job.lines(["hay", "needle 1", "hay", "needle 2", "needle 3", "hay"])
    written = client.get(f"{job.path}/logs").json()["logs"]
    for limit, numbers, cursor in ((1, [2], 2), (2, [2, 4], 4), (3, [2, 4, 5], 5), (4, [2, 4, 5], 6)):
        answer = ask(job, q="needle", limit=limit).result(LATE).json()
        assert answer["logs"] == [written[number - 1] for number in numbers]
        assert (answer["outcome"], answer["log"], answer["cursor"]) == ("matched", answer["logs"][0], cursor)
    waiting = ask(job, q="needle", offset=6, limit=1000)
    wait_for_waits(service)
    assert not waiting.done()
    job.lines(["hay", "needle 4", "needle 5"])
    answer = waiting.result(LATE).json()
    assert answer["logs"][0]["sequence_num"] == 8
    assert answer["cursor"] == answer["logs"][-1]["sequence_num"]
    nothing = ask(job, q="straw", limit=5, timeout=0).result(LATE).json()
    assert (nothing["outcome"], nothing["log"], nothing["logs"]) == ("timeout", None, [])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_wait_ends_when_its_client_leaves(service: Service, client: httpx.Client, job: Foreign, version: str) -> None:
    """Also with HTTP/1.0, which many proxies use."""
    wanted = f"Host: localhost\r\nAuthorization: {client.headers['Authorization']}"
    for timeout in (0, 300):
        job.lines(["hay"])
        with service.connect(10) as sock:
            sock.sendall(f"GET {job.path}/wait?q=x&timeout={timeout} HTTP/{version}\r\n{wanted}\r\n\r\n".encode())
            if timeout:
                wait_for_waits(service)
            else:
                with sock.makefile("rb") as answer:
                    assert b'"outcome":"timeout"' in answer.read()
    wait_for_waits(service, 0)


def test_a_head_request_waits_for_nothing(client: httpx.Client, job: Foreign) -> None:
    assert [client.head(f"{job.path}/wait?timeout={seconds}").status_code for seconds in (0, 1)] == [404, 200]
    job.line("hay")
    began = time.monotonic()
    head = client.head(f"{job.path}/wait?q=needle&timeout=20")
    assert (head.status_code, head.headers.get("content-length")) == (200, None)
    assert time.monotonic() - began < LATE
