"""A workflow's own retention and quotas over HTTP, for teams without access to the store."""

from pathlib import Path
from typing import Final

import httpx
import redis

from chronoverse.auth.rights import ADMIN
from tests.support.commands import call_main, environ
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import Foreign
from tests.web.routes.runner import Runner

NONE: Final = {"retention_seconds": None, "job_bytes": None, "bytes_per_day": None}


def recorded(client: httpx.Client, workflow_id: str) -> list[tuple[str, str, str]]:
    """The workflow's audit entries, oldest first."""
    entries = client.get("/audit", params={"limit": 1_000}).json()["entries"]
    return [(each["sub"], each["did"], each["what"]) for each in entries[::-1] if each["workflow_id"] == workflow_id]


def test_a_team_sets_its_own_retention_and_quotas(admin: httpx.Client) -> None:
    """They are returned as set, omitted ones have the defaults of the service, and the audit trail has each change."""
    path = "/workflows/team.a/settings"
    assert admin.get(path).json() == NONE
    all_three = {"retention_seconds": 86_400, "job_bytes": 0, "bytes_per_day": 10**12}
    for body, found in (
        (all_three, all_three),
        (all_three, all_three),
        ({"retention_seconds": 3_600, "bytes_per_day": None}, {**NONE, "retention_seconds": 3_600}),
        ({}, NONE),
    ):
        answer = admin.put(path, json=body)
        assert (answer.status_code, answer.json()) == (200, found), answer.text
        assert admin.get(path).json() == found
    assert recorded(admin, "team.a") == [
        ("ada", "retention", "86400 s"),
        ("ada", "limits", "job_bytes 0, day_bytes 1000000000000"),
        ("ada", "retention", "3600 s"),
        ("ada", "limits", "job_bytes default, day_bytes default"),
        ("ada", "retention", "default"),
    ]


def test_settings_apply_immediately(admin: httpx.Client, redis_server: RedisServer) -> None:
    """A quota to the next line of a running job, and a retention to an ended job."""
    ended, running = (Runner(admin, Foreign(redis_server.url, "team.f", name)) for name in ("ended", "running"))
    assert [ended.open().status_code, running.open().status_code, ended.end(1).status_code] == [200, 200, 204]

    settings = {"retention_seconds": 60, "job_bytes": 10}
    assert admin.put("/workflows/team.f/settings", json=settings).status_code == 200

    refused = running.append(1, "more than ten bytes")
    assert (refused.status_code, refused.json()["reason"]) == (409, "quota")
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:
        assert 0 < client.pttl("chronoverse:{team.f}:ended:log") <= 60_000


def test_the_commands_use_the_service_if_no_store_is_configured(service: Service, tmp_path: Path) -> None:
    """They change only the given settings. The local embedded store is not touched."""
    token = service.token("team.d", scopes=[ADMIN])
    variables = environ(service, CHRONOVERSE_TOKEN=token, CHRONOVERSE_DATA_DIR=str(tmp_path))

    def printed(*arguments: str) -> str:
        done = call_main(*arguments, environ=variables)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert printed("retention", "team.d") == "default\n"
    assert printed("retention", "team.d", "90d") == "7776000 s\n"
    assert printed("limits", "team.d", "--job-bytes", "1000") == "per job: 1000 bytes\nper day: default\n"
    assert printed("limits", "team.d", "--day-bytes", "0") == "per job: 1000 bytes\nper day: no limit\n"
    assert printed("retention", "team.d") == "7776000 s\n"
    assert printed("retention", "team.d", "default") == "default\n"
    assert printed("limits", "team.d", "--job-bytes", "default") == "per job: default\nper day: no limit\n"
    assert call_main("retention", "team.e", "1d", environ=variables).returncode == 66
    assert list(tmp_path.iterdir()) == []
