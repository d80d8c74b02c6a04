"""A deleted job stays deleted: its runners and viewers get errors, and so does everybody who uses its id again."""

import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.model import JobRef, Status
from tests.support.archivers import stepped
from tests.support.commands import start_chronoverse
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.site import Site

GONE: Final = b"event: error\ndata: the log is gone from the store: it expired or was deleted\n\n"


def keys(server: RedisServer, job: Foreign) -> set[str]:
    """The suffixes of all keys of the job in the store."""
    prefix = job.key.removesuffix("log")
    return {key.decode().removeprefix(prefix) for key in server.ask("KEYS", prefix.replace("{", "\\{") + "*")}


def deleted(site: Site) -> Foreign:
    job = site.job().lines(["secret 1", "secret 2", "secret 3"]).end()
    assert site.client.delete(job.path).status_code == 204
    return job


def test_nothing_can_be_written_under_a_deleted_id(site: Site, redis_server: RedisServer) -> None:
    """Each of a runner's requests is rejected with DELETED, whatever its token, and changes nothing."""
    job = deleted(site)
    runner = Runner(site.client, job)

    answers = [
        site.client.put(job.path),
        runner.open(),
        runner.append(1, "secret 1"),
        runner.append(4, "secret 4"),
        runner.post("logs", runner.lines(1)),
        runner.end(1),
        runner.end(4),
    ]

    assert [(answer.status_code, answer.json().get("reason")) for answer in answers] == [(409, "DELETED")] * 7
    assert keys(redis_server, job) == {"deleted"}
    assert (
        redis_server.ask("TTL", job.key.removesuffix("log") + "deleted")
        > site.store.retention_ms("deletion") / 1000 - 60
    )
    assert site.client.get(f"/workflows/{job.workflow_id}/jobs?limit=1000").json()["jobs"] == []


def test_a_deleted_job_reads_like_one_that_never_existed(site: Site) -> None:
    """Byte for byte, even if a foreign runner still writes lines. A stream with ``wait`` is rejected immediately."""
    job = deleted(site)
    never = job.sibling("never")
    for last in (0, 50):
        job.last = 0
        job.lines(f"secret {number}" for number in range(last))
        for route in ("", "/logs", "/logs/search?q=secret", "/logs/raw", "/events?offset=1", "/logs/redactions"):
            answers = [site.client.get(f"{path}{route}") for path in (job.path, never.path)]
            assert [answer.status_code for answer in answers] == [404, 404], route
            assert answers[0].content == answers[1].content, route
        began = time.monotonic()
        for waiting in ("events?wait=30", "wait?timeout=30"):
            assert site.client.get(f"{job.path}/{waiting}").status_code == 404
        assert time.monotonic() - began < 10
    assert site.client.delete(never.path).status_code == 404


def test_the_id_is_free_again_when_the_tombstone_has_expired(site: Site, redis_server: RedisServer) -> None:
    """After the workflow's own retention. A new job then has nothing of the old one."""
    job = Foreign(redis_server.url, "deletion-short", "job_1")
    site.store.catalog.change_settings(job.workflow_id, retention_seconds=60)
    job.lines(["secret 1", "secret 2"]).end()
    assert site.client.delete(job.path).status_code == 204
    runner = Runner(site.client, job)
    assert runner.open().status_code == 409

    tombstone = job.key.removesuffix("log") + "deleted"
    assert 0 < redis_server.ask("PTTL", tombstone) <= 60_000
    redis_server.ask("PEXPIRE", tombstone, "1")
    wait_until(lambda: keys(redis_server, job) == set(), 10, "the tombstone has expired")

    assert runner.open().json()["next"] == 1
    assert runner.append(1, "new").status_code == 200
    assert [line["message"] for line in site.client.get(f"{job.path}/logs").json()["logs"]] == ["new"]


def test_nothing_of_a_deleted_job_stays_cached(
    in_process: Callable[..., httpx.Client], redis_server: RedisServer, job: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its segments would never expire, and another job under its id has as many lines."""
    client: Any = in_process()
    cache, now = client._transport.app.extensions["chronoverse"].replay_cache, time.monotonic()
    monkeypatch.setattr(cache, "clock", lambda: now)
    job.lines(["secret"] * 600).end()
    assert client.get(f"{job.path}/events").text.count("secret") == 600
    assert client.delete(job.path).status_code == 204
    redis_server.ask("DEL", job.key.removesuffix("log") + "deleted")
    job.last = 0
    job.lines(["new"] * 600).end()
    assert client.get(f"{job.path}/events").text.count('"new"') == 600


def test_viewers_get_one_error(site: Site) -> None:
    """And no line that is written afterwards, even if it continues their sequence, and the job is rarely checked."""
    job = site.job().lines(["1", "2"])
    with site.stream(job) as watching:
        watching.wait_for(b"id: 2\n")
        assert site.client.delete(job.path).status_code == 204
        assert Runner(site.client, job).open().json()["reason"] == "DELETED"
        while not watching.ended and job.last < 500:
            job.line("secret")
            time.sleep(0.01)
        watching.wait_end()
    assert watching.body.endswith(GONE)
    assert watching.body.count(b"event: error") == 1
    assert b"secret" not in watching.body
    with site.stream(job, **{"Last-Event-ID": "2"}) as again:
        assert again.wait_end().status == 404


def test_a_viewer_that_replays_gets_one_error(site: Site) -> None:
    """It has read only the beginning when the job is deleted."""
    job = site.job().lines("x" * 50_000 for _ in range(300)).end()
    with site.service.connect(20) as sock:
        fields = "".join(f"{name}: {value}\r\n" for name, value in site.headers.items())
        sock.sendall(f"GET {job.path}/events HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
        body = sock.recv(1_000)
        assert site.client.delete(job.path).status_code == 204
        while part := sock.recv(1 << 20):
            body += part
    assert (body.count(b"event: error"), body.count(GONE), body.count(b"event: end")) == (1, 1, 0)


def test_a_job_is_deleted_everywhere(site: Site) -> None:
    """Rejected while the job's runner is alive. Afterwards nothing of the job is left."""
    job = site.job()
    ref = JobRef(job.workflow_id, job.job_id)
    attempt = site.store.open(ref, "a" * 32)
    job.lines(f"line {number}" for number in range(1, 101))
    site.archive_up_to(job, 50, trim=True)
    held = site.client.delete(job.path)
    assert (held.status_code, held.json()["reason"]) == (409, "HELD")
    site.store.finish(attempt, Status.COMPLETED, 0, 0, 101)
    assert site.client.post(f"{job.path}/logs/redact", json={"from": 1, "to": 2}).status_code == 200

    assert [site.client.delete(job.path).status_code for _ in range(2)] == [204, 404]

    assert [*site.objects.list(f"{job.workflow_id}/{job.job_id}/")] == []
    assert site.store.get_job(ref) is None


@pytest.mark.parametrize("step", ["marked for deletion", "object deleted"])
def test_an_interrupted_deletion_is_completed_by_a_retry(site: Site, step: str) -> None:
    """The job is already invisible. The second request completes the deletion, a third one gets 404."""
    job = site.job().lines(f"line {number}" for number in range(1, 101))
    ref = JobRef(job.workflow_id, job.job_id)
    site.archive_up_to(job, 40, trim=True)
    site.archive_up_to(job, 80, trim=True)
    job.end()

    def fail(name: str) -> None:
        if name == step:
            raise StoreUnavailable("the server has gone")

    with pytest.raises(StoreUnavailable):
        delete_job(*stepped(site.store, site.objects, fail), ref)
    assert site.client.get(f"{job.path}/logs").status_code == 404

    assert [site.client.delete(job.path).status_code for _ in range(2)] == [204, 404]

    assert [*site.objects.list(f"{job.workflow_id}/{job.job_id}/")] == []
    assert site.store.catalog.archive_state(ref) == site.store.catalog.archive_state(JobRef(job.workflow_id, "nobody"))


@pytest.mark.long
def test_a_follower_in_a_terminal_stops(site: Site) -> None:
    """It reports the deletion and does not reconnect."""
    job = site.job().lines(["a line"])
    token = site.service.token()
    with start_chronoverse(
        site.service, "logs", "-f", job.workflow_id, job.job_id, CHRONOVERSE_TOKEN=token
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"a line\n"
        assert site.client.delete(job.path).status_code == 204
        errors = follower.communicate(timeout=20)[1]
    assert (follower.returncode, b"was deleted" in errors) == (66, True)
