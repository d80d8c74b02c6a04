"""Reading the archive from any number, in both directions, across frames and chunks, and concurrently."""

import itertools
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronoverse.archive.caches import RECORD_SECONDS
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.prefilter import matching_lines
from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.entries import Entry, RawEntry, plain_frames, read_entries
from chronoverse.joblog.events import LOG_FRAME
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Gap, JobRef, Line
from tests.support.archives import JOB, ArchiveBuilder, raw_line
from tests.support.examples import examples
from tests.support.waiting import deadline

#: Longest wait for another thread, in seconds.
PATIENCE_SECONDS = 20.0


def log_of(kinds: list[str]) -> list[RawEntry]:
    """A log with lines, missing numbers, entries without a message, and entries out of sequence."""
    entries: list[RawEntry] = []
    number = 0
    for kind in kinds:
        if kind == "out of sequence" and number:
            entries.append((b"%d-%d" % (number, len(entries) + 1), [b"message", b"out of sequence"]))
        else:
            number += 3 if kind == "gap" else 1
            message = "" if kind == "out of sequence" else "x" * 40
            entries.append((b"%d-0" % number, [b"nothing", b""]) if kind == "empty" else raw_line(number, message))
    return entries


class CountingStore(FileObjectStore):
    """A file-based object store that counts reads, and waits at a gate before it answers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self.reads += 1
        assert self.gate.wait(PATIENCE_SECONDS)
        if self.broken:
            raise ArchiveUnavailable("the archive is unavailable")
        return super().get(name, start, stop)


def by_number(entries: list[Entry]) -> list[tuple[int, object]]:
    """Each number of the entries with its line or the reason of its gap, in order."""
    found: list[tuple[int, object]] = []
    for entry in entries:
        if isinstance(entry, Line):
            found.append((entry.sequence_num, entry))
        elif isinstance(entry, Gap):
            found += [(number, entry.reason) for number in range(entry.first, entry.last + 1)]
    return found


@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(st.sampled_from(["line", "line", "line", "gap", "empty", "out of sequence"]), min_size=1, max_size=60),
    st.integers(1, 30),
    st.integers(1, 700),
    st.integers(1, 9),
    st.data(),
)
def test_any_page_in_both_directions(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    chunk_entries: int,
    frame_bytes: int,
    count: int,
    data: st.DataObject,
) -> None:
    """Read page by page from any number, each number has the same line or gap as in the whole log."""
    entries = log_of(kinds)
    builder = ArchiveBuilder.in_directory(tmp_path_factory.mktemp("archive"))
    builder.fill(entries, chunk_entries, frame_bytes)
    archive, whole = builder.reader(), by_number(list(read_entries(entries, 0)))
    position = data.draw(st.integers(0, whole[-1][0] + 1), "position")

    upwards: list[tuple[int, object]] = []
    in_time = deadline(30, "the last page")
    while in_time() and (page := archive.entries(JOB, upwards[-1][0] if upwards else position, count)):
        assert len(page) <= count
        upwards += by_number(page)
    assert upwards == whole[position:]

    downwards: list[tuple[int, object]] = []
    while in_time() and (
        page := archive.entries(JOB, downwards[-1][0] if downwards else position, count, descending=True)
    ):
        assert len(page) <= count
        for entry in page:
            downwards += reversed(by_number([entry]))
    assert downwards == whole[: max(position - 1, 0)][::-1]


@settings(deadline=None, max_examples=examples(20))
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.booleans())
def test_a_chunk_is_merged_during_a_read(
    tmp_path_factory: pytest.TempPathFactory, merged: list[bool], descending: bool
) -> None:
    """Each lookup may return the record of a small chunk, or of the larger one that also contains its lines."""
    objects = FileObjectStore(tmp_path_factory.mktemp("archive"))
    small, large = ArchiveBuilder(objects), ArchiveBuilder(objects)
    small.fill(log_of(["line"] * 30), 4, 100)
    large.fill(log_of(["line"] * 30), 12, 700)
    choice, time = itertools.cycle(merged), itertools.count(0.0, RECORD_SECONDS + 1)
    archive = ArchiveReader(
        objects, lambda job, number: (large if next(choice) else small).chunk(job, number), lambda: next(time)
    )
    position, expected = (25, [*range(24, 0, -1)]) if descending else (5, [*range(6, 31)])
    found = archive.entries(JOB, position, 100, descending=descending)
    assert [number for number, _ in by_number(found)] == expected


def test_one_read_of_long_lines_ends_early(tmp_path: Path) -> None:
    """It ends at a frame boundary, and the next read continues there, in both directions."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill([raw_line(number, "x" * 2**18) for number in range(1, 13)], 12, 2**19)
    archive = builder.reader()
    upwards, downwards = archive.entries(JOB, 0, 12), archive.entries(JOB, 13, 12, descending=True)

    assert [number for number, _ in by_number(upwards)] == [1, 2, 3, 4]
    assert [number for number, _ in by_number(archive.entries(JOB, 4, 12))] == [5, 6, 7, 8]
    assert [number for number, _ in by_number(downwards)] == [12, 11, 10, 9]


def test_entries_out_of_sequence_are_returned_upwards(tmp_path: Path) -> None:
    """After the line that they follow, if the read includes that line."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    entries = log_of(["line", "line", "out of sequence", "out of sequence", "line"])
    builder.fill(entries, 9, 100)
    assert builder.reader().entries(JOB, 0, 9) == list(read_entries(entries, 0))
    assert builder.reader().entries(JOB, 2, 9) == list(read_entries(entries[-1:], 2))


def test_plain_lines_are_the_same_bytes_as_from_the_store(tmp_path: Path) -> None:
    """Up to the requested number of lines."""
    messages = ["plain", '"quoted" \\ \x1b[31mred', "", "ü \u2028 😀", "\x00\x7f"] * 50
    entries = [raw_line(number, message) for number, message in enumerate(messages, 1)]
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill(entries, 120, 2000)
    archive, after = builder.reader(), 0
    expected = plain_frames(entries, 0)
    while lines := archive.json_lines(JOB, after, 7):
        assert len(lines) <= 7
        for line in lines:
            after += 1
            assert LOG_FRAME % (line, after) == expected[after - 1]
    assert after == len(entries)


def test_lines_with_gaps_are_left_to_entries(tmp_path: Path) -> None:
    """For a missing number or a trimmed beginning, even if all following lines are plain: the gap comes first."""
    builder = ArchiveBuilder.in_directory(tmp_path, first=4)
    builder.add([raw_line(4, "four"), raw_line(6, "six")])
    archive = builder.reader()
    assert archive.json_lines(JOB, 3, 9) == []
    assert archive.json_lines(JOB, 0, 9) == []
    entries = archive.entries(JOB, 1, 9)
    assert [each for each in entries if isinstance(each, Gap)] == [Gap(2, 3, "trimmed"), Gap(5, 5, "missing")]
    builder.chunks.clear()
    builder.add([raw_line(number, "plain") for number in (4, 5, 6)])
    archive = builder.reader()
    assert archive.json_lines(JOB, 1, 9) == []
    assert archive.json_lines(JOB, 3, 9)
    assert archive.entries(JobRef("wf_1", "job_2"), 0, 9) == []


def test_several_readers_read_a_frame_once(tmp_path: Path) -> None:
    """Readers wait for a read in progress. Later readers get everything it returned from the cache."""
    objects = CountingStore(tmp_path)
    builder = ArchiveBuilder(objects)
    builder.fill([raw_line(number, "x" * 100) for number in range(1, 101)], 100, 2000)
    archive, found = builder.reader(), []
    objects.gate.clear()
    readers = [threading.Thread(target=lambda: found.append(archive.json_lines(JOB, 0, 5))) for _ in range(8)]
    for reader in readers:
        reader.start()
    objects.gate.set()
    for reader in readers:
        reader.join(PATIENCE_SECONDS)
    assert len(found) == 8
    assert all(lines == found[0] for lines in found)
    assert [len(archive.entries(JOB, after, 9)) for after in range(91)] == [9] * 91
    assert objects.reads == 1


def test_a_failed_read_is_retried(tmp_path: Path) -> None:
    """Errors are not cached."""
    objects = CountingStore(tmp_path)
    builder = ArchiveBuilder(objects)
    builder.add([raw_line(1, "one")])
    archive = builder.reader()
    objects.broken = True
    with pytest.raises(ArchiveUnavailable):
        archive.entries(JOB, 0, 1)
    objects.broken = False
    assert len(archive.entries(JOB, 0, 1)) == 1


def test_a_replaced_chunk_is_found(tmp_path: Path) -> None:
    """Immediately after ``forget``, otherwise within about a second."""
    now = 100.0
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill([raw_line(number, f"secret {number}" + "x" * 90) for number in range(1, 11)], 20, 300)
    archive = ArchiveReader(builder.objects, builder.chunk, lambda: now)

    def message(after: int) -> str:
        (line,) = archive.entries(JOB, after, 1)
        assert isinstance(line, Line)
        return line.message

    def replace(text: str) -> None:
        before = builder.chunks.pop()
        builder.add([raw_line(number, text) for number in range(1, 11)])
        builder.objects.delete(before.name)

    assert message(0).startswith("secret 1")
    asked = builder.lookups
    assert message(1).startswith("secret 2")
    assert builder.lookups == asked

    replace("replaced")
    now += RECORD_SECONDS * 1.01
    assert message(0) == "replaced"

    replace("again")
    archive.forget(JOB)
    assert message(0) == "again"


def test_a_repaired_object_is_read_again(tmp_path: Path) -> None:
    """Without a restart."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill([raw_line(number, f"line {number}" + "x" * 90) for number in range(1, 11)], 20, 300)
    name = builder.chunks[0].name
    whole = builder.objects.get(name)
    for damaged in (b"\0" * len(whole), whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2)):
        builder.objects.put(name, damaged)
        fresh = ArchiveReader(builder.objects, builder.chunk, lambda: 100.0)
        with pytest.raises(ArchiveDamaged):
            fresh.entries(JOB, 9, 1)
        builder.objects.put(name, whole)
        for after in (9, 4, 0):
            (line,) = fresh.entries(JOB, after, 1)
            assert isinstance(line, Line)
            assert line.message.startswith(f"line {after + 1}")


@pytest.mark.parametrize("is_searched", [True, False])
def test_a_repaired_object_that_was_read_ahead_is_searched(tmp_path: Path, is_searched: bool) -> None:
    """Whether a search or another read found that it was damaged."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill([raw_line(number, f"line {number}") for number in range(1, 11)], 20, 300)
    name = builder.chunks[0].name
    whole = builder.objects.get(name)
    builder.objects.put(name, b"\0" * len(whole))
    archive = builder.reader()

    def search() -> list[int]:
        batches = archive.search(JOB, partial(matching_lines, Matcher("line")), 0)
        return [line.sequence_num for batch in batches for line in batch.lines]

    archive.read_ahead(JOB)
    with pytest.raises(ArchiveDamaged):
        search() if is_searched else archive.entries(JOB, 0, 1)
    builder.objects.put(name, whole)
    assert search() == [*range(1, 11)]


def test_a_chunk_that_is_replaced_during_a_read(tmp_path: Path) -> None:
    """Between reading its record and its object."""

    class ReplacingIndex(ArchiveBuilder):
        def chunk(self, job: JobRef, number: int) -> Chunk | None:
            found = super().chunk(job, number)
            if self.lookups == 1:
                before = self.chunks.pop()
                self.add([raw_line(1, "after")])
                self.objects.delete(before.name)
            return found

    builder = ReplacingIndex(FileObjectStore(tmp_path))
    builder.add([raw_line(1, "before")])
    (line,) = builder.reader().entries(JOB, 0, 1)
    assert isinstance(line, Line)
    assert (line.message, builder.lookups) == ("after", 2)


def test_a_missing_object_is_damage(tmp_path: Path) -> None:
    builder = ArchiveBuilder.in_directory(tmp_path)
    chunk = builder.add([raw_line(1, "one")])
    builder.objects.delete(chunk.name)
    with pytest.raises(ArchiveDamaged):
        builder.reader().entries(JOB, 0, 1)
    builder.chunks.clear()
    assert builder.reader().entries(JOB, 0, 1) == []
