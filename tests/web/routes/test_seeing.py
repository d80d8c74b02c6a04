"""Observability: exact metrics, a log line for the start and the end of each stream, and request ids."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream, exchange, request_bytes

#: Each test starts processes, so they run in CI.
pytestmark = pytest.mark.long

RUNNER: Final = "ab" * 16


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with two workers, JSON logs at the debug level, and a typo in a variable's name."""
    directory = tmp_path_factory.mktemp("seen")
    with serving(
        directory, redis_server.url, workers=2, log_format="json", log_level="debug", lease_second=9
    ) as service:
        wait_until(lambda: len(service.worker_pids()) == 2, PATIENCE_SECONDS, "the second worker is there too")
        yield service


def entries(service: Service) -> list[dict[str, Any]]:
    """The service's log lines as objects, without its startup messages."""
    found = []
    for line in service.logs().splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
    return found


def now() -> str:
    """The current time as a runner's timestamp."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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


def test_a_misspelt_setting_is_logged(seen: Service) -> None:
    """Before the service listens."""
    messages = [(entry["level"], entry["message"]) for entry in entries(seen)]
    typo = "CHRONOVERSE_LEASE_SECOND is not a setting: did you mean CHRONOVERSE_LEASE_SECONDS?"
    listening = next(i for i, (_, message) in enumerate(messages) if message.startswith("Listening at"))

    assert ("warning", typo) in messages[:listening]


def test_a_stream_is_logged(seen: Service, redis_server: RedisServer) -> None:
    """Who saw which lines, why it ended, and the request id."""
    job = Foreign(redis_server.url, "seeing", "logged").lines(["x"] * 3).end()
    headers = {"Authorization": f"Bearer {seen.token()}", "X-Request-ID": "mine-1"}
    named = Stream(seen, f"{job.path}/events?offset=1", headers).wait_end()
    unnamed = Stream(seen, f"{job.path}/events", {**headers, "X-Request-ID": "bad name"}).wait_end()
    made = unnamed.headers["x-request-id"]

    assert named.headers["x-request-id"] == "mine-1"
    assert len(made) == 16
    ids = [f'"request_id": "{each}"' for each in ("mine-1", made)]
    wait_until(lambda: all(each in seen.logs() for each in ids), PATIENCE_SECONDS, "both are logged")
    (ended,) = (entry for entry in entries(seen) if entry.get("request_id") == "mine-1")
    assert (ended["message"], ended["job"], ended["after"]) == ("stream ended", "seeing/logged", 1)
    assert (ended["sub"], ended["client"]) == ("tests", "127.0.0.1")
    assert (ended["why"], ended["at"]) == ("end", 3)
    assert 0 <= ended["seconds"] < PATIENCE_SECONDS


def test_a_download_is_logged(seen: Service, redis_server: RedisServer) -> None:
    """Who downloaded which log, how much of it, and whether it was complete."""
    job = Foreign(redis_server.url, "seeing", "taken").lines(["x" * 99_999] * 100)
    headers = {"Authorization": f"Bearer {seen.token(subject='ada')}"}
    httpx.get(f"{seen.url}{job.path}/logs/raw", headers={**headers, "X-Request-ID": "taken-1"}, verify=False)
    with httpx.stream(
        "GET", f"{seen.url}{job.path}/logs/raw", headers={**headers, "X-Request-ID": "taken-2"}, verify=False
    ) as left:
        next(left.iter_raw(1_000))

    def logged(request_id: str) -> list[dict[str, Any]]:
        return [entry for entry in entries(seen) if entry.get("request_id") == request_id]

    wait_until(lambda: logged("taken-1") and logged("taken-2"), PATIENCE_SECONDS, "both are logged")
    ((whole,), (part,)) = logged("taken-1"), logged("taken-2")
    assert (whole["message"], whole["job"], whole["format"]) == ("download ended", "seeing/taken", "txt")
    assert (whole["sub"], whole["client"]) == ("ada", "127.0.0.1")
    assert (whole["why"], whole["bytes"]) == ("end", 10_000_000)
    assert part["why"] == "left"
    assert part["bytes"] < whole["bytes"]


def test_errors_have_the_request_id(seen: Service) -> None:
    """In the document and the header, except that the documents of all 404s are equal."""
    headers = {"Authorization": f"Bearer {seen.token()}", "X-Request-ID": "mine-2"}
    bad = httpx.get(f"{seen.url}/workflows/seeing/jobs/x/logs?limit=x", headers=headers, verify=seen.verify)
    gone = httpx.get(f"{seen.url}/workflows/seeing/jobs/none", headers=headers, verify=seen.verify)

    assert (bad.json()["request_id"], bad.headers["x-request-id"]) == ("mine-2", "mine-2")
    assert gone.headers["x-request-id"] == "mine-2"
    assert "request_id" not in gone.json()


def test_the_stores_replies_to_runners_are_counted(seen: Service) -> None:
    """By kind, and so are the appended lines."""

    def count(operation: str, answer: str) -> float:
        return seen.metric(f'chronoverse_publish_answers_total{{answer="{answer}",operation="{operation}"}}')

    before = [count(*each) for each in (("open", "OK"), ("append", "OK"), ("append", "GAP"), ("finish", "FENCED"))]
    lines = seen.metric("chronoverse_lines_appended_total")
    headers = {"Authorization": f"Bearer {seen.token()}"}
    with httpx.Client(base_url=f"{seen.url}/workflows/seeing/jobs/published", headers=headers, verify=False) as client:
        client.post("/attempts", json={"token": RUNNER})
        line = {"timestamp": now(), "message": "x", "stream": "stdout"}
        for first in (1, 4):
            body = {"token": RUNNER, "attempt": 1, "first": first, "lines": [line] * 2}
            client.post("/logs", json=body)
        client.post("/end", json={"token": RUNNER[::-1], "attempt": 1, "status": "COMPLETED", "next": 3})

    after = [count(*each) for each in (("open", "OK"), ("append", "OK"), ("append", "GAP"), ("finish", "FENCED"))]
    assert [two - one for one, two in zip(before, after, strict=True)] == [1, 1, 1, 1]
    assert seen.metric("chronoverse_lines_appended_total") - lines == 2


def test_no_token_is_in_any_log(seen: Service) -> None:
    """Valid or not, wherever it was sent, down to the debug level."""
    good, canary = seen.token(), "canary-5d1e"
    paths = [
        f"/workflows/a/jobs/b/events?token={good}",
        f"/{good}",
        f"/workflows/{good}/jobs",
        f"/x?access_token={canary}",
    ]
    for path in paths:
        exchange(seen, request_bytes(path.encode(), good))
    exchange(seen, request_bytes(b"/healthz", canary))
    exchange(seen, b"GET /x?token=%b HTTP/9.9\r\nAuthorization Bearer %b\r\n\r\n" % (good.encode(), good.encode()))
    exchange(seen, b"BREW /?jwt=%b\r\nAuthorization: Bearer %b\r\n\r\n" % (good.encode(), canary.encode()))

    wait_until(lambda: "BREW" in seen.logs(), PATIENCE_SECONDS, "the last one is logged")
    assert good not in seen.logs()
    assert good.rpartition(".")[2] not in seen.logs()
    assert canary not in seen.logs()


@pytest.mark.long
def test_slow_request_heads_are_dropped(seen: Service) -> None:
    """A client that sends nothing, one that stops halfway, and one that sends a byte now and then.

    Others are served meanwhile.
    """
    socks = [socket.create_connection((seen.host, seen.port), PATIENCE_SECONDS) for _ in range(3)]
    start = time.monotonic()
    for sock in socks[1:]:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    dropped: list[float] = []

    def all_dropped() -> bool:
        with contextlib.suppress(OSError):
            socks[-1].sendall(b"X-Drip: 1\r\n")
        for sock in [each for each in socks if each.fileno() >= 0]:
            sock.setblocking(False)
            try:
                if not sock.recv(1000):
                    raise ConnectionError
            except BlockingIOError:
                continue
            except OSError:
                dropped.append(time.monotonic() - start)
                sock.close()
        return len(dropped) == 3

    assert httpx.get(f"{seen.url}/healthz", timeout=1, verify=seen.verify).status_code == 200
    wait_until(all_dropped, 9, "all three are dropped")
    assert min(dropped) > 4
    assert max(dropped) < 7
