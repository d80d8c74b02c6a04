"""Labels over HTTP: set by two requests, shown in every job object, and used to select jobs."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.wire import PatientClient, Stream, everything, pages


def register(client: httpx.Client, job: Foreign, **labels: Any) -> httpx.Response:
    # Chunked: without a Content-Length.
    content = iter([json.dumps({"labels": labels}).encode()])
    return client.put(job.path, content=content, headers={"Content-Type": "application/json"})


@pytest.fixture
def client(service: Service, auth: dict[str, str]) -> Iterator[httpx.Client]:
    with PatientClient(base_url=service.url, headers=auth, timeout=30, verify=service.verify) as client:
        yield client


def jobs_on(client: httpx.Client, job: Foreign, path: str = "jobs", **query: Any) -> list[str]:
    """The ids of the jobs on all linked pages of a listing or a search."""
    return [each["id"] for each in everything(client, f"/workflows/{job.workflow_id}/{path}", "jobs", **query)]


def new_lines(client: httpx.Client, job: Foreign, **query: Any) -> tuple[list[str], list[int]]:
    """The compared jobs, and the numbers of the new lines, on all pages."""
    *_, last = answers = [*pages(client, f"{job.path}/logs/new", **query)]
    return last.json()["compared_with"], [line["sequence_num"] for each in answers for line in each.json()["logs"]]


def whole_summary(client: httpx.Client, job: Foreign, **query: Any) -> dict[str, Any]:
    """The job's summary, after all of its lines were scanned."""
    found: list[dict[str, Any]] = []

    def ask() -> bool:
        found.append(client.get(f"{job.path}/summary", params=query).json())
        return bool(found[-1]["complete"])

    wait_until(ask, 60, "a whole summary")
    return found[-1]


def test_labels_are_in_every_job_object(
    client: httpx.Client, job: Foreign, runner: Runner, open_stream: Callable[..., Stream]
) -> None:
    labels = {"branch": "main", "url": "https://ci.example.com/1?a=b&c=d"}
    first = register(client, job, **labels)
    assert (first.status_code, first.json()["labels"]) == (201, labels)
    labels["step"] = 'é "quoted" <b>\u202e'
    assert runner.open(labels={"step": labels["step"]}).status_code == 200
    assert client.get(job.path).json()["labels"] == labels
    assert client.get(f"/workflows/{job.workflow_id}/jobs").json()["jobs"][0]["labels"] == labels
    assert whole_summary(client, job)["job"]["labels"] == labels
    assert runner.end(1).status_code == 204
    states = [block["data"] for block in open_stream(job).wait_end().blocks() if block.get("event") == "job"]
    assert [state["labels"] for state in states] == [labels] * len(states) != []
    assert client.get(f"{job.path}/wait?timeout=0").json()["job"]["labels"] == labels


def test_a_label_cannot_be_changed(client: httpx.Client, job: Foreign, runner: Runner) -> None:
    register(client, job, branch="main", step="test")
    for answer in (
        register(client, job, branch="next", os="linux"),
        runner.open(labels={"branch": "next", "os": "linux"}),
    ):
        problem = answer.json()
        assert (answer.status_code, problem["reason"], problem["labels"]) == (409, "label-set", ["branch"])
        assert "label branch: it has another value" in problem["detail"]
    found = client.get(job.path).json()
    assert (found["status"], found["labels"]) == ("PENDING", {"branch": "main", "step": "test"})
    assert runner.open(labels={"branch": "main"}).status_code == 200


def test_jobs_are_selected_by_all_of_the_labels(client: httpx.Client, job: Foreign) -> None:
    names = [f"job_{number}" for number in range(30)]
    for number, name in enumerate(names):
        each = job.sibling(name)
        # The listing is read in batches of ten jobs.
        register(client, each, branch="main" if number % 3 else "next", os="linux" if number % 2 else "mac=a,b")
        each.lines([f"line of {name}"])
    wanted = [name for number, name in enumerate(names) if number % 3 and not number % 2][::-1]
    asked: dict[str, dict[str, Any]] = {"jobs": {}, "logs/search": {"q": "line", "per_job": 1}}
    for path, query in asked.items():
        labels = ["branch=main", "os=mac=a,b"]
        assert jobs_on(client, job, path, label=labels, limit=2, **query) == wanted
        assert jobs_on(client, job, path, label=["branch=main", "branch=next"], **query) == []
        assert len(jobs_on(client, job, path, **query)) == 30


def test_good_runs_are_chosen_by_labels(client: httpx.Client, job: Foreign) -> None:
    for name, branch in (("good_main", "main"), ("good_next", "next")):
        good = job.sibling(name)
        register(client, good, branch=branch)
        good.lines([f"only on {branch}", "everywhere"]).end()
        assert client.get(good.path).json()["status"] == "COMPLETED"
        time.sleep(0.002)
    register(client, job, branch="main")
    job.lines(["only on main", "only on next", "everywhere", "error: broken"]).end("FAILED", 1)
    for label, runs, new in (("main", ["good_main"], [2, 4]), ("next", ["good_next"], [1, 4])):
        query = {"against_label": f"branch={label}"}
        assert new_lines(client, job, limit=1, **query) == (runs, new)
        summary = whole_summary(client, job, **query)
        numbers = sorted(line["sequence_num"] for line in summary["new"]["first"])
        assert (summary["compared_with"], numbers) == (runs, new)
    for query in ({}, {"against_label": "*"}):
        assert new_lines(client, job, **query) == (["good_next", "good_main"], [4])
        assert whole_summary(client, job, **query)["baseline"] is None
    assert whole_summary(client, job, against_label="branch=next")["baseline"] == {"label": "branch=next"}
    refused = client.get(f"{job.path}/logs/new?against_label=branch=gone")
    assert refused.json()["reason"] == "nothing-to-compare"
    assert "no job of this workflow with branch=gone has COMPLETED" in refused.json()["detail"]
    assert whole_summary(client, job, against_label="branch=gone")["compared_with"] is None
