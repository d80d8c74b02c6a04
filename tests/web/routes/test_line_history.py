"""``GET …/logs/{n}/history``: its format, its pages, and access to it."""

import time

import httpx

from chronoverse.web.http.paging import encode_cursor
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign


def test_where_a_line_was_seen(client: httpx.Client, job: Foreign) -> None:
    """In order, and across pages, with ids of maximum length."""
    jobs = [Foreign(job.url, f"{job.workflow_id:x<128}", f"{number:0>128}") for number in range(3)]
    for index, each in enumerate(jobs):
        each.lines(["started", f"failed after {index} s"] if index != 1 else ["started"]).end("FAILED", 1)
        # A job is listed when it is first read.
        assert client.get(each.path).status_code == 200
        time.sleep(0.002)
    path, ids = f"{jobs[2].path}/logs/2/history", (jobs[2].workflow_id, jobs[2].job_id)
    wait_until(lambda: client.get(path).status_code != 503, 60, "the scan server answers")
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    places = [
        {"id": jobs[index].job_id, "sequence_num": 2, "started_at": TIMESTAMP, "status": "FAILED"} for index in (2, 0)
    ]
    for place in places:
        place["started_at"] = client.get(jobs[int(str(place["id"])[-1])].path).json()["started_at"]
    none = {"COMPLETED": 0, "CANCELED": 0, "LOST": 0}
    assert answer.json() == {
        "workflow_id": ids[0],
        "id": ids[1],
        "sequence_num": 2,
        "shape": "failed after #",
        "looked_at": {**none, "FAILED": 3, "without_shapes": 0},
        "seen": {**none, "FAILED": 2},
        "first": places[1],
        "last": places[0],
        "jobs": places,
        "cursor": None,
    }
    assert client.get(path, params={"jobs": 1}).json()["looked_at"]["FAILED"] == 1
    forged = encode_cursor(("history", *ids, 2, 1), ("inf", ids[1], 10**14))
    assert client.get(path, params={"jobs": 1, "cursor": forged}).json()["looked_at"]["FAILED"] == 1
    labelled = client.get(path, params={"label": ["branch=main", "step=test"]})
    assert (labelled.status_code, labelled.json()["jobs"]) == (200, [])
    missing = client.get(f"{job.sibling('none').path}/logs/2/history")
    for bad in ("0", "3", "99999999999999", "x", "1x", "0x1", "-1"):
        refused = client.get(f"{jobs[2].path}/logs/{bad}/history")
        assert (refused.status_code, refused.content) == (404, missing.content), bad
