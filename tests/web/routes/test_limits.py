"""Limits of a worker and of a token, as a client sees them. ``tests/web/guards`` has the guards themselves."""

import re
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import httpx
import jwt
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from prometheus_client import REGISTRY

from chronoverse.errors import StoreRefused
from chronoverse.web.guards.admission import LATE_ACCEPT_SECONDS, StreamTicket
from tests.support.issuer import Issuer
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.otlp.messages import record, request
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.runner import Runner

InProcess = Callable[..., httpx.Client]


def deps_of(client: httpx.Client) -> Any:
    """The dependencies of an application in this process."""
    transport: Any = client._transport
    return transport.app.extensions["chronoverse"]


PATHS = ("/events", "/events?tail=1", "/wait?timeout=0", "/logs/raw", "/logs/raw?format=jsonl")


@pytest.mark.parametrize(
    ("limits", "subject", "status"),
    [
        ({"max_streams": 1}, "other", 503),
        ({"max_streams_per_token": 1}, "tests", 429),
        ({"max_streams_per_address": 1}, "other", 429),
        ({"max_streams": 2, "max_streams_per_token": 1, "max_streams_per_address": 2}, "other", 200),
    ],
)
def test_streams_waits_and_downloads_have_one_limit(
    in_process: InProcess, job: Foreign, limits: dict[str, int], subject: str, status: int
) -> None:
    """With Retry-After. Each is counted until it ends, and only pages have none. A refused one reads nothing."""
    client = in_process(**limits)
    job.lines(["x"]).end()
    admission = deps_of(client).admission
    taken = StreamTicket(subject, "127.0.0.1", "r", 0)
    admission.enter(taken)
    for path in PATHS:
        answer = client.get(job.path + path)
        assert (path, answer.status_code) == (path, status)
        assert status == 200 or int(answer.headers["Retry-After"]) > 0
        assert len(admission) == 1
    for path in PATHS[:3]:
        assert client.get(f"{job.path}-none{path}").status_code == (404 if status == 200 else status)
    assert client.head(f"{job.path}/events").status_code == client.get(f"{job.path}/logs").status_code == 200
    admission.leave(taken)
    assert {client.get(job.path + path).status_code for path in PATHS} == {200}
    assert len(admission) == 0


@pytest.mark.parametrize(
    ("settings", "ttl", "end"),
    [({"max_stream_seconds": 1}, 600, r"retry: [1-5]\d{3}\n\n"), ({}, 2, r"event: error\ndata: token expired\n\n")],
)
def test_a_stream_ends_at_its_maximum_age_and_with_its_token(
    in_process: InProcess, service: Service, job: Foreign, settings: dict[str, int], ttl: int, end: str
) -> None:
    """And frees its slot."""
    client = in_process(**settings)
    job.line("one")
    headers, began = {"Authorization": f"Bearer {service.token(ttl=ttl)}"}, time.monotonic()
    text = client.get(f"{job.path}/events", headers=headers).text
    assert time.monotonic() - began > 0.9 * settings.get("max_stream_seconds", 1)
    assert re.search(f"id: 1\n\n(:\n)*{end}$", text), text
    assert len(deps_of(client).admission) == 0


def test_a_download_that_fails_leaves_no_slot(in_process: InProcess, job: Foreign) -> None:
    """Its first lines are in an archive that this service does not have."""
    client = in_process()
    job.lines(["x"] * 3).trim(2)
    ask_all(job.url, [("HSET", job.key.replace(":log", ":job"), "archived", "2", "archived_first", "1")])
    assert client.get(f"{job.path}/logs/raw").status_code == 503
    assert len(deps_of(client).admission) == 0


def test_publishing_too_fast_is_rejected(in_process: InProcess, service: Service, job: Foreign) -> None:
    """With a time to retry. The token can still renew its lease and end the job, and other tokens do not wait."""
    client = in_process(max_publish_rate_per_token=100)
    runner = Runner(client, job)
    assert runner.open().status_code == 200
    # Ten seconds' worth are accepted at once, counted over all streams.
    lines = runner.lines(1, "", "x" * 950)
    lines["lines"][1]["stream"] = "stderr"
    assert runner.post("logs", lines).status_code == 200
    refused = runner.append(3, "x")
    assert (refused.status_code, "publish rate exceeded" in refused.json()["detail"]) == (429, True)
    lost = {"token": runner.token, "attempt": 1, "first": 3, "count": 1}
    assert runner.post("logs/lost", lost).status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 2
    names = {"service.name": job.workflow_id, "service.instance.id": "records"}
    body = request(names, record("", severity=17), record("x" * 2_000)).SerializeToString()
    ours: dict[str, str] = {"Content-Type": "application/x-protobuf"}
    theirs = {**ours, "Authorization": f"Bearer {service.token(subject='other')}"}
    answers = [client.post("/v1/logs", content=body, headers=each) for each in (ours, theirs, theirs)]
    assert [each.status_code for each in answers] == [429, 200, 429]
    assert int(answers[2].headers["Retry-After"]) >= 10
    assert runner.append(3).json() == {"next": None}
    assert runner.end(3).status_code == 204


def test_lines_over_a_quota_count_towards_the_rate(
    in_process: InProcess, redis_server: RedisServer, job: Foreign
) -> None:
    """Otherwise a token could send them as fast as it likes. A renewal is always accepted."""
    client = in_process(max_publish_rate_per_token=1)
    redis_server.ask("HSET", f"chronoverse:{{{job.workflow_id}}}:settings", "job_bytes", "10")
    runner = Runner(client, job)
    assert runner.open().status_code == 200
    refused = [runner.append(1, "more than ten bytes") for _ in range(2)]
    assert [each.status_code for each in refused] == [409, 429]
    assert (refused[0].json()["reason"], int(refused[1].headers["Retry-After"]) > 10) == ("quota", True)
    assert runner.append(1).json() == {"next": None}


def test_records_over_a_quota_are_refused(in_process: InProcess, redis_server: RedisServer, job: Foreign) -> None:
    """Each once, however many lines it has. Their lines do not count as appended."""
    client = in_process()
    redis_server.ask("HSET", f"chronoverse:{{{job.workflow_id}}}:settings", "job_bytes", "10")
    names = {"service.name": job.workflow_id, "service.instance.id": job.job_id}
    before, answers = REGISTRY.get_sample_value("chronoverse_lines_appended_total") or 0, []
    for texts in (["12345"], ["a\nmore than ten bytes\nbytes"], ["x", "y"]):
        body = request(names, *map(record, texts)).SerializeToString()
        answer = client.post("/v1/logs", content=body, headers={"Content-Type": "application/x-protobuf"})
        partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
        answers.append((partial.rejected_log_records, partial.error_message))
    over = f"{job.workflow_id}/{job.job_id}: byte quota exceeded"
    assert answers == [(0, ""), (1, f"{over} (1)"), (2, f"{over} (2)")]
    assert REGISTRY.get_sample_value("chronoverse_lines_appended_total") == before + 2


def test_an_unreachable_store_is_not_described(in_process: InProcess, job: Foreign) -> None:
    """The answer is 503 with Retry-After. Its address and its own message are for operators only."""
    client = in_process(redis_url="unix:///secret/redis.sock")
    assert client.get("/healthz").json() == {"status": "ok"}
    paths = (job.path + path for path in ("", "/logs", "/events", "/wait", "/logs/raw"))
    for path in (*paths, f"/workflows/{job.workflow_id}/jobs", "/workflows", "/readyz"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert "sock" not in answer.text


def test_a_node_without_its_issuers_keys_is_not_ready(in_process: InProcess, job: Foreign) -> None:
    """Nor is it decided whether a token is valid."""
    with Issuer() as issuer:
        issuer.keys = None
        client = in_process(jwt_secret=None, jwt_jwks_url=issuer.url)
        token = jwt.encode({"sub": "ada"}, "a key of at least 32 bytes, of nobody", "HS256", {"kid": "k1"})
        for path in ("/readyz", job.path, f"{job.path}/events"):
            answer = client.get(path, headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, int(answer.headers["Retry-After"]) <= 2) == (503, True)


def test_a_node_is_ready_with_a_store_that_rejects_writes(
    in_process: InProcess, job: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other node could write either, and all can serve readers. A node that shuts down is not ready."""
    client = in_process()
    deps = deps_of(client)
    monkeypatch.setattr(type(deps.scans), "is_down", False)
    assert client.get("/readyz").json() == {"status": "ready"}
    monkeypatch.setattr(deps.store, "ping", Mock(side_effect=StoreRefused("MISCONF")))
    monkeypatch.setattr(type(deps.scans), "is_down", True)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert answer.json()["warning"] == "Searches are unavailable. The store rejects writes; reads work."
    job.lines(["x"]).end()
    monkeypatch.setattr(deps.admission, "_draining_since", time.monotonic())
    assert [client.get(path).status_code for path in ("/readyz", f"{job.path}/events")] == [503, 200]
    monkeypatch.setattr(deps.admission, "_draining_since", time.monotonic() - LATE_ACCEPT_SECONDS - 1)
    assert client.get(f"{job.path}/events").status_code == 503
