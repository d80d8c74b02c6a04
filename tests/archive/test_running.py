"""Lines of running jobs are archived by age, in few chunks, and trimmed from the store, for every kind of writer."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse import metrics
from chronoverse.archive.importing import import_jobs, wait_for_ends
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.store_history import MARK
from chronoverse.errors import ArchiveUnavailable
from chronoverse.joblog.model import Gap, JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from chronoverse.store.records import RecordBatch, RecordRun
from tests.support.archivers import all_entries, archiver, line_numbers, run_until_killed
from tests.support.bench import JOB, NOW_SECONDS, Bench, make_lines
from tests.support.parameters import long_after

#: The setting's value, and the interval between two rounds of an archiver in these tests, in seconds.
SECONDS: Final = 300.0
LOOK_SECONDS: Final = 20.0


def names(objects: FileObjectStore) -> list[str]:
    return [each.name for each in objects.list("") if each.name != MARK]


def age_garbage(bench: Bench) -> None:
    """Makes the store believe that chunks were merged an hour ago."""
    garbage = bench.ask("HGETALL", bench.key("garbage"))
    for name, mark in zip(garbage[::2], garbage[1::2], strict=True):
        bench.ask("HSET", bench.key("garbage"), name, b"merged:%d" % (int(mark.removeprefix(b"merged:")) - 3_600))


class Archiving:
    """An archiver with a round every :data:`LOOK_SECONDS`. Tests advance its clock, which also stamps the lines."""

    def __init__(self, store: Store, objects: Any, **changes: Any) -> None:
        self.now = 0.0
        self.archiver = archiver(
            store,
            objects,
            clock=lambda: NOW_SECONDS + self.now,
            monotonic=lambda: self.now,
            running_seconds=SECONDS,
            **{"orphan_seconds": 3_600, **changes},
        )

    def look(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + LOOK_SECONDS)
            # An unavailable archive is retried.
            with contextlib.suppress(ArchiveUnavailable):
                while self.archiver.step():
                    pass

    def lines(self, first: int, count: int) -> list[Line]:
        return [each._replace(timestamp=iso_timestamp(NOW_SECONDS + self.now)) for each in make_lines(first, count)]


def by_runner(bench: Bench) -> Callable[[list[Line]], object]:
    attempt = bench.store.open(JOB, "token")
    return lambda lines: bench.store.append(attempt, lines)


def by_records(bench: Bench) -> Callable[[list[Line]], object]:
    def write(lines: list[Line]) -> None:
        runs = [RecordRun(each.timestamp, each.stream, False, 0, 0, 0, [each.message.encode()]) for each in lines]
        bench.store.records.append(JOB, RecordBatch(runs, f"{lines[0].sequence_num:016x}"), 604_800)

    return write


def by_xadd(bench: Bench) -> Callable[[list[Line]], object]:
    def write(lines: list[Line]) -> None:
        for number, timestamp, message, stream, *_ in lines:
            bench.xadd(f"{number}-0", "timestamp", timestamp, "message", message, "stream", stream)

    return write


WRITERS: Final = pytest.mark.parametrize("writer", [by_runner, by_records, by_xadd])


@WRITERS
def test_lines_are_restored_after_the_store_was_emptied(
    bench: Bench, objects: FileObjectStore, writer: Callable[[Bench], Callable[[list[Line]], object]]
) -> None:
    """All lines of that age. The job is LOST after a gap, since nobody knows what followed."""
    archiving = Archiving(bench.store, objects)
    write = writer(bench)
    write(archiving.lines(1, 5))
    archiving.look(200)
    assert names(objects) == []
    write(archiving.lines(6, 5))
    archiving.look(LOOK_SECONDS * 4)
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 11)]
    archived = bench.store.require_job(JOB)
    assert archived.archived >= 5
    archiving.look(SECONDS)
    before = all_entries(bench.store, objects, JOB)
    assert len(before) == 10

    bench.ask("DEL", *bench.keys())
    store = bench.new_store(lease_seconds=0.2)
    (found,) = import_jobs(store, objects, 0.2)
    assert found.waits
    assert wait_for_ends(store, [JOB], 10) == 1
    assert all_entries(bench.store, objects, JOB)[:-1] == [*before, Gap(11, 11, "lost")]


@WRITERS
def test_an_idle_log_is_trimmed_to_one_line(
    bench: Bench, objects: FileObjectStore, writer: Callable[[Bench], Callable[[list[Line]], object]]
) -> None:
    """New lines stay for a while, for viewers who are slightly behind."""
    archiving = Archiving(bench.store, objects)
    writer(bench)(archiving.lines(1, 100))
    archiving.look(SECONDS)
    assert len(bench.ids()) == 100
    archiving.look(SECONDS)
    assert bench.ids() == ["100-0"]
    assert bench.ask("HGETALL", bench.key("garbage")) == []
    writes = bench.ask("INFO", "commandstats")
    archiving.look(3 * SECONDS)
    assert bench.ids() == ["100-0"]
    assert [each for each in writes.splitlines() if b"xtrim" in each] == [
        each for each in bench.ask("INFO", "commandstats").splitlines() if b"xtrim" in each
    ]


def test_a_slow_log_has_few_chunks(bench: Bench, objects: FileObjectStore) -> None:
    """Small parts are merged into one chunk, and each number exists once."""
    archiving = Archiving(bench.store, objects)
    write, parts = by_records(bench), 16
    for part in range(parts):
        write(archiving.lines(3 * part + 1, 3))
        archiving.look(SECONDS)
    chunks = bench.store.chunks.chunks(JOB)
    assert [(each.first, each.last, len(each.frames)) for each in chunks] == [(1, 3 * parts, 1)]
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 3 * parts + 1)]
    # Merged objects stay for an hour: a store without an append-only file may go back that far.
    assert len(names(objects)) > 1
    age_garbage(bench)
    archiving.look(2 * SECONDS)
    assert names(objects) == [chunks[0].name]


def test_a_busy_log_has_chunks_of_similar_sizes(bench: Bench, objects: FileObjectStore) -> None:
    """Large chunks are not rewritten."""
    archiving = Archiving(bench.store, objects, hot_bytes=2**40)
    attempt, number = bench.store.open(JOB, "token"), 1
    for _ in range(8):
        lines = [each._replace(message="x" * 200) for each in archiving.lines(number, 1_500)]
        number = bench.store.append(attempt, lines)
        archiving.look(SECONDS)
    chunks = bench.store.chunks.chunks(JOB)
    sizes = [each.text_size for each in chunks]
    assert all(2**20 <= each < 2**21 for each in sizes[:-1])
    assert len(sizes) <= 4
    assert max(frame.text_size for each in chunks for frame in each.frames) < 2**19
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, number)]


def test_old_timestamps_do_not_move_a_log_more_often(bench: Bench, objects: FileObjectStore) -> None:
    """The sender reads an old file, or its clock is wrong: every line seems to be months old."""
    archiving = Archiving(bench.store, objects)
    write = by_records(bench)
    for part in range(24):
        write([each._replace(timestamp="2020-01-01T00:00:00.000Z") for each in archiving.lines(part + 1, 1)])
        archiving.look(LOOK_SECONDS)
    assert 1 <= len(names(objects)) <= 24 * LOOK_SECONDS / SECONDS + 2


@pytest.mark.parametrize("clock", ["2099-01-01T00:00:00.000Z", "soon"])
def test_invalid_timestamps_delay_no_line(bench: Bench, objects: FileObjectStore, clock: str) -> None:
    """A clock is decades ahead, or a foreign runner writes invalid times."""
    archiving = Archiving(bench.store, objects)
    by_xadd(bench)([each._replace(timestamp=clock) for each in archiving.lines(1, 3)])
    archiving.look(SECONDS)
    job = bench.store.require_job(JOB)
    assert job.archived == 3


def test_two_archivers_share_the_work(bench: Bench, objects: FileObjectStore) -> None:
    """One finds the lines already moved by the other."""
    both = [Archiving(bench.store, objects), Archiving(bench.new_store(), objects)]
    write = by_records(bench)
    for part in range(24):
        write(both[0].lines(part + 1, 1))
        for each in both:
            each.look(LOOK_SECONDS)
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 25)]
    assert len(names(objects)) <= 24 * LOOK_SECONDS / SECONDS * 2 + 2


@pytest.mark.parametrize("step", long_after(2, ["put", "committed", "read", "upload begun", "read back"]))
def test_an_archiver_that_dies_during_a_merge(bench: Bench, tmp_path: Path, step: str) -> None:
    """Another one completes its work. Each number exists once."""
    objects = FileObjectStore(tmp_path)
    first = Archiving(bench.store, objects)
    write = by_xadd(bench)
    write(first.lines(1, 10))
    first.look(SECONDS)
    write(first.lines(11, 10))
    # A clock whose values are rounded when seconds are added and subtracted again.
    changes = {"running_seconds": SECONDS, "monotonic": partial(float, 3900.1234)}
    assert run_until_killed(bench.url, bench.prefix, tmp_path, step, **changes) == -9
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 21)]
    bench.ask("DEL", bench.key("sealer"))
    again = Archiving(bench.store, objects)
    again.look(SECONDS)
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 21)]
    assert [(each.first, each.last) for each in bench.store.chunks.chunks(JOB)] == [(1, 20)]
    age_garbage(bench)
    again.look(2 * SECONDS)
    assert len(names(objects)) == 1


def test_a_lost_chunk_does_not_block_later_lines(bench: Bench, objects: FileObjectStore) -> None:
    """They go into a separate chunk."""
    archiving = Archiving(bench.store, objects)
    write = by_records(bench)
    write(archiving.lines(1, 3))
    archiving.look(SECONDS)
    (lost,) = names(objects)
    objects.delete(lost)
    write(archiving.lines(4, 3))
    archiving.look(SECONDS)
    assert [(each.first, each.last) for each in bench.store.chunks.chunks(JOB)] == [(1, 3), (4, 6)]


@pytest.mark.parametrize("number", [2, 99])
def test_redacted_text_is_in_no_object_of_an_earlier_merge(bench: Bench, objects: FileObjectStore, number: int) -> None:
    """Otherwise, the objects of merged chunks are kept for an hour. A repeated redaction deletes them, too."""
    archiving = Archiving(bench.store, objects)
    write = by_records(bench)
    for part in range(5):
        write(archiving.lines(3 * part + 1, 3))
        archiving.look(SECONDS)
    assert len(names(objects)) > 1
    request = RedactionRequest(1, 3, lambda line: line.sequence_num == number, {"subject": "a", "at": "b"}, exact=True)
    result = Redaction(bench.store, objects, JOB, request).run()
    assert (result.lines, result.pending) == (number == 2, False)
    (left,) = names(objects)
    assert line_numbers(all_entries(bench.store, objects, JOB)) == [*range(1, 16)]
    assert left == bench.store.chunks.chunks(JOB)[0].name


class Away(FileObjectStore):
    """An archive that can be unavailable."""

    away = False

    def put(self, name: str, data: bytes) -> None:
        if self.away:
            raise ArchiveUnavailable("away")
        super().put(name, data)


def test_waiting_jobs_are_counted_while_the_archive_is_away(bench: Bench, tmp_path: Path) -> None:
    """A failed job still waits: an ended one since its end, a running one since it was due."""

    objects = Away(tmp_path / "archive")
    objects.away = True
    archiving = Archiving(bench.store, objects)
    by_records(bench)(archiving.lines(1, 3))
    ended = JobRef("wf_1", "ended")
    attempt = bench.store.open(ended, "token")
    bench.store.append(attempt, archiving.lines(1, 3))
    bench.store.finish(attempt, Status.COMPLETED, 0, 0, 4)
    bench.set_end_seen(1_060, ended)

    def waiting() -> tuple[float, float]:
        return metrics.ARCHIVE_WAITING._value.get(), metrics.ARCHIVE_LAG._value.get()

    archiving.look(100)
    count, lag = waiting()
    assert (count, 1_060 <= lag < 1_200) == (1, True)
    archiving.look(1_000)
    count, lag = waiting()
    assert (count, lag >= 1_060) == (2, True)
    objects.away = False
    archiving.look(SECONDS)
    assert waiting() == (0, 0)


@pytest.mark.parametrize("writer", long_after(1, [by_runner, by_records, by_xadd]))
@pytest.mark.parametrize("archived", [True, False], ids=["archived", "stored"])
def test_a_store_restored_from_an_old_copy_gets_later_merges(
    bench: Bench, objects: FileObjectStore, writer: Callable[[Bench], Callable[[list[Line]], object]], archived: bool
) -> None:
    """Its record, if any, names a deleted object: the import recognizes the job by the time of line 1."""
    archiving = Archiving(bench.store, objects)
    write = writer(bench)
    write(archiving.lines(1, 5))
    if archived:
        archiving.look(SECONDS)
    else:
        bench.ask("HDEL", bench.key("job", JOB), "created_at")  # as in a log that is written by XADD
    kept = [key for key in sorted(bench.keys()) if not key.endswith((":lease", ":sealer"))]
    copy = {key: bench.ask("DUMP", key) for key in kept}
    write(archiving.lines(6, 5))
    archiving.look(2 * SECONDS)
    before = all_entries(bench.store, objects, JOB)
    age_garbage(bench)
    archiving.look(2 * SECONDS)
    assert len(names(objects)) == 1

    bench.ask("DEL", *bench.keys())
    for key, dump in copy.items():
        bench.ask("RESTORE", key, 0, dump)
    store = bench.new_store(lease_seconds=0.2)
    (found,) = import_jobs(store, objects, 0.2)
    assert (found.problem, found.known) == ("", False)
    assert wait_for_ends(store, [JOB], 10) == 1
    assert all_entries(bench.store, objects, JOB)[:-1] == [*before, Gap(11, 11, "lost")]


def test_a_job_that_records_restarted_is_reported(bench: Bench, objects: FileObjectStore) -> None:
    """Its sender continued while the store was empty. Numbers cannot change, so the archived lines are not shown."""
    archiving = Archiving(bench.store, objects)
    # The store's clock is stopped: another job that begins at its time would be taken for the same.
    archiving.look(LOOK_SECONDS)
    by_records(bench)(archiving.lines(1, 5))
    archiving.look(SECONDS)
    assert [(each.problem, each.known) for each in import_jobs(bench.store, objects, 0.2)] == [("", True)]
    bench.ask("DEL", *bench.keys())
    by_records(bench)(archiving.lines(1, 2))
    (found,) = import_jobs(bench.store, objects, 0.2)
    assert "another job" in found.problem
    job = bench.store.require_job(JOB)
    assert (job.last, job.archived) == (2, 0)
