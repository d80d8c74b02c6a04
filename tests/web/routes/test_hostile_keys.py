"""Hostile content in one job's keys affects only that job's readers. Checked on a running service."""

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

#: Each of these tests starts processes. CI runs them.
pytestmark = pytest.mark.long

#: What is written to the keys of a watched job: the kind of key, the command, and its arguments.
HOSTILE: Final[dict[str, list[tuple[str, str, *tuple[str, ...]]]]] = {
    "a lease that is no time": [("job", "HSET", "status", "RUNNING", "attempt", "1"), ("lease", "SET", "grace:zzz")],
    "a lease that is no string": [("job", "HSET", "status", "RUNNING", "attempt", "1"), ("lease", "RPUSH", "x")],
    "a log that is none": [("log", "DEL"), ("log", "SET", "x")],
    "a hash that is none": [("job", "DEL"), ("job", "SET", "x")],
    "redactions that are none": [("audit", "SET", "x"), ("job", "HSET", "redactions", "1")],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service that may declare runners lost when the store has been up for a second."""
    directory = tmp_path_factory.mktemp("service")
    with serving(directory, redis_server.url, heartbeat_seconds=1, lease_seconds=1) as service:
        yield service


@pytest.fixture(scope="module")
def auth(service: Service) -> dict[str, str]:
    """The header of a token that may do anything."""
    return {"Authorization": f"Bearer {service.token()}"}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_watched_job_with_a_hostile_key_does_not_silence_others(
    service: Service, redis_server: RedisServer, auth: dict[str, str], hostile: str
) -> None:
    """Lines of another job still arrive. Viewers of the hostile job learn that its log is gone."""
    name = "-".join(hostile.split())
    sick, honest = (Foreign(redis_server.url, name, each).lines(["a line"]) for each in ("sick", "honest"))
    with (
        Stream(service, f"{sick.path}/events", auth) as watching,
        Stream(service, f"{honest.path}/events", auth) as ours,
    ):
        for stream in (watching, ours):
            stream.wait_for(b"id: 1\n\n")
        commands = [(command, sick.key.replace(":log", f":{kind}"), *rest) for kind, command, *rest in HOSTILE[hostile]]
        ask_all(redis_server.url, commands)
        # Longer than the interval at which the worker checks each of the two jobs.
        watching.wait_until(lambda: watching.body.count(b"\n:\n") > 2 or watching.ended, PATIENCE_SECONDS, "heartbeats")
        honest.line("another")
        ours.wait_for(b"id: 2\n\n")
        ask_all(redis_server.url, [("DEL", honest.key)])
        ours.wait_for(b"event: error\ndata: the log is gone from the store")


def test_a_listing_has_only_real_jobs(service: Service, redis_server: RedisServer, auth: dict[str, str]) -> None:
    """It leaves out members that cannot be ids, and jobs whose keys have other types."""
    honest = Foreign(redis_server.url, "listed", "honest").lines(["a line"])
    jobs, strange = "chronoverse:{listed}:jobs", [f"no id {number}" for number in range(3_000)]
    ask_all(
        redis_server.url,
        [
            ("ZADD", jobs, *(each for member in strange for each in ("1", member))),
            ("ZADD", jobs, "1", b"\xff\x00", "2", "", "3", "x" * 10_000, "inf", "sick", "4", honest.job_id),
            ("SET", "chronoverse:{listed}:sick:job", "x"),
            ("RPUSH", "chronoverse:{listed}:settings", "x"),
        ],
    )

    # A page of a busy service may end before the limit, and its cursor goes on.
    found: list[str] = []
    query: dict[str, Any] = {"limit": 10}
    for _ in range(20):
        answer = httpx.get(f"{service.url}/workflows/listed/jobs", params=query, headers=auth, verify=service.verify)
        assert answer.status_code == 200
        found += [job["id"] for job in answer.json()["jobs"]]
        query["cursor"] = answer.json()["cursor"]
        if query["cursor"] is None:
            break
    assert (found, query["cursor"]) == ([honest.job_id], None)
    assert httpx.put(f"{service.url}/workflows/listed/jobs/another", headers=auth, verify=False).status_code == 201
