"""The end of a job without a runner: who can end it, the resulting status, and what its readers get."""

from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
import redis

from tests.support.servers import RedisServer
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.wire import Stream


@pytest.fixture
def end(client: httpx.Client, job: Foreign) -> Callable[..., httpx.Response]:
    return lambda status, exit_code=None, **more: client.post(
        f"{job.path}/end", json={"status": status, "exit_code": exit_code, **more}
    )


def answer(response: httpx.Response) -> tuple[Any, ...]:
    """The status of a response, with the job's state or the reason of an error."""
    found = response.json()
    if response.status_code == 200:
        return 200, found["status"], found["exit_code"], found["lines"]
    return response.status_code, found.get("reason")


def wait_for_an_attempt(runner: Runner) -> None:
    runner.open()
    assert runner.end(1, status="PENDING").status_code == 204


def of_records(client: httpx.Client, job: Foreign) -> None:
    names = {"chronoverse.workflow": job.workflow_id, "chronoverse.job": job.job_id}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in names.items()]
    records = [{"timeUnixNano": "1800000000000000000", "body": {"stringValue": "one"}}]
    body = {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}]}
    assert client.post("/v1/logs", json=body).json() == {}


KINDS: Final[dict[str, tuple[Callable[[httpx.Client, Foreign], Any], int]]] = {
    "records": (of_records, 1),
    "xadd": (lambda client, job: job.line("one"), 1),
    "waiting": (lambda client, job: wait_for_an_attempt(Runner(client, job)), 0),
    "pending": (lambda client, job: client.put(job.path, json={}), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_without_a_runner_is_ended(
    kind: str,
    client: httpx.Client,
    job: Foreign,
    end: Callable[..., httpx.Response],
    open_stream: Callable[..., Stream],
) -> None:
    """Wherever it came from. It ends once, its followers get the end, and nothing can follow it."""
    begin, lines = KINDS[kind]
    begin(client, job)
    stream = open_stream(job)

    assert answer(end("FAILED", 3)) == (200, "FAILED", 3, lines)
    assert b"event: end\n" in stream.wait_end().body
    assert answer(end("FAILED", 3)) == answer(end("FAILED")) == (200, "FAILED", 3, lines)
    for other in (("FAILED", 4), ("COMPLETED", 0), ("CANCELED", None), ("LOST", None)):
        assert answer(end(*other)) == (409, "CLOSED")
    assert Runner(client, job).open().json()["reason"] == "CLOSED"
    listed = client.get(f"/workflows/{job.workflow_id}/jobs").json()["jobs"]
    assert [(each["status"], each["exit_code"]) for each in listed] == [("FAILED", 3)]


def test_a_job_held_by_a_runner_is_not_ended(
    client: httpx.Client, job: Foreign, opened: Runner, end: Callable[..., httpx.Response]
) -> None:
    """Only its runner can end it. After that, the answer follows the runner's status."""
    assert answer(end("COMPLETED", 0)) == (409, "HELD")
    assert client.get(job.path).json()["status"] == "RUNNING"
    assert opened.end(1).status_code == 204
    assert answer(end("COMPLETED", 0)) == (200, "COMPLETED", 0, 0)
    assert answer(end("FAILED")) == (409, "CLOSED")


def test_the_end_of_a_foreign_runner_takes_precedence(
    client: httpx.Client, job: Foreign, end: Callable[..., httpx.Response]
) -> None:
    """Even without a status in the terminal entry, and with lines after it."""
    job.line("one")
    job.add("2-0", "event", "end", "exit_code", "7")
    job.add("3-0", "timestamp", TIMESTAMP, "message", "late", "stream", "stdout")
    assert answer(end("COMPLETED", 0)) == (409, "CLOSED")
    assert answer(end("FAILED", 7)) == (200, "FAILED", 7, 1)


def test_lines_of_a_foreign_runner_after_the_end_are_not_shown(
    client: httpx.Client, job: Foreign, end: Callable[..., httpx.Response]
) -> None:
    """However many there are."""
    job.lines(["one", "two"])
    assert answer(end("COMPLETED", 0)) == (200, "COMPLETED", 0, 2)
    for number in range(4, 24):
        job.add(f"{number}-0", "timestamp", TIMESTAMP, "message", "late", "stream", "stdout")
    assert answer(end("COMPLETED", 0)) == (200, "COMPLETED", 0, 2)
    assert [line["message"] for line in client.get(f"{job.path}/logs").json()["logs"]] == ["one", "two"]


def test_the_keys_of_an_ended_job_expire_after_its_workflows_retention(
    admin: httpx.Client, job: Foreign, end: Callable[..., httpx.Response], redis_server: RedisServer
) -> None:
    """Also those of a foreign job."""
    settings = {"retention_seconds": 100_000, "job_bytes": None, "bytes_per_day": None}
    assert admin.put(f"/workflows/{job.workflow_id}/settings", json=settings).status_code == 200
    job.line("one")
    assert answer(end("CANCELED")) == (200, "CANCELED", None, 1)
    with redis.Redis.from_url(redis_server.url) as server:
        for kind in ("log", "job"):
            assert 99_000 < server.ttl(job.key.replace(":log", f":{kind}")) <= 100_000


def test_an_unknown_job_is_not_ended(
    admin: httpx.Client, client: httpx.Client, job: Foreign, end: Callable[..., httpx.Response]
) -> None:
    assert end("COMPLETED", 0).status_code == 404
    assert client.get(job.path).status_code == 404
    job.line("one")
    assert admin.delete(job.path).status_code == 204
    assert answer(end("COMPLETED", 0)) == (409, "DELETED")
