"""Jobs that a store has lost are recreated from the archive: completely, once, and without affecting other jobs."""

import hashlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse.archive.chunk_writer import write_chunk
from chronoverse.archive.codec import ChunkBuilder
from chronoverse.archive.importing import Imported, import_jobs, wait_for_ends
from chronoverse.archive.job_objects import JobObjects, archive_lock
from chronoverse.archive.manifest import deletion_json, manifest_name
from chronoverse.archive.object_store import FileObjectStore, StoredObject
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.archive.retention import delete_job
from chronoverse.archive.store_history import MARK, StoreHistory
from chronoverse.archive.workflow_settings import settings_name
from chronoverse.errors import ArchiveDamaged, Deleted, Fenced, QuotaReached, StoreUnavailable
from chronoverse.history.tiered_log import LogReader
from chronoverse.joblog.chunk import Chunk, object_name, redactions_in
from chronoverse.joblog.entries import Entry
from chronoverse.joblog.model import Gap, Job, JobRef, Line, Status
from chronoverse.joblog.watches import Watch
from chronoverse.store import Store
from chronoverse.store.changes import read_change
from tests.support.archivers import DAY, all_entries, archive, line_numbers, set_ended, stepped
from tests.support.archives import archive_up_to
from tests.support.bench import JOB, NOW, Bench, make_lines, ticking, write_ended
from tests.support.commands import chronoverse_argv, environ
from tests.support.service import Service
from tests.support.waiting import wait_until

#: A job that is partly archived and has not ended.
GROWING: Final = JobRef("wf_1", "growing")
#: Longest wait of an import for a runner, in tests that do not end the lease themselves, in seconds.
LEASE_SECONDS: Final = 60.0


def timed_lines(first: int, count: int) -> list[Line]:
    """Lines of a log with one line per minute."""
    return [
        line._replace(timestamp=f"2026-03-03T{10 + line.sequence_num // 60}:{line.sequence_num % 60:02}:00.000Z")
        for line in make_lines(first, count)
    ]


def write_growing(store: Store, objects: FileObjectStore, count: int = 100) -> Any:
    """Writes a running job, archives its first 60 lines in three chunks, and returns its attempt."""
    attempt = store.open(GROWING, "token")
    store.append(attempt, timed_lines(1, count))
    for to in (20, 40, 60):
        archive_up_to(store, objects, GROWING, to, trim=True)
    return attempt


def redact(store: Store, objects: FileObjectStore, job: JobRef, number: int) -> RedactionResult:
    audit = {"at": "2026-03-03T10:00:05.123Z", "subject": "me"}
    request = RedactionRequest(number, number, lambda line: True, audit, exact=True)
    done = Redaction(store, objects, job, request).run()
    assert done.lines == 1
    return done


def put_lost(objects: FileObjectStore, first: int, last: int) -> str:
    builder = ChunkBuilder(GROWING, first)
    builder.add([(b"%d-0" % last, [b"event", b"lost", b"from", b"%d" % first])])
    chunk, data = builder.finish()
    objects.put(chunk.name, data)
    return chunk.name


def redactions(store: Store) -> int:
    job = store.require_job(GROWING)
    return job.redactions


def empty(bench: Bench) -> None:
    bench.ask("DEL", *bench.keys())


def run_import(store: Store, objects: FileObjectStore) -> list[Imported]:
    return list(import_jobs(store, objects, LEASE_SECONDS))


def made(found: list[Imported]) -> set[str]:
    return {each.job.job_id for each in found if each.job and not each.problem and not each.known}


def problems(found: list[Imported]) -> dict[str, str]:
    return {each.name: each.problem for each in found if each.problem}


def entries(store: Store, objects: FileObjectStore, job: JobRef) -> list[Entry]:
    """The job's entries without its end, which is in the store only for a while."""
    return [each for each in all_entries(store, objects, job) if isinstance(each, Line | Gap)]


def seen(store: Store, objects: FileObjectStore, *jobs: JobRef) -> list[Any]:
    """A reader's view of these jobs, their workflow, and all of their entries."""
    found = [store.get_job(job) for job in jobs]
    return [
        [job.to_json() if job else None for job in found],
        [job and (job.redactions, job.archived) for job in found],
        [entries(store, objects, job) for job in jobs],
        store.listing.page("wf_1", None, 100),
        store.workflows.page(None, 100),
        store.workflows.read(["wf_1"]),
    ]


def test_ended_jobs_are_restored(bench: Bench, objects: FileObjectStore) -> None:
    """Including foreign jobs. A second import changes nothing, and other jobs in the store are unchanged.

    The archiver recreates only missing derived objects.
    """
    jobs = [JobRef("wf_1", name) for name in ("completed", "failed", "canceled", "foreign")]
    store = bench.store
    write_ended(store, jobs[0], 300, dropped=2, labels=(("branch", "main"), ("step", "build")))
    write_ended(store, jobs[1], 20, status=Status.FAILED, exit_code=3)
    write_ended(store, jobs[2], 1, status=Status.CANCELED, exit_code=None)
    bench.xadd("2-0", "message", "the first line is missing", job=jobs[3])
    bench.xadd("3-0", "event", "end", "status", "FAILED", "exit_code", "1", job=jobs[3])
    store.get_job(jobs[3])
    assert archive(store, objects, hot_seconds=0) == 0
    before, ended_at = seen(store, objects, *jobs), [store.catalog.archive_state(job).ended_at for job in jobs]
    lost = next(each.name for each in objects.list("wf_1/failed/") if "/timeline" in each.name)
    objects.delete(lost)
    empty(bench)

    other = JobRef("wf_2", "other")
    write_ended(store, other, 5)
    other_before = [key for key in bench.snapshot() if "wf_2" in key]
    assert made(run_import(store, objects)) == {job.job_id for job in jobs}
    bench.ask("ZREM", f"{bench.prefix}:workflows", "wf_2")
    assert seen(store, objects, *jobs) == before
    assert [store.catalog.archive_state(job).ended_at for job in jobs] == ended_at, "the retention continues"
    assert [key for key in bench.snapshot() if "wf_2" in key] == other_before
    told = [read_change("wf_1", entry) for entry in bench.ask("XRANGE", bench.key("changes"), "-", "+")]
    assert {each.job.ref: each.job.to_json() for each in told} == {
        job.ref: job.to_json() for job in store.get_jobs(jobs) if isinstance(job, Job)
    }
    assert told[0].number > 1_000_000_000_000, "no number of a change that the store has lost comes again"

    snapshot = bench.snapshot()
    assert {each.known for each in run_import(store, objects)} == {True}
    assert bench.snapshot() == snapshot
    # An archiver has nothing else to do, and deletes nothing.
    assert [store.catalog.archive_state(job).has_derived for job in jobs] == [True, False, True, True]
    names = {each.name for each in objects.list("wf_1/")}
    assert archive(store, objects) == 0
    assert names | {lost} <= {each.name for each in objects.list("")}
    assert store.catalog.archive_state(jobs[1]).has_derived


@pytest.mark.parametrize("status", [Status.LOST, Status.CANCELED])
def test_a_job_without_an_end_ends_after_a_gap(bench: Bench, objects: FileObjectStore, status: Status) -> None:
    """Its runner does not return, or a client ends it. An archiver then completes the archive, and the next import
    knows the end.
    """
    store = bench.new_store(lease_seconds=1)
    attempt = write_growing(bench.store, objects)
    empty(bench)
    (found,) = run_import(store, objects)
    assert (found.job, found.waits) == (GROWING, True)
    with pytest.raises(Fenced):
        store.append(attempt, timed_lines(101, 1))

    # The lease of a job that waits for its runner expires.
    if status is Status.LOST:
        bench.expire_lease(GROWING)
    else:
        store.end(GROWING, status, None)
    assert wait_for_ends(store, [GROWING], 30) == (status is Status.LOST)
    job = store.require_job(GROWING)
    assert (job.status, job.archived, job.last) == (status, 60, 61)
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 61)]
    assert kept[-1] == Gap(61, 61, "lost")

    assert archive(store, objects, hot_seconds=0) == 0
    before_emptied = seen(store, objects, GROWING)
    assert entries(store, objects, GROWING) == kept
    empty(bench)
    assert made(run_import(store, objects)) == {"growing"}
    assert seen(store, objects, GROWING) == before_emptied


def test_a_runner_that_returns_after_the_import_continues(bench: Bench, objects: FileObjectStore) -> None:
    """Its numbers follow the archived ones. If it is lost later, no further line is reported as lost."""
    # A store with a short lease declares jobs LOST soon after a server start. The runner's own lease is longer.
    store, judge = bench.store, bench.new_store(lease_seconds=1)
    write_growing(store, objects)
    empty(bench)
    run_import(store, objects)
    attempt = store.open(GROWING, "token")
    assert (attempt.attempt, attempt.next) == (2, 61)
    store.append_lost(attempt, 61, 100)
    store.append(attempt, timed_lines(101, 10))
    assert wait_for_ends(store, [GROWING], 30) == 0
    bench.expire_lease(GROWING)
    wait_until(lambda: judge.get_job(GROWING).status is Status.LOST, 30, "it is lost")  # type: ignore[union-attr]
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 61), *range(101, 111)]
    assert [each for each in kept if isinstance(each, Gap)] == [Gap(61, 100, "lost")]


@pytest.mark.parametrize("lost", [50, 100])
@pytest.mark.parametrize("is_over", [False, True], ids=["running", "ended"])
@pytest.mark.parametrize("before", ["archived", "shrunk", "redacted", "redacted, archived", "archived, redacted"])
def test_a_runner_that_returned_before_the_import_gets_its_archived_lines(
    bench: Bench, objects: FileObjectStore, is_over: bool, before: str, lost: int
) -> None:
    """Its new log begins with lines that neither store nor runner has. The archive has some of them.

    Even if an archiver or a redaction has archived that log, whose lines can begin within an old chunk.
    """
    store = bench.store
    write_growing(store, objects)
    old = store.chunks.chunks(GROWING)[-1].name
    old_text = objects.get(old)
    redact(store, objects, GROWING, 55)
    objects.put(old, old_text)
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, lost)
    store.append(attempt, timed_lines(lost + 1, (120 if is_over else 110) - lost))
    if is_over:
        store.finish(attempt, Status.COMPLETED, 0, 0, 121)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    for each in before.split(", "):
        if each == "redacted":
            redact(store, objects, GROWING, 105)
        else:
            assert archive(store, objects, **({"running_seconds": 0} if each == "archived" else {"hot_bytes": 1})) == 0
    assert store.require_job(GROWING).archived > 100
    assert made(run_import(store, objects)) == {"growing"}
    if not is_over:
        assert store.require_job(GROWING).created_at == "2026-03-03T10:01:00.000Z"
        store.append(attempt, timed_lines(111, 10))
    assert not made(run_import(store, objects))
    if not is_over:
        store.finish(attempt, Status.COMPLETED, 0, 0, 121)
    assert archive(store, objects, hot_seconds=0) == 0
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 61), *range(max(lost, 60) + 1, 121)]
    assert [each for each in kept if isinstance(each, Gap)] == [Gap(61, lost, "lost")] * (lost > 60)
    redacted = [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"]
    assert redacted == [55, 105][: 1 + ("redacted" in before)]


def test_an_import_waits_until_a_runner_has_resent_its_lines(bench: Bench, objects: FileObjectStore) -> None:
    """Otherwise the archived lines would be lost. The wait is as long as for an absent runner."""
    store = bench.store
    write_growing(store, objects)
    write_ended(store, JobRef("wf_2", "other"), 5)
    assert archive(store, objects, hot_seconds=0) == 0
    resent = JobRef("wf_3", "resent")
    store.append(store.open(resent, "token"), timed_lines(1, 30))
    archive_up_to(store, objects, resent, 20)
    empty(bench)
    store.append(store.open(resent, "token"), timed_lines(1, 30))
    attempt = store.open(GROWING, "token")
    repeat = "its runner is still resending lines: repeat the import"
    found = import_jobs(store, objects, 0.2)
    # Jobs of other workflows do not wait.
    assert next(found).job == JobRef("wf_2", "other")
    assert next(found) == Imported(resent, known=True)
    assert [each.problem for each in found] == [repeat]
    with ThreadPoolExecutor() as pool:
        importing = pool.submit(run_import, store, objects)
        store.append_lost(attempt, 1, 25)
        store.append(attempt, timed_lines(26, 15))
        assert [each.problem for each in import_jobs(store, objects, 0.2) if not each.known] == [repeat]
        store.append(attempt, timed_lines(41, 40))
        assert made(importing.result(LEASE_SECONDS / 2)) == {"growing"}
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 81)]
    assert not [each for each in kept if isinstance(each, Gap)]
    # Also in readers that prefer the store, which has the entry about lost lines.
    read, job = LogReader(store, ArchiveReader(objects, store.chunks.chunk), 65_536), store.require_job(GROWING)
    assert line_numbers(each for batch in read(job, 81, descending=True) for each in batch.lines) == [*range(80, 0, -1)]
    assert line_numbers(each for batch in read(job, 24) for each in batch.lines) == [*range(25, 81)]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
def test_a_store_that_went_back_is_completed(bench: Bench, objects: FileObjectStore, ended: bool) -> None:
    """It has an older state of the job, which may have been declared LOST since, and redacted."""
    # As above: the runner's lease must not expire before this test ends it.
    store, judge, key = bench.store, bench.new_store(lease_seconds=1), bench.key("log", GROWING)
    attempt = write_growing(store, objects)
    old = {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in ("log", "job", "archive")}
    store.append(attempt, timed_lines(101, 100))
    archive_up_to(store, objects, GROWING, 150, trim=True)
    if ended:
        store.finish(attempt, Status.COMPLETED, 0, 0, 201)
        assert archive(store, objects, hot_seconds=0) == 0
    before = seen(store, objects, GROWING)
    bench.ask("DEL", key, *(bench.key(kind, GROWING) for kind in ("job", "archive", "lease")))
    for kind, dump in old.items():
        bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump)
    # Objects whose records the store has lost are kept until an operator confirms.
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    bench.ask("SET", bench.key("lease", GROWING), "token")
    assert problems(list(import_jobs(store, objects, 0.2))), "its runner could resend lines until its lease expires"
    bench.expire_lease(GROWING)
    wait_until(lambda: judge.get_job(GROWING).status is Status.LOST, 30, "it is lost")  # type: ignore[union-attr]
    # Archivers that nobody has stopped do not write a manifest with this end.
    assert archive(store, objects, hot_seconds=0) == 1
    if not ended:
        assert redact(store, objects, GROWING, 7).pending
    assert made(run_import(store, objects)) == {"growing"}
    if ended:
        assert seen(store, objects, GROWING) == before
    else:
        assert line_numbers(entries(store, objects, GROWING)) == [*range(1, 151)]
        job = store.require_job(GROWING)
        assert (job.status, job.archived, job.last) == (Status.RUNNING, 150, 150)
    snapshot = bench.snapshot()
    run_import(store, objects)
    assert bench.snapshot() == snapshot
    if not ended:
        StoreHistory(store, objects).confirm()
        redact(store, objects, GROWING, 8)
        recorded = {each.name for each in store.chunks.chunks(GROWING)}
        assert {each.name for each in objects.list("wf_1/growing/")} == recorded


@pytest.mark.parametrize("lost", [0, 140, 170])
def test_an_old_copy_that_a_live_runner_has_continued_is_completed(
    bench: Bench, objects: FileObjectStore, lost: int
) -> None:
    """It gets the lines that it lost, as far as the archive has them, and later redactions."""
    store = bench.store

    def copy() -> dict[str, Any]:
        return {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in ("log", "job", "archive")}

    attempt, old = write_growing(store, objects), copy()
    store.append(attempt, timed_lines(101, 100))
    archive_up_to(store, objects, GROWING, 150, trim=True)
    old, last = (old, lost + 30) if lost else (copy(), 200)
    redacted = [7, 30] if lost != 140 else []
    if redacted:
        redact(store, objects, GROWING, 7)
    for kind, dump in old.items():
        bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump, "REPLACE")
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    if lost:
        repeat = {"wf_1/growing": "its runner is still resending lines: repeat the import"}
        assert problems(list(import_jobs(store, objects, 0.2))) == repeat
        store.append_lost(attempt, 101, lost)
        store.append(attempt, timed_lines(lost + 1, 30))
    if redacted:
        found = import_jobs(store, _Redacting(store, objects), LEASE_SECONDS)
        assert problems(list(found)) == {"wf_1/growing": "its lines are being redacted: repeat the import"}
    assert made(run_import(store, objects)) == {"growing"}
    kept = entries(store, objects, GROWING)
    assert [each for each in kept if isinstance(each, Gap)] == [Gap(151, lost, "lost")] * (lost > 150)
    assert line_numbers(kept) == [*range(1, 151), *range(max(lost, 150) + 1, last + 1)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == redacted
    assert all(int(entry_id.partition("-")[0]) > 150 for entry_id in bench.ids(GROWING))
    assert {each.known for each in run_import(store, objects)} == {True}
    store.append(attempt, timed_lines(last + 1, 1))
    store.finish(attempt, Status.COMPLETED, 0, 0, last + 2)
    assert archive(store, objects, hot_seconds=0) == 0
    assert entries(store, objects, GROWING)[:-1] == kept


@pytest.mark.parametrize("redacted", [[], [45], [10, 45]], ids=["", "redacted", "redacted in both"])
@pytest.mark.parametrize("to", [50, 70])
def test_lines_that_only_the_store_has_are_archived(
    bench: Bench, objects: FileObjectStore, to: int, redacted: list[int]
) -> None:
    """An operator restores an old copy of the store, after a runner came back to an empty one without these lines."""
    store = bench.store
    store.append(store.open(GROWING, "token"), timed_lines(1, to))
    old = {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in ("log", "job")}
    if 10 in redacted:
        redact(store, objects, GROWING, 10)
        for each in objects.list("wf_1/"):
            kept_redaction = each.name, objects.get(each.name)
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 30)
    store.append(attempt, timed_lines(31, 30))
    assert archive(store, objects, running_seconds=0) == 0
    for number in redacted[-1:]:
        redact(store, objects, GROWING, number)
    if 10 in redacted:
        objects.put(*kept_redaction)
    empty(bench)
    for kind, dump in old.items():
        bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    run_import(store, objects)
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, max(to, 60) + 1)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == redacted
    assert not made(run_import(store, objects))


class _Redacting(FileObjectStore):
    """Redacts line 30 after an import has listed the objects."""

    def __init__(self, store: Store, objects: FileObjectStore) -> None:
        super().__init__(objects._directory)
        self.store = store

    def list(self, prefix: str) -> Iterator[StoredObject]:
        listed = [*super().list(prefix)]
        if not prefix:
            redact(self.store, self, GROWING, 30)
        return iter(listed)


def test_damaged_and_foreign_objects_are_reported_and_the_rest_is_imported(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    store, directory = bench.store, tmp_path / "archive"
    ids = ("good", "half_manifest", "half_chunk", "no_chunk", "another", "taken", "without_lines")
    jobs = {name: JobRef("wf_1", name) for name in ids}
    for job in jobs.values():
        write_ended(store, job, 100)
    assert archive(store, objects, hot_seconds=0) == 0
    before = seen(store, objects, jobs["good"])[2]
    chunks = {name: store.chunks.chunks(job)[0].name for name, job in jobs.items()}
    empty(bench)

    def halve(name: str) -> None:
        data = objects.get(name)
        (directory / name).write_bytes(data[: len(data) // 2])

    halve(manifest_name(jobs["half_manifest"]))
    halve(chunks["half_chunk"])
    objects.delete(chunks["no_chunk"])
    objects.put(manifest_name(jobs["another"]), objects.get(manifest_name(jobs["good"])))
    attempt = bench.new_store(clock=ticking()).open(jobs["taken"], "token")
    store.append(attempt, [Line(1, "2026-03-04T10:00:05.123Z", "another run", "stdout")])
    objects.delete(manifest_name(jobs["without_lines"]))
    write_ended(bench.new_store(clock=ticking()), jobs["without_lines"], 0)
    objects.put("README.txt", b"a note")
    objects.put("a/b/c/d", b"a tree")
    objects.put("wf_1/good/.writing-0123456789abcdef", b"half")
    objects.put("wf_1/notes/notes.txt", b"a note")

    found = run_import(store, objects)
    assert made(found) == {"good", "half_chunk", "no_chunk"}
    assert problems(found) == {
        "README.txt": "not part of an archive",
        "a/b/c/d": "not part of an archive",
        "wf_1/good/.writing-0123456789abcdef": "not part of a job, or incomplete",
        "wf_1/notes/notes.txt": "not part of a job, or incomplete",
        "wf_1/half_manifest": "the manifest of wf_1/half_manifest cannot be read",
        "wf_1/another": "the record of a chunk of wf_1/another names an object of another job",
        "wf_1/taken": "the store has another job with this id: the archived lines are not shown",
        "wf_1/without_lines": "the store has another job with this id: the archived lines are not shown",
        chunks["half_chunk"]: f"{chunks['half_chunk']} does not match what was archived",
        chunks["no_chunk"]: "the object is missing",
    }
    assert entries(store, objects, jobs["good"]) == before[0]
    assert store.require_job(jobs["without_lines"]).status is Status.COMPLETED
    # They are reported again.
    assert problems(run_import(store, objects)) == problems(found)


@pytest.mark.parametrize("then", ["waits", "is lost", "is archived"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_damaged_chunk_of_a_job_without_an_end_becomes_a_gap(
    bench: Bench, objects: FileObjectStore, tmp_path: Path, index: int, then: str
) -> None:
    """Until its object is restored and imported."""
    store = bench.store
    write_growing(store, objects)
    damaged = store.chunks.chunks(GROWING)[index]
    empty(bench)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    path = tmp_path / "archive" / damaged.name
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    found = run_import(store, objects)
    assert problems(found) == {damaged.name: f"{damaged.name} does not match what was archived"}
    kept = entries(store, objects, GROWING)
    assert [each for each in kept if isinstance(each, Gap)] == [Gap(damaged.first, damaged.last, "lost")]
    assert line_numbers(kept) == [number for number in range(1, 61) if not damaged.first <= number <= damaged.last]
    assert index == 0 or bench.hash(GROWING)["started_at"] == "2026-03-03T10:01:00.000Z"

    if then != "waits":
        store.end(GROWING, Status.LOST, None)
    if then == "is archived":
        assert archive(store, objects, hot_seconds=0) == 0
    path.write_bytes(data)
    assert made(run_import(store, objects)) == {"growing"}
    assert {each.known for each in run_import(store, objects)} == {True}
    StoreHistory(store, objects).confirm()
    if then == "waits":
        store.end(GROWING, Status.LOST, None)
    assert archive(store, objects, hot_seconds=0, clock=lambda: time.time() + DAY / 2) == 0
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 61)]
    assert [each for each in kept if isinstance(each, Gap)] == [Gap(61, 61, "lost")]


@pytest.mark.parametrize(
    ("damaged", "redacted", "gap"), [(2, 0, None), (1, 0, Gap(21, 30, "lost")), (2, 50, Gap(41, 60, "lost"))]
)
def test_a_damaged_chunk_does_not_replace_lines_that_a_runner_has_resent(
    bench: Bench, objects: FileObjectStore, tmp_path: Path, damaged: int, redacted: int, gap: Gap | None
) -> None:
    """Unless lines were redacted, whose old text must leave the store."""
    store = bench.store
    write_growing(store, objects)
    if redacted:
        redact(store, objects, GROWING, redacted)
    path = tmp_path / "archive" / store.chunks.chunks(GROWING)[damaged].name
    data = path.read_bytes()
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 30)
    store.append(attempt, timed_lines(31, 40))
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    path.write_bytes(data[:-50])
    assert made(run_import(store, objects)) == {"growing"}
    assert [each for each in entries(store, objects, GROWING) if isinstance(each, Gap)] == [gap] * bool(gap)
    assert not made(run_import(store, objects))
    path.write_bytes(data)
    run_import(store, objects)
    assert line_numbers(entries(store, objects, GROWING)) == [*range(1, 71)]


def test_a_damaged_chunk_of_an_ended_job_with_lost_lines_is_no_gap(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """Readers get an error until the object is restored, even after the store is confirmed."""
    store = bench.store
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 10)
    store.append(attempt, timed_lines(11, 90))
    store.finish(attempt, Status.COMPLETED, 0, 0, 101)
    assert archive(store, objects, hot_seconds=0) == 0
    lost, damaged = store.chunks.chunks(GROWING)
    assert lost.is_lost
    path = tmp_path / "archive" / damaged.name
    data = path.read_bytes()
    for damage in (lambda: path.write_bytes(data[:-50]), path.unlink):
        damage()
        empty(bench)
        assert problems(run_import(store, objects)).keys() == {damaged.name}
        assert store.chunks.chunks(GROWING) == [lost, damaged]
        with pytest.raises(ArchiveDamaged):
            entries(store, objects, GROWING)
    StoreHistory(store, objects).confirm()
    path.write_bytes(data)
    assert line_numbers(entries(store, objects, GROWING)) == [*range(11, 101)]


def test_an_ended_job_without_times_whose_chunk_is_missing(bench: Bench, objects: FileObjectStore) -> None:
    """Its lines have no times, or it has no lines. The missing object is reported, and the rest is imported."""
    store, jobs = bench.store, [JobRef("wf_1", name) for name in ("no_time", "no_line", "other")]
    for job, name in zip(jobs, ("message", "note", "message"), strict=True):
        bench.xadd("1-0", name, "something", job=job)
        bench.xadd("2-0", "event", "end", "status", "FAILED", job=job)
    assert archive(store, objects, hot_seconds=0) == 0
    before = seen(store, objects, jobs[2])
    gone = [store.chunks.chunks(job)[0].name for job in jobs[:2]]
    for name in gone:
        objects.delete(name)
    empty(bench)
    found = run_import(store, objects)
    assert made(found) == {job.job_id for job in jobs}
    assert problems(found) == dict.fromkeys(gone, "the object is missing")
    assert seen(store, objects, jobs[2]) == before


class _Sorted(FileObjectStore):
    """Lists objects by modification time, ascending or descending."""

    is_reversed = False

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter(sorted(super().list(prefix), key=lambda each: each.written_at, reverse=self.is_reversed))


@pytest.mark.parametrize("is_reversed", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
def test_redacted_lines_stay_redacted(bench: Bench, tmp_path: Path, ended: bool, is_reversed: bool) -> None:
    """Even if the manifest still names the object with the old text, or a larger object has it."""
    store, objects = bench.store, _Sorted(tmp_path / "archive")
    objects.is_reversed = is_reversed
    if ended:
        write_ended(store, GROWING, 100)
        assert archive(store, objects, hot_seconds=0) == 0
    else:
        write_growing(store, objects)
    old = {each.name: objects.get(each.name) for each in objects.list("wf_1/")}
    numbers = [7]
    if not ended:
        # A merge whose upload arrives late.
        numbers.append(70)
        last = store.chunks.chunks(GROWING)[-1]
        merged = ChunkBuilder(GROWING, last.first)
        merged.add_chunk(last, old[last.name])
        merged.add(store.page(GROWING, after=last.last, count=100))
        chunk, old_text = merged.finish()
        old[chunk.name] = old_text
    for number in numbers:
        redact(store, objects, GROWING, number)
    for name, data in old.items():
        objects.put(name, data)
    empty(bench)
    assert made(run_import(store, objects)) == {"growing"}
    lines = [each for each in entries(store, objects, GROWING) if isinstance(each, Line)]
    assert [each.sequence_num for each in lines if each.message == "[redacted]"] == numbers
    assert archive(store, objects, hot_seconds=0) == 0
    assert store.catalog.archive_state(GROWING).complete == ended
    known = {manifest_name(GROWING), *(each.name for each in store.chunks.chunks(GROWING))}
    assert not ({each.name for each in objects.list("wf_1/")} - known) & {*old}, "the old text is deleted"


def test_lines_uploaded_during_a_loss_are_restored(bench: Bench, objects: FileObjectStore) -> None:
    """The runner returns before the import, and reports them as lost. The archiver then loses its lock."""
    store = bench.new_store(clock=ticking())
    write_ended(store, JOB, 20)

    def lose(step: str) -> None:
        if step == "read back" and not lost:
            lost.append(True)
            empty(bench)
            attempt = store.open(JOB, "token")
            store.append_lost(attempt, 1, 20)
            store.finish(attempt, Status.COMPLETED, 0, 0, 21)

    lost: list[bool] = []
    archive(store, objects, on_step=lose)
    assert made(run_import(store, objects)) == {JOB.job_id}
    assert line_numbers(entries(store, objects, JOB)) == [*range(1, 21)]


def test_an_earlier_job_with_this_id_is_not_imported_instead(bench: Bench, objects: FileObjectStore) -> None:
    """A store was lost before. Its chunk has the same numbers, and a redacted line, which stays redacted."""
    store = bench.store
    write_ended(store, JOB, 20, text="earlier")
    archive_up_to(store, objects, JOB, 20)
    redact(store, objects, JOB, 7)
    earlier = {each.name: objects.get(each.name) for each in objects.list("wf_1/")}
    empty(bench)
    attempt = store.open(JOB, "token")
    store.append(attempt, timed_lines(1, 20))
    store.finish(attempt, Status.COMPLETED, 0, 0, 21)
    assert archive(store, objects, hot_seconds=0) == 0
    empty(bench)
    for name, data in earlier.items():
        objects.put(name, data)
    assert made(run_import(store, objects)) == {JOB.job_id}
    found = {each.message for each in entries(store, objects, JOB) if isinstance(each, Line)}
    assert found == {*(f"line {number}" for number in range(1, 21) if number != 7), "[redacted]"}


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
def test_the_number_of_redactions_never_decreases(bench: Bench, objects: FileObjectStore, ended: bool) -> None:
    """Caches use it to detect changes. No archiver visits the job between redaction and loss."""
    store = bench.store
    if ended:
        write_ended(store, GROWING, 100)
        assert archive(store, objects, hot_seconds=0) == 0
    else:
        attempt = write_growing(store, objects)
    for count, number in enumerate((7, 30, 8, 70), 1):
        redact(store, objects, GROWING, number)
        assert redactions(store) == count
        if count == 3:
            continue
        empty(bench)
        assert made(run_import(store, objects)) == {"growing"}
        assert redactions(store) == count
        if ended and count == 1:
            # The manifest has this number, and later objects have higher ones.
            assert archive(store, objects, hot_seconds=0) == 0
        if not ended and count == 2:
            # A runner that returned before the import.
            empty(bench)
            attempt = store.open(GROWING, "token")
            store.append_lost(attempt, 1, 60)
            store.append(attempt, timed_lines(61, 40))
            assert made(run_import(store, objects)) == {"growing"}
            assert redactions(store) == count


def test_a_merged_chunk_keeps_the_number_of_redactions(bench: Bench, objects: FileObjectStore) -> None:
    store = bench.store
    write_growing(store, objects)
    redact(store, objects, GROWING, 50)
    with archive_lock(store, GROWING) as token:
        to = JobObjects(store, objects, GROWING, token)
        assert write_chunk(to, store.catalog.archive_state(GROWING), 90, merge=True)
    assert [(each.first, each.last) for each in store.chunks.chunks(GROWING)] == [(1, 20), (21, 40), (41, 89)]
    for each in objects.list("wf_1/growing/"):
        if "000000000000041-000000000000060" in each.name:
            objects.delete(each.name)
    empty(bench)
    assert made(run_import(store, objects)) == {"growing"}
    assert redactions(store) == 1


@pytest.mark.parametrize("lost", ["all", "the redaction"])
def test_an_object_that_the_store_has_forgotten_is_left_to_an_import(
    bench: Bench, objects: FileObjectStore, lost: str
) -> None:
    """The store is lost before a redaction can record its object, which an import prefers to the old one."""
    store, delete = bench.store, objects.delete
    objects.delete = lambda name: (run_import(store, objects), delete(name))  # type: ignore
    write_growing(store, objects)
    chunk = store.chunks.chunks(GROWING)[1]
    with archive_lock(store, GROWING) as token, pytest.raises(StoreUnavailable):  # noqa: PT012
        to = JobObjects(store, objects, GROWING, token)
        with to.put_verified(chunk, objects.get(chunk.name), redactions=1):
            if lost == "all":
                empty(bench)
            bench.ask("DEL", bench.key("garbage", GROWING))
            # The lock is renewed.
            store.chunks.acquire_lock(GROWING, token, 10.0)
            raise StoreUnavailable
    run_import(store, objects)
    assert line_numbers(entries(store, objects, GROWING)) == [*range(1, 61 if lost == "all" else 101)]
    assert redactions_in(each.name for each in objects.list("wf_1/growing/")) == 1


@pytest.mark.parametrize("spans", [[(41, 50)], [(41, 55), (56, 58)], [(1, 70)]], ids=["shorter", "two", "longer"])
def test_a_replaced_chunk_is_not_imported_because_of_its_time(
    bench: Bench, objects: FileObjectStore, spans: list[tuple[int, int]]
) -> None:
    """The clock of the archiver that wrote the others was slow, or a runner came back without their lines."""
    write_growing(bench.store, objects, 60)
    listed, newer = objects.list, set[str]()
    for first, last in spans:
        newer.add(put_lost(objects, first, last))
    objects.list = lambda prefix: (  # type: ignore[method-assign]
        each._replace(written_at=each.written_at + 7200 * (each.name in newer)) for each in listed(prefix)
    )
    empty(bench)
    run_import(bench.store, objects)
    assert line_numbers(entries(bench.store, objects, GROWING)) == [*range(1, 61)]


def resend_from_51(store: Store, last: int) -> None:
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 50)
    store.append(attempt, timed_lines(51, last - 50))


@pytest.mark.parametrize("is_back", [False, True], ids=["before", "after"])
def test_a_quota_includes_the_archived_lines_of_a_running_job(
    bench: Bench, objects: FileObjectStore, is_back: bool
) -> None:
    """Whether its runner returns after the import or before it: then without chunks whose lines it has resent."""
    store, sizes = bench.store, [len(line.message) for line in timed_lines(1, 60)]
    write_growing(store, objects, 60)
    empty(bench)
    bound = sum(sizes[:40]) + sum(sizes[50:] if is_back else sizes[40:]) + 20
    store.catalog.change_settings("wf_1", job_bytes=bound)
    if is_back:
        resend_from_51(store, 60)
    assert made(run_import(store, objects)) == {"growing"}
    attempt = store.open(GROWING, "token")
    with pytest.raises(QuotaReached):
        store.append(attempt, timed_lines(61, 5))
    # Two lines of seven bytes.
    assert line_numbers(entries(store, objects, GROWING))[-1] == 62
    assert bench.hash(GROWING)["bytes"] == str(bound)
    # Dropped lines remain dropped. Without the quota, those that are sent again before the import are stored.
    archive_up_to(store, objects, GROWING, 65)
    empty(bench)
    if is_back:
        resend_from_51(store, 65)
    run_import(store, objects)
    assert entries(store, objects, GROWING)[-1] == Gap(63, 65, "quota")
    store.finish(store.open(GROWING, "token"), Status.COMPLETED, 0, 4, 66)
    assert bench.hash(GROWING)["dropped"] == str(3 + 4)


def test_a_log_whose_resent_lines_a_quota_dropped_can_continue(bench: Bench, objects: FileObjectStore) -> None:
    """The gap in the log then ends before the archived lines do: the last dropped numbers are only in the hash."""
    store = bench.store
    write_growing(store, objects, 60)
    empty(bench)
    store.catalog.change_settings("wf_1", job_bytes=8)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 50)
    for first in (51, 55):
        with pytest.raises(QuotaReached):
            store.append(attempt, timed_lines(first, 4 if first == 51 else 6))
    assert made(run_import(store, objects)) == {"growing"}
    store.catalog.change_settings("wf_1", job_bytes=0)
    store.append(attempt, timed_lines(61, 2))
    assert line_numbers(entries(store, objects, GROWING)) == [*range(1, 63)]


@pytest.mark.parametrize("more", [0, 20], ids=["all", "and-more"])
def test_redacted_text_that_a_runner_has_resent_is_removed(bench: Bench, objects: FileObjectStore, more: int) -> None:
    """The archive replaces it, even if it is in the log's newest entry. The runner then continues."""
    store = bench.store
    write_growing(store, objects)
    redact(store, objects, GROWING, 60)
    archived = store.require_job(GROWING).archived
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 25)
    store.append(attempt, timed_lines(26, archived - 25 + more))
    assert made(run_import(store, objects)) == {"growing"}
    store.append(attempt, timed_lines(archived + more + 1, 5))
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, archived + more + 6)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == [60]
    assert all(int(entry_id.partition("-")[0]) > archived for entry_id in bench.ids(GROWING))
    assert bench.keys_with(b"line 60") == []


@pytest.mark.parametrize("redacted", [[7], [7, 8]], ids=["before", "before and after"])
def test_redacted_text_of_a_job_that_was_resent_and_has_ended_is_removed(
    bench: Bench, objects: FileObjectStore, redacted: list[int]
) -> None:
    """No line is lost, so only an object that the store does not know tells that a line was redacted."""
    store = bench.store
    write_growing(store, objects)
    redact(store, objects, GROWING, 7)
    empty(bench)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    attempt = store.open(GROWING, "token")
    store.append(attempt, timed_lines(1, 110))
    store.finish(attempt, Status.COMPLETED, 0, 0, 111)
    assert archive(store, objects, hot_seconds=0) == 0
    for number in redacted[1:]:
        redact(store, objects, GROWING, number)
    assert made(run_import(store, objects)) == {"growing"}
    assert {each.known for each in run_import(store, objects)} == {True}
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 111)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == redacted


@pytest.mark.parametrize(
    ("archived", "first", "resent", "reason"),
    [
        ("running", 11, 1, "lost"),
        ("running", 11, 1, "missing"),
        ("ended", 1, 1, ""),
        ("ended", 11, 1, "missing"),
        ("continued", 1, 1, ""),
        ("continued", 11, 31, "lost"),
    ],
)
def test_redacted_lines_that_a_runner_has_resent_are_redacted(
    bench: Bench, objects: FileObjectStore, archived: str, first: int, resent: int, reason: str
) -> None:
    """Archive and log begin with these lines. The archived job has ended, or even continued after this end was lost."""
    store = bench.new_store(clock=ticking())

    def send(first: int, last: int) -> Any:
        attempt = store.open(GROWING, "token")
        if first > 1:
            store.append_lost(attempt, 1, first - 1, reason)
        store.append(attempt, timed_lines(first, last + 1 - first))
        return attempt

    attempt, redacted = send(first, 40), [35]
    if archived != "running":
        store.finish(attempt, Status.LOST, None, 0, 41)
    assert archive(store, objects, running_seconds=0) == 0
    redact(store, objects, GROWING, 35)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    if archived == "continued":
        empty(bench)
        send(first, 60)
        assert archive(store, objects, running_seconds=0) == 0
        redact(store, objects, GROWING, 55)
        redacted.append(55)
    empty(bench)
    attempt = send(resent, 70)
    assert made(run_import(store, objects)) == {"growing"}
    store.append(attempt, timed_lines(71, 1))
    kept = entries(store, objects, GROWING)
    # Lines that are only lost in the archive come from the log.
    assert line_numbers(kept) == [*range(resent if reason == "lost" and archived == "running" else first, 72)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == redacted


@pytest.mark.parametrize("is_archived", [False, True], ids=["store", "archive"])
def test_another_job_is_reported_if_a_log_begins_with_lost_lines(
    bench: Bench, objects: FileObjectStore, is_archived: bool
) -> None:
    """The times of the other lines differ."""
    store = bench.store
    write_growing(store, objects)
    first = next(objects.list("wf_1/growing/")).name
    empty(bench)
    attempt, begin = store.open(GROWING, "token"), 1 if is_archived else 26
    if is_archived:
        objects.delete(first)
        put_lost(objects, 1, 20)
    else:
        store.append_lost(attempt, 1, 25)
    store.append(attempt, make_lines(begin, 86 - begin, "another run's line"))
    before = seen(store, objects, GROWING)
    taken = "the store has another job with this id: the archived lines are not shown"
    assert problems(run_import(store, objects)) == {str(GROWING): taken}
    assert seen(store, objects, GROWING) == before


@pytest.mark.parametrize("is_over", [False, True], ids=["running", "ended"])
def test_lines_that_a_runner_added_after_a_lost_end_are_kept(
    bench: Bench, objects: FileObjectStore, is_over: bool
) -> None:
    """Before its end, the archive has fewer lines than the runner has resent, and one of them redacted."""
    store = bench.store
    write_ended(store, GROWING, 40, status=Status.LOST)
    assert archive(store, objects, hot_seconds=0) == 0
    redact(store, objects, GROWING, 7)
    empty(bench)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    attempt = store.open(GROWING, "token")
    store.append(attempt, make_lines(1, 45))
    if is_over:
        store.finish(attempt, Status.COMPLETED, 0, 0, 46)
    assert made(run_import(store, objects)) == {"growing"}
    assert {each.known for each in run_import(store, objects)} == {True}
    if not is_over:
        store.append(attempt, make_lines(46, 5))
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 46 if is_over else 51)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == [7]
    assert store.require_job(GROWING).status is (Status.COMPLETED if is_over else Status.RUNNING)


@pytest.mark.parametrize("store_has", ["no line", "only a lost end", "no first chunk", "a deleted chunk"])
def test_a_store_with_other_records_than_the_archive_is_completed(
    bench: Bench, objects: FileObjectStore, store_has: str
) -> None:
    """A copy from before the first line, an import while an object was missing, or a copy from before a merge."""
    store = bench.store
    attempt = write_growing(store, objects)
    chunks, kinds = store.chunks.chunks(GROWING), ("log", "job", "archive")
    old = {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in kinds}
    gone = chunks[0 if store_has == "no first chunk" else -1].name
    data = objects.get(gone)
    if store_has == "a deleted chunk":
        with archive_lock(store, GROWING) as token:
            to = JobObjects(store, objects, GROWING, token)
            assert write_chunk(to, store.catalog.archive_state(GROWING), 90, merge=True)
    if store_has in ("no first chunk", "a deleted chunk"):
        objects.delete(gone)
    empty(bench)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    if store_has == "no line":
        store.open(GROWING, "token")
        bench.ask("DEL", bench.key("lease", GROWING))
    elif store_has == "only a lost end":
        store.finish(store.open(GROWING, "token"), Status.LOST, None, 0, 1)
    elif store_has == "no first chunk":
        assert made(run_import(store, objects)) == {"growing"}
        objects.put(gone, data)
    else:
        for kind, dump in old.items():
            bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump)
        bench.ask("SET", bench.key("lease", GROWING), "token")
        store.append(attempt, timed_lines(101, 10))
    assert made(run_import(store, objects)) == {"growing"}
    last = 110 if store_has == "a deleted chunk" else 60
    assert line_numbers(entries(store, objects, GROWING)) == [*range(1, last + 1)]


def test_a_repeated_redaction_deletes_old_text_that_only_the_archive_knows(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """The store was lost while old text waited for its deletion, and the runner came back before the import."""
    store = bench.new_store(clock=ticking())
    store.append(store.open(GROWING, "token"), timed_lines(1, 30))
    archive_up_to(store, objects, GROWING, 20, trim=True)
    (chunk,) = store.chunks.chunks(GROWING)
    old, data = tmp_path / "archive" / chunk.name, objects.get(chunk.name)
    redact(store, objects, GROWING, 7)
    objects.put(chunk.name, data)
    os.utime(old, (time.time() - 7_200,) * 2)
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 25)
    store.append(attempt, timed_lines(26, 10))
    assert made(run_import(store, objects)) == {"growing"}
    redact(store, objects, GROWING, 8)
    assert not old.exists()
    assert store.require_job(GROWING).created_at == chunk.frames[0].earliest


def test_a_redaction_during_an_import_is_not_done(bench: Bench, objects: FileObjectStore) -> None:
    """It has looked for the lines in the store, and the import moved them to the archive."""
    store = bench.store
    write_growing(store, objects)
    redact(store, objects, GROWING, 7)
    empty(bench)
    attempt = store.open(GROWING, "token")
    store.append_lost(attempt, 1, 25)
    store.append(attempt, timed_lines(26, 60))
    request = RedactionRequest(30, 30, lambda line: True, {"at": "2026-03-03T10:00:05.123Z", "subject": "me"}, True)
    chunk = store.chunks.chunk

    def import_after(job: JobRef, number: int) -> Chunk | None:
        found = chunk(job, number)
        store.chunks.chunk = chunk  # type: ignore[method-assign]
        assert made(run_import(store, objects)) == {"growing"}
        return found

    store.chunks.chunk = import_after  # type: ignore[method-assign]
    done = [Redaction(store, objects, GROWING, request).run() for _ in range(2)]
    assert [(each.lines, each.pending) for each in done] == [(0, True), (1, False)]


def test_a_store_from_before_a_redaction_gets_it(bench: Bench, objects: FileObjectStore) -> None:
    """It names deleted objects, or has the old text. The archive was completed since."""
    store = bench.store
    write_ended(store, GROWING, 100)
    assert archive(store, objects) == 0
    kinds = ("log", "job", "archive")
    old = {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in kinds}
    redact(store, objects, GROWING, 7)
    assert archive(store, objects) == 0
    before = seen(store, objects, GROWING)
    bench.ask("DEL", *(bench.key(kind, GROWING) for kind in (*kinds, "audit", "garbage")))
    for kind, dump in old.items():
        bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump)
    assert redactions(store) == 0
    assert made(run_import(store, objects)) == {"growing"}
    assert seen(store, objects, GROWING) == before
    assert redactions(store) == 1
    assert not made(run_import(store, objects))
    # A redaction continues from the archive's number, whatever the store's.
    bench.ask("HDEL", bench.key("job", GROWING), "redactions")
    redact(store, objects, GROWING, 8)
    assert redactions(store) == 2


def test_a_store_whose_only_chunk_was_redacted_and_deleted_gets_the_redaction(
    bench: Bench, objects: FileObjectStore
) -> None:
    """Its log and the archive share no line. The times of the deleted chunk tell that it is the same job."""
    store = bench.new_store(clock=ticking())
    store.append(store.open(GROWING, "token"), timed_lines(1, 41))
    archive_up_to(store, objects, GROWING, 40, trim=True)
    old = {kind: bench.ask("DUMP", bench.key(kind, GROWING)) for kind in ("log", "job", "archive")}
    (chunk,) = store.chunks.chunks(GROWING)
    redact(store, objects, GROWING, 7)
    objects.delete(chunk.name)
    for kind, dump in old.items():
        bench.ask("RESTORE", bench.key(kind, GROWING), 0, dump, "REPLACE")
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    assert made(run_import(store, objects)) == {"growing"}
    kept = entries(store, objects, GROWING)
    assert line_numbers(kept) == [*range(1, 42)]
    assert [each.sequence_num for each in kept if isinstance(each, Line) and each.message == "[redacted]"] == [7]


def test_a_deleted_job_is_not_restored(bench: Bench, objects: FileObjectStore) -> None:
    """Neither from the rest of an interrupted deletion, nor from objects that a backup restored."""
    store = bench.store
    for job in (JOB, GROWING):
        write_ended(store, job, 100)
    assert archive(store, objects, hot_seconds=0) == 0
    old = {each.name: objects.get(each.name) for each in objects.list("wf_1/")}

    class Interrupted(Exception):
        pass

    def interrupt(step: str) -> None:
        if step == "object deleted":
            raise Interrupted

    with pytest.raises(Interrupted):
        delete_job(*stepped(store, objects, interrupt), JOB, tombstone_ms=60_000)
    delete_job(store, objects, GROWING, tombstone_ms=60_000)
    assert objects.get(manifest_name(JOB)).startswith(deletion_json(JOB, 0)[:60])
    # One job's tombstone is lost, and the other's objects are restored.
    keys = bench.keys()
    bench.ask("DEL", *(key for key in keys if "growing" not in key))
    for name, data in old.items():
        if "growing" in name:
            objects.put(name, data)
    found = run_import(store, objects)
    assert made(found) == set()
    assert problems(found) == {str(job): "the job was deleted, but its objects were not" for job in (JOB, GROWING)}
    assert store.get_job(JOB) is None
    with pytest.raises(Deleted):
        store.open(GROWING, "token")
    # Repeating the deletion completes it.
    delete_job(store, objects, JOB, tombstone_ms=60_000)
    assert problems(run_import(store, objects)).keys() == {str(GROWING)}


#: A workflow whose objects have names like the mark's.
LIKE_MARK: Final = f"a.{MARK}"


def own_settings(store: Store) -> dict[str, dict[str, int | None]]:
    return {each: found.own for each, found in store.catalog.settings(["wf_1", LIKE_MARK, "wf_3"]).items()}


def test_settings_of_workflows_are_restored(bench: Bench, objects: FileObjectStore) -> None:
    """Even without jobs, and of a workflow that is named like the mark. Settings changed since the loss are kept, and
    are archived only after the import.
    """
    store = bench.new_store(clock=ticking())
    store.catalog.change_settings("wf_1", retention_seconds=900, job_bytes=0)
    store.catalog.change_settings(LIKE_MARK, day_bytes=5, job_bytes=6)
    store.catalog.change_settings(LIKE_MARK, job_bytes=None)
    # As set by an earlier version.
    bench.ask("HSET", bench.key("settings", JobRef("wf_3", "")), "retention_seconds", 70)
    for _ in range(2):
        assert archive(store, objects) == 0
    before = own_settings(store)
    names = {settings_name(each) for each in before}
    assert names <= {each.name for each in objects.list("")}
    assert not {each.name for each in run_import(store, objects) if not each.known}

    empty(bench)
    objects.put(MARK, orjson.dumps({"mark": time.time() + 100}))
    store.catalog.change_settings("wf_1", job_bytes=7)
    assert archive(store, objects) == 0
    assert {each.name for each in run_import(store, objects) if not each.known} == names
    assert own_settings(store) == {**before, "wf_1": {"retention_seconds": 900, "job_bytes": 7, "day_bytes": None}}
    # A repeated import does not undo later changes.
    store.catalog.change_settings(LIKE_MARK, day_bytes=None)
    assert {each.known for each in run_import(store, objects)} == {True}
    store.catalog.change_settings(LIKE_MARK, day_bytes=5)
    objects.delete(MARK)
    # A store restored from before the change gets it, too.
    old = bench.ask("DUMP", bench.key("settings"))
    store.catalog.change_settings("wf_1", retention_seconds=None, day_bytes=8)
    assert archive(store, objects) == 0
    before = own_settings(store)
    bench.ask("RESTORE", bench.key("settings"), 0, old, "REPLACE")
    assert [each.name for each in run_import(store, objects) if not each.known] == [settings_name("wf_1")]
    assert own_settings(store) == before


#: A watch of another workflow than the one whose object contains it.
FOREIGN_WATCH = orjson.dumps(
    {"x": orjson.dumps(Watch(workflow_id="wf_2", id="x", on="end", url="https://a", secret="")).decode()}
)


@pytest.mark.parametrize(
    ("kind", "data"),
    [("settings", each) for each in (b"{", b"[]", b'{"job_bytes":-1}', b'{"job_bytes":"1"}', b'{"other":1}')]
    + [("watches", each) for each in (b"{", b"[]", b'{"x":1}', b'{"x":"{}"}', FOREIGN_WATCH)],
)
def test_invalid_settings_and_watches_are_reported(
    bench: Bench, objects: FileObjectStore, kind: str, data: bytes
) -> None:
    """The rest is still restored."""
    write_ended(bench.store, JobRef("wf_1", "zz"), 3)
    assert archive(bench.store, objects, hot_seconds=0) == 0
    empty(bench)
    objects.put(settings_name("wf_1"), b'{"job_bytes":5,"changed_ms":6}')
    objects.put(f"wf_1/_{kind}.json", data)
    found = run_import(bench.store, objects)
    name = f"wf_1/_{kind}.json"
    assert (made(found), problems(found)) == ({"zz"}, {name: f"{name} cannot be read"})
    assert bench.store.catalog.settings_of("wf_1").job_bytes == (5 if kind == "watches" else None)


def test_watches_of_workflows_are_restored(bench: Bench, objects: FileObjectStore) -> None:
    """With their secrets, but without their delivery state. Deleted and replaced watches are not restored."""
    store = bench.new_store(clock=ticking())
    watches = [
        Watch(workflow_id="wf_1", id=name, on="end", url="https://a.example/", secret=f"whsec_{name}", label={"a": "b"})
        for name in ("one", "two", "three")
    ]
    for watch in watches:
        store.watches.put(watch)
    assert archive(store, objects) == 0
    store.watches.delete("wf_1", "three")
    assert archive(store, objects) == 0

    empty(bench)
    prefix = store.watches.slot
    bench.ask("DEL", prefix, f"{prefix}:{{wf_1}}")
    assert store.watches.workflows() == []
    watches[1] = replace(watches[1], url="https://b.example/")
    store.watches.put(watches[1])
    bench.ask("DEL", prefix)
    assert {each.name for each in run_import(store, objects) if not each.known} == {settings_name("wf_1")}
    assert [each.watch for each in store.watches.read("wf_1")] == watches[:2]
    assert store.watches.workflows() == ["wf_1"]

    store.watches.delete("wf_1", "one")
    assert {each.known for each in run_import(store, objects)} == {True}
    assert [each.watch for each in store.watches.read("wf_1")] == watches[1:2]


def put_packed(objects: FileObjectStore, job: JobRef, begin: bytes, byte: bytes, count: int, end: bytes) -> str:
    """Writes a chunk with one frame of ``count`` repetitions and a matching seek table. Returns its name."""
    # Blocks of 128 KiB: type 0 has the bytes, type 1 one byte to repeat. The last one has bit 0 set.
    full, rest = divmod(count, 2**17)
    blocks = [
        (len(begin) << 3, begin),
        *[(2**17 << 3 | 2, byte)] * full,
        (rest << 3 | 2, byte),
        (len(end) << 3 | 1, end),
    ]
    frame = b"\x28\xb5\x2f\xfd\0\x38" + b"".join(head.to_bytes(3, "little") + body for head, body in blocks)
    size = len(begin) + count + len(end)
    data = frame + struct.pack("<IIIIIBI", 0x184D2A5E, 17, len(frame), size, 1, 0, 0x8F92EAB1)
    name = object_name(job, 1, 3, hashlib.sha256(data).hexdigest())
    objects.put(name, data)
    return name


@pytest.mark.long
def test_objects_that_decompress_to_gigabytes_are_reported(
    bench: Bench, objects: FileObjectStore, tmp_path: Path
) -> None:
    """With little memory, the rest is imported, even if a manifest confirms these sizes."""
    size = 1_500 * 2**20
    begin, end = Line(1, NOW, "|", "stdout").encode().split(b"|")
    bombs = {
        "one_line": (begin, b"x", size, end + b"\n"),
        "newlines": (b"", b"\n", size, b""),
        "few_newlines": (b"", b"\n", 60 * 2**20, b""),
    }
    names = [put_packed(objects, JobRef("wf_1", name), *parts) for name, parts in bombs.items()]
    store, ended = bench.store, JobRef("wf_1", "ended")
    for job in (JobRef("wf_1", "rest"), ended):
        write_ended(store, job, 3)
    assert archive(store, objects, hot_seconds=0) == 0
    name = put_packed(objects, ended, *bombs["one_line"])
    packed = len(objects.get(name))
    manifest = orjson.loads(objects.get(manifest_name(ended)))
    (record,) = manifest["chunks"]
    record |= {"object": name, "bytes": packed}
    record["frames"][0][1:3] = packed - 25, size + len(begin + end) + 1
    objects.put(manifest_name(ended), orjson.dumps(manifest))
    empty(bench)
    variables = {
        "CHRONOVERSE_URL": "",
        "CHRONOVERSE_REDIS_URL": bench.server.url,
        "CHRONOVERSE_KEY_PREFIX": bench.prefix,
        "CHRONOVERSE_ARCHIVE_URL": (tmp_path / "archive").as_uri(),
    }
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 500000; exec "$@"', "sh", *chronoverse_argv("archive", "--import")],
        env=environ(Service(tmp_path), **variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "1 job imported" in done.stdout, done.stderr
    assert all(f"{name}: {name} does not match what was archived" in done.stderr for name in names), done.stderr
    assert "wf_1/ended: the record of a chunk of wf_1/ended has sizes that no object has" in done.stderr


def test_an_end_in_the_future_is_moved_to_now(bench: Bench, objects: FileObjectStore) -> None:
    """Otherwise a wrong clock would extend the retention."""
    write_ended(bench.store)
    assert archive(bench.store, objects, hot_seconds=0) == 0
    set_ended(bench, objects, JOB, -DAY)
    empty(bench)
    assert made(run_import(bench.store, objects)) == {JOB.job_id}
    assert int(bench.hash()["end_seen_ms"]) <= 1_000 * time.time()
