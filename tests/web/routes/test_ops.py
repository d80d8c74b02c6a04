"""The operators' routes: health, readiness and metrics; and the OpenAPI document against the service's responses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.support.service import SECRET, Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

PROBLEM: Final = "application/problem+json"


@pytest.fixture
def anonymous(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, verify=service.verify, timeout=5) as client:
        yield client


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/openapi.json", verify=service.verify).json()
    return found


def valid(document: dict[str, Any], operation: dict[str, Any], response: httpx.Response) -> None:
    """Fails unless ``operation`` documents ``response``, down to every key."""
    responses = operation["responses"]
    documented = responses.get(str(response.status_code), responses.get("default"))
    assert documented is not None, response.status_code
    if "$ref" in documented:
        documented = document["components"]["responses"][documented["$ref"].rpartition("/")[2]]
    if "content" not in documented:
        assert response.content == b""
        return
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in documented["content"]
    if kind.endswith("json"):
        schema = documented["content"][kind]["schema"]
        Draft202012Validator(schema | {"components": document["components"]}).validate(response.json())


def test_metrics_have_the_format_of_prometheus(service: Service, client: httpx.Client) -> None:
    """Every family has a type, a description and our prefix."""
    response = client.get("/metrics")
    families = [*text_string_to_metric_families(response.text)]

    assert response.headers["content-type"].startswith("text/plain")
    assert {"chronoverse_streams_open", "chronoverse_jobs_watched"} <= {family.name for family in families}
    for family in families:
        assert family.name.startswith("chronoverse_")
        assert family.type in ("gauge", "counter", "histogram")
        assert len(family.documentation) > 10


def test_metrics_count_rejected_requests_and_ended_streams(
    service: Service, client: httpx.Client, job: Foreign
) -> None:
    """Rejected requests by status, ended streams by reason."""
    refused, ended = 'chronoverse_requests_refused_total{status="404"}', 'chronoverse_streams_ended_total{reason="end"}'
    before = service.metric(refused), service.metric(ended)
    client.get("/workflows/none/jobs/none")
    client.get(f"{job.end().path}/events")

    wait_until(lambda: service.metric(ended) == before[1] + 1, PATIENCE_SECONDS, "one more stream has ended")
    assert service.metric(refused) == before[0] + 1


def test_metrics_count_the_jobs_being_watched(service: Service, auth: dict[str, str], job: Foreign) -> None:
    """A job is counted once for all its viewers."""
    job.line("one")
    name = "chronoverse_jobs_watched"
    wait_until(lambda: service.metric(name) == 0, PATIENCE_SECONDS, "nothing is watched")
    with Stream(service, f"{job.path}/events", auth) as first, Stream(service, f"{job.path}/events", auth) as second:
        first.wait_for(b"id: 1\n\n")
        second.wait_for(b"id: 1\n\n")
        assert service.metric(name) == 1
        assert service.metric("chronoverse_streams_open") == 2


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """According to the schema of OpenAPI 3.1."""
    assert document["openapi"].startswith("3.1")
    # Its import takes 0.2 s of CPU, in every process that collects tests.
    from openapi_spec_validator import OpenAPIV31SpecValidator

    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_route_is_in_the_document(document: dict[str, Any], tmp_path: Path) -> None:
    """And no other. HEAD and OPTIONS, which every GET route has, are omitted."""
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock", jwt_secret=SECRET)
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in create_app(settings).url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    pages = {route for route in served if route[0] in ("/", "/ui") or route[0].startswith("/ui/")}

    assert documented(document) == served - pages


def documented(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Every path and method of ``document``."""
    methods = {"get", "put", "post", "delete", "patch"}
    return {(path, name.upper()) for path, item in document["paths"].items() for name in item.keys() & methods}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, method in documented(document):
        yield path, method, document["paths"][path][method.lower()]


def test_errors_are_documented_as_problem_documents(document: dict[str, Any]) -> None:
    """Every error of every route, none as plain JSON.

    Errors for OpenTelemetry senders follow their protocol, in the encoding of the request.
    """
    own = {"application/json", "application/x-protobuf", PROBLEM}
    for path, method, operation in operations(document):
        assert "default" in operation["responses"], (method, path)
        for status, answer in operation["responses"].items():
            if "$ref" in answer:
                answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
            if status == "default" or status >= "400":
                assert {*answer["content"]} <= (own if path == "/v1/logs" else {PROBLEM}), (method, path, status)


def test_only_operators_routes_are_open(document: dict[str, Any]) -> None:
    """All other routes require a bearer token."""
    for path, method, operation in operations(document):
        security = operation.get("security", document.get("security"))
        assert security == ([{"bearer": []}] if path.startswith(("/workflows", "/logs", "/audit", "/v1")) else []), (
            method,
            path,
        )


@pytest.mark.parametrize("token", ["good", "none", "read"])
@pytest.mark.parametrize(
    ("method", "template", "targets"),
    [
        ("GET", "/healthz", ["/healthz"]),
        ("GET", "/readyz", ["/readyz"]),
        ("GET", "/metrics", ["/metrics"]),
        ("GET", "/openapi.json", ["/openapi.json"]),
        (
            "GET",
            "/workflows/{workflow_id}/jobs",
            ["", "?limit=1", "?status=FAILED", "?status=x", "?limit=0", "?cursor=x"],
        ),
        ("GET", "/workflows/{workflow_id}/jobs/{job_id}", ["/ended", "/running", "/pending", "/none"]),
        ("PUT", "/workflows/{workflow_id}/jobs/{job_id}", ["/pending", "/new-{token}"]),
        (
            "GET",
            "/workflows/{workflow_id}/jobs/{job_id}/logs",
            ["/ended/logs?limit=1", "/running/logs?order=desc", "/pending/logs", "/none/logs", "/ended/logs?limit=x"],
        ),
        (
            "GET",
            "/workflows/{workflow_id}/jobs/{job_id}/logs/search",
            [
                "/ended/logs/search?q=x",
                "/ended/logs/search",
                "/ended/logs/search?q=(&regex=true",
                "/none/logs/search?q=x",
            ],
        ),
        (
            "GET",
            "/workflows/{workflow_id}/jobs/{job_id}/logs/new",
            ["/ended/logs/new", "/ended/logs/new?against=running", "/ended/logs/new?against=/", "/none/logs/new"],
        ),
        (
            "GET",
            "/workflows/{workflow_id}/jobs/{job_id}/logs/raw",
            [f"/ended/logs/raw?format={kind}" for kind in ("txt", "json", "jsonl", "csv")],
        ),
        (
            "GET",
            "/workflows/{workflow_id}/jobs/{job_id}/events",
            ["/ended/events", "/none/events", "/ended/events?offset=x", "/ended/events?stopped"],
        ),
    ],
)
def test_answers_are_as_documented(
    service: Service,
    anonymous: httpx.Client,
    document: dict[str, Any],
    method: str,
    template: str,
    targets: list[str],
    token: str,
) -> None:
    """Responses, errors included, match their schemas."""
    url = str(service.redis_url)
    if anonymous.get("/workflows/documented/jobs/ended", headers=bearer(service, "good")).status_code == 404:
        ended = Foreign(url, "documented", "ended").lines(["x"] * 2)
        ended.add("3-0", "message", "half", "partial", "1")
        ended.last = 3
        ended.end("FAILED", 1)
        Foreign(url, "documented", "running").lines(["x"])
        anonymous.put("/workflows/documented/jobs/pending", headers=bearer(service, "good"))
    for target in targets:
        headers = bearer(service, token)
        if target.endswith("?stopped"):
            target, headers = target.removesuffix("?stopped"), headers | {"Last-Event-ID": "4"}
        path = f"/workflows/documented/jobs{target.format(token=token)}" if "{" in template else target
        response = anonymous.request(method, path, headers=headers)
        valid(document, document["paths"][template][method.lower()], response)


def bearer(service: Service, token: str) -> dict[str, str]:
    if token == "none":
        return {}
    scopes = ("logs:read",) if token == "read" else ("logs:read", "logs:write")
    return {"Authorization": f"Bearer {service.token(scopes=scopes)}"}
