"""The set of a log's shapes: when it is made, what it holds, and that redaction and deletion reach it."""

import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from chronoverse.archive.codec import decode_lines
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.archive.retention import delete_job, orphans
from chronoverse.archive.shape_sets import read_shape_set, shape_set_name
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.model import Line, Status
from chronoverse.joblog.shapes import MAX_SET_BYTES, MAX_SHAPES, ShapeHasher, ShapeSet
from chronoverse.store import Store
from tests.support.archivers import DAY, append, archive, archiver
from tests.support.bench import JOB, NOW, Bench

MESSAGES = ["started in 12 ms", "password is hunter", "started in 13 ms", "done"]


@pytest.fixture
def objects(tmp_path: Path) -> FileObjectStore:
    """An empty archive."""
    return FileObjectStore(tmp_path / "archive")


def write(store: Store, messages: Iterable[str], status: Status = Status.COMPLETED) -> None:
    """Writes a job that ends with that status."""
    lines = [Line(number, NOW, message, "stdout") for number, message in enumerate(messages, 1)]
    store.append(attempt := store.open(JOB, "token"), lines)
    store.finish(attempt, status, 0, 0, len(lines) + 1)


def stored(store: Store, objects: FileObjectStore) -> ShapeSet | None:
    """The stored set of the job's shapes."""
    return read_shape_set(objects, JOB, store.chunks.chunks(JOB))


def set_names(objects: FileObjectStore) -> list[str]:
    """The names of all sets in the archive."""
    return [each.name for each in objects.list("") if re.search("/shapes[0-9]+-", each.name)]


def redact(store: Store, objects: FileObjectStore, number: int) -> RedactionResult:
    """Redacts one line."""
    return Redaction(store, objects, JOB, RedactionRequest(number, number, lambda line: True, {}, True)).run()


def test_a_completed_job_gets_its_set_when_it_is_archived(store: Store, objects: FileObjectStore) -> None:
    """It has the shapes of all lines, and nothing else."""
    write(store, MESSAGES)
    assert archive(store, objects) == 0
    found = stored(store, objects)
    assert found is not None
    assert found.hashes == set(ShapeHasher().hashes(MESSAGES))
    assert len(found.hashes) == 3
    assert set_names(objects) == [shape_set_name(JOB, store.chunks.chunks(JOB))]


def test_the_set_of_several_chunks(store: Store, objects: FileObjectStore) -> None:
    """Each chunk is one step. No other archiver needs to continue where this one is."""
    attempt = store.open(JOB, "token")
    following = append(store, attempt, 1, 12_000)
    archive(store, objects)
    store.append(attempt, [Line(following, NOW, "the last one", "stdout")])
    store.finish(attempt, Status.COMPLETED, 0, 0, following + 1)
    assert archive(store, objects) == 0
    assert len(store.chunks.chunks(JOB)) > 1
    found = stored(store, objects)
    assert found is not None
    padded = {f"line {'1' * digits} ".ljust(100, "x") for digits in range(1, 6)}
    assert found.hashes == set(ShapeHasher().hashes(["the last one", *padded]))


def test_other_jobs_get_none(store: Store, objects: FileObjectStore) -> None:
    """Only good runs are compared with, unless somebody names another one."""
    write(store, MESSAGES, Status.FAILED)
    assert archive(store, objects) == 0
    assert store.catalog.archive_state(JOB).complete
    assert set_names(objects) == []
    assert stored(store, objects) is None


def test_nothing_of_a_redacted_text_is_left(store: Store, objects: FileObjectStore) -> None:
    """The redaction deletes the set, and the archiver makes a new one."""
    write(store, MESSAGES)
    archive(store, objects)
    (before,) = set_names(objects)
    assert redact(store, objects, 2).pending is False
    assert set_names(objects) == []
    assert stored(store, objects) is None
    archive(store, objects)
    (after,) = set_names(objects)
    assert after != before
    found = stored(store, objects)
    assert found is not None
    assert found.hashes == set(ShapeHasher().hashes(["started in 1 s", "[redacted]", "done"]))


@pytest.mark.parametrize("redacted", [1, 11_000])
def test_a_redaction_between_two_chunks_begins_the_set_anew(
    redacted: int, store: Store, objects: FileObjectStore
) -> None:
    """The set has nothing of the old text, whether its chunk was read before or not."""
    attempt = store.open(JOB, "token")
    following = append(store, attempt, 1, 12_000)
    archive(store, objects)
    store.finish(attempt, Status.COMPLETED, 0, 0, following)
    steps = []

    def progress(done: int, total: int) -> None:
        steps.append(done == total)
        # When all lines are moved, one step finds out which chunks there are, and the next one reads the first of them.
        if sum(steps) == 3:
            assert set_names(objects) == []
            assert redact(store, objects, redacted).pending is False

    assert archiver(store, objects).run_once(progress) == 0
    assert sum(steps) > 4
    found = stored(store, objects)
    assert found is not None
    padded = {f"line {'1' * digits} ".ljust(100, "x") for digits in range(1, 6)}
    assert found.hashes == set(ShapeHasher().hashes(["[redacted]", *padded]))


def test_an_archiver_that_has_lost_its_lock_leaves_no_set(bench: Bench, objects: FileObjectStore) -> None:
    """It stood still for longer than its lock lasts, and somebody has redacted the log before the set was written."""
    write(bench.store, MESSAGES)

    def redact_meanwhile(step: str) -> None:
        if step == "shapes":
            (name,) = set_names(objects)
            data = objects.get(name)
            bench.ask("DEL", bench.key("sealer"))
            redact(bench.store, objects, 2)
            assert set_names(objects) == []
            objects.put(name, data)

    archive(bench.store, objects, on_step=redact_meanwhile)
    assert not bench.store.catalog.archive_state(JOB).complete
    assert set_names(objects) == []


def test_a_deletion_reaches_the_set(store: Store, objects: FileObjectStore) -> None:
    """It is in the job's folder."""
    write(store, MESSAGES)
    archive(store, objects)
    assert set_names(objects)
    delete_job(store, objects, JOB)
    assert list(objects.list("")) == []


def test_orphans_are_sets_that_do_not_follow_from_the_jobs_chunks(store: Store, objects: FileObjectStore) -> None:
    """The one that does is part of its job."""
    write(store, MESSAGES)
    archive(store, objects)
    (name,) = set_names(objects)
    other = name[:-1] + ("0" if name[-1] != "0" else "1")
    objects.put(other, b"")
    assert [stored.name for stored, _ in orphans(store, objects, time.time() + 1, DAY, age=0)] == [other]


def test_a_chunk_that_cannot_be_read_does_not_hold_up_the_job(store: Store, objects: FileObjectStore) -> None:
    """It is completed without a set."""
    write(store, MESSAGES)

    def lose(step: str) -> None:
        if step == "committed":
            objects.delete(store.chunks.chunks(JOB)[0].name)

    assert archive(store, objects, on_step=lose) == 0
    assert store.catalog.archive_state(JOB).complete
    assert set_names(objects) == []


@pytest.mark.parametrize("text", [b"{", b"1\n", b'"message"\n', b"[]\n", b"{}{}\n"])
def test_what_is_no_json_lines_is_damaged(text: bytes) -> None:
    """Whoever wrote it. A message that is no text is left out."""
    with pytest.raises(ArchiveDamaged):
        decode_lines(text)
    assert decode_lines(b'{"message":1}\n{"gap":{}}\n{"message":"a"}\n') == [{"message": "a"}]


def test_a_damaged_set_counts_as_missing(store: Store, objects: FileObjectStore) -> None:
    """Anybody who may write to the archive may have written it."""
    write(store, MESSAGES)
    archive(store, objects)
    (name,) = set_names(objects)
    data = objects.get(name)
    for damaged in (b"", data[:-1], data[:-1] + b"x", b"x" * MAX_SET_BYTES, data + b"x"):
        objects.put(name, damaged)
        assert stored(store, objects) is None
    objects.put(name, data)
    assert stored(store, objects) is not None


def test_a_set_survives_being_packed() -> None:
    """Also an empty one, and one of a log with too many shapes."""
    found = ShapeSet()
    assert ShapeSet.from_bytes(found.to_bytes()).hashes == set()
    found.add([3, 2**64 - 1, 0])
    assert ShapeSet.from_bytes(found.to_bytes()).hashes == {0, 3, 2**64 - 1}
    assert not ShapeSet.from_bytes(found.to_bytes()).is_full
    found.add(range(MAX_SHAPES - 2))
    assert (len(found.hashes), found.is_full) == (MAX_SHAPES - 1, False)
    found.add([MAX_SHAPES, MAX_SHAPES + 1])
    assert (found.hashes, found.is_full) == (set(), True)
    found.add([1])
    assert (found.hashes, found.is_full) == (set(), True)
    assert ShapeSet.from_bytes(found.to_bytes()).is_full


def test_the_name_follows_from_the_text(store: Store, objects: FileObjectStore) -> None:
    """So a set is never taken for that of another text."""
    write(store, MESSAGES)
    archive(store, objects)
    chunks = store.chunks.chunks(JOB)
    assert combined_sha256(chunks)[:32] in shape_set_name(JOB, chunks)
