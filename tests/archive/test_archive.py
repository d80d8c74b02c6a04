"""Chunks, with their records and bytes, and the file-based object store."""

import hashlib
import os
import random
import struct
import subprocess
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import orjson
import pytest

from chronoverse.archive.codec import (
    ChunkBuilder,
    decode_entry,
    frame_text,
    read_chunk,
    rewrite,
    split_lines,
    text_sha256,
)
from chronoverse.archive.manifest import Manifest
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.joblog.chunk import FRAME_BYTES, MAX_FRAME_BYTES, Chunk, object_name, redactions_in
from chronoverse.joblog.entries import Entry, RawEntry, read_entries
from chronoverse.joblog.model import MAX_NUMBER, TIMESTAMP, End, Gap, JobRef, Line
from tests.support.tools import tool

JOB = JobRef("wf_1", "job_1")
NOW = "2026-03-03T10:00:05.123Z"


def raw(number: int, message: str, *more: bytes) -> RawEntry:
    fields = [b"timestamp", NOW.encode(), b"message", message.encode(), b"stream", b"stderr", *more]
    return (b"%d-0" % number, fields)


#: Every kind of entry.
ENTRIES = [
    raw(1, "plain"),
    raw(2, 'esc \x1b[31m "quoted" \\ ü \u2028', b"partial", b"1"),
    raw(5, "after a gap"),
    (b"5-1", [b"message", b"out of sequence"]),
    (b"6-0", [b"nothing", b"to show"]),
    raw(7, "last"),
    (b"8-0", [b"event", b"end", b"status", b"COMPLETED"]),
]


def build_chunk(entries: list[RawEntry]) -> tuple[Chunk, bytes]:
    builder = ChunkBuilder(JOB, 1)
    builder.add(entries)
    return builder.finish()


def random_entries(choice: random.Random, first: int) -> list[RawEntry]:
    """About 60 entries from line ``first``: lines with various times, gaps, lost lines and entries out of sequence."""
    entries: list[RawEntry] = []
    number = first
    for _ in range(60):
        kind = choice.randrange(12)
        if kind == 0 and number > first:
            entries.append((b"%d-%d" % (number - 1, len(entries) + 1), [b"message", b"stray"]))
            continue
        if kind == 1:
            entries.append(
                (
                    b"%d-0" % (number + 2),
                    [b"event", b"lost", b"from", b"%d" % (number + 1), *choice.choice(([], [b"reason", b"quota"]))],
                )
            )
            number += 3
            continue
        number += kind == 2
        time = choice.choice([b"2026-03-03T10:00:0%d.123Z" % choice.randrange(10)] * 30 + [b"soon"])
        fields = [b"timestamp", time, b"message", b"x" * choice.randrange(40), b"stream", b"stdout"]
        entries.append((b"%d-0" % number, fields))
        number += 1
    if choice.randrange(2):
        entries.append((b"%d-99" % (number - 1), [b"message", b"stray"]))
    if choice.randrange(2):
        entries.append((b"%d-0" % number, [b"event", b"end", b"status", b"COMPLETED"]))
    return entries


def left_out(found: Sequence[Entry]) -> int:
    return sum(each.last - each.first + 1 for each in found if isinstance(each, Gap) and each.reason == "quota")


def times_of(lines: list[bytes]) -> tuple[str, str]:
    """The range of times in the record of a frame with these lines."""
    times = [each.timestamp for each in map(decode_entry, lines) if isinstance(each, Line)]
    return (min(times), max(times)) if times and all(map(TIMESTAMP.fullmatch, times)) else ("", "")


@pytest.mark.parametrize("seed", range(12))
def test_a_chunk_is_the_same_however_it_is_built_and_read(seed: int) -> None:
    """Built at once or continued, read from its object or by frames, and also after a redaction.

    It contains all of the log's entries except the terminal one.
    """
    choice = random.Random(seed)
    first = choice.choice([1, 1_000])
    entries = random_entries(choice, first)
    cut = choice.randrange(1, 60)
    before = ChunkBuilder(JOB, first)
    before.add(entries[:cut])
    # With the third size, the first part exactly fills a frame.
    frame_bytes = choice.choice([1, 300, before.added_size, 10**6])
    whole = ChunkBuilder(JOB, first, frame_bytes)
    half = ChunkBuilder(JOB, first, frame_bytes)
    whole.add(entries[:cut])
    whole.add(entries[cut:])
    half.add(entries[:cut])
    size = half.added_size
    continued = ChunkBuilder(JOB, first, frame_bytes)
    continued.add_chunk(*half.finish())
    assert continued.added_size == half.text_size == size
    continued.add(entries[cut:])
    chunk, data = whole.finish()
    assert [*continued.finish()] == [chunk, data]
    frames = [frame_text(frame, data) for frame in chunk.frames]
    assert whole.added_size == whole.text_size == chunk.text_size == sum(map(len, frames))
    assert Chunk.from_json(JOB, chunk.to_json()) == chunk
    assert (chunk.sha256, text_sha256(chunk, data)) == (hashlib.sha256(b"".join(frames)).hexdigest(),) * 2

    lines = [split_lines(frame, frame_text(frame, data[frame.offset :], frame.offset)) for frame in chunk.frames]
    found = [decode_entry(line) for each in lines for line in each]
    assert found == [each for each in read_entries(entries, first - 1, first) if not isinstance(each, End)]
    assert whole.closed == (len(found) < len([*read_entries(entries, first - 1, first)]))
    assert b"".join(line + b"\n" for each in lines for line in each) == b"".join(frames)
    assert [(frame.earliest, frame.latest) for frame in chunk.frames] == [*map(times_of, lines)]
    messages = [each.message for each in found if isinstance(each, Line)]
    equal = [each.sequence_num for each in found if isinstance(each, Line) and each.message == "x"]
    size = sum(max(len(each), 1) for each in messages)
    assert read_chunk(JOB, chunk.name, first, data, "x") == (chunk, equal, len(messages), (size, left_out(found)))
    check_frames(chunk, data, frames)
    check_rewriting(chunk, data, found, choice)
    part = range(begin := choice.randrange(first, chunk.last + 1), choice.randrange(begin, chunk.last + 1) + 1)
    builder = ChunkBuilder(JOB, begin, frame_bytes)
    builder.add_part(chunk, data, part[-1])
    kept, data = builder.finish()
    assert kept == read_chunk(JOB, kept.name, begin, data, "x")[0]
    lines = [split_lines(frame, frame_text(frame, data)) for frame in kept.frames]
    known = by_number(found)
    assert by_number([decode_entry(line) for each in lines for line in each]) == {each: known[each] for each in part}


def by_number(found: Sequence[Entry]) -> dict[int, Line | str]:
    """Each number's line, or the reason of its gap."""
    gaps = [each for each in found if isinstance(each, Gap)]
    lines = {each.sequence_num: each for each in found if isinstance(each, Line)}
    return lines | {number: each.reason for each in gaps for number in range(each.first, each.last + 1)}


def check_frames(chunk: Chunk, data: bytes, texts: list[bytes]) -> None:
    """Frames that differ from their record in one number or byte are rejected."""
    for frame, text in zip(chunk.frames, texts, strict=True):
        numbers = [
            each.last if isinstance(each, Gap) else each.sequence_num
            for each in map(decode_entry, text.splitlines())
            if isinstance(each, Gap | Line)
        ]
        assert frame.plain == (
            len(numbers) == text.count(b"\n") == frame.last + 1 - frame.first and b'{"gap"' not in text
        )
        least, most = (frame.first, frame.last) if frame.plain else (numbers[0], numbers[-1]) if numbers else (1, 0)
        if numbers:
            split_lines(frame._replace(first=least, last=most), text)
            shifts = [(1, 1), (-1, -1)] if frame.plain else [(1, 0), (0, -1)]
            for shift_first, shift_last in shifts:
                with pytest.raises(ArchiveDamaged):
                    split_lines(frame._replace(first=least + shift_first, last=most + shift_last), text)
        with pytest.raises(ArchiveDamaged):
            split_lines(frame._replace(last=frame.first - 1, plain=True), b"")
        if len(numbers) > 1:
            with pytest.raises(ArchiveDamaged):
                split_lines(frame, b"".join(reversed(text.splitlines(keepends=True))))
        for change in (-1, 1):
            with pytest.raises(ArchiveDamaged):
                frame_text(frame._replace(text_size=frame.text_size + change), data)
        with pytest.raises(ArchiveDamaged):
            frame_text(frame._replace(size=frame.size - 1), data)


def check_rewriting(chunk: Chunk, data: bytes, found: list[Entry], choice: random.Random) -> None:
    """A redaction replaces the selected lines and nothing else."""
    first = chunk.first
    numbers = range(choice.randrange(first, chunk.last), chunk.last + 1 - choice.randrange(2))
    changed = [
        each._replace(message="#") if isinstance(each, Line) and each.sequence_num in numbers and each.message else each
        for each in found
    ]
    pauses: list[int] = []
    rewritten = rewrite(
        JOB,
        chunk,
        data,
        numbers,
        lambda line: line._replace(message="#") if line.message else None,
        lambda: pauses.append(1),
    )
    assert len(pauses) == len(chunk.frames)
    if changed == found:
        assert rewritten is None
        return
    assert rewritten
    new, new_data, new_numbers = rewritten
    lines = [split_lines(frame, frame_text(frame, new_data)) for frame in new.frames]
    assert [decode_entry(line) for each in lines for line in each] == changed
    # A frame can become small. The last one can end with the same number as the one before it.
    grown = ChunkBuilder(JOB, first)
    grown.add_chunk(new, new_data)
    assert grown.finish()[0].sha256 == new.sha256
    pairs = zip(found, changed, strict=True)
    assert new_numbers == [each.sequence_num for old, each in pairs if isinstance(each, Line) and old is not each]
    messages = [each.message for each in changed if isinstance(each, Line)]
    equal = [each.sequence_num for each in changed if isinstance(each, Line) and each.message == "#"]
    size = sum(max(len(each), 1) for each in messages)
    assert read_chunk(JOB, new.name, first, new_data, "#") == (new, equal, len(messages), (size, left_out(changed)))
    with pytest.raises(ArchiveDamaged, match="does not match"):
        read_chunk(JOB, chunk.name, first, new_data, "#")


def test_a_manifest_keeps_its_objects_for_the_retention_after_the_end() -> None:
    """An end in the future is ignored."""
    kept = [Manifest(frozenset(), ended_at, {}).keeps(10.0, 100.0) for ended_at in (None, 90.0, 90.5, 100.0, 100.5)]
    assert kept == [False, False, True, True, False]


@pytest.mark.parametrize(("size", "fits"), [(2 * FRAME_BYTES, True), (2 * FRAME_BYTES + 1, False)])
def test_an_object_with_oversized_frames_is_refused(size: int, fits: bool) -> None:
    """Measured up to the frame's last line, and with room for lines that a redaction has lengthened."""
    builder = ChunkBuilder(JOB, 1, 10 * FRAME_BYTES)
    least = len(Line(1, NOW, "", "stderr").encode()) + 1
    builder.add([raw(1, "x" * (size + 1 - least)), raw(2, "last")])
    chunk, data = builder.finish()
    assert len(chunk.frames) == 1
    if fits:
        assert read_chunk(JOB, chunk.name, 1, data, "last") == (chunk, [2], 2, (size + 5 - least, 0))
        return
    with pytest.raises(ArchiveDamaged):
        read_chunk(JOB, chunk.name, 1, data, "last")


def test_the_zstd_program_decompresses_a_chunk(tmp_path: Path) -> None:
    """Its output is the JSON Lines of all frames. The chunk ends with the format's seek table."""
    program = tool("zstd")
    chunk, data = build_chunk([raw(number, f"line {number}") for number in range(1, 9_001)])
    table = [number for frame in chunk.frames for number in (frame.size, frame.text_size)]
    seek_table = struct.pack(
        f"<II{len(table)}IIBI", 0x184D2A5E, 4 * len(table) + 9, *table, len(chunk.frames), 0, 0x8F92EAB1
    )
    assert data[sum(table[::2]) :] == seek_table
    (tmp_path / "chunk.zst").write_bytes(data)
    output = subprocess.run([program, "-dc", tmp_path / "chunk.zst"], check=True, capture_output=True).stdout
    assert len(output) == chunk.text_size
    assert [orjson.loads(line)["sequence_num"] for line in output.splitlines()] == list(range(1, 9_001))


def test_a_changed_byte_is_detected_in_a_rewritten_chunk() -> None:
    """Any byte of any frame. A rewritten chunk is named by its hash, like every chunk."""
    rewritten = rewrite(JOB, *build_chunk(ENTRIES), range(2, 8), lambda line: line._replace(message="[redacted]"))
    assert rewritten
    chunk, data, numbers = rewritten
    assert numbers == [2, 5, 7]
    assert chunk.name == object_name(JOB, 1, 7, hashlib.sha256(data).hexdigest())
    assert text_sha256(chunk, data) == chunk.sha256
    (frame,) = chunk.frames
    for index in range(frame.size):
        changed = bytearray(data[: frame.size])
        changed[index] ^= 0xFF
        with pytest.raises(ArchiveDamaged):
            frame_text(frame, bytes(changed))


@pytest.mark.parametrize("counts", [(), (0,), (1,), (15, 9), (16, 0), (4_096, 255)])
def test_the_names_of_chunks_contain_the_number_of_redactions(counts: tuple[int, ...]) -> None:
    chunk, _ = build_chunk(ENTRIES)
    names = [chunk.with_unique_name("0123456789abcdef", count).name for count in counts]
    assert redactions_in([*names, "wf_1/job_1/job.json"]) == max(counts, default=0)
    assert len({*names}) == len(counts)


#: Two frames of text, and one with only out-of-sequence entries, as written by ``Chunk.to_json``.
FRAMES = [[3, 10, 20, "", "", 1], [3, 5, 30, NOW, NOW, 0], [9, 7, 40, NOW, NOW, 1]]
RECORD = {"first": 2, "last": 9, "object": "wf_1/job_1/2-9.jsonl.zst", "bytes": 99, "sha256": "a", "frames": FRAMES}


def with_frames(*changes: tuple[int, int, object]) -> dict[str, object]:
    """The record with values replaced in its frames, as triples of frame, position and value."""
    frames = [[*frame] for frame in FRAMES]
    for frame, place, value in changes:
        frames[frame][place] = value
    return {"frames": frames}


def ending_at(number: int) -> dict[str, object]:
    return {"last": number, **with_frames((2, 0, number))}


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        ({"first": 1}, {"first": 0}, "numbers that no line has"),
        ({"first": 4}, {"first": 5}, "do not follow each other"),
        (ending_at(MAX_NUMBER), ending_at(MAX_NUMBER + 1), "numbers that no line has"),
        ({}, {"last": 8}, "do not follow each other"),
        ({}, {"first": True}, "numbers that no line has"),
        ({}, {"last": 9.0}, "numbers that no line has"),
        ({}, {"frames": []}, "do not follow each other"),
        (with_frames((1, 0, 9)), with_frames((1, 0, 10)), "do not follow each other"),
        (with_frames((1, 0, 3)), with_frames((1, 0, 2)), "do not follow each other"),
        ({}, with_frames((0, 0, -1)), "numbers that no line has"),
        ({"bytes": 0}, {"bytes": -1}, "sizes that no object has"),
        ({"bytes": MAX_NUMBER}, {"bytes": MAX_NUMBER + 1}, "sizes that no object has"),
        ({}, {"bytes": "9"}, "sizes that no object has"),
        (with_frames((1, 1, 0)), with_frames((1, 1, -1)), "sizes that no object has"),
        (with_frames((1, 2, MAX_FRAME_BYTES)), with_frames((1, 2, MAX_FRAME_BYTES + 1)), "sizes that no object has"),
        ({"sha256": ""}, {"sha256": None}, "other values where texts should be"),
        (with_frames((1, 3, "")), with_frames((1, 3, 7)), "other values where texts should be"),
        (with_frames((1, 4, "")), with_frames((1, 4, None)), "other values where texts should be"),
        ({"object": "wf_1/job_1/a"}, {"object": "wf_1/job_2/a"}, "an object of another job"),
        ({"object": "wf_1/job_1/..."}, {"object": "wf_1/job_1/.."}, "an object of another job"),
        ({"object": "wf_1/job_1/" + "a" * 200}, {"object": "wf_1/job_1/" + "a" * 201}, "an object of another job"),
        ({}, {"object": "wf_1/job_1/a/b"}, "an object of another job"),
        ({}, {"frames": [[3, 10]]}, "cannot be read"),
        ({}, {"first": "2"}, "numbers that no line has"),
    ],
)  # fmt: skip
def test_an_impossible_record_is_refused(good: dict[str, object], bad: dict[str, object], why: str) -> None:
    """Anybody may have written it. The nearest valid record is read unchanged."""
    chunk = Chunk.from_json(JOB, orjson.dumps({**RECORD, **good}))
    assert Chunk.from_json(JOB, chunk.to_json()) == chunk
    assert orjson.loads(chunk.to_json()) == {**RECORD, **good}
    offsets = [0, *accumulate(frame.size for frame in chunk.frames)]
    assert [frame.offset for frame in chunk.frames] == offsets[:-1]
    with pytest.raises(ArchiveDamaged, match=why):
        Chunk.from_json(JOB, orjson.dumps({**RECORD, **bad}))


def test_objects_in_files(tmp_path: Path) -> None:
    """Written, partially read, listed and deleted. A job's folder is removed with its last object."""
    objects = FileObjectStore(tmp_path / "archive")
    assert list(objects.list("wf_1/job_1/")) == []
    objects.put("wf_1/job_1/a", b"0123456789")
    objects.put("wf_1/job_1/a", b"0123456789")
    objects.put("wf_1/job_10/b", b"")
    assert objects.get("wf_1/job_1/a", 2, 5) == b"234"
    assert objects.get("wf_1/job_1/a", 8) == b"89"
    assert [(each.name, each.size) for each in objects.list("wf_1/job_1/")] == [("wf_1/job_1/a", 10)]
    objects.delete("wf_1/job_1/a")
    objects.delete("wf_1/job_1/a")
    assert not (tmp_path / "archive" / "wf_1" / "job_1").exists()
    assert (tmp_path / "archive" / "wf_1" / "job_10" / "b").exists()
    with pytest.raises(ArchiveDamaged):
        objects.get("wf_1/job_1/a")


def test_an_object_is_synced_with_all_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could undo its name, although its lines have left the store, or its deletion."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    objects = FileObjectStore(tmp_path / "archive")
    objects.put("wf_1/job_1/a", b"a")
    folder = tmp_path / "archive" / "wf_1" / "job_1"
    assert Path(synced[0]).parent == folder
    assert synced[1:] == [str(each) for each in (folder, *folder.parents[:3])]
    synced.clear()
    objects.delete("wf_1/job_1/a")
    assert synced == [str(folder)]
    # Deleted before its folder is synced.
    rename = Path.rename

    def rename_and_delete(draft: Path, path: Path) -> None:
        rename(draft, path)
        objects.delete("wf_1/job_1/a")

    monkeypatch.setattr(Path, "rename", rename_and_delete)
    with pytest.raises(ArchiveUnavailable, match="deleted while"):
        objects.put("wf_1/job_1/a", b"a")


def test_a_file_instead_of_the_directory_is_unavailable(tmp_path: Path) -> None:
    """Nothing can be written there."""
    (tmp_path / "archive").write_text("")
    with pytest.raises(ArchiveUnavailable):
        FileObjectStore(tmp_path / "archive").put("wf_1/job_1/a", b"1")


def test_an_oversized_line_is_not_archived() -> None:
    """It could not be read back. A line of exactly the maximum size can."""
    least = len(Line(1, NOW, "", "stderr").encode()) + 1
    builder = ChunkBuilder(JOB, 1)
    builder.add([raw(1, "x" * (MAX_FRAME_BYTES - least))])
    chunk, data = builder.finish()
    assert len(frame_text(chunk.frames[0], data)) == MAX_FRAME_BYTES
    with pytest.raises(ArchiveDamaged, match="line 1 of wf_1/job_1 is too long for the archive"):
        ChunkBuilder(JOB, 1).add([raw(1, "x" * (MAX_FRAME_BYTES - least + 1))])
