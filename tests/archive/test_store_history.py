"""Archivers delete nothing that is not provably garbage, even if the store has lost some of its past."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import pytest
from prometheus_client import REGISTRY

from chronoverse.archive.manifest import manifest_name, read_manifest
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import orphans
from chronoverse.archive.store_history import MARK, StoreHistory
from chronoverse.joblog.model import JobRef, Status
from tests.support.archivers import DAY, append, archive, set_ended
from tests.support.bench import JOB, Bench, write_ended
from tests.support.servers import RedisServer

HOUR: Final = 3_600.0
#: A running job that is partly archived.
GROWING: Final = JobRef("wf_1", "growing")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Bench]:
    """A store on a server that can be restored from a snapshot."""
    with RedisServer(tmp_path / "store") as server, contextlib.closing(Bench(server, "t")) as bench:
        yield bench


def restart(server: RedisServer, snapshot: bytes | None) -> None:
    """Restarts the server with this snapshot, or empty."""
    server.kill()
    file = server.directory / "dump.rdb"
    file.unlink(missing_ok=True)
    if snapshot is not None:
        file.write_bytes(snapshot)
    server.start()


def archive_after(bench: Bench, objects: FileObjectStore, *hours: float, problems: int = 0) -> None:
    """Archivers do everything due, one after the other, these numbers of hours from now."""
    for each in hours:
        now = time.time() + each * HOUR
        assert archive(bench.store, objects, clock=lambda now=now: now) == problems


def names(objects: FileObjectStore) -> set[str]:
    return {each.name for each in objects.list("") if each.name != MARK}


@pytest.mark.parametrize("emptied", [True, False], ids=["emptied", "restored"])
def test_a_store_that_went_back_deletes_nothing(
    own: Bench, objects: FileObjectStore, emptied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Until an operator confirms, and even then nothing that a manifest names. The jobs ran during the snapshot.

    Archives of ended jobs with more lines than the store are not completed until then.
    """
    attempts = {job: own.store.open(job, "token") for job in (JOB, GROWING)}
    for attempt in attempts.values():
        append(own.store, attempt, 1, 3_000)
    archive_after(own, objects, 0)
    own.ask("SAVE")
    snapshot = (own.server.directory / "dump.rdb").read_bytes()
    for attempt in attempts.values():
        append(own.store, attempt, 3_001, 3_000)
    own.store.finish(attempts[JOB], Status.COMPLETED, 0, 0, 6_001)
    archive_after(own, objects, 1, 2, 3)
    before, manifest = names(objects), read_manifest(objects, JOB)
    assert manifest
    assert len(manifest.names) == 2
    assert any(name.startswith("wf_1/growing/") for name in before)

    restart(own.server, None if emptied else snapshot)
    if emptied:
        for job in (JOB, GROWING):
            write_ended(own.store, job, 3, text="another")
    else:
        own.store.finish(attempts[JOB], Status.FAILED, 1, 0, 3_001)
    archive_after(own, objects, 3, 4, 5, problems=2 if emptied else 1)
    assert before <= names(objects)
    assert read_manifest(objects, JOB) == manifest
    assert REGISTRY.get_sample_value("chronoverse_archive_store_went_back") == 1
    assert f"lost data: {'it has no age mark' if emptied else 'its age mark is of 20'}" in caplog.text

    StoreHistory(own.store, objects).confirm()
    archive_after(own, objects, 6, 7, 8)
    assert REGISTRY.get_sample_value("chronoverse_archive_store_went_back") == 0
    assert manifest.names <= names(objects)
    assert list(orphans(own.store, objects, time.time(), DAY)) == []


@pytest.mark.parametrize("ahead", [0, 24 * HOUR])
def test_a_store_that_loses_its_last_seconds_has_not_gone_back(
    own: Bench, objects: FileObjectStore, ahead: float
) -> None:
    """Every power failure loses seconds. The mark in the bucket is a minute older than the store's.

    Older states are noticed, even if another archiver's clock was ahead.
    """
    now = [time.time()]
    StoreHistory(own.store, objects, lambda: now[0] + ahead).went_back()
    history = StoreHistory(own.store, objects, lambda: now[0])
    for _ in range(5):
        assert not history.went_back()
        now[0] += 61
    own.ask("SAVE")
    snapshot = (own.server.directory / "dump.rdb").read_bytes()
    assert not history.went_back()

    restart(own.server, snapshot)

    assert not history.went_back()
    assert not StoreHistory(own.store, objects, lambda: now[0]).went_back()
    for _ in range(3):
        now[0] += 61
        assert not history.went_back()
    restart(own.server, snapshot)
    assert history.went_back()
    assert StoreHistory(own.store, objects, lambda: now[0]).went_back()


def test_a_clock_that_was_set_back_delays_no_comparison(bench: Bench, objects: FileObjectStore) -> None:
    now = [time.time()]
    history = StoreHistory(bench.store, objects, lambda: now[0])
    for seconds in (61, 61, -HOUR):
        assert not history.went_back()
        now[0] += seconds
    objects.delete(MARK)
    assert history.went_back()


def test_a_run_without_work_marks_the_bucket(bench: Bench, objects: FileObjectStore) -> None:
    archive_after(bench, objects, 0, 1)
    assert [each.name for each in objects.list("")] == [MARK]


def test_an_upload_that_the_manifest_names_is_not_garbage(bench: Bench, objects: FileObjectStore) -> None:
    """A server had replayed the start of an upload, but not its record, and the object was deleted seconds later."""
    write_ended(bench.store)
    archive_after(bench, objects, 0)
    (chunk,) = bench.store.chunks.chunks(JOB)
    bench.ask("DEL", *bench.keys())
    bench.ask("HSET", bench.key("garbage"), chunk.name, "writer:somebody")

    archive_after(bench, objects, 0, 1, 2)

    # Shapes and timeline are derived from the chunks, and recreated when needed.
    assert names(objects) == {chunk.name, manifest_name(JOB)}
    assert bench.keys() == set()


def test_a_job_is_kept_for_its_own_retention(bench: Bench, objects: FileObjectStore) -> None:
    """The store reports the retention as over, but is a copy from before the id was reused."""
    write_ended(bench.store)
    archive_after(bench, objects, 0)
    before = names(objects)
    bench.set_end_seen(8 * DAY)
    assert archive(bench.store, objects, retention_seconds=7 * DAY) == 0
    assert names(objects) == before

    set_ended(bench, objects, JOB, 8 * DAY)
    # The store may have lost its past.
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    assert archive(bench.store, objects, retention_seconds=7 * DAY) == 0
    assert names(objects) == before
    objects.delete(MARK)
    assert archive(bench.store, objects, retention_seconds=7 * DAY) == 0
    assert names(objects) == set()


def test_another_bucket_is_noticed(own: Bench, objects: FileObjectStore, tmp_path: Path) -> None:
    """Emptied, or a different one. It gets no mark, and nothing is deleted until an operator confirms."""
    now = [time.time()]
    history = StoreHistory(own.store, objects, lambda: now[0])
    for _ in range(3):
        assert not history.went_back()
        now[0] += 61
    mark = objects.get(MARK)

    objects.delete(MARK)
    for _ in range(3):
        now[0] += 61
        assert history.went_back()
        assert REGISTRY.get_sample_value("chronoverse_archive_bucket_lost") == 1
        assert REGISTRY.get_sample_value("chronoverse_archive_store_went_back") == 0
    assert list(objects.list("")) == []
    other = FileObjectStore(tmp_path / "other")
    other.put(MARK, mark.replace(orjson.loads(mark)["bucket"].encode(), b"another"))
    assert StoreHistory(own.store, other, lambda: now[0]).went_back()

    objects.put(MARK, mark)
    now[0] += 61
    assert not history.went_back()
    objects.delete(MARK)
    StoreHistory(own.store, objects, lambda: now[0]).confirm()
    now[0] += 61
    assert not history.went_back()
    assert REGISTRY.get_sample_value("chronoverse_archive_bucket_lost") == 0
    StoreHistory(own.store, other, lambda: now[0]).confirm()
    assert not StoreHistory(own.store, other, lambda: now[0]).went_back()
    now[0] += 61
    assert history.went_back()


def test_a_mark_of_an_earlier_version_gets_an_id(own: Bench, objects: FileObjectStore) -> None:
    """Archivers of that version may still run, and write marks without an id."""
    now = [time.time()]
    own.store.catalog.move_mark(now[0] - 90)
    objects.put(MARK, orjson.dumps({"mark": now[0] - 150}))
    history = StoreHistory(own.store, objects, lambda: now[0])
    assert not history.went_back()
    known = orjson.loads(objects.get(MARK))["bucket"]
    assert known == own.store.catalog.bucket()
    objects.put(MARK, orjson.dumps({"mark": now[0] - 5}))
    now[0] += 61
    assert not history.went_back()
    assert orjson.loads(objects.get(MARK))["bucket"] == known
