"""Redactions when the store loses writes, the object store fails, or an archiver is killed in between."""

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Final

import httpx
import pytest
from redis import Redis

from chronoverse.archive.chunk_writer import write_chunk
from chronoverse.archive.job_objects import JobObjects, archive_lock
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.errors import ArchiveDamaged, Deleted, Fenced, SequenceGap
from chronoverse.joblog.model import JobRef
from tests.archive.s3faults import Fault, S3Faults
from tests.archive.s3server import BUCKET, s3_server
from tests.support.archivers import archive, stepped
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.tools import tool
from tests.web.routes.foreign import Foreign
from tests.web.routes.site import Site, open_site

#: Each test starts processes, so they run in CI.
pytestmark = pytest.mark.long

SECRET: Final = "hunter2"
#: Time limit of a redaction by repeated requests, in seconds.
PATIENCE: Final = 20.0


def write(site: Site) -> Foreign:
    """Writes a job with the secret in every second line."""
    return site.job().lines(f"line {number} {SECRET if number % 2 else ''}" for number in range(1, 101))


def ref(job: Foreign) -> JobRef:
    return JobRef(job.workflow_id, job.job_id)


def redact(site: Site, job: Foreign, **body: object) -> httpx.Response:
    return site.client.post(f"{job.path}/logs/redact", json={"q": SECRET, **body})


def redact_completely(site: Site, job: Foreign) -> int:
    """Repeats the request as its answers require, until nothing is pending. Returns the number of redacted lines."""
    count, first, give_up_at = 0, 1, time.monotonic() + PATIENCE
    while time.monotonic() < give_up_at:
        answer = redact(site, job, **{"from": first})
        if answer.status_code == 200:
            result = answer.json()
            count += int(result["redacted"])
            if result["next"] is None and not result["pending"]:
                return count
            first = result["next"] or 1
    raise AssertionError(answer.text)


def with_secret(objects: ObjectStore, job: Foreign) -> list[str]:
    """The names of the job's objects that contain the secret, decompressed."""
    found = []
    for each in objects.list(f"{job.workflow_id}/{job.job_id}/"):
        data = objects.get(each.name)
        if each.name.endswith(".zst"):
            data = subprocess.run([tool("zstd"), "-dc"], input=data, check=True, capture_output=True).stdout
        if SECRET.encode() in data:
            found.append(each.name)
    return found


# The store loses its last writes


@pytest.fixture(scope="module")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("store")
    with RedisServer(directory, None, "--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, store_server: RedisServer) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("faults")
    folder = directory / "archive"
    with (
        serving(directory, store_server.url, archive_url=folder.as_uri(), heartbeat_seconds=1) as service,
        open_site(service, folder, "faults") as site,
    ):
        yield site


def freeze_disk(server: RedisServer) -> None:
    """Stops the server's fsync."""
    with Redis.from_url(server.url, protocol=2, single_connection_client=True) as client:
        client.set("probe", "1")
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
    server.ask("CONFIG", "SET", "appendfsync", "no")


def test_an_archiver_completes_a_pending_redaction(store_server: RedisServer, site: Site) -> None:
    """As soon as the store has the record on disk, even if the job is running."""
    job = write(site)
    site.archive_up_to(job, 60, trim=True)
    freeze_disk(store_server)
    assert redact(site, job).json()["pending"] is True
    assert len(with_secret(site.objects, job)) == 1
    archive(site.store, site.objects, orphan_seconds=3_600)
    assert len(with_secret(site.objects, job)) == 1

    store_server.ask("CONFIG", "SET", "appendfsync", "everysec")
    archive(site.store, site.objects, orphan_seconds=3_600)

    assert with_secret(site.objects, job) == []
    answer = redact(site, job).json()
    assert (answer["redacted"], answer["pending"]) == (0, False)


# An archiver that is killed or paused


def archive_job(site: Site, job: Foreign, at: Callable[[str, str], None]) -> None:
    """Archives a job as an archiver does, and calls ``at`` at each step with the token of the archive lock."""
    with archive_lock(site.store, ref(job)) as token:
        to = JobObjects(*stepped(site.store, site.objects, lambda step: at(step, token)), ref(job), token)
        write_chunk(to, site.store.catalog.archive_state(ref(job)), 101)


@pytest.mark.parametrize("done", ["redacted", "deleted"])
@pytest.mark.parametrize("step", ["read", "upload begun", "put", "read back"])
def test_a_paused_archiver_leaves_nothing_of_the_old_text(site: Site, step: str, done: str) -> None:
    """Another archiver has the lock by then. The object is deleted, even if it is written only afterwards."""
    job = write(site).end()

    def pause(at: str, token: str) -> None:
        if at == step:
            site.store.chunks.release_lock(ref(job), token)
            if done == "redacted":
                assert redact_completely(site, job) == 50
            else:
                assert site.client.delete(job.path).status_code == 204
            if (step, done) == ("read back", "redacted"):
                # Its record is rejected even when the lock is free again.
                assert site.store.chunks.acquire_lock(ref(job), token, 10)

    with pytest.raises((ArchiveDamaged, Deleted, Fenced, SequenceGap)):
        archive_job(site, job, pause)

    if done == "redacted":
        assert SECRET not in site.client.get(f"{job.path}/logs?limit=1000").text
        assert with_secret(site.objects, job) == []
    else:
        assert list(site.objects.list(f"{job.workflow_id}/{job.job_id}/")) == []
        assert site.store.chunks.garbage(ref(job)) == set()


# A failing object store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[tuple[Site, S3Faults]]:
    """A service with an archive in S3, and a proxy that can make S3 fail."""
    directory = tmp_path_factory.mktemp("s3")
    with s3_server() as address, S3Faults(address) as proxy:
        ours = {"AWS_ENDPOINT_URL_S3": proxy.url}
        with (
            Service(directory, redis_server.url, environ=ours, archive_url=f"s3://{BUCKET}") as service,
            open_site(service, directory, "faults_s3") as site,
        ):
            site.objects = S3ObjectStore(BUCKET)  # type: ignore[assignment]
            yield site, proxy


def test_a_failed_delete_is_pending_until_a_retry_succeeds(s3: tuple[Site, S3Faults]) -> None:
    """The lines are redacted and counted. The answer reports that the old text is still in the bucket."""
    site, proxy = s3
    job = write(site)
    site.archive_up_to(job, 60, trim=True)
    with proxy.fault(Fault("delete", "503", once=False)):
        first = redact(site, job)
        assert (first.status_code, first.json()["redacted"], first.json()["pending"]) == (200, 50, True)
        second = redact(site, job)
        assert (second.status_code, second.json()["redacted"], second.json()["pending"]) == (200, 0, True)
    assert len(with_secret(site.objects, job)) == 1

    third = redact(site, job)

    assert (third.status_code, third.json()["redacted"], third.json()["pending"]) == (200, 0, False)
    assert with_secret(site.objects, job) == []
