"""``/jobs`` of a large workflow: the delay of other requests by concurrent listings, and which jobs are listed."""

from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.support.waiting import deadline
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all

#: Jobs in the large workflow, none of which is LOST.
JOBS: Final = 1_000


@pytest.fixture(scope="module")
def large(redis_server: RedisServer) -> str:
    commands: list[tuple[str, ...]] = []
    for number in range(JOBS):
        key = f"chronoverse:{{large}}:job_{number}:job"
        commands.append(("HSET", key, "status", "PENDING", "created_at", TIMESTAMP))
        commands.append(("ZADD", "chronoverse:{large}:jobs", str(number), f"job_{number}"))
    ask_all(redis_server.url, commands)
    return "large"


def test_a_listing_with_few_matches_continues_with_its_cursor(
    client: httpx.Client, large: str, redis_server: RedisServer
) -> None:
    """Pages can be short or empty. Together they contain the one job at the end of the listing."""
    redis_server.ask("HSET", "chronoverse:{large}:job_0:job", "status", "COMPLETED")
    found, pages, query = [], 0, ""
    in_time = deadline(60, "the last page")
    while in_time():
        page = client.get(f"/workflows/{large}/jobs?status=COMPLETED&limit=1{query}").json()
        found += [each["id"] for each in page["jobs"]]
        pages += 1
        if page["cursor"] is None:
            break
        query = f"&cursor={page['cursor']}"

    assert found == ["job_0"]
    # Jobs are read in batches, not with a round trip or a page for each. On a busy machine pages are shorter.
    assert pages <= JOBS // 20


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
