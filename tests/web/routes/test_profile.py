"""``GET …/profile``: its format, and the same data in ``/summary``, whose size is limited."""

import concurrent.futures
import time

import httpx
import psutil

from chronoverse.joblog.model import iso_timestamp
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign


def write(job: Foreign, *pauses: float) -> Foreign:
    """Writes a job with these pauses before its lines, in seconds."""
    at = time.time() - 3_600
    for number, pause in enumerate(pauses):
        at += pause
        job.line(f"step {'abcdefgh'[number]} is done", timestamp=iso_timestamp(at))
    return job


def test_where_the_time_of_a_job_went(client: httpx.Client, job: Foreign) -> None:
    """Compared with good runs; for a running job, with the remaining time."""
    for run in range(3):
        each = write(job.sibling(f"good-{run}"), 0, 1, 1, 1).end()
        # A job is listed when it is first read.
        assert client.get(each.path).status_code == 200
        time.sleep(0.002)
    slow, running = job.sibling("slow"), job.sibling("running")
    write(slow, 0, 1, 5, 1).end("FAILED", 1)
    write(running, 0, 1)
    wait_until(lambda: client.get(f"{slow.path}/profile").status_code != 503, 60, "the scan server answers")
    answer = client.get(f"{slow.path}/profile", params={"against_label": []})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    found = answer.json()
    lines = client.get(f"{slow.path}/logs").json()["logs"]
    usual = {"least": 1, "median": 1, "most": 1}
    assert found == {
        "job": client.get(slow.path).json(),
        "compared_with": ["good-2", "good-1", "good-0"],
        "seconds": 7,
        "usual": {"least": 3, "median": 3, "most": 3},
        "slower": [{"after": lines[1], "before": lines[2], "seconds": 5, "usual": usual, "excess": 4}],
        "pauses": [
            {"after": lines[at - 1], "before": lines[at], "seconds": pause, "usual": usual, "excess": pause - 1}
            for at, pause in ((2, 5), (1, 1), (3, 1))
        ],
        "running": None,
        "complete": True,
        "scanned_to": 4,
        "truncated": False,
        "strip": found["strip"],
    }
    assert client.get(f"{slow.path}/summary").json()["slower"] == found["slower"]
    now = client.get(f"{running.path}/profile").json()["running"]
    assert now["silent_seconds"] > 3_000
    assert (now["usual"], now["seconds_left"]["least"]) == (usual, 1)
    labelled = client.get(f"{slow.path}/profile", params={"against_label": "branch=main"}).json()
    assert (labelled["compared_with"], labelled["usual"], labelled["slower"]) == (None, None, [])


def test_a_page_does_not_wait_for_scans_of_the_same_token(service: Service, client: httpx.Client, job: Foreign) -> None:
    """The job's page sends as many requests at once. No scan proceeds meanwhile."""
    write(job, 0, 1, 1).end()
    paths = [f"{job.path}/profile", f"{job.path}/logs/1/history", f"{job.path}/logs?stream=stdout"]
    wait_until(lambda: client.get(paths[0]).status_code == 200, 60, "the scan server answers")
    (server,) = [each for each in psutil.Process(service.pid).children() if "scans" in each.cmdline()]
    scanning = server.children()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        try:
            for each in scanning:
                each.suspend()
            asked = [pool.submit(client.get, path) for path in paths]
            concurrent.futures.wait(asked, 0.5)
            began = time.monotonic()
            answer = client.get(f"{job.path}/logs")
            took = time.monotonic() - began
            waiting = [each for each in asked if not each.done()]
        finally:
            for each in scanning:
                each.resume()
        statuses = [each.result().status_code for each in asked]

    assert len(waiting) == len(paths)
    assert (answer.status_code, len(answer.json()["logs"])) == (200, 3)
    assert took < 2
    assert statuses == [200, 200, 200]


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
