"""Chunks: their records and their bytes; and the object store in files."""

import hashlib
import subprocess
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
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.joblog.chunk import MAX_FRAME_BYTES, Chunk, object_name
from chronoverse.joblog.entries import RawEntry, read_entries
from chronoverse.joblog.model import End, JobRef
from tests.support.tools import tool

JOB = JobRef("wf_1", "job_1")


def raw(number: int, message: str, *more: bytes) -> RawEntry:
    """A line as the store returns it."""
    fields = [b"timestamp", b"2026-03-03T10:00:05.123Z", b"message", message.encode(), b"stream", b"stderr", *more]
    return (b"%d-0" % number, fields)


#: Entries of each kind that a log may have.
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


def test_a_chunk_has_all_entries_of_the_log_but_the_last() -> None:
    """Lines, gaps and entries out of sequence. The terminal entry stays in the store."""
    chunk, data = build_chunk(ENTRIES)
    assert (chunk.first, chunk.last, chunk.size, len(chunk.frames)) == (1, 7, len(data), 1)
    (frame,) = chunk.frames
    assert not frame.plain
    entries = list(map(decode_entry, frame_text(frame, data).splitlines()))
    assert entries == [entry for entry in read_entries(ENTRIES, 0) if not isinstance(entry, End)]


def test_frames_can_be_read_alone() -> None:
    """Each frame has the lines whose numbers its record has."""
    chunk, data = build_chunk([raw(number, f"line {number} " + "x" * 100) for number in range(1, 20_001)])
    assert len(chunk.frames) > 10
    assert [frame.first for frame in chunk.frames[1:]] == [frame.last + 1 for frame in chunk.frames[:-1]]
    for frame in chunk.frames:
        assert frame.plain
        assert frame.earliest == frame.latest == "2026-03-03T10:00:05.123Z"
        text = frame_text(frame, data)
        numbers = [orjson.loads(line)["sequence_num"] for line in text.splitlines()]
        assert numbers == list(range(frame.first, frame.last + 1))
    assert text_sha256(chunk, data) == chunk.sha256
    assert Chunk.from_json(JOB, chunk.to_json()) == chunk


def test_the_record_of_a_chunk_can_be_made_from_its_object() -> None:
    """Of all its frames, as an import without a manifest does. It also counts a message, and the bytes of all."""
    texts = [f"line {number} " + "x" * 100 if number % 3 else "" for number in range(1, 5_001)]
    chunk, data = build_chunk([raw(number, text) for number, text in enumerate(texts, 1)])
    assert len(chunk.frames) > 2
    size = sum(max(len(text), 1) for text in texts)
    assert read_chunk(JOB, chunk.name, 1, data, "") == (chunk, texts.count(""), size)


def test_the_zstd_program_decompresses_a_chunk(tmp_path: Path) -> None:
    """It writes the JSON Lines of all frames."""
    program = tool("zstd")
    chunk, data = build_chunk([raw(number, f"line {number}") for number in range(1, 9_001)])
    (tmp_path / "chunk.zst").write_bytes(data)
    output = subprocess.run([program, "-dc", tmp_path / "chunk.zst"], check=True, capture_output=True).stdout
    assert len(output) == chunk.text_size
    assert [orjson.loads(line)["sequence_num"] for line in output.splitlines()] == list(range(1, 9_001))


def test_a_changed_byte_is_noticed() -> None:
    chunk, data = build_chunk(ENTRIES)
    (frame,) = chunk.frames
    with pytest.raises(ArchiveDamaged):
        frame_text(frame, data[5:])


def test_a_frame_with_other_numbers_than_its_record_is_refused() -> None:
    """A frame of plain lines is refused when its record says another first number, with the same number of lines."""
    chunk, data = build_chunk([raw(number, f"line {number}") for number in range(1, 6)])
    (frame,) = chunk.frames
    text = frame_text(frame, data)
    assert frame.plain
    assert len(split_lines(frame, text)) == frame.last + 1 - frame.first
    with pytest.raises(ArchiveDamaged):
        split_lines(frame._replace(first=frame.first + 1, last=frame.last + 1), text)


def test_a_changed_byte_is_noticed_in_a_rewritten_chunk() -> None:
    """Any byte of any frame. The name of a rewritten chunk has the hash of its bytes, like other names."""
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


def test_objects_in_files(tmp_path: Path) -> None:
    """They are put, read in parts, listed and deleted. A job's folder is removed with its last object."""
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


def test_a_file_instead_of_the_directory_is_unavailable(tmp_path: Path) -> None:
    """No object can be put there."""
    (tmp_path / "archive").write_text("")
    with pytest.raises(ArchiveUnavailable):
        FileObjectStore(tmp_path / "archive").put("wf_1/job_1/a", b"1")


def test_a_line_that_no_frame_can_have_is_not_archived() -> None:
    """Nobody could read it back."""
    with pytest.raises(ArchiveDamaged, match="line 1 of wf_1/job_1 is too long for the archive"):
        ChunkBuilder(JOB, 1).add([raw(1, "x" * MAX_FRAME_BYTES)])
