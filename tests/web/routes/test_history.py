"""``/logs`` and ``/jobs``: all pages together are complete, in both orders, from any position."""

import base64
from collections.abc import Callable
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import everything, pages


def forged(*values: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(values)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "!!!!",
        "e30",
        "a" * 512,
        "é",
        forged("logs", "history", "big", "asc", None, "7"),
        forged("logs", "history", "big", "asc", None, 7.0),
        forged("logs", "history", "big", "asc", None, None),
        forged("logs", "history", "big", "asc", None, True),
        forged("logs", "history", "big", "asc", None, -1),
        forged("logs", "history", "big", "asc", None, 10**15),
        forged("logs", "history", "big", "asc", None, 7, 7),
        "[" * 500,
        base64.urlsafe_b64encode(b"[" * 300).decode(),
    ],
)
def test_an_invalid_cursor_is_rejected(client: httpx.Client, redis_server: RedisServer, cursor: str) -> None:
    job = Foreign(redis_server.url, "history", "big")
    job.add("*", "message", "one")
    assert client.get(f"{job.path}/logs", params={"cursor": cursor}).status_code == 400


def test_pages_of_a_running_job_continue_with_new_lines(client: httpx.Client, job: Foreign) -> None:
    """The cursor also leads to lines that were written after its page."""
    job.lines(["x"] * 5)
    page = client.get(f"{job.path}/logs?limit=3").json()
    job.lines(["x"] * 5)

    rest = everything(client, f"{job.path}/logs", limit=3, cursor=page["cursor"])
    assert [line["sequence_num"] for line in rest] == [*range(4, 11)]


def test_a_job_has_its_status_and_counts(client: httpx.Client, job: Foreign) -> None:
    """A foreign runner's XADD is enough."""
    job.line("one", timestamp="2026-03-03T10:00:00.000Z")
    running = client.get(job.path).json()
    job.end("FAILED", 3, "timestamp", "2026-03-03T10:00:09.000Z", "dropped", "2")
    ended = client.get(job.path).json()

    names = "workflow_id id status attempt created_at started_at finished_at exit_code lines dropped"
    assert list(ended) == [*names.split(), "first_sequence_num", "last_sequence_num", "labels"]
    assert (running["status"], running["last_sequence_num"], running["exit_code"]) == ("RUNNING", 1, None)
    assert running["finished_at"] is None
    assert (ended["status"], ended["exit_code"], ended["lines"], ended["dropped"]) == ("FAILED", 3, 1, 2)
    assert (ended["started_at"], ended["finished_at"]) == ("2026-03-03T10:00:00.000Z", "2026-03-03T10:00:09.000Z")


def test_registering_is_idempotent(client: httpx.Client, job: Foreign) -> None:
    """201 once, then 200, even after the job has started."""
    first, second = client.put(job.path), client.put(job.path)
    job.line("one")
    third = client.put(job.path)

    assert [first.status_code, second.status_code, third.status_code] == [201, 200, 200]
    assert first.json() == second.json()
    assert (first.json()["status"], third.json()["status"]) == ("PENDING", "RUNNING")


@pytest.fixture(scope="module")
def listed(service: Service, redis_server: RedisServer) -> list[str]:
    """The ids of 25 jobs, newest first; three have the same time. Every fifth has failed, the others are pending."""
    workflow, names = "listing", [f"job_{number}" for number in range(25, 0, -1)]
    headers = {"Authorization": f"Bearer {service.token()}"}
    for name in names:
        httpx.put(f"{service.url}/workflows/{workflow}/jobs/{name}", headers=headers, verify=service.verify)
        number = int(name.removeprefix("job_"))
        score = 1_770_000_000_000 + (12 if number in (13, 14) else number)
        ask_all(redis_server.url, [("ZADD", f"chronoverse:{{{workflow}}}:jobs", str(score), name)])
        if number % 5 == 0:
            Foreign(redis_server.url, workflow, name).end("FAILED", 1)
    same = ["job_14", "job_13", "job_12"]
    return [*(name for name in names if int(name[4:]) > 14), *same, *(name for name in names if int(name[4:]) < 12)]


@pytest.mark.parametrize("limit", [1, 2, 7, 25, 100])
def test_jobs_are_listed_newest_first(client: httpx.Client, listed: list[str], limit: int) -> None:
    """Across pages. Jobs with the same time have a stable order."""
    jobs = everything(client, f"/workflows/listing/jobs?limit={limit}", "jobs")

    assert [job["id"] for job in jobs] == listed
    assert jobs[0] == client.get(f"/workflows/listing/jobs/{listed[0]}").json()


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
@pytest.mark.parametrize("status", ["FAILED", "PENDING", "RUNNING"])
def test_jobs_are_listed_by_status(client: httpx.Client, listed: list[str], status: str, limit: int) -> None:
    jobs = everything(client, f"/workflows/listing/jobs?limit={limit}&status={status}", "jobs")

    failed = [name for name in listed if int(name[4:]) % 5 == 0]
    expected = {"FAILED": failed, "PENDING": [name for name in listed if name not in failed], "RUNNING": []}
    assert [job["id"] for job in jobs] == expected[status]


def test_an_expired_job_leaves_the_list(client: httpx.Client, redis_server: RedisServer, job: Foreign) -> None:
    """And the index, so that no later listing reads it again."""
    client.put(job.path)
    client.put(job.sibling("job_2").path)
    redis_server.ask("DEL", f"chronoverse:{{{job.workflow_id}}}:job_1:job")

    listed = everything(client, f"/workflows/{job.workflow_id}/jobs?limit=1", "jobs")
    assert [each["id"] for each in listed] == ["job_2"]
    assert redis_server.ask("ZRANGE", f"chronoverse:{{{job.workflow_id}}}:jobs", "0", "-1") == [b"job_2"]


def test_a_listing_with_few_matches_continues_with_its_cursor(client: httpx.Client, redis_server: RedisServer) -> None:
    """Pages can be short or empty. Together they contain the one job at the end of the listing."""
    commands: list[tuple[str, ...]] = []
    for number in range(1_000):
        status = "PENDING" if number else "COMPLETED"
        key = f"chronoverse:{{large}}:job_{number}:job"
        commands.append(("HSET", key, "status", status, "created_at", TIMESTAMP))
        commands.append(("ZADD", "chronoverse:{large}:jobs", str(number), f"job_{number}"))
    ask_all(redis_server.url, commands)
    found = [page.json()["jobs"] for page in pages(client, "/workflows/large/jobs", status="COMPLETED", limit=1)]

    assert [job["id"] for jobs in found for job in jobs] == ["job_0"]
    # Jobs are read in batches, not with a round trip or a page for each. On a busy machine pages are shorter.
    assert len(found) <= 1_000 // 20


Reader = Callable[[httpx.Client, Foreign], Any]
READERS: Final[dict[str, Reader]] = {
    "status": lambda client, job: client.get(job.path),
    "page": lambda client, job: client.get(f"{job.path}/logs"),
    "stream": lambda client, job: client.get(f"{job.path}/events"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_foreign_job_is_listed_after_its_first_read(client: httpx.Client, job: Foreign, read: Reader) -> None:
    """Only its runner knew of the job, which exists only as a log written with XADD."""
    path = f"/workflows/{job.workflow_id}/jobs"
    older = job.sibling("older")
    older.line("a line", timestamp="2026-03-02T10:00:00.000Z")
    older.end()
    job.line("a line")
    job.end()
    assert client.get(path).json()["jobs"] == []

    for each in (older, job):
        assert read(client, each).status_code == 200

    listed = client.get(path).json()["jobs"]
    assert [each["id"] for each in listed] == [job.job_id, "older"]
    assert [each["status"] for each in listed] == ["COMPLETED", "COMPLETED"]
    cursors = [client.get(path, params={"limit": limit}).json()["cursor"] for limit in (1, 2)]
    assert [each is None for each in cursors] == [False, True], "a full page can be the last one"
