"""The end of a job without a runner: who can end it, the resulting status, and what its readers get."""

import secrets
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
import redis

from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.wire import Stream

RUNNER: Final = secrets.token_hex(16)


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


def open_attempt(client: httpx.Client, job: Foreign, next_number: int | None = None, **end: Any) -> None:
    """Opens an attempt, and ends it if ``next_number`` is given."""
    attempt = client.post(f"{job.path}/attempts", json={"token": RUNNER}).json()["attempt"]
    if next_number is not None:
        body = {"token": RUNNER, "attempt": attempt, "next": next_number, "dropped": 0, **end}
        assert client.post(f"{job.path}/end", json=body).status_code == 204


def of_records(client: httpx.Client, job: Foreign) -> None:
    names = {"chronoverse.workflow": job.workflow_id, "chronoverse.job": job.job_id}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in names.items()]
    records = [{"timeUnixNano": "1800000000000000000", "body": {"stringValue": "one"}}]
    body = {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}]}
    assert client.post("/v1/logs", json=body).json() == {}


def admin(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.token(scopes=['logs:admin'])}"}


KINDS: Final[dict[str, tuple[Callable[[httpx.Client, Foreign], Any], int]]] = {
    "records": (of_records, 1),
    "xadd": (lambda client, job: job.line("one"), 1),
    "waiting": (lambda client, job: open_attempt(client, job, 1, status="PENDING"), 0),
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
    assert client.post(f"{job.path}/attempts", json={"token": RUNNER}).json()["reason"] == "CLOSED"
    listed = client.get(f"/workflows/{job.workflow_id}/jobs").json()["jobs"]
    assert [(each["status"], each["exit_code"]) for each in listed] == [("FAILED", 3)]


def test_a_job_held_by_a_runner_is_not_ended(
    client: httpx.Client, job: Foreign, end: Callable[..., httpx.Response]
) -> None:
    """Only its runner can end it. After that, the answer follows the runner's status."""
    open_attempt(client, job)
    assert answer(end("COMPLETED", 0)) == (409, "HELD")
    assert client.get(job.path).json()["status"] == "RUNNING"
    body = {"token": RUNNER, "attempt": 1, "status": "COMPLETED", "exit_code": 0, "next": 1}
    assert client.post(f"{job.path}/end", json=body).status_code == 204
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
    service: Service, job: Foreign, end: Callable[..., httpx.Response], redis_server: RedisServer
) -> None:
    """Also those of a foreign job."""
    settings = {"retention_seconds": 100_000, "job_bytes": None, "bytes_per_day": None}
    url = f"{service.url}/workflows/{job.workflow_id}/settings"
    assert httpx.put(url, json=settings, headers=admin(service)).status_code == 200
    job.line("one")
    assert answer(end("CANCELED")) == (200, "CANCELED", None, 1)
    with redis.Redis.from_url(redis_server.url) as server:
        for kind in ("log", "job"):
            assert 99_000 < server.ttl(job.key.replace(":log", f":{kind}")) <= 100_000


def test_an_unknown_job_is_not_ended(
    service: Service, client: httpx.Client, job: Foreign, end: Callable[..., httpx.Response]
) -> None:
    assert end("COMPLETED", 0).status_code == 404
    assert client.get(job.path).status_code == 404
    job.line("one")
    assert client.delete(job.path, headers=admin(service)).status_code == 204
    assert answer(end("COMPLETED", 0)) == (409, "DELETED")
