"""Archivers: what they move and when, what they keep, and how they handle data that the store has lost."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY

from chronoverse.archive.archiver import BUSY_SECONDS, HIGH_MARK, RETRY_SECONDS, THROTTLE_MARK
from chronoverse.archive.chunk_writer import write_chunk
from chronoverse.archive.derived import derived_names
from chronoverse.archive.job_objects import LOCK_SECONDS, JobObjects, archive_lock
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import apply_retention, delete_job, orphans
from chronoverse.archive.store_history import MARK, PROBE
from chronoverse.archive.workflow_settings import settings_name
from chronoverse.errors import ArchiveUnavailable, Closed, Deleted, Held, SequenceGap, StoreRefused
from chronoverse.history.tiered_log import TieredLog
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.entries import Entry, RawEntry
from chronoverse.joblog.model import Attempt, End, Gap, Job, JobRef, Line, LineRun, Status, iso_timestamp
from chronoverse.store import Store
from chronoverse.store.keys import ARCHIVE_LOCK
from chronoverse.store.store import SLOW_BYTES_PER_SECOND, SLOW_SECONDS
from tests.support.archivers import (
    DAY,
    HOT_BYTES,
    all_entries,
    append,
    archive,
    archiver,
    line_numbers,
    set_ended,
    stepped,
)
from tests.support.archives import archive_up_to
from tests.support.bench import JOB, NOW, NOW_SECONDS, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines, write_ended
from tests.support.fleets import Cluster
from tests.support.reading import Clock, redis_fields
from tests.support.servers import RedisServer
from tests.support.waiting import NoDelay, wait_until

#: More lines than fit into HOT_BYTES.
MANY = 8_000


def names(objects: FileObjectStore) -> list[str]:
    return [each.name for each in objects.list("")]


def counted() -> list[float]:
    """The metrics of this process's archivers: lines, jobs, and bytes before and after compression."""
    samples: list[tuple[str, dict[str, str]]] = [
        ("lines", {}),
        ("jobs", {"done": "archived"}),
        *(("bytes", {"form": form}) for form in ("text", "packed")),
    ]
    return [REGISTRY.get_sample_value(f"chronoverse_archive_{name}_total", labels) or 0 for name, labels in samples]


def test_a_large_running_log_is_reduced(bench: Bench, objects: FileObjectStore) -> None:
    """Its oldest lines are then only in the archive. Its runner is not affected."""
    attempt = bench.store.open(JOB, "token")
    append(bench.store, attempt, 1, MANY)
    assert archive(bench.store, objects) == 0
    (size,) = bench.store.catalog.sizes([JOB]).values()
    assert size < HOT_BYTES * HIGH_MARK / 2
    job = bench.store.require_job(JOB)
    assert (job.first, job.last, job.status) == (1, MANY, Status.RUNNING)
    assert bench.ids()[0] == f"{job.archived + 1}-0"
    assert bench.ttl("job") == -1
    append(bench.store, attempt, MANY + 1, 500)
    bench.store.finish(attempt, Status.COMPLETED, 0, 0, MANY + 501)
    assert bench.ttl("job") == -1
    assert line_numbers(all_entries(bench.store, objects, JOB)) == list(range(1, MANY + 501))


def test_an_ended_log_is_archived_completely(bench: Bench, objects: FileObjectStore) -> None:
    """The log stays in the store for a while, the job's state permanently. The manifest has the state, too."""
    attempt = bench.store.open(JOB, "token")
    bench.store.append(attempt, make_lines(1, 10))
    assert archive(bench.store, objects) == 0
    assert names(objects) == []
    bench.store.finish(attempt, Status.FAILED, 3, 0, 11)
    before_it = counted()
    assert archive(bench.store, objects, hot_seconds=60, clock=lambda: NOW_SECONDS) == 0
    (chunk,) = bench.store.chunks.chunks(JOB)
    moved = [new - old for old, new in zip(before_it, counted(), strict=True)]
    assert moved == [10, 1, chunk.text_size, chunk.size]
    assert 0 < bench.ttl("log") <= 60_000
    assert (bench.ttl("job"), bench.ttl("archive")) == (-1, -1)
    assert len(bench.ids()) == 11
    before = bench.store.get_job(JOB)
    bench.ask("DEL", bench.key("log"))
    after = bench.store.require_job(JOB)
    assert before is not None
    assert (after.status, after.exit_code, after.lines, after.first, after.last) == (Status.FAILED, 3, 10, 1, 10)
    assert after.end == before.end
    manifest = orjson.loads(objects.get(f"{JOB.workflow_id}/{JOB.job_id}/job.json"))
    assert manifest["job"]["archive_sha256"] == bench.hash()["archive_sha256"]
    assert [chunk["object"] for chunk in manifest["chunks"]] == [
        name for name in names(objects) if name.endswith(".zst")
    ]
    assert archive(bench.store, objects, clock=lambda: NOW_SECONDS) == 0


def test_the_last_line_of_a_running_log_stays_in_the_store(bench: Bench, objects: FileObjectStore) -> None:
    """Even if it alone exceeds the log's limit."""
    attempt = bench.store.open(JOB, "token")
    bench.store.append(attempt, [Line(1, "", "x" * HOT_BYTES, "stdout"), Line(2, "", "y" * HOT_BYTES, "stdout")])
    assert archive(bench.store, objects) == 0
    assert bench.ids() == ["2-0"]
    assert archive(bench.store, objects) == 0
    assert bench.ids() == ["2-0"]
    bench.store.append(attempt, make_lines(3, 1))
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [1, 2, 3]


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("stamps", [("2026-03-03T10:{:02}:00Z", "2026-03-03T10:59:00Z"), ("soon", "later")])
def test_a_foreign_jobs_state_is_the_same_in_the_archive(
    bench: Bench, objects: FileObjectStore, stamps: tuple[str, str], registered: bool
) -> None:
    """Times, attempt and end are set once, and stay when lines leave the store."""
    line, end = stamps
    if registered:
        bench.store.register(JOB)
    for number in range(1, 10):
        bench.xadd(f"{number}-0", "message", "a", "timestamp", line.format(number))

    def state() -> dict[str, Any]:
        # Another process, which reads the job for the first time, and later.
        (found,) = bench.new_store(clock=lambda: NOW_SECONDS + 3_600).get_jobs([JOB])
        assert isinstance(found, Job)
        ((listed_ms, _),) = bench.store.listing.page(JOB.workflow_id, None, 9)
        assert found.created_at == iso_timestamp(listed_ms / 1000)
        return found.to_json()

    (found,) = bench.store.get_jobs([JOB])
    assert isinstance(found, Job)
    running = found.to_json()
    started = "2026-03-03T10:01:00.000Z" if line != "soon" else NOW
    assert (running["started_at"], running["attempt"]) == (started, 1)
    assert running["created_at"] == (NOW if registered else started)
    assert not bench.store.register(JOB)
    assert state() == running
    for to in (4, 8):
        archive_up_to(bench.store, objects, JOB, to, trim=True)
        assert state() == running

    # Those that hold a lease set their attempt.
    bench.ask("HSET", bench.key("job"), "label:branch", "main", *([] if registered else ["attempt", "1"]))
    bench.xadd("10-0", "event", "end", "status", "FAILED", "exit_code", "7", "timestamp", end)
    ended = state()
    assert ended == running | {
        "labels": {"branch": "main"},
        "status": "FAILED",
        "exit_code": 7,
        "finished_at": "2026-03-03T10:59:00.000Z" if end != "later" else None,
    }
    assert archive(bench.store, objects, clock=lambda: NOW_SECONDS + 7_200) == 0
    assert state() == ended
    bench.ask("DEL", bench.key("log"))
    assert state() == ended
    # Lines that the runner writes after the log has expired, such as those of another run, come after the end.
    for number in (1, 12):
        bench.xadd(f"{number}-0", "message", "b")
        assert state() == ended
    history = TieredLog(bench.store, ArchiveReader(objects, bench.store.chunks.chunk), bench.store.require_job(JOB))
    assert [each.message for each in history.after(0, 20).lines] == ["a"] * 9
    manifest = orjson.loads(objects.get(f"{JOB.workflow_id}/{JOB.job_id}/job.json"))["job"]
    assert {name: manifest[name] for name in ended} == ended


def test_lost_lines_at_the_beginning_are_archived_as_a_gap(bench: Bench, objects: FileObjectStore) -> None:
    """One entry with their last number covers them, but the log begins with the first of them."""
    attempt = bench.store.open(JOB, "token")
    bench.store.append_lost(attempt, 1, 5)
    bench.store.append(attempt, make_lines(6, 2))
    bench.store.finish(attempt, Status.COMPLETED, 0, 0, 8)
    (before,), hot = bench.store.get_jobs([JOB]), all_entries(bench.store, objects, JOB)
    assert isinstance(before, Job)
    assert (before.first, hot[0]) == (1, Gap(1, 5, "lost"))
    assert archive(bench.store, objects) == 0
    (after,) = bench.store.get_jobs([JOB])
    assert isinstance(after, Job)
    assert (after.to_json(), after.archived) == (before.to_json(), 7)
    assert all_entries(bench.store, objects, JOB) == hot


def test_a_log_with_too_large_numbers_stays_in_the_store(bench: Bench, objects: FileObjectStore) -> None:
    bench.xadd("1-0", "message", "a")
    bench.xadd("1772532005123000-0", "message", "a time for a number")
    bench.xadd("1772532005123001-0", "event", "end")
    assert archive(bench.store, objects) == 1
    # It is not archived, and is kept like any job.
    assert "archive_state" not in bench.hash()
    assert RETENTION_MS - TTL_TOLERANCE_MS < bench.ttl("log") <= RETENTION_MS
    assert len(bench.ids()) == 3


def test_a_lost_log_continues_after_its_archive(bench: Bench, objects: FileObjectStore) -> None:
    """Archived numbers are not reused. The runner is asked for the lost lines after them."""
    attempt = bench.store.open(JOB, "token")
    append(bench.store, attempt, 1, MANY)
    assert archive(bench.store, objects) == 0
    job = bench.store.require_job(JOB)
    bench.ask("DEL", bench.key("log"))
    with pytest.raises(SequenceGap) as refused:
        bench.store.append(attempt, make_lines(MANY + 1, 1))
    assert refused.value.expected == job.archived + 1
    append(bench.store, attempt, job.archived + 1, MANY + 10 - job.archived)
    bench.ask("DEL", bench.key("log"), bench.key("lease"))
    again = bench.store.open(JOB, "another")
    assert again.next == job.archived + 1
    bench.store.finish(again, Status.FAILED, 1, 0, job.archived + 1)
    assert bench.ids() == [f"{job.archived + 1}-0"]
    assert archive(bench.store, objects, clock=lambda: NOW_SECONDS) == 0
    assert bench.hash()["archive_state"] == "complete"
    assert line_numbers(all_entries(bench.store, objects, JOB)) == list(range(1, job.archived + 1))


def test_a_lost_log_of_a_lost_runner_ends_after_its_archive(bench: Bench, objects: FileObjectStore) -> None:
    attempt = bench.store.open(JOB, "token")
    append(bench.store, attempt, 1, MANY)
    archive(bench.store, objects)
    bench.ask("DEL", bench.key("log"))
    bench.expire_lease()
    job = bench.new_store(lease_seconds=1).get_job(JOB)
    assert job is not None
    assert job.status is Status.LOST
    assert job.last == job.archived
    assert bench.ttl("job") == -1


def test_a_rewritten_log_is_not_archived_from_the_old_one(bench: Bench, objects: FileObjectStore) -> None:
    """The log was lost between read and commit, and rewritten with other lines under the same numbers.

    The archiver tries again a second later.
    """
    bench.store.append(bench.store.open(JOB, "token"), make_lines(1, 10, "old"))
    bench.xadd("11-0", "event", "end")

    def lose(step: str) -> None:
        if step == "read back" and bench.ask("HGET", bench.key("job"), "again") is None:
            bench.ask("HSET", bench.key("job"), "again", 1)
            bench.ask("DEL", bench.key("log"))
            for each in range(1, 11):
                bench.xadd(f"{each}-0", "timestamp", "2026-03-03T10:00:05.123Z", "message", f"new {each}")
            bench.xadd("11-0", "event", "end")

    clock = Clock()
    ours = archiver(bench.store, objects, on_step=lose, monotonic=clock)
    assert ours.run_once() == 0
    assert bench.store.chunks.chunks(JOB) == []
    clock.now += BUSY_SECONDS + 0.1
    assert ours.run_once() == 0
    assert bench.store.catalog.archive_state(JOB).complete
    entries = all_entries(bench.store, objects, JOB)
    assert [line.message for line in entries if isinstance(line, Line)] == [f"new {each}" for each in range(1, 11)]


def test_an_emptied_store_leaves_the_archive_alone(bench: Bench, objects: FileObjectStore) -> None:
    """Objects of unknown jobs are kept, and listed as orphans after their retention."""
    write_ended(bench.store)
    archive(bench.store, objects)
    assert list(orphans(bench.store, objects, time.time(), DAY, age=0)) == []
    before = names(objects)
    bench.ask("DEL", *bench.keys())
    assert archive(bench.store, objects) == 0
    assert names(objects) == before
    assert list(orphans(bench.store, objects, time.time(), DAY, age=0)) == []
    later = time.time() + 2 * DAY
    assert [stored.name for stored, _ in orphans(bench.store, objects, later, DAY, age=0)] == before
    assert list(orphans(bench.store, objects, later, DAY, age=3 * DAY)) == []


def test_a_new_run_of_a_job_that_the_store_lost(bench: Bench, objects: FileObjectStore, tmp_path: Path) -> None:
    """The new run's garbage is deleted, the chunks of the earlier run are not."""

    def run(text: str) -> None:
        write_ended(bench.store, text=text)

    run("earlier")
    archive(bench.store, objects)
    (earlier,) = [name for name in names(objects) if name.endswith(".zst")]
    os.utime(tmp_path / "archive" / earlier, (NOW_SECONDS - 600, NOW_SECONDS - 600))
    bench.ask("DEL", *bench.keys())
    run("later")
    orphan = f"{JOB.workflow_id}/{JOB.job_id}/orphan"
    objects.put(orphan, b"")
    # By a clock that is a little behind.
    os.utime(tmp_path / "archive" / orphan, (NOW_SECONDS - 30, NOW_SECONDS - 30))
    for _ in range(2):
        assert archive(bench.store, objects) == 0
    found = [name for name in names(objects) if not name.endswith("/job.json")]
    chunks = bench.store.chunks.chunks(JOB)
    # Derived objects of the earlier run are no older than the new run, so they were deleted as garbage.
    derived = derived_names(JOB, combined_sha256(chunks))
    assert sorted(found) == sorted([earlier, *derived, *(chunk.name for chunk in chunks)])
    # The manifest names it until the end of the job's retention.
    assert list(orphans(bench.store, objects, time.time(), DAY, age=0)) == []
    later = time.time() + 2 * DAY
    assert [stored.name for stored, _ in orphans(bench.store, objects, later, DAY, age=0)] == [earlier]


def test_a_log_whose_last_numbers_are_missing_is_archived(bench: Bench, objects: FileObjectStore) -> None:
    """A foreign runner skipped numbers just before the end. The archive reports the gap, as the store does."""
    bench.xadd("1-0", "message", "the only line")
    bench.xadd("4-0", "event", "end", "status", "COMPLETED")

    def shown() -> list[list[Entry]]:
        job = bench.store.require_job(JOB)
        history = TieredLog(bench.store, ArchiveReader(objects, bench.store.chunks.chunk), job)
        reads = [*(history.after(after, 10) for after in range(5)), *(history.before(end, 10) for end in range(2, 6))]
        return [[each for each in read.entries if not isinstance(each, End)] for read in reads]

    stored = shown()
    assert stored[0][1:] == [Gap(2, 3, "missing")]
    assert archive(bench.store, objects, hot_seconds=0) == 0
    assert bench.store.catalog.archive_state(JOB).complete
    wait_until(lambda: bench.ask("EXISTS", bench.key("log")) == 0, 5, "the store lets go of the log")
    assert shown() == stored
    job = bench.store.require_job(JOB)
    assert job.end
    assert (job.last, job.end.sequence_num) == (3, 4)


def test_a_log_with_only_an_end_is_not_archived(bench: Bench, objects: FileObjectStore) -> None:
    """It has no lines, whatever its end's number. It expires in the store, and is not reported as a problem."""
    bench.xadd("4-0", "event", "end", "status", "COMPLETED")

    assert archive(bench.store, objects) == 0
    assert names(objects) == []


@pytest.mark.parametrize("lines", ["5", "100", "500", "many"])
def test_a_log_ends_after_its_last_line(bench: Bench, objects: FileObjectStore, lines: str) -> None:
    """Whatever line count the runner reports, and even if only the archive has the log."""
    for line in make_lines(1, 100):
        bench.xadd(f"{line.sequence_num}-0", *redis_fields(line))
    bench.xadd("101-0", "event", "end", "status", "COMPLETED", "lines", lines)

    assert archive(bench.store, objects, hot_seconds=0) == 0

    wait_until(lambda: bench.ask("EXISTS", bench.key("log")) == 0, 5, "the store lets go of the log")
    job = bench.store.require_job(JOB)
    assert job.end
    assert (job.first, job.last, job.end.sequence_num) == (1, 100, 101)
    history = TieredLog(bench.store, ArchiveReader(objects, bench.store.chunks.chunk), job)
    assert [entry.sequence_num for entry in history.after(90, 50).entries if isinstance(entry, Line)] == [
        *range(91, 101)
    ]
    assert history.after(100, 50).entries == []


def test_retention_deletes_a_job_completely(bench: Bench, objects: FileObjectStore) -> None:
    """A week after the job's end, unless its workflow has its own retention."""
    other = JobRef("wf_2", "job_1")
    for job in (JOB, other):
        write_ended(bench.store, job)
    bench.store.catalog.change_settings("wf_2", retention_seconds=round(30 * DAY))
    for days in (1, 6):
        for job in (JOB, other):
            set_ended(bench, objects, job, days * DAY)
        # The archiver's own clock is irrelevant.
        archive(bench.store, objects, retention_seconds=7 * DAY, clock=lambda: time.time() + 100 * DAY)
        assert bench.store.get_job(JOB) is not None
    for job in (JOB, other):
        set_ended(bench, objects, job, 8 * DAY)
    archive(bench.store, objects, retention_seconds=7 * DAY)
    assert bench.store.get_job(JOB) is None
    assert bench.store.listing.page(JOB.workflow_id, None, 9) == []
    left = bench.keys() - {bench.key("changes")}
    assert not any(f"{{{JOB.workflow_id}}}" in key for key in left)
    assert {name.partition("/")[0] for name in names(objects)} == {MARK, "wf_2"}
    bench.store.catalog.change_settings("wf_2", retention_seconds=None)
    archive(bench.store, objects, retention_seconds=7 * DAY)
    # They record that the workflow no longer has settings or watches.
    assert names(objects) == [MARK, settings_name("wf_2"), "wf_2/_watches.json"]
    assert bench.keys() == {bench.key("changes"), *(bench.key(kind, other) for kind in ("changes", "settings"))}


@pytest.mark.parametrize("before", [pytest.param(None, marks=pytest.mark.long), 30])
def test_a_changed_retention_is_applied_within_a_minute(
    bench: Bench, objects: FileObjectStore, before: int | None
) -> None:
    """An archiver checks an archived job every five minutes, but its workflow's retention more often."""
    clock, workflow = Clock(), JOB.workflow_id
    other = JobRef("wf_2", "job_1")
    if before is not None:
        bench.store.catalog.change_settings(workflow, retention_seconds=round(before * DAY))
    for job in (JOB, other):
        write_ended(bench.store, job, 3)
    running = archiver(bench.store, objects, monotonic=clock)

    def run(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            wait_until(lambda: not running.step(), 30, "nothing is left to do")

    run(30)
    assert bench.store.catalog.archive_state(JOB).swept
    bench.store.catalog.change_settings(workflow, retention_seconds=1)
    set_ended(bench, objects, JOB, 2)
    run(60)

    assert bench.store.get_job(JOB) is None
    assert bench.store.get_job(other) is not None


def test_a_job_is_deleted_as_soon_as_its_retention_ends(bench: Bench, objects: FileObjectStore) -> None:
    """An archiver checks an archived job every five minutes, and then. Its lines leave the store by then, too."""
    write_ended(bench.store)
    bench.set_end_seen(DAY - 200)
    for _ in range(2):
        assert archive(bench.store, objects, retention_seconds=DAY, hot_seconds=DAY) == 0
    assert 0 < bench.ttl("log") <= 200_000
    set_ended(bench, objects, JOB, DAY - 100)
    clock = Clock()
    running = archiver(bench.store, objects, retention_seconds=DAY, monotonic=clock)
    running.run_once()
    set_ended(bench, objects, JOB, DAY + 1)
    clock.now += 101
    running.run_once()
    assert bench.store.get_job(JOB) is None


def test_a_changed_retention_leaves_archived_jobs_to_the_archiver(bench: Bench, objects: FileObjectStore) -> None:
    """Their keys must not expire before their objects are deleted."""
    write_ended(bench.store)
    archive(bench.store, objects, clock=lambda: NOW_SECONDS)

    assert apply_retention(bench.store, JOB.workflow_id, 1, 1) == 0
    assert bench.ttl("job") == bench.ttl("archive") == -1


def test_a_job_with_a_live_runner_is_not_deleted(bench: Bench, objects: FileObjectStore) -> None:
    bench.store.open(JOB, "token")
    with pytest.raises(Held):
        delete_job(bench.store, objects, JOB)
    write_ended(bench.store)
    delete_job(bench.store, objects, JOB)
    assert bench.keys() == {bench.key("changes")}


def test_lines_under_a_deleted_id_are_not_archived(bench: Bench, objects: FileObjectStore) -> None:
    """A foreign runner still writes, and an archiver that missed the deletion finds a large log."""
    delete_job(bench.store, objects, JOB, tombstone_ms=60_000)
    bench.xadd("1-0", "message", "secret")
    bench.xadd("2-0", "message", "secret")
    state = bench.store.catalog.archive_state(JOB)
    with archive_lock(bench.store, JOB) as token, pytest.raises(Deleted):
        write_chunk(JobObjects(bench.store, objects, JOB, token), state, 2, trim=1)
    assert names(objects) == []
    assert not bench.ask("EXISTS", *(bench.key(kind) for kind in ("archive", "garbage", "job")))


def test_lines_under_a_deleted_id_are_deleted_every_second(bench: Bench, objects: FileObjectStore) -> None:
    """A foreign runner can write megabytes per second, which fill the store until then."""
    delete_job(bench.store, objects, JOB, tombstone_ms=60_000)
    now = [0.0]
    periodic = archiver(bench.store, objects, monotonic=lambda: now[0])
    for number in range(1, 4):
        bench.xadd(f"{number}-0", "message", "secret")
        periodic.run_once()
        assert not bench.ask("EXISTS", bench.key("log"))
        now[0] += BUSY_SECONDS + 0.1


def test_a_job_that_begins_while_old_objects_are_deleted_is_kept(bench: Bench, objects: FileObjectStore) -> None:
    """If only objects of the old job were left, its id can be reused."""
    objects.put(f"{JOB.workflow_id}/{JOB.job_id}/left", b"")

    def begin(step: str) -> None:
        if step == "object deleted":
            bench.store.append(bench.store.open(JOB, "token"), make_lines(1, 10))

    with pytest.raises(Held):
        delete_job(*stepped(bench.store, objects, begin), JOB)
    assert names(objects) == []
    assert len(bench.store.read(JOB, 0, 99)) == 10
    assert bench.store.append(Attempt(JOB, "token", 1, 1), make_lines(11, 1)) == 12


@pytest.mark.parametrize("hot_seconds", [3_600, 0])
@pytest.mark.parametrize("step", ["marked for deletion", "object deleted"])
def test_an_interrupted_deletion_is_completed(
    bench: Bench, objects: FileObjectStore, step: str, hot_seconds: float
) -> None:
    """Until then the job cannot be read or opened. Its log may have left the store already."""
    write_ended(bench.store)
    archive(bench.store, objects, hot_seconds=hot_seconds)
    wait_until(lambda: bench.ask("EXISTS", bench.key("log")) == (hot_seconds > 0), 5, "the store lets go of the log")

    def cut(name: str) -> None:
        if name == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        delete_job(*stepped(bench.store, objects, cut), JOB)
    assert bench.store.get_job(JOB) is None
    with pytest.raises(Closed):
        bench.store.open(JOB, "another")
    archive(bench.store, objects)
    assert bench.keys() == {bench.key("changes")}
    assert names(objects) == []


def test_jobs_can_be_deleted_from_a_full_archive(
    bench: Bench, objects: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes an object first, which frees the space that the deletion's mark needs."""
    write_ended(bench.store)
    archive(bench.store, objects)
    put, found = objects.put, names(objects)

    def put_if_free(name: str, data: bytes) -> None:
        if names(objects) == found:
            raise ArchiveUnavailable("no space")
        put(name, data)

    monkeypatch.setattr(objects, "put", put_if_free)
    delete_job(bench.store, objects, JOB)
    assert names(objects) == []


def test_objects_written_after_a_deletion_are_deleted(bench: Bench, objects: FileObjectStore) -> None:
    """By an archiver that has lost the lock."""
    now = [0.0]
    write_ended(bench.store)

    def lose(step: str) -> None:
        if step == "derived" and bench.store.get_job(JOB):
            bench.ask("DEL", bench.key(ARCHIVE_LOCK))
            delete_job(bench.store, objects, JOB, tombstone_ms=60_000)

    ours = archiver(bench.store, objects, on_step=lose, monotonic=lambda: now[0])
    for _ in range(30):
        ours.step()
        now[0] += 1.0
    assert bench.store.is_deleted(JOB)
    assert names(objects) == []


def test_a_lost_job_hash_is_restored(bench: Bench, objects: FileObjectStore) -> None:
    """From the chunk records. Otherwise numbering would restart at 1."""
    attempt = bench.store.open(JOB, "token")
    append(bench.store, attempt, 1, MANY)
    archive(bench.store, objects)
    archived = bench.hash()["archived"]
    bench.ask("DEL", bench.key("job"))
    archive(bench.store, objects)
    assert bench.hash() == {"archived": archived, "archived_first": "1"}
    assert line_numbers(all_entries(bench.store, objects, JOB)) == list(range(1, MANY + 1))


def test_a_job_locked_by_another_archiver_waits(bench: Bench, objects: FileObjectStore) -> None:
    write_ended(bench.store)
    with archive_lock(bench.store, JOB):
        assert archive(bench.store, objects) == 0
        assert names(objects) == []
    assert archive(bench.store, objects) == 0
    assert bench.hash()["archive_state"] == "complete"


@pytest.mark.long
def test_jobs_on_every_master_of_a_cluster(cluster: Cluster, prefix: str, objects: FileObjectStore) -> None:
    """Each job is found, reduced while it runs, and archived completely. A job with a lost log continues."""
    store = Store(cluster.url, prefix=prefix)
    jobs = [JobRef(cluster.workflow(master, prefix), "job_1") for master in cluster.masters()]
    attempts = {job: store.open(job, "token") for job in jobs}
    for attempt in attempts.values():
        append(store, attempt, 1, MANY)
    assert archive(store, objects) == 0
    next_number = dict.fromkeys(jobs, MANY + 1)
    cluster.ask("DEL", f"{prefix}:{{{jobs[0].workflow_id}}}:job_1:log")
    next_number[jobs[0]] = store.catalog.archive_state(jobs[0]).archived + 1
    for job, attempt in attempts.items():
        assert 0 < store.catalog.archive_state(job).archived < MANY
        store.append(attempt, make_lines(next_number[job], 1))
        store.finish(attempt, Status.COMPLETED, 0, 0, next_number[job] + 1)
    assert archive(store, objects) == 0
    for job in jobs:
        assert store.catalog.archive_state(job).complete
        cluster.ask("DEL", f"{prefix}:{{{job.workflow_id}}}:job_1:log")
        assert line_numbers(all_entries(store, objects, job)) == list(range(1, next_number[job] + 1))
    store.close()


def test_a_full_store_is_relieved(tmp_path: Path, objects: FileObjectStore) -> None:
    """While the store refuses writes, an archiver can still commit chunks and trim."""
    with RedisServer(tmp_path / "full") as server:
        bench = Bench(server, "full")
        attempt = bench.store.open(JOB, "token")
        append(bench.store, attempt, 1, MANY)
        server.ask("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreRefused):
            append(bench.store, attempt, MANY + 1, 1)
        assert archive(bench.store, objects) == 0
        assert bench.store.catalog.archive_state(JOB).archived > MANY / 2
        server.ask("CONFIG", "SET", "maxmemory", 0)
        append(bench.store, attempt, MANY + 1, 1)
        assert line_numbers(all_entries(bench.store, objects, JOB)) == list(range(1, MANY + 2))
        bench.close()


def test_a_runner_is_throttled(bench: Bench) -> None:
    """By delayed answers to its appends, for a while. Throttling does not create a deleted job."""
    slept: list[float] = []
    store = Store(bench.url, prefix=bench.prefix, sleep=slept.append)
    store.chunks.throttle_runner(JOB, 60)
    assert bench.keys() == set()
    attempt = store.open(JOB, "token")

    def append_one(number: int) -> None:
        assert store.append_runs(attempt, number, [LineRun(NOW, "stdout", False, [b"a line"])]) == number + 1

    append_one(1)
    assert slept == []
    store.chunks.throttle_runner(JOB, 60)
    append_one(2)
    assert slept == [SLOW_SECONDS]
    store.chunks.throttle_runner(JOB, -60)
    append_one(3)
    assert slept == [SLOW_SECONDS]
    store.chunks.throttle_runner(JOB, 60)
    assert store.append_runs(attempt, 4, [LineRun(NOW, "stdout", False, [b"x" * SLOW_BYTES_PER_SECOND] * 2)]) == 6
    assert slept[1] == pytest.approx(2, abs=0.01)
    # Three scripts are one append.
    assert store.append_runs(attempt, 6, [LineRun(NOW, "stdout", False, [b"a line"] * 1_200)]) == 1_206
    assert slept[2:] == [SLOW_SECONDS]
    store.close()


def test_a_runner_is_throttled_if_its_log_grows_during_a_move(bench: Bench, objects: FileObjectStore) -> None:
    """Not only between two chunks: on a busy machine, a log can exceed its limit while one chunk is moved."""
    half, grown, asked = 3_000, list[int](), list[object]()
    attempt = bench.store.open(JOB, "token")
    append(bench.store, attempt, 1, half)
    (size,) = bench.store.catalog.sizes([JOB]).values()
    assert HIGH_MARK * HOT_BYTES < size < THROTTLE_MARK * HOT_BYTES

    def monotonic() -> float:
        if not grown and bench.ask("EXISTS", bench.key("sealer")):
            grown.append(append(bench.store, attempt, half + 1, MANY - half))
        return time.monotonic()

    def at(step: str) -> None:
        asked.append(bench.ask("HGET", bench.key("job"), "slow_until"))

    archive(bench.store, objects, monotonic=monotonic, on_step=at)
    assert grown
    assert asked[0]
    assert int(bench.hash()["slow_until"]) <= server_ms(bench), "the log is small again"


def server_ms(bench: Bench) -> int:
    seconds, microseconds = bench.ask("TIME")
    return int(seconds) * 1_000 + int(microseconds) // 1_000


def test_a_runner_is_throttled_if_no_archiver_can_move_its_log(bench: Bench, objects: FileObjectStore) -> None:
    """The lock of a dead archiver expires in ten seconds. Until then nobody can move the log."""
    append(bench.store, bench.store.open(JOB, "token"), 1, MANY)
    assert bench.store.chunks.acquire_lock(JOB, "a dead archiver's", 10)

    archive(bench.store, objects, lock_seconds=10)

    assert int(bench.hash()["slow_until"]) > server_ms(bench) + 5_000
    assert len(bench.ids()) == MANY


def test_long_lines_are_read_in_small_batches(bench: Bench, objects: FileObjectStore) -> None:
    """Thousands of lines of maximum length would be hundreds of megabytes. These are 6."""
    line_bytes, attempt = 64 * 2**10, bench.store.open(JOB, "token")
    bench.store.append(attempt, [Line(each, NOW, "x" * line_bytes, "stdout") for each in range(1, 101)])
    bench.store.finish(attempt, Status.COMPLETED, 0, 0, 101)
    counts: list[int] = []
    read = bench.store.read

    class Watched(Store):
        def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
            entries = read(job, after, count)
            counts.append(len(entries))
            return entries

    store = Watched(bench.url, prefix=bench.prefix)
    assert archive(store, objects) == 0
    store.close()

    assert max(counts) * line_bytes <= 2 * 2**20
    assert line_numbers(all_entries(bench.store, objects, JOB)) == list(range(1, 101))


def test_an_archiver_waits_only_without_work(bench: Bench, objects: FileObjectStore) -> None:
    """After a step that moved lines, it takes the next one at once, although no round is due."""
    jobs = [JobRef("wf_1", f"job_{number}") for number in range(3)]
    ours = archiver(bench.store, objects, monotonic=lambda: 1.0)
    for job in jobs:
        write_ended(bench.store, job)
    while ours.step():
        pass
    assert all(bench.store.catalog.archive_state(job).complete for job in jobs)


def test_a_problem_of_a_job_is_logged_once(
    bench: Bench, objects: FileObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """However often the job is retried."""
    bench.ask("SET", bench.key("archive"), "no record")
    clock = Clock()
    ours = archiver(bench.store, objects, monotonic=clock)
    for _ in range(5):
        assert ours.run_once() == 1
        clock.now += RETRY_SECONDS + 1
    assert [record.message for record in caplog.records] == ["not archived: the job's key in the store is not a log"]


def test_a_job_whose_objects_are_refused_delays_no_others(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """A file is in place of the first job's directory. Its removal is noticed soon. The same for settings."""
    jobs = [JobRef("wf_1", f"job_{number}") for number in range(3)]
    clock = Clock()
    ours = archiver(bench.store, objects, monotonic=clock)
    for job in jobs:
        write_ended(bench.store, job)
    for workflow_id in ("wf_2", "wf_3", "wf_4"):
        bench.store.catalog.change_settings(workflow_id, job_bytes=9)
    # wf_3's watches cannot be read.
    bench.ask("SET", f"{bench.store.watches.slot}:{{wf_3}}", "foreign")
    blocked = tmp_path / "archive" / "wf_1" / "job_0"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"")
    (tmp_path / "archive" / "wf_2").write_bytes(b"")
    for expected in (False, True):
        while ours.step():
            pass
        assert [bench.store.catalog.archive_state(job).complete for job in jobs] == [expected, True, True]
        saved = {settings_name(each) for each in (["wf_2", "wf_4"] if expected else ["wf_4"])}
        assert saved == {each for each in names(objects) if each.endswith("_settings.json")}
        assert PROBE not in names(objects)
        if not expected:
            blocked.unlink()
            (tmp_path / "archive" / "wf_2").unlink()
        clock.now += LOCK_SECONDS + 1


def test_an_archive_that_is_away_is_not_tried_for_each_job(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """The error reaches the loop, which waits."""
    write_ended(bench.store)
    (tmp_path / "archive").write_bytes(b"")
    with pytest.raises(ArchiveUnavailable):
        archiver(bench.store, objects).run_once()


def test_jobs_of_a_server_that_is_busy_are_no_problem(
    bench: Bench, objects: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried again soon."""
    write_ended(bench.store)
    clock = Clock()
    ours = archiver(bench.store, objects, monotonic=clock)
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "get_jobs", lambda refs: [StoreRefused("busy") for _ in refs])
        assert ours.run_once() == 0
    assert ours.run_once() == 0
    assert not bench.store.require_job(JOB).archived
    clock.now += BUSY_SECONDS + 1
    assert ours.run_once() == 0
    assert bench.store.require_job(JOB).archived


def test_garbage_is_deleted_within_a_minute(bench: Bench, objects: FileObjectStore) -> None:
    """Even if the archiver has just checked the job's objects. Recorded objects stay, even if they are listed."""
    append(bench.store, bench.store.open(JOB, "token"), 1, MANY)
    now = [0.0]
    periodic = archiver(bench.store, objects, orphan_seconds=3_600, monotonic=lambda: now[0])
    periodic.run_once()
    left = f"{JOB.workflow_id}/{JOB.job_id}/left"
    with archive_lock(bench.store, JOB) as token:
        bench.store.chunks.begin_upload(JOB, token, left)
    objects.put(left, b"")
    recorded = {chunk.name for chunk in bench.store.chunks.chunks(JOB)}
    for name in recorded:
        bench.ask("HSET", bench.key("garbage"), name, "1")
    assert left not in [stored.name for stored, _ in orphans(bench.store, objects, time.time() + 1, DAY, age=0)]
    periodic.run_once()
    now[0] += 61
    periodic.run_once()
    assert left not in names(objects)
    assert recorded
    assert recorded <= {*names(objects)}
    assert not bench.ask("EXISTS", bench.key("garbage"))


def test_a_complete_job_is_not_swept_while_uploads_are_possible(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """It is swept once, when all unrecorded objects are garbage. A late upload counts from its own time."""
    now, late = [time.time()], f"{JOB.workflow_id}/{JOB.job_id}/late"
    write_ended(bench.store, JOB, 3)
    for seconds, swept in ((0, False), (3_500, False), (200, False), (3_700, True)):
        now[0] += seconds
        if seconds == 200:
            objects.put(late, b"")
            os.utime(tmp_path / "archive" / late, (now[0], now[0]))
        archiver(bench.store, objects, orphan_seconds=3_600, clock=lambda: now[0]).run_once()
        state = bench.store.catalog.archive_state(JOB)
        assert (state.complete, state.swept) == (True, swept)
    assert late not in names(objects)


def test_the_list_of_workflows_is_repaired(bench: Bench, tmp_path: Path) -> None:
    """Once a minute, workflows and jobs that are not listed are added, and empty workflows removed."""
    now = [1000.0]
    for workflow_id in ("wf_1", "wf_2"):
        bench.store.open(JobRef(workflow_id, "job_1"), "token")
        bench.ask("XADD", bench.key("log", JobRef(workflow_id, "job_1")), "1-0", "message", "a line")
    listed = f"{bench.prefix}:workflows"
    bench.ask("DEL", listed)
    bench.ask("ZADD", listed, 1, "empty")
    worker = archiver(bench.store, FileObjectStore(tmp_path), monotonic=lambda: now[0])

    def listed_after(seconds: float) -> set[str]:
        now[0] += seconds
        for _ in range(20):
            worker.step()
            now[0] += 0.3
        return {workflow_id for _, workflow_id in bench.store.workflows.page(None, 10)}

    # Each call makes several steps. A round takes more of them if other tests have left many keys.
    wait_until(lambda: listed_after(0) == {"wf_1", "wf_2"}, 30, "both are listed")
    listed_after(0)
    bench.ask("ZREM", listed, "wf_1")
    assert listed_after(0) == {"wf_2"}
    now[0] += 60
    wait_until(lambda: listed_after(0) == {"wf_1", "wf_2"}, 30, "both are listed again")
    before = bench.store.listing.page("wf_1", None, 10)
    bench.ask("DEL", bench.key("jobs", JobRef("wf_1", "job_1")))
    wait_until(lambda: (listed_after(60), bench.store.listing.page("wf_1", None, 10))[1] == before, 30, "and its job")
    wait_until(lambda: listed_after(60) == {"wf_1", "wf_2"}, 30, "with its workflow")


def test_an_outage_of_the_store_is_logged_once(objects: FileObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(Store("redis://127.0.0.1:1")) as store:
        waiting = archiver(store, objects)
        waiting.stop = NoDelay(limit=4)
        waiting.run()

    assert caplog.text.count("the archiver waits: the store is unreachable") == 1
