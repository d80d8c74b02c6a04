"""Paged routes: a link repeats all parameters, all pages are the whole list, and no cursor fits another list."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest

from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.history.pages import Page
from chronoverse.history.scans.client import ScanClient
from chronoverse.settings import Settings
from chronoverse.web.app import build_app, build_dependencies
from tests.support.service import Service
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PatientClient, pages

JOBS, JOB = "/workflows/{workflow_id}/jobs", "/workflows/{workflow_id}/jobs/{job_id}"
LABELS: Final = ["branch=main", "step=a"]
TIMES: Final = {"since": "2020-03-03T10:00:00.000Z", "until": "2999-03-03T10:00:00.000Z"}
LINES: Final = {"order": "desc", "stream": "stderr", "limit": "1"}
FOUND: Final = {"q": "ERR.R", "regex": "true", "before": "1", "after": "1", **TIMES}
IN_JOBS: Final = {**FOUND, "stream": "stderr", "status": "FAILED", "label": LABELS, "per_job": "2", "limit": "1"}
#: Each paged route, with all of its parameters except the place to start at.
QUERIES: Final[list[tuple[str, dict[str, Any]]]] = [
    ("/workflows", {"status": "FAILED", "limit": "1"}),
    ("/audit", {**TIMES, "limit": "1"}),
    ("/logs/search", IN_JOBS),
    ("/workflows/{workflow_id}/logs/search", IN_JOBS),
    (JOBS, {"status": "FAILED", "label": LABELS, "limit": "1"}),
    (f"{JOB}/logs", LINES),
    (f"{JOB}/logs/search", {**LINES, **FOUND}),
    (f"{JOB}/logs/new", {**LINES, "before": "1", "after": "1", "against": "job-0"}),
    (f"{JOB}/logs/new", {**LINES, "before": "1", "after": "1", "against_label": ["branch=main"]}),
    (f"{JOB}/logs/{{number_text}}/history", {"jobs": "3", "label": LABELS}),
]
#: Another list: a valid value for each parameter that selects what is listed. All others only divide it into pages.
OTHERS: Final[dict[str, Any]] = {
    "order": "asc",
    "stream": "stdout",
    "q": "err",
    "regex": "false",
    "status": "LOST",
    "label": "step=a",
    "since": "2021-03-03T10:00:00Z",
    "until": "2998-03-03T10:00:00Z",
    "jobs": "4",
    "against": "job-1",
    "against_label": "step=a",
}
START: Final = {"offset", "cursor"}


class UnfinishedScans:
    """A scan server that always has more. Notes the scans that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    @contextlib.contextmanager
    def ask(self, scan: object, subject: str) -> Iterator["UnfinishedScans"]:
        self.asked.append(scan)
        yield self

    def answer(self) -> tuple[dict[str, Any], bytes]:
        return {"position": ("1.0", "job-1"), "looked_at": 1, "shape": "x"}, b"{}"

    def page(self) -> Page:
        return Page([], 0, has_more=True)


@pytest.fixture(scope="module")
def listed(service: Service) -> Iterator[httpx.Client]:
    """A client for two workflows with four jobs each: a good one, and three that failed with the same lines."""
    token = service.token("links-*", scopes=(READ, WRITE, ADMIN))
    headers = {"Authorization": f"Bearer {token}"}
    with PatientClient(base_url=service.url, headers=headers, timeout=20, verify=service.verify) as client:
        for number in range(8):
            job = Foreign(str(service.redis_url), f"links-{number // 4}", f"job-{number % 4}")
            body = {"labels": dict(label.split("=") for label in LABELS)}
            assert client.put(job.path, json=body).status_code < 300
            if number % 4:
                job.lines(["error: x", "error: y", "fine"] * 2, ("stdout", "stderr")).end("FAILED", 1)
            else:
                job.lines(["fine"], ("stdout", "stderr")).end()
            assert client.get(job.path).json()["lines"]
            settings = {"retention_seconds": 3_600 + number}
            assert client.put(f"/workflows/{job.workflow_id}/settings", json=settings).status_code == 200
        yield client


def items(body: dict[str, Any]) -> list[Any]:
    """What a page lists, without the lines around a match."""
    (found,) = (body[name] for name in ("logs", "jobs", "workflows", "entries") if name in body)
    if "logs" in body:
        return [each["sequence_num"] for each in found if not each.get("context")]
    shown = ("workflow_id", "id", "at", "created_at")
    return [([each.get(name) for name in shown], items(each) if "logs" in each else 0) for each in found]


def scanning(listed: httpx.Client, service: Service, data_dir: Path, scans: UnfinishedScans) -> httpx.Client:
    """A client for a service with this scan server."""
    settings = Settings(data_dir=data_dir, redis_url=service.redis_url, jwt_secret=service.secret)
    app = build_app(replace(build_dependencies(settings), scans=cast(ScanClient, scans)))
    return httpx.Client(base_url="http://localhost", headers=listed.headers, transport=httpx.WSGITransport(app))


def path_of(route: str, workflow_id: str = "links-1", job_id: str = "job-3") -> str:
    return route.format(workflow_id=workflow_id, job_id=job_id, number_text="1")


def documented(client: httpx.Client) -> dict[str, set[str]]:
    """The query parameters of each paged route in the OpenAPI document."""
    paths = client.get("/openapi.json").json()["paths"].items()
    gets = {path: operations["get"].get("parameters", ()) for path, operations in paths if "get" in operations}
    queries = {path: {each["name"] for each in found if each["in"] == "query"} for path, found in gets.items()}
    return {path: names for path, names in queries.items() if "cursor" in names}


def test_all_paged_routes_are_tested(listed: httpx.Client) -> None:
    assert documented(listed).keys() == {route for route, _ in QUERIES}


@pytest.mark.parametrize(("route", "query"), QUERIES, ids=lambda each: each if isinstance(each, str) else "")
def test_links_lead_through_the_whole_list(
    listed: httpx.Client, service: Service, tmp_path: Path, route: str, query: dict[str, Any]
) -> None:
    names = documented(listed)[route]
    alternatives = {"against", "against_label"} - query.keys()
    assert names - START - alternatives == query.keys()
    path = path_of(route)
    client, is_history, scans = listed, "{number_text}" in route, UnfinishedScans()
    if is_history:
        # One request of the real scan server would read all jobs.
        client = scanning(listed, service, tmp_path, scans)

    first = client.get(path, params=query)
    link = first.links["next"]["url"]
    cursor = first.json()["cursor"]
    assert link.startswith(f"{path}?")
    asked = httpx.URL(link).params
    assert sorted(asked.multi_items()) == sorted(httpx.QueryParams({**query, "cursor": cursor}).multi_items())
    others = [(path, {**query, name: OTHERS[name]}) for name in query.keys() & OTHERS.keys()]
    others += [(other, query) for other in (path_of(route, "links-0"), path_of(route, job_id="job-2")) if other != path]
    others += [(path_of(other), parameters) for other, parameters in QUERIES if (other, parameters) != (route, query)]
    for other, parameters in others:
        refused = client.get(other, params={**parameters, "cursor": cursor})
        assert (refused.status_code, "cursor" in refused.json()["detail"]) == (400, True), (other, parameters)
    if is_history:
        # Each page looks at the jobs that the pages before it have left.
        client.get(client.get(link).links["next"]["url"])
        assert [scan.jobs for scan in scans.asked] == [3, 2, 1]
        return
    found = [each for page in pages(client, path, **query) for each in items(page.json())]
    (whole,) = pages(client, path, **{**query, "limit": "100"})
    assert found == items(whole.json())
    assert len(found) > 1


def test_pages_that_wait_for_the_other_runs_differ_in_their_cursors(
    listed: httpx.Client, service: Service, tmp_path: Path
) -> None:
    """A client stops at a cursor that it has already sent."""
    client, links = scanning(listed, service, tmp_path, UnfinishedScans()), [path_of(f"{JOB}/logs/new")]
    for _ in range(3):
        links.append(client.get(links[-1]).links["next"]["url"])
    assert len({*links}) == 4
