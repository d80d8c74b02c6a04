"""``GET /workflows/{w}/logs/search``: the format of its answer, its pages, and access to it."""

import base64
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import pages


@pytest.fixture
def workflow(client: httpx.Client, job: Foreign) -> Foreign:
    """Three jobs, read once each so that they are listed. The last one has no match."""
    for number, messages in enumerate((["error: one", "fine"], ["error: two"] * 4, ["fine"]), 1):
        each = job.sibling(f"job_{number}").lines(messages).end("FAILED" if number == 1 else "COMPLETED")
        assert client.get(each.path).status_code == 200
    return job


def search(client: httpx.Client, job: Foreign, **query: Any) -> httpx.Response:
    return client.get(f"/workflows/{job.workflow_id}/logs/search", params=query)


def test_an_answer_has_the_jobs_with_their_lines(client: httpx.Client, workflow: Foreign) -> None:
    """Lines have the same format as in the search of one job."""
    answer = search(client, workflow, q="ERROR", per_job=1, status="FAILED")
    shown = {"timestamp": TIMESTAMP, "message": "error: one"}
    assert answer.json() == {
        "workflow_id": workflow.workflow_id,
        "jobs": [
            {
                "id": "job_1",
                "status": "FAILED",
                "created_at": TIMESTAMP,
                "logs": [{**shown, "sequence_num": 1, "stream": "stdout", "highlights": [[0, 5]]}],
                "more": False,
            }
        ],
        "cursor": None,
    }
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert "Searched-To" not in answer.headers


@pytest.mark.parametrize("path", ["/logs/search", "/workflows/{}/logs/search"])
def test_pages_are_linked(service: Service, workflow: Foreign, path: str) -> None:
    """A page can end within a job, and the next one continues there. `more` is true if a job has other matches."""
    large = workflow.sibling("large").lines(["error" + "\1" * 10**6] * 4).end()
    found = list[tuple[str, int, bool]]()
    with client_for(service, workflow.workflow_id) as client:
        assert client.get(large.path).status_code == 200
        for answer in pages(client, path.format(workflow.workflow_id), q="error", per_job=3, limit=1):
            for job in answer.json()["jobs"]:
                found += [(job["id"], line["sequence_num"], job["more"]) for line in job["logs"]]
            reached = r"(.+/)?\w+;created=20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z(;line=\d+)?"
            assert not answer.json()["cursor"] or re.fullmatch(reached, answer.headers["Searched-To"])
    cut = [(job_id, number, True) for job_id in ("job_2", "large") for number in (1, 2, 3)]
    assert sorted(found) == [("job_1", 1, False), *cut]


def test_a_time_beyond_the_calendar_does_not_stop_a_search(
    client: httpx.Client, workflow: Foreign, redis_server: RedisServer
) -> None:
    """Foreign runners can write any score. Its job comes first, and the next page continues after it."""
    ask_all(redis_server.url, [("ZADD", f"chronoverse:{{{workflow.workflow_id}}}:jobs", "inf", "job_1")])
    first = search(client, workflow, q="error", limit=1)
    assert [job["id"] for job in first.json()["jobs"]] == ["job_1"]
    assert first.headers["Searched-To"] == "job_1"
    rest = search(client, workflow, q="error", cursor=first.json()["cursor"])
    assert [job["id"] for job in rest.json()["jobs"]] == ["job_2"]


@pytest.mark.parametrize(
    "changed",
    [{0: "nan"}, {0: "x"}, {1: "../job"}, {1: ""}, {1: "x" * 129}, {2: -2}, {2: 10**15}, {3: -1}, {3: 10**15}],
)
def test_an_invalid_cursor_is_rejected(client: httpx.Client, workflow: Foreign, changed: dict[int, int | str]) -> None:
    """Each part of the position is checked: time, job id, line, and number of found lines."""
    cursor = search(client, workflow, q="error", limit=1).json()["cursor"]
    values = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    for at, value in changed.items():
        values[at - 5 + (at > 0)] = value
    forged = base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")
    assert search(client, workflow, q="error", cursor=forged).status_code == 400


@pytest.fixture
def workflows(service: Service, redis_server: RedisServer) -> Iterator[httpx.Client]:
    """Three workflows with jobs in alternating order, and a client with access to the first two."""
    prefix = f"all-{os.urandom(4).hex()}"
    with client_for(service, f"{prefix}-a", f"{prefix}-b*") as client:
        for number in range(6):
            for name in "abc":
                job = Foreign(redis_server.url, f"{prefix}-{name}", f"job_{number}")
                # Pairs of jobs are created in the same millisecond.
                job.line(f"error {name}{number}", timestamp=f"2026-03-03T10:00:0{number // 2}.000Z")
                job.end()
                with client_for(service, "*") as everything:
                    assert everything.get(job.path).status_code == 200
        yield client


def client_for(service: Service, *entries: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {service.token(*entries, subject='searcher')}"}
    return httpx.Client(base_url=service.url, headers=headers, verify=False, timeout=30)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_all_workflows_of_the_token_are_searched(workflows: httpx.Client, limit: int) -> None:
    """Across pages, newest job first. Each job has its workflow's id, and other workflows are not searched."""
    found = list[tuple[str, str, str]]()
    for answer in pages(workflows, "/logs/search", q="error", limit=limit):
        assert list(answer.json()) == ["jobs", "cursor"], answer.text
        for job in answer.json()["jobs"]:
            found += [(job["workflow_id"], job["id"], line["message"]) for line in job["logs"]]
        reached = f"{found[-1][0]}/{found[-1][1]};created="
        assert not answer.json()["cursor"] or answer.headers["Searched-To"].startswith(reached)
    assert [(workflow[-1], job, message) for workflow, job, message in found] == [
        (name, f"job_{number}", f"error {name}{number}")
        for high in (5, 3, 1)
        for name in "ba"
        for number in (high, high - 1)
    ]


def test_a_cursor_gives_no_access_to_other_workflows(workflows: httpx.Client, client: httpx.Client) -> None:
    """A search continues within the job of its cursor, which anybody can forge."""
    cursor = workflows.get("/logs/search", params={"q": "error", "limit": 1}).json()["cursor"]
    *bound, created, workflow_id, job_id, _, _ = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * 3))
    forged = [*bound, created, workflow_id.removesuffix("b") + "c", job_id, 0, 0]
    query = {"q": "error", "cursor": base64.urlsafe_b64encode(orjson.dumps(forged)).decode().rstrip("=")}
    assert workflows.get("/logs/search", params=query).status_code == 400
    bound[1] = workflow_id.removesuffix("b") + "a"
    ours = f"/workflows/{bound[1]}/logs/search"
    query["cursor"] = base64.urlsafe_b64encode(orjson.dumps([*bound, *forged[-5:]])).decode().rstrip("=")
    assert workflows.get(ours, params=query).status_code == 400
