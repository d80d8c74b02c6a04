"""The operators' routes: health, readiness and metrics; and the OpenAPI document against the service's responses."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from chronoverse import metrics
from chronoverse.auth.jwks import FetchRecord
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.support.service import SECRET, Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

PROBLEM: Final = "application/problem+json"


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
    started = "chronoverse_streams_started_total"
    before = service.metric(refused), service.metric(ended), service.metric(started)
    client.get("/workflows/none/jobs/none")
    client.get(f"{job.end().path}/events")

    wait_until(lambda: service.metric(ended) == before[1] + 1, PATIENCE_SECONDS, "one more stream has ended")
    assert (service.metric(refused), service.metric(started)) == (before[0] + 1, before[2] + 1)


def test_metrics_ignore_the_empty_file_of_a_starting_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the name of the directory."""
    (directory := tmp_path / "[a]").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    file = MmapedDict(str(directory / "counter_1.db"))
    file.write_value(mmap_key("a", "a_total", [], [], "help"), 3.0, 0.0)
    file.close()
    (directory / "counter_2.db").touch()
    assert [sample.value for metric in metrics._FileCollector().collect() for sample in metric.samples] == [3.0]


def test_metrics_name_the_largest_of_many_workflows() -> None:
    collector = metrics._WorkflowBytes()
    collector.sizes = {f"wf_{number}": number for number in range(30)}
    (metric,) = collector.collect()
    assert [(each.labels["workflow"], each.value) for each in metric.samples] == [
        (f"wf_{n}", n) for n in range(29, 9, -1)
    ]


def test_metrics_show_the_worst_of_several_issuers_and_files(tmp_path: Path) -> None:
    """Of the trust file's issuers, the oldest keys; of the files with rights, an invalid one."""
    trust, groups = tmp_path / "trust.toml", tmp_path / "groups.toml"
    trust.write_text("".join(f'[[issuer]]\nissuer = "https://{name}.example"\naudience = "x"\n' for name in "ab"))
    groups.write_text('[a]\nworkflows = ["x"]')
    settings = Settings(data_dir=tmp_path, redis_url="unix:///none", trust_file=trust, jwt_workflows_map=groups)
    app = create_app(replace(settings, jwt_jwks_url="https://c.example/keys"))

    def shown() -> list[float]:
        text = app.test_client().get("/metrics").text
        found = {each.name: each.value for family in text_string_to_metric_families(text) for each in family.samples}
        return [found[f"chronoverse_{name}"] for name in ("issuer_keys_age_seconds", "workflows_map_invalid")]

    assert shown() == [math.inf, 0]
    for keys, age in zip(app.extensions["chronoverse"].verifier.published(), (10, 1_000, 20), strict=True):
        keys._keys, keys._record = {"k": None}, FetchRecord(0, time.time() - age)
    assert shown() == [pytest.approx(1_000, abs=100), 0]
    for file in (trust, groups):
        text = file.read_text()
        file.write_text("[")
        assert shown()[1] == 1
        file.write_text(text)
        assert shown()[1] == 0


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
    head = f"Host: localhost\r\nAuthorization: {auth['Authorization']}\r\n\r\n"
    with service.connect(10) as sock, sock.makefile("rb") as answer:
        sock.sendall(f"GET {job.path}/events HTTP/1.0\r\n{head}".encode())
        assert any(b"id: 1" in line for line in answer)
    # The service notices that such a client has left when it writes to it.
    wait_until(lambda: (job.line("x"), service.metric(name))[1] == 0, PATIENCE_SECONDS, "nothing is watched")


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


def test_only_lists_are_given_more_than_once(service: Service, document: dict[str, Any], client: httpx.Client) -> None:
    """Of all parameters of all routes. Otherwise it would be unclear which one applies."""
    headers = {"Authorization": f"Bearer {service.token(scopes=['logs:read', 'logs:admin'])}"}
    for path, method, operation in operations(document):
        for each in operation.get("parameters", ()):
            # A stream with a valid query does not end.
            is_list = each["schema"].get("type") == "array" and not path.endswith("/events")
            if method == "GET" and each["in"] == "query" and (is_list or each["schema"].get("type") != "array"):
                url = re.sub(r"\{\w+\}", "1", path)
                said = client.get(url, params=[(each["name"], "a=b")] * 2, headers=headers).text
                assert ("given more than once" in said) != is_list, (path, each["name"], said)
