"""``GET …/logs/new``: the format of its answer, its pages, and access to it."""

import base64
import json
import time
from typing import Any, Final

import httpx
import pytest

from tests.web.routes.foreign import TIMESTAMP, Foreign

GOOD: Final = "g" * 128


@pytest.fixture
def failed(client: httpx.Client, job: Foreign) -> Foreign:
    """A failed job after a good one, with ids of maximum length. Both were read once, so they are listed."""
    job = Foreign(job.url, f"{job.workflow_id:x<128}", "j" * 128)
    good = job.sibling(GOOD).lines(["started in 12 ms", "fine"]).end()
    assert client.get(good.path).status_code == 200
    time.sleep(0.002)
    job.lines(["started in 1.3 s", "error: a", "fine", "error: b"]).end("FAILED", 1)
    assert client.get(job.path).status_code == 200
    return job


def new_lines(client: httpx.Client, job: Foreign, **query: Any) -> httpx.Response:
    return client.get(f"{job.path}/logs/new", params=query)


def test_an_answer_has_the_new_lines_and_the_compared_jobs(client: httpx.Client, failed: Foreign) -> None:
    """Lines have the same format as in `/logs`."""
    answer = new_lines(client, failed)
    lines = [
        {"timestamp": TIMESTAMP, "message": f"error: {name}", "sequence_num": number, "stream": "stdout"}
        for name, number in (("a", 2), ("b", 4))
    ]
    assert answer.json() == {
        "workflow_id": failed.workflow_id,
        "id": failed.job_id,
        "logs": lines,
        "compared_with": [GOOD],
        "cursor": None,
    }
    assert answer.headers["Last-Event-ID"] == "4"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert new_lines(client, failed, after=1).json()["logs"] == [
        lines[0],
        {"timestamp": TIMESTAMP, "message": "fine", "sequence_num": 3, "stream": "stdout", "context": True},
        lines[1],
    ]


def test_without_a_job_to_compare_with_the_answer_is_409(client: httpx.Client, job: Foreign) -> None:
    """An empty page would mean that nothing is new."""
    job.lines(["fine"]).end()
    answer = new_lines(client, job)
    assert answer.status_code == 409
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["reason"] == "nothing-to-compare"
    assert "COMPLETED" in answer.json()["detail"]
    assert new_lines(client, job, against=job.job_id).json()["logs"] == []


def test_a_page_can_get_errors_with_the_status_200(client: httpx.Client, job: Foreign) -> None:
    """With ``Prefer``, because browsers log other statuses as errors. The document still has the real status."""
    job.lines(["fine"]).end()
    unknown = job.sibling("unknown")
    for path, status in (
        (f"{job.path}/logs/new", 409),
        (unknown.path, 404),
        ("/nothing", 404),
        (f"{job.path}/logs/search?q=(&regex=true", 400),
    ):
        headers = {"X-Request-ID": "one"}
        refused = client.get(path, headers=headers)
        asked = client.get(path, headers={**headers, "Prefer": "status=200"})
        assert (refused.status_code, asked.status_code, asked.json()["status"]) == (status, 200, status)
        assert asked.content == refused.content
        assert asked.headers["Content-Type"] == "application/problem+json"
        assert asked.headers["Preference-Applied"] == "status=200"
    bad = {"Prefer": "status=200", "Authorization": "Bearer x"}
    assert client.get(job.path, headers=bad).status_code == 401


def test_a_cursor_has_all_of_its_numbers(client: httpx.Client, failed: Foreign) -> None:
    assert new_lines(client, failed, against="unknown").status_code == 404
    cursor = new_lines(client, failed, limit=1).json()["cursor"]
    values = json.loads(base64.urlsafe_b64decode(cursor + "=="))
    for forged in ([*values[:-1], -1], [*values[:-2], -1, 0], values[:-1]):
        text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode().rstrip("=")
        assert new_lines(client, failed, cursor=text).status_code == 400
