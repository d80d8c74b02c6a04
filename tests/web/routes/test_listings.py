"""``/jobs`` of a large workflow: the delay of other requests by concurrent listings, and which jobs are listed."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest

from chronoverse.auth.tokens import mint
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service
from tests.support.waiting import deadline, wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all

#: Jobs in the large workflow, none of which is LOST.
JOBS: Final = 2_500
#: Concurrent listings of one token.
LISTINGS: Final = 50
#: Time limits of other requests meanwhile, in seconds: the readiness check, and a page of another token.
READY_SECONDS: Final = 2.0
PAGE_SECONDS: Final = 5.0


def headers(subject: str) -> dict[str, str]:
    """The headers of a reader with its own token."""
    token = mint(SECRET, subject, ("logs:read",), ("*",), 600, time.time())
    return {"Authorization": f"Bearer {token}"}


def took(url: str, subject: str = "other") -> tuple[int, float]:
    """A request's status and its duration in seconds."""
    began = time.monotonic()
    status = httpx.get(url, headers=headers(subject), timeout=20, verify=False).status_code
    return status, time.monotonic() - began


@pytest.fixture(scope="module")
def large(redis_server: RedisServer) -> str:
    """A workflow with many pending jobs."""
    commands: list[tuple[str, ...]] = []
    for number in range(JOBS):
        key = f"chronoverse:{{large}}:job_{number}:job"
        commands.append(("HSET", key, "status", "PENDING", "created_at", TIMESTAMP))
        commands.append(("ZADD", "chronoverse:{large}:jobs", str(number), f"job_{number}"))
    ask_all(redis_server.url, commands)
    return "large"


@pytest.fixture
def listings(service: Service, large: str) -> Iterator[list[httpx.Response]]:
    """One token lists the jobs continuously and concurrently, and finds none. Yields the answers so far."""
    url, answers, over = f"{service.url}/workflows/{large}/jobs?status=LOST&limit=1", [], threading.Event()

    def list_jobs() -> None:
        with httpx.Client(headers=headers("listing"), timeout=20, verify=False) as client:
            while not over.is_set():
                answers.append(client.get(url))

    with ThreadPoolExecutor(LISTINGS) as pool:
        asking = [pool.submit(list_jobs) for _ in range(LISTINGS)]
        try:
            wait_until(lambda: answers, 20, "they are under way")
            yield answers
        finally:
            over.set()
        for each in asking:
            each.result()


@pytest.mark.long
def test_concurrent_listings_do_not_block_other_requests(
    service: Service, listings: list[httpx.Response], job: Foreign
) -> None:
    """The worker stays ready, another token's pages are fast, and no listing is rejected.

    Uses the median of several tries, because a busy machine can delay any of them.
    """
    job.line("a line")
    pages = (f"{job.path}/logs", f"/workflows/{job.workflow_id}/jobs", "/workflows/large/jobs?limit=10")
    for path, most in {"/readyz": READY_SECONDS, **dict.fromkeys(pages, PAGE_SECONDS)}.items():
        tries = [took(f"{service.url}{path}") for _ in range(5)]
        assert {status for status, _ in tries} == {200}
        assert statistics.median(seconds for _, seconds in tries) < most
    assert {answer.status_code for answer in listings} <= {200}


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
