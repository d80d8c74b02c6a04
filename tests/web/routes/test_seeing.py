"""Observability: exact metrics, a log line for the start and the end of each stream, and request ids."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.wire import PATIENCE_SECONDS, Stream, logged


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("seen")
    with serving(directory, redis_server.url, workers=2) as service:
        wait_until(lambda: len(service.worker_pids()) == 2, PATIENCE_SECONDS, "the second worker is there too")
        yield service


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.long
def test_lines_and_bytes_are_counted_exactly(seen: Service, redis_server: RedisServer) -> None:
    """With two workers, for live lines, lines from the ring and replays; and the delays of the lines."""
    names = ("chronoverse_lines_delivered_total", "chronoverse_bytes_delivered_total")
    reads, delays = "chronoverse_replay_reads_total", "chronoverse_delivery_delay_seconds_count"
    before, read, delayed = [seen.metric(name) for name in names], seen.metric(reads), seen.metric(delays)
    headers = {"Authorization": f"Bearer {seen.token()}"}
    job = Foreign(redis_server.url, "seeing", "counted").lines(["x"] * 10)
    streams = [Stream(seen, f"{job.path}/events", headers).wait_for(b"id: 10\n\n") for _ in range(8)]
    job.line("on time", timestamp=now())
    for _ in range(4):
        job.line("long ago")
    job.end()
    frames = [b"".join(each + b"\n\n" for each in stream.wait_end().body.split(b"\n\n") if b"event: log" in each)
              for stream in streams]  # fmt: skip
    late = Stream(seen, f"{job.path}/events", headers).wait_end()

    lines, size = 9 * 15, sum(map(len, frames)) + len(frames[0])
    assert late.numbers() == [*range(1, 16)]
    wait_until(lambda: seen.metric(names[0]) - before[0] >= lines, PATIENCE_SECONDS, "both workers have reported")
    assert seen.metric(names[0]) - before[0] == lines
    # The last read of a replay includes the end.
    assert 0 <= seen.metric(names[1]) - before[1] - size < 1000
    assert seen.metric(reads) > read
    assert 1 <= seen.metric(delays) - delayed <= 2
    assert seen.metric('chronoverse_delivery_delay_seconds_bucket{le="10.0"}') >= 1


@pytest.mark.long
def test_gauges_cover_all_workers(seen: Service, redis_server: RedisServer) -> None:
    """Including those that do not answer the scrape."""
    headers = {"Authorization": f"Bearer {seen.token()}"}
    assert seen.metric("chronoverse_workers") == 2
    assert seen.metric("chronoverse_workers_draining") == 0
    assert seen.metric("chronoverse_streams_limit") == 16_000
    jobs = [Foreign(redis_server.url, "seeing", f"watched_{number}").lines(["x"]) for number in range(6)]
    streams = [Stream(seen, f"{job.path}/events", headers).wait_for(b"id: 1\n\n") for job in jobs]

    wait_until(
        lambda: {seen.metric("chronoverse_jobs_watched") for _ in range(6)} == {6.0},
        PATIENCE_SECONDS,
        "six are watched",
    )
    wait_until(lambda: seen.metric("chronoverse_viewers_behind") == 0, PATIENCE_SECONDS, "all have caught up")
    wait_until(lambda: seen.metric("chronoverse_tail_silence_seconds") < 3, PATIENCE_SECONDS, "the store answers")
    for stream in streams:
        stream.close()
    wait_until(lambda: seen.metric("chronoverse_jobs_watched") == 0, PATIENCE_SECONDS, "nobody watches")


def lose(service: Service, pid: int, number: signal.Signals) -> None:
    """Sends the signal ``number`` to ``pid`` and waits until a worker is replaced and two serve again."""
    before = set(service.worker_pids())
    os.kill(pid, number)
    wait_until(lambda: not before <= set(service.worker_pids()), PATIENCE_SECONDS, "a worker has gone")
    wait_until(lambda: len(service.worker_pids()) == 2, PATIENCE_SECONDS, "two serve")


@pytest.mark.long
def test_counters_outlive_their_workers(tmp_path: Path, redis_server: RedisServer) -> None:
    """No sum decreases over four generations of workers, replaced or killed, which reuse the files of counters."""
    refused, gone = 'chronoverse_requests_refused_total{status="404"}', threading.Event()
    scraped: list[float] = []

    def scrape(service: Service) -> None:
        while not gone.wait(0.02):
            with contextlib.suppress(httpx.TransportError):
                scraped.append(service.metric(refused))

    with serving(tmp_path, redis_server.url, workers=2, environ={"TMPDIR": str(tmp_path)}) as service:
        thread = threading.Thread(target=scrape, args=(service,))
        thread.start()
        try:
            for generation in range(4):
                for _ in range(5):
                    httpx.get(f"{service.url}/nowhere", verify=service.verify)
                count = len(scraped) + 6
                if generation % 2:
                    lose(service, min(service.worker_pids()), signal.SIGKILL)
                else:
                    lose(service, service.pid, signal.SIGHUP)
                wait_until(lambda: len(scraped) >= count, PATIENCE_SECONDS, "some scrapes")  # noqa: B023
        finally:
            gone.set()
            thread.join()
        files = [path.name for path in tmp_path.glob("chronoverse-metrics-*/counter_*")]

        assert scraped == sorted(scraped)
        assert len(scraped) > 20
        assert service.metric(refused) == 20
        wait_until(lambda: service.metric("chronoverse_workers") == 2, PATIENCE_SECONDS, "only running workers count")
        assert {"counter_worker0.db"} <= set(files) <= {f"counter_worker{number}.db" for number in range(4)}


def test_the_end_of_a_stream_is_logged(service: Service, auth: dict[str, str], job: Foreign) -> None:
    """Who saw which lines, why it ended, and the request id."""
    job.lines(["x"] * 3).end()
    start = service.log_size()
    named = Stream(service, f"{job.path}/events?offset=1", {**auth, "X-Request-ID": "mine-1"}).wait_end()
    unnamed = Stream(service, f"{job.path}/events", {**auth, "X-Request-ID": "bad name"}).wait_end()

    wait_until(lambda: len(logged(service, "stream ended", start)) == 2, PATIENCE_SECONDS, "both are logged")
    ended = {each["request_id"]: each for each in logged(service, "stream ended", start)}
    assert ended.keys() == {named.headers["x-request-id"], made := unnamed.headers["x-request-id"]}
    assert (named.headers["x-request-id"], len(made)) == ("mine-1", 16)
    seconds = float(ended["mine-1"].pop("seconds"))
    assert 0 <= seconds < PATIENCE_SECONDS
    who = {"request_id": "mine-1", "client": "127.0.0.1", "sub": "tests"}
    assert ended["mine-1"] == {**who, "job": f"{job.workflow_id}/{job.job_id}", "after": "1", "why": "end", "at": "3"}


def test_the_end_of_a_download_is_logged(service: Service, job: Foreign) -> None:
    """Who downloaded which log, how much of it, and whether it was complete."""
    job.lines(["x" * 99_999] * 100)
    headers, start = {"Authorization": f"Bearer {service.token(subject='ada')}"}, service.log_size()
    httpx.get(f"{service.url}{job.path}/logs/raw", headers={**headers, "Accept-Encoding": ""}, verify=False)
    with httpx.stream("GET", f"{service.url}{job.path}/logs/raw?format=json", headers=headers, verify=False) as left:
        next(left.iter_raw(1_000))

    wait_until(lambda: len(logged(service, "download ended", start)) == 2, PATIENCE_SECONDS, "both are logged")
    whole, part = logged(service, "download ended", start)
    assert (whole["format"], whole["sub"], whole["client"]) == ("txt", "ada", "127.0.0.1")
    assert (whole["why"], whole["bytes"]) == ("end", "10000000")
    assert (part["format"], part["why"], int(part["bytes"]) < 10_000_000) == ("json", "left", True)


def test_the_stores_replies_to_runners_are_counted(service: Service, runner: Runner) -> None:
    """By kind, and so are the appended lines."""

    def count(operation: str, answer: str) -> float:
        return service.metric(f'chronoverse_publish_answers_total{{answer="{answer}",operation="{operation}"}}')

    answers = (("open", "OK"), ("append", "OK"), ("append", "GAP"), ("finish", "FENCED"))
    before = [count(*each) for each in answers]
    lines = service.metric("chronoverse_lines_appended_total")
    runner.open()
    for first in (1, 4):
        runner.append(first, "x", "x")
    runner.end(3, token="0" * 32)

    assert [count(*each) - one for each, one in zip(answers, before, strict=True)] == [1, 1, 1, 1]
    assert service.metric("chronoverse_lines_appended_total") - lines == 2
