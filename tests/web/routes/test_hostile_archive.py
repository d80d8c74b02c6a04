"""Archive records and objects with hostile content: 502 for their job, and no other effect."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse.joblog.model import JobRef
from tests.support.memory import peak_bytes
from tests.support.tools import tool
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.site import Site

#: The decompressed size of a small object.
BOMB_BYTES: Final = 600 * 2**20
#: How much a worker's memory can grow while it reads one.
GROWTH_BYTES: Final = 100 * 2**20

Change = Callable[[dict[str, Any]], object]
#: Invalid records. ``tests/archive/test_archive.py`` has every kind.
RECORDS: Final[dict[str, Change]] = {
    "another job's object": lambda known: known.update(object="victim/job/000000000000001-000000000000200.jsonl.zst"),
    "above the archive": lambda known: known.update(object="../../outside/secret"),
    "a negative size": lambda known: known["frames"][0].__setitem__(1, -5),
    "no frames": lambda known: known.update(frames=[]),
    "no members": lambda known: known.clear(),
}


@pytest.fixture
def outside(site: Site) -> Path:
    """A file beside the archive."""
    path = site.directory.parent / "outside" / "secret"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not yours")
    return path


def archived(site: Site) -> Foreign:
    """An ended job of 300 lines, 200 of which are only in the archive."""
    job = site.job().lines(f"line {number}" for number in range(1, 301))
    site.archive_up_to(job, 200, trim=True)
    return job.end()


def record(site: Site, job: Foreign) -> dict[str, Any]:
    (chunk,) = site.store.chunks.chunks(JobRef(job.workflow_id, job.job_id))
    known: dict[str, Any] = orjson.loads(chunk.to_json())
    return known


def plant(job: Foreign, url: str, text: bytes, score: int = 200) -> None:
    """Makes ``text`` the only record in the job's archive."""
    key = job.key.removesuffix("log") + "archive"
    ask_all(url, [("DEL", key), ("ZADD", key, str(score), text)])


def statuses(site: Site, job: Foreign) -> dict[str, int]:
    """The status of every route that reads the archive."""
    found = {}
    for path in (
        "logs",
        "logs?order=desc&offset=200",
        "logs/search?q=line",
        "logs/search?q=nowhere&order=desc&offset=200",
        f"logs/new?against={job.job_id}",
    ):
        answer = site.client.get(f"{job.path}/{path}")
        found[path] = answer.status_code
        if answer.status_code != 200:
            assert answer.headers["Content-Type"] == "application/problem+json", path
            assert "archive" in answer.json()["detail"], path
    for body in ({"q": "line"}, {"from": 1, "to": 5}):
        answer = site.client.post(f"{job.path}/logs/redact", json=body)
        found[f"redact {body}"] = answer.status_code
    return found


@pytest.mark.parametrize("change", [*RECORDS, None])
def test_an_invalid_record_is_502_only_for_its_job(site: Site, outside: Path, change: str | None) -> None:
    """On every route. Other jobs are readable, and no object outside the job's folder is touched."""
    job, neighbour = archived(site), archived(site)
    known = record(site, job)
    if change:
        RECORDS[change](known)
    plant(job, str(site.service.redis_url), orjson.dumps(known) if change else b"{")

    assert set(statuses(site, job).values()) == {502}
    with site.stream(job) as stream:
        assert stream.wait_end().blocks()[-1]["event"] == "error"

    assert len(site.pages(f"{neighbour.path}/logs?limit=1000")) == 300
    assert outside.read_bytes() == b"not yours"


def test_a_record_of_another_jobs_object_shows_and_deletes_nothing(site: Site) -> None:
    """The object itself is valid, and is stored where the record says."""
    job, victim = archived(site), archived(site)
    known = record(site, victim)
    plant(job, str(site.service.redis_url), orjson.dumps(known))

    assert set(statuses(site, job).values()) == {502}

    assert len(site.pages(f"{victim.path}/logs?limit=1000")) == 300
    assert site.objects.get(known["object"])


@pytest.mark.parametrize(
    "garbage", ["../../outside/secret", "/etc/hosts", "victim/job/object", "hostile_archive/job_0/.."]
)
def test_names_of_garbage_delete_only_the_jobs_own_objects(site: Site, outside: Path, garbage: str) -> None:
    """Write access to a job's keys must not suffice to delete other jobs' objects."""
    site.objects.put("victim/job/object", b"not yours either")
    job = archived(site)
    key = job.key.removesuffix("log") + "garbage"
    ask_all(
        str(site.service.redis_url), [("HSET", key, garbage, "1"), ("HSET", key, "x", "inf"), ("HSET", key, "y", "")]
    )

    answer = site.client.post(f"{job.path}/logs/redact", json={"from": 1, "to": 5})

    assert (answer.status_code, answer.json()["pending"]) == (200, False)
    assert outside.read_bytes() == b"not yours"
    assert site.objects.get("victim/job/object") == b"not yours either"
    # Another test imports the complete archive.
    site.objects.delete("victim/job/object")


def bomb() -> bytes:
    """A zstd frame of about 50 KB that decompresses to :data:`BOMB_BYTES`."""
    zeros = subprocess.Popen(["head", "-c", str(BOMB_BYTES), "/dev/zero"], stdout=subprocess.PIPE)
    with zeros:
        return subprocess.run([tool("zstd"), "-c"], stdin=zeros.stdout, check=True, capture_output=True).stdout


@pytest.mark.long
def test_an_object_is_not_decompressed_beyond_its_record(site: Site) -> None:
    """Whether it is read, searched, downloaded or redacted."""
    job = archived(site)
    packed = bomb()
    known = record(site, job)
    site.objects.put(known["object"], packed)
    known["frames"] = [[200, len(packed), 5_000, "", "", 1]]
    plant(job, str(site.service.redis_url), orjson.dumps(known))
    (pid,) = site.service.worker_pids()
    before = peak_bytes(pid)

    assert set(statuses(site, job).values()) == {502}

    assert peak_bytes(pid) - before < GROWTH_BYTES
