"""The audit trail, tested from outside: who deleted, redacted or changed what, and who read a log's text."""

import contextlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from chronoverse.auth.rights import ADMIN
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from chronoverse.store.audit import MAX_ENTRIES
from chronoverse.web.http.paging import encode_cursor
from tests.support.servers import RedisServer, running
from tests.support.service import Service
from tests.web.routes.site import Site
from tests.web.routes.wire import logged, pages

WORKFLOW: Final = "audit"


def trail(client: httpx.Client, token: str, **query: Any) -> list[dict[str, Any]]:
    """The entries of all pages, without their times."""
    client.headers["Authorization"] = f"Bearer {token}"
    listed = [page.json()["entries"] for page in pages(client, "/audit", **query)]
    assert max(map(len, listed)) <= query.get("limit", 100)
    found: list[dict[str, Any]] = [entry for page in listed for entry in page]
    times = [entry.pop("at") for entry in found]
    assert times == sorted(times, reverse=True)
    return found


def test_deletions_and_redactions_are_recorded(site: Site, client: httpx.Client) -> None:
    """In the store and in the log, without the text that was searched for."""
    start, token = site.service.log_size(), site.service.token(WORKFLOW, scopes=[ADMIN])
    job, held = site.job().lines(["hunter2", "fine"]).end(), site.job()
    site.store.open(JobRef(WORKFLOW, held.job_id), "token")
    url = f"{job.path}/logs/redact"
    assert site.client.post(url, json={"q": "hunter2", "reason": "a password"}).status_code == 200
    assert site.client.delete(held.path).status_code == 409
    assert site.client.delete(job.path).status_code == 204

    who = {"sub": "tests", "workflow_id": WORKFLOW, "id": job.job_id}
    actions = {"delete": "the job and its log", "redact": "1 line from 1 to 2: a password"}
    expected = [{"did": did, "what": what} | who for did, what in actions.items()]
    assert trail(client, token) == expected
    lines = logged(site.service, "audit", start)
    assert [{name: line[name] for name in expected[0]} for line in lines] == expected[::-1]
    assert all(line["request_id"] for line in lines)
    assert "hunter2" not in site.service.logs(start)


def test_a_token_gets_the_entries_of_its_workflows(
    service: Service, client: httpx.Client, redis_server: RedisServer
) -> None:
    """Granted by ids and prefixes, in pages, and within a time range."""
    with contextlib.closing(Store(redis_server.url)) as store:
        for number, workflow in itertools.product(range(7), ("trail-a.x", "trail-ab", "trail-b")):
            store.audit_trail.record("ada", "limits", workflow, None, str(number))
    own = [str(number) for number in reversed(range(7))]
    for rights, seen in (
        (["trail-a.*"], ["trail-a.x"]),
        (["trail-b", "trail-ab*"], ["trail-b", "trail-ab"]),
        (["trail-c*", "trail"], []),
    ):
        found = trail(client, service.token(*rights, scopes=[ADMIN]), limit=3)
        assert [(each["workflow_id"], each["what"]) for each in found] == [(w, n) for n in own for w in seen]
    token = service.token(scopes=[ADMIN])
    assert {"trail-a.x", "trail-ab", "trail-b"} <= {each["workflow_id"] for each in trail(client, token)}
    at = client.get("/audit?limit=1").json()["entries"][0]["at"]
    assert trail(client, token, since=at, until=at)[0]["what"] == "6"
    for never in ({"until": "1969-01-01T00:00:00Z"}, {"since": "9999-01-01T00:00:00Z"}):
        assert trail(client, token, **never) == []
    forged = encode_cursor(("audit", None, None), (0, 0))
    assert client.get(f"/audit?cursor={forged}").status_code == 400


@pytest.mark.long
def test_pages_and_the_trail_are_limited(
    service: Service, in_process: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    """A page can be empty, with a cursor, if the only entry follows a hundred thousand others."""
    with (
        running(tmp_path / "store") as server,
        redis.Redis.from_url(server.url, protocol=2) as client,
        contextlib.closing(Store(server.url)) as store,
    ):
        store.audit_trail.record("ada", "limits", "rare", None, "dropped")

        def fill(count: int) -> None:
            fields = {"sub": "ada", "did": "limits", "workflow_id": "often", "what": "job_bytes 1000000"}
            for _ in range(count // 1_000):
                pipeline = client.pipeline(transaction=False)
                for _ in range(1_000):
                    pipeline.xadd("chronoverse-audit", fields)
                pipeline.execute()

        fill(2_000)
        store.audit_trail.record("ada", "limits", "rare", None, "kept")
        fill(MAX_ENTRIES - 1_000)
        store.audit_trail.record("ada", "limits", "often", None, "the newest")
        assert MAX_ENTRIES <= client.xlen("chronoverse-audit") < MAX_ENTRIES + 1_000
        assert client.memory_usage("chronoverse-audit", samples=0) < 20 << 20
        found = trail(in_process(redis_url=server.url), service.token("rare", scopes=[ADMIN]))
    assert [each["what"] for each in found] == ["kept"]


def test_each_read_of_a_logs_text_is_logged(site: Site) -> None:
    """On every route with text, future ones included; without the query itself, and without failed requests."""
    job = site.job().lines(["secret 1", "secret 2", "secret 3"]).end()
    document = site.client.get("/openapi.json").json()
    workflow_route, job_route = "/workflows/{workflow_id}", "/workflows/{workflow_id}/jobs/{job_id}"
    without_text = {f"{workflow_route}/{name}" for name in ("jobs", "settings", "watches", "watches/{watch_id}")}
    without_text |= {job_route, f"{job_route}/logs/redactions"}
    known = {path for path, item in document["paths"].items() if workflow_route in path and "get" in item}
    # A workflow's stream does not end.
    known.remove(f"{workflow_route}/events")
    start, queries = site.service.log_size(), {"logs": "?offset=1", "logs/new": "?against=" + job.job_id}
    expected, ids = [], {"workflow_id": WORKFLOW, "job_id": job.job_id}
    for route in sorted(known):
        # Any other parameter is a line number.
        path = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "1"), route)
        named = f"{WORKFLOW}/{job.job_id}" if route.startswith(job_route) else WORKFLOW
        rest = path.removeprefix(f"/workflows/{named.replace('/', '/jobs/')}/")
        query = "?q=secret+2" if "search" in rest else queries.get(rest, "")
        for method in ("GET", "HEAD"):
            status = 404 if "watch_id" in route else 200
            assert site.client.request(method, path + query).status_code == status, path
        if route not in without_text:
            expected.append((named, rest))
    assert site.client.get("/logs/search?q=secret").status_code == 200
    expected.append(("*", "logs/search"))
    for path in (job.path, f"{job.path}/logs?limit=x", f"{job.path}x/logs"):
        site.client.get(path, headers={"Prefer": "status=200"})

    lines = logged(site.service, "read", start)
    assert [(line["job"], line["route"]) for line in lines] == expected
    assert {line["sub"] for line in lines} == {"tests"}
    del lines[-1]
    found = {line["route"]: (line.get("after"), line.get("to"), line.get("query_characters")) for line in lines}
    assert found["logs"] == ("1", "3", None)
    assert found["events"] == ("0", None, None)
    assert found["logs/search"][2] == str(len("secret 2"))
    assert "secret" not in site.service.logs(start)
