"""``GET /workflows``: the workflows that a token can see, their order and their fields."""

import time
from typing import Any

import httpx
import pytest

from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.bench import make_lines, ticking
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.wire import pages


@pytest.fixture(scope="module")
def names(redis_server: RedisServer) -> list[str]:
    """Five workflows, newest first, each with an ended job and a running one."""
    store, names = Store(redis_server.url, clock=ticking()), [f"listed_{number}" for number in range(5)]
    for name in names:
        store.finish(store.open(JobRef(name, "ended"), "token"), Status.COMPLETED, 0, 0, 1)
        store.append(store.open(JobRef(name, "running"), "token"), make_lines(1, 1))
    store.close()
    return names[::-1]


def listed(service: Service, *workflows: str, **query: Any) -> list[list[dict[str, Any]]]:
    """The workflows on each page, for a token with these entries; by default, for all workflows."""
    headers = {"Authorization": f"Bearer {service.token(*workflows)}"}
    with httpx.Client(base_url=service.url, headers=headers, verify=service.verify) as client:
        return [page.json()["workflows"] for page in pages(client, "/workflows", **query)]


def ids_on(pages: list[list[dict[str, Any]]]) -> list[str]:
    return [each["id"] for page in pages for each in page]


def test_a_token_for_all_workflows_sees_all(service: Service, client: httpx.Client, names: list[str]) -> None:
    """With the number of jobs and of running ones, and the creation time of the newest."""
    found = [each for page in listed(service, limit=100) for each in page if each["id"] in names]
    assert [each["id"] for each in found] == names
    assert {(each["jobs"], each["running"]) for each in found} == {(2, 1)}
    assert found[0]["last_job_at"] == client.get(f"/workflows/{names[0]}/jobs/running").json()["created_at"]


def test_a_token_for_some_workflows_sees_only_these(service: Service, names: list[str]) -> None:
    """If they exist. The number of other workflows is not revealed."""
    found = listed(service, names[3], "unknown", names[1], limit=1)
    assert [ids_on([page]) for page in found if page] == [[names[1]], [names[3]]]
    assert listed(service, "unknown") == [[]]


def test_a_token_for_prefixes_sees_matching_workflows(service: Service, redis_server: RedisServer) -> None:
    """On full pages, in order, whatever lies between them, and together with workflows that the token names."""
    store = Store(redis_server.url, clock=ticking())
    for number in range(30):
        for team in ("a", "ab", "b"):
            store.register(JobRef(f"team-{team}.{number}", "job"))
    store.close()
    allowed = ("team-a.*", "team-b.7", "nothing*")
    found = listed(service, *allowed, limit=4)

    expected = [f"team-a.{number}" for number in reversed(range(30))]
    expected.insert(expected.index("team-a.7"), "team-b.7")
    assert ids_on(found) == expected
    assert {len(page) for page in found[:-1]} == {4}
    assert listed(service, "team-*")[0][0]["id"] == "team-b.29"
    assert listed(service, "nothing*") == [[]]


def test_workflows_with_the_same_time_are_all_listed(service: Service, redis_server: RedisServer) -> None:
    """On pages that need several reads, of workflows whose newest jobs have the same time."""
    moment = time.time()
    store, names = Store(redis_server.url, clock=lambda: moment), {f"moment_{number}" for number in range(50)}
    for name in names:
        store.register(JobRef(name, "job"))
    store.close()
    found = ids_on(listed(service, limit=20))
    assert names <= set(found)
    assert len(found) == len(set(found))


def test_a_foreign_job_is_counted_after_its_first_read(service: Service, client: httpx.Client, job: Foreign) -> None:
    """The workflow of a runner that only uses XADD is like any other."""
    job.line("a line")
    assert listed(service, job.workflow_id) == [[]]
    client.get(job.path)
    ((found,),) = listed(service, job.workflow_id)
    assert (found["jobs"], found["running"]) == (1, 1)


def test_a_time_beyond_the_calendar_is_null(service: Service, redis_server: RedisServer, job: Foreign) -> None:
    """Foreign runners can write any score."""
    job.line("a line")
    ask_all(redis_server.url, [("ZADD", f"chronoverse:{{{job.workflow_id}}}:jobs", "inf", job.job_id)])
    ((found,),) = listed(service, job.workflow_id)
    last = {"last_job_at": None, "last_job": job.job_id, "last_status": "RUNNING", "recent": ["RUNNING"]}
    assert found == {"id": job.workflow_id, "jobs": 1, "running": 0, **last}


@pytest.mark.parametrize("all_workflows", [True, False])
def test_workflows_are_found_by_the_status_of_their_newest_job(
    service: Service, redis_server: RedisServer, all_workflows: bool
) -> None:
    """All pages but the last are full, whatever lies between. A page can end before all workflows are checked."""
    store, prefix = Store(redis_server.url, clock=ticking()), f"red_{all_workflows}_"
    for number in range(30):
        for status in (Status.COMPLETED, Status.LOST if number % 6 else Status.FAILED):
            job = JobRef(f"{prefix}{number}", f"{number}-{status}")
            store.finish(store.open(job, "token"), status, None, 0, 1)
    store.close()
    allowed = ("*",) if all_workflows else tuple(f"{prefix}{number}" for number in range(30))
    pages = listed(service, *allowed, limit=3, status="FAILED")
    found = [each for page in pages for each in page if each["id"].startswith(prefix)]
    assert [each["id"] for each in found] == [f"{prefix}{number}" for number in (24, 18, 12, 6, 0)]
    expected = {"last_job": "24-FAILED", "last_status": "FAILED", "recent": ["FAILED", "COMPLETED"]}
    assert expected.items() <= found[0].items()
    assert max(map(len, pages)) <= 3
    assert {each["last_status"] for page in pages for each in page} == {"FAILED"}
