"""Objects derived from a log, its shapes and timeline: when they are created, their contents, and their deletion."""

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from chronoverse.archive.codec import decode_lines
from chronoverse.archive.derived import DerivedBuilder, derived_names, read_shape_set, read_timeline
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.archive.retention import orphans
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.model import Line, Status, iso_timestamp
from chronoverse.joblog.shapes import ENTRY_BYTES, MAX_SET_BYTES, PackedShapes, ShapeHasher, ShapeSet
from chronoverse.joblog.timelines import MAX_TIMELINE_BYTES, Timeline, TimelineBuilder
from chronoverse.store import Store
from tests.support.archivers import DAY, append, archive, archiver, padded_lines
from tests.support.archives import archive_up_to
from tests.support.bench import JOB, Bench

MESSAGES = ["started in 12 ms", "password is hunter", "started in 13 ms", "done"]


def stamp(number: int) -> str:
    """The line's time, with each pause 2 s longer than the one before."""
    return iso_timestamp(1_772_532_005 + number**2)


def write(store: Store, messages: Iterable[str], status: Status = Status.COMPLETED) -> None:
    """Writes a job that ends with this status."""
    lines = [Line(number, stamp(number), message, "stdout") for number, message in enumerate(messages, 1)]
    store.append(attempt := store.open(JOB, "token"), lines)
    store.finish(attempt, status, 0, 0, len(lines) + 1)


def stored(store: Store, objects: FileObjectStore) -> PackedShapes | None:
    return read_shape_set(objects.get, JOB, combined_sha256(store.chunks.chunks(JOB)))


def stored_timeline(store: Store, objects: FileObjectStore) -> Timeline | None:
    return read_timeline(objects.get, JOB, combined_sha256(store.chunks.chunks(JOB)))


def timeline_of(store: Store, lines: Iterable[Line]) -> Timeline:
    """The timeline of these lines of the job, built at once."""
    job, (numbers, stamps, messages, *_) = store.get_job(JOB), zip(*lines, strict=True)
    assert job
    builder = TimelineBuilder()
    builder.add(ShapeHasher().hashes(messages), numbers, stamps)
    return Timeline.from_bytes(builder.timeline(job.finished_at).to_bytes())


def firsts(found: ShapeSet | PackedShapes | None) -> dict[int, int | None]:
    assert found is not None
    return {shape: found.first_line(shape) for shape in found.hashes}


def expected(messages: Iterable[str]) -> dict[int, int]:
    """The first line of each shape of these messages."""
    found: dict[int, int] = {}
    for number, message in enumerate(messages, 1):
        found.setdefault(ShapeHasher().hashes([message])[0], number)
    return found


def set_names(objects: FileObjectStore) -> list[str]:
    """The names of all shape sets in the archive. Each has a timeline."""
    names = [each.name for each in objects.list("")]
    sets, timelines = ([name for name in names if f"/{kind}" in name] for kind in ("shapes", "timeline"))
    assert [name.rpartition("-")[2] for name in sets] == [name.rpartition("-")[2] for name in timelines]
    return sets


def redact(store: Store, objects: FileObjectStore, number: int) -> RedactionResult:
    return Redaction(store, objects, JOB, RedactionRequest(number, number, lambda line: True, {}, True)).run()


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.LOST])
def test_an_ended_job_gets_its_set_when_it_is_archived(store: Store, objects: FileObjectStore, status: Status) -> None:
    """With the shapes of all lines and their first numbers, and nothing else."""
    write(store, MESSAGES, status)
    assert archive(store, objects) == 0
    found = stored(store, objects)
    assert firsts(found) == expected(MESSAGES)
    assert found is not None
    assert found.first_line(7) is None
    (name,) = set_names(objects)
    assert name == derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))[0]
    assert len(objects.get(name)) == 16 + 8 + ENTRY_BYTES * 3
    assert ENTRY_BYTES <= 14
    lines = [Line(number, stamp(number), message, "stdout") for number, message in enumerate(MESSAGES, 1)]
    timeline = stored_timeline(store, objects)
    assert timeline == timeline_of(store, lines)
    assert timeline.total == 15_000


@pytest.mark.parametrize("version", ["", "2", "2.1"])
def test_archives_of_earlier_versions_get_both(bench: Bench, objects: FileObjectStore, version: str) -> None:
    """By the next archiver. 0.2 created neither, a development version no timelines, another one different shapes."""
    store = bench.store
    write(store, MESSAGES)
    archive(store, objects)
    (name,) = set_names(objects)
    timeline = stored_timeline(store, objects)
    objects.delete(derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))[1])
    if not version:
        objects.delete(name)
    bench.ask("HSET", bench.key("job"), "archive_shapes", version)
    archived_at = bench.hash()["archived_at"]
    assert stored_timeline(store, objects) is None
    assert archive(store, objects) == 0
    assert set_names(objects) == [name]
    assert firsts(stored(store, objects)) == expected(MESSAGES)
    assert stored_timeline(store, objects) == timeline
    assert bench.hash()["archived_at"] == archived_at
    written = [each.written_at for each in objects.list("")]
    assert archive(store, objects) == 0
    assert [each.written_at for each in objects.list("")] == written


def test_derived_objects_of_several_chunks(store: Store, objects: FileObjectStore) -> None:
    """Some chunks were written while the job ran, so they are read again in order, one per step."""
    attempt = store.open(JOB, "token")
    lines = [line._replace(timestamp=stamp(line.sequence_num)) for line in padded_lines(1, 3_000)]
    for start in range(0, len(lines), 1_000):
        store.append(attempt, lines[start : start + 1_000])
    archive(store, objects)
    assert store.chunks.chunks(JOB)
    lines.append(Line(len(lines) + 1, stamp(len(lines) + 1), "the last one", "stdout"))
    store.append(attempt, lines[-1:])
    store.finish(attempt, Status.COMPLETED, 0, 0, len(lines) + 1)
    assert archive(store, objects) == 0
    assert len(store.chunks.chunks(JOB)) > 1
    assert firsts(stored(store, objects)) == expected(line.message for line in lines)
    assert stored_timeline(store, objects) == timeline_of(store, lines)


def test_a_redacted_text_leaves_no_trace(bench: Bench, objects: FileObjectStore) -> None:
    """The redaction deletes set and timeline, and the archiver recreates them. The shape's hash is gone."""
    store = bench.store
    write(store, MESSAGES)
    archive(store, objects)
    before = derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))
    (shape,) = ShapeHasher().hashes([MESSAGES[1]])
    timeline = stored_timeline(store, objects)
    assert timeline
    old_key = next(anchor.key for anchor in timeline.anchors if anchor.number == 2)

    def everything() -> bytes:
        """Names and bytes of all objects, and the values of the job's keys."""
        keys = bench.ask("KEYS", bench.key("*"))
        parts = [bench.ask("DUMP", key) for key in keys]
        # Timelines are compressed.
        packed = [objects.get(each.name) for each in objects.list("") if "/timeline" in each.name]
        timelines = [Timeline.from_bytes(each) for each in packed]
        parts += [anchor.key.to_bytes(6, "little") for each in timelines for anchor in each.anchors]
        return b"".join([*parts, *(each.name.encode() + objects.get(each.name) for each in objects.list(""))])

    assert shape.to_bytes(8, "little") in everything()
    assert old_key.to_bytes(6, "little") in everything()
    assert redact(store, objects, 2).pending is False
    assert set_names(objects) == []
    assert stored(store, objects) is None
    for _ in range(2):
        kept = everything()
        numbers = [
            each for order in ("little", "big") for each in (shape.to_bytes(8, order), old_key.to_bytes(6, order))
        ]
        for trace in (*numbers, str(shape).encode(), *(each.encode() for each in before)):
            assert trace not in kept
        archive(store, objects)
    assert firsts(stored(store, objects)) == expected([MESSAGES[0], "[redacted]", *MESSAGES[2:]])


@pytest.mark.parametrize("redacted", [1, 2_900])
def test_a_redaction_between_two_chunks_restarts_the_set(redacted: int, store: Store, objects: FileObjectStore) -> None:
    """The set has no trace of the old text, whether its chunk was already read or not."""
    attempt = store.open(JOB, "token")
    following = append(store, attempt, 1, 3_000)
    archive(store, objects)
    store.finish(attempt, Status.COMPLETED, 0, 0, following)
    steps = []

    def progress(done: int, total: int) -> None:
        steps.append(done == total)
        # Once all lines are moved, the next step reads the first chunk written before the end.
        if sum(steps) == 2:
            assert set_names(objects) == []
            assert redact(store, objects, redacted).pending is False

    assert archiver(store, objects).run_once(progress) == 0
    messages = [f"line {number} ".ljust(100, "x") for number in range(1, following)]
    messages[redacted - 1] = "[redacted]"
    assert firsts(stored(store, objects)) == expected(messages)


def test_an_archiver_that_has_lost_its_lock_leaves_no_set(bench: Bench, objects: FileObjectStore) -> None:
    """It hung for longer than its lock lasts, and the log was redacted before it wrote the set."""
    write(bench.store, MESSAGES)

    def redact_meanwhile(step: str) -> None:
        if step == "derived":
            names = derived_names(JOB, combined_sha256(bench.store.chunks.chunks(JOB)))
            data = [objects.get(name) for name in names]
            bench.ask("DEL", bench.key("sealer"))
            redact(bench.store, objects, 2)
            assert set_names(objects) == []
            for name, each in zip(names, data, strict=True):
                objects.put(name, each)

    archive(bench.store, objects, on_step=redact_meanwhile)
    assert not bench.store.catalog.archive_state(JOB).complete
    assert set_names(objects) == []


def test_sets_of_other_chunks_are_orphans(store: Store, objects: FileObjectStore) -> None:
    """The set of the current chunks is part of the job."""
    write(store, MESSAGES)
    archive(store, objects)
    (name,) = set_names(objects)
    end = "0" if name[-1] != "0" else "1"
    others = [each[:-1] + end for each in (name, derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))[1])]
    for other in others:
        objects.put(other, b"")
    assert [stored.name for stored, _ in orphans(store, objects, time.time() + 1, DAY, age=0)] == others


def test_an_unreadable_chunk_does_not_block_the_job(store: Store, objects: FileObjectStore) -> None:
    """It is completed without a set, and not retried."""
    attempt = store.open(JOB, "token")
    following = append(store, attempt, 1, 3_000)
    archive(store, objects)
    store.finish(attempt, Status.COMPLETED, 0, 0, following)
    objects.delete(store.chunks.chunks(JOB)[0].name)
    assert archive(store, objects) == 0
    assert store.catalog.archive_state(JOB).complete
    assert store.catalog.archive_state(JOB).has_derived
    assert set_names(objects) == []


def test_nothing_is_derived_from_a_part_of_a_chunk(store: Store, objects: FileObjectStore, tmp_path: Path) -> None:
    """The end of the last chunk is damaged, but its first lines are readable."""
    attempt = store.open(JOB, "token")
    store.append(attempt, padded_lines(1, 1_000))
    archive_up_to(store, objects, JOB, 999)
    archive_up_to(store, objects, JOB, 1_000)
    store.finish(attempt, Status.COMPLETED, 0, 0, 1_001)
    chunks = store.chunks.chunks(JOB)
    path = tmp_path / "archive" / chunks[-1].name
    builder = DerivedBuilder(JOB)
    builder.add_chunk(chunks[0], objects.get(chunks[0].name))
    path.write_bytes(b"?" * chunks[-1].size)
    with pytest.raises(ArchiveDamaged):
        builder.add_chunk(chunks[1], objects.get(chunks[1].name))
    assert builder.missing(chunks) == chunks[1:]
    assert archive(store, objects) == 0
    assert set_names(objects) == []


@pytest.mark.parametrize("text", [b"{", b"1\n", b'"message"\n', b"[]\n", b"{}{}\n"])
def test_invalid_json_lines_are_damage(text: bytes) -> None:
    """Whoever wrote them. A message that is not a string is omitted."""
    with pytest.raises(ArchiveDamaged):
        decode_lines(text)
    assert decode_lines(b'{"message":1}\n{"gap":{}}\n{"message":"a"}\n') == [{"message": "a"}]


def test_a_damaged_set_is_treated_as_missing(store: Store, objects: FileObjectStore) -> None:
    """Anybody with write access to the archive may have written it."""
    write(store, MESSAGES)
    archive(store, objects)
    (set_name,) = set_names(objects)
    name = derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))[1]
    for object_name, most, read in ((set_name, MAX_SET_BYTES, stored), (name, MAX_TIMELINE_BYTES, stored_timeline)):
        data = objects.get(object_name)
        for damaged in (b"", data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"x" * most, data + b"x"):
            objects.put(object_name, damaged)
            assert read(store, objects) is None
        objects.put(object_name, data)
        assert read(store, objects) is not None


def test_readers_find_objects_that_are_derived_later(store: Store, objects: FileObjectStore) -> None:
    """They remember an object, but not that one was missing."""
    write(store, MESSAGES)
    archive(store, objects)
    job, reader = store.require_job(JOB), ArchiveReader(objects, store.chunks.chunk)
    names = derived_names(JOB, combined_sha256(store.chunks.chunks(JOB)))
    for name, read in zip(names, (reader.shape_set, reader.timeline), strict=True):
        data = objects.get(name)
        objects.delete(name)
        assert read(job) is None
        objects.put(name, data)
        found = read(job)
        objects.delete(name)
        assert read(job) is found is not None
