"""``GET …/summary``: its format, its size limit, and access to it."""

import time

import httpx
import pytest

from chronoverse.auth.tokens import mint
from tests.support.service import SECRET, Service
from tests.web.routes.foreign import Foreign


def test_a_summary_respects_its_size_limit(client: httpx.Client, job: Foreign) -> None:
    """The job equals that of its own route."""
    words = [chr(97 + number % 26) * (2 + number // 26) for number in range(100)]
    job.lines([f"error {'x' * 500} {word}" for word in words]).end("FAILED", 1)
    for size in (1_024, 4_000, 262_144):
        answer = client.get(f"{job.path}/summary", params={"bytes": size})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert len(answer.content) <= size
        summary = answer.json()
        assert summary["job"] == client.get(job.path).json()
        assert summary["errors"]["count"] == 100
        assert summary["truncated"] is (size < 262_144)


@pytest.mark.parametrize("query", ["bytes=1023", "bytes=262145", "bytes=x", "bytes=2000&bytes=2000", "size=2000"])
def test_a_bad_query_is_refused(client: httpx.Client, job: Foreign, query: str) -> None:
    job.line("a line")
    assert client.get(f"{job.path}/summary?{query}").status_code == 400


def test_a_summary_needs_read_access(service: Service, client: httpx.Client, job: Foreign) -> None:
    """An inaccessible job gets the same answer as an unknown one."""
    assert httpx.get(f"{service.url}{job.path}/summary", verify=service.verify).status_code == 401
    missing = client.get(f"{job.path}/summary")
    job.line("a line")
    headers = {"Authorization": f"Bearer {mint(SECRET, 'other', ('logs:read',), ('elsewhere',), 600, time.time())}"}
    hidden = httpx.get(f"{service.url}{job.path}/summary", headers=headers, verify=service.verify)
    assert (missing.status_code, hidden.status_code, hidden.content) == (404, 404, missing.content)
