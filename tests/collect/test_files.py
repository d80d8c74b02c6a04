"""A log's files while they are rotated like by the kubelet."""

import gzip
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.collect import files
from chronoverse.collect.files import LogFiles, Position
from tests.collect.node import ContainerWriter, cri_line, pod, rotate
from tests.support.reading import Clock

AT: Final = 1_772_532_005.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(tmp_path: Path) -> ContainerWriter:
    return ContainerWriter(tmp_path, pod("one"))


Reader = Callable[..., LogFiles]


@pytest.fixture
def reader(writer: ContainerWriter, clock: Clock) -> Iterator[Reader]:
    """Opens the writer's files, and closes them at the end."""
    made: list[LogFiles] = []

    def make(position: Position | None = None) -> LogFiles:
        made.append(LogFiles(writer.path, position.order if position else (), clock))
        return made[-1]

    yield make
    for each in made:
        each.close()
    writer.close()


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Not what a link leads to, such as the agent's token. A pipe would block."""
    (tmp_path / "token").write_bytes(cri_line("secret"))
    (tmp_path / "0.log").symlink_to(tmp_path / "token")
    (tmp_path / "1.log.20260303-100000.gz").symlink_to(tmp_path / "token")
    (tmp_path / "2.log").mkdir()
    os.mkfifo(tmp_path / "3.log")
    for number in range(4):
        with pytest.raises(OSError, match="not a regular file"):
            LogFiles(tmp_path / f"{number}.log").read()


def position_of(source: LogFiles, unused: int = 0) -> Position:
    position = source.position(unused)
    assert position is not None
    return position


def numbered(first: int, count: int = 3, at: float = AT) -> bytes:
    return b"".join(cri_line(f"line {number}", at=at + number) for number in range(first, first + count))


def read_all(source: LogFiles, clock: Clock) -> bytes:
    """Everything available now, with ``?`` for each gap. A silent file counts as complete."""
    data, silent = b"", 0
    while silent < 8:
        data += b"?" if source.take_gap() else b""
        found = source.read()
        data += found or b""
        silent = 0 if found else silent + 1
        clock.now += files.SETTLE_SECONDS / 2
    return data


def test_all_files_are_read_from_the_oldest(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """Including compressed ones, but not one being compressed."""
    for number in range(4):
        writer.write(numbered(10 * number))
        rotate(writer, now=AT + number)
    writer.write(numbered(40))
    writer.path.with_name("0.log.20260303-100005.gz.tmp").write_bytes(b"rubbish")
    (writer.path.parent / "1.log").write_bytes(b"another run")

    assert {path.suffix for path in writer.path.parent.glob("0.log.*")} == {".gz", ".20260303-100008", ".tmp"}
    assert read_all(reader(), clock) == b"".join(numbered(10 * each) for each in range(5))


def test_a_failed_rotation_changes_nothing(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """The file is renamed, written to, and renamed back."""
    writer.write(numbered(0))
    source = reader()
    renamed = writer.path.with_name("0.log.20260303-100005")
    writer.path.rename(renamed)
    assert source.read() == numbered(0)
    writer.write(numbered(10))
    assert source.read() == numbered(10)
    assert source.read() == b""
    renamed.rename(writer.path)
    writer.write(numbered(20))
    assert read_all(source, clock) == numbered(20)
    rotate(writer, now=AT)
    writer.write(numbered(30))
    assert read_all(source, clock) == numbered(30)


def test_a_rotation_that_fails_during_opening_changes_nothing(
    writer: ContainerWriter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has another name only while it is opened."""
    writer.write(numbered(0))
    renamed, listdir, calls = writer.path.with_name("0.log.20260303-100005"), os.listdir, itertools.count()

    def rotating(path: Path) -> list[str]:
        number = next(calls)
        if number == 1:
            renamed.rename(writer.path)
        names = listdir(path)
        if number == 0:
            writer.path.rename(renamed)
        return names

    monkeypatch.setattr("os.listdir", rotating)
    assert reader().head


@pytest.mark.parametrize("content", [b"", b"line"])
def test_an_empty_file_does_not_hide_the_first_line(writer: ContainerWriter, reader: Reader, content: bytes) -> None:
    """It shows when the log began, so nothing can be missing. Without files, nothing is known."""
    rotate(writer, now=AT)
    if content:
        writer.write(numbered(0))
    assert reader().head == numbered(0)[: files.HEAD_BYTES * (content != b"")]
    shutil.rmtree(writer.path.parent)
    assert (reader().head, reader().position(), reader().unread, reader().read()) == (None, None, 0, b"")


def test_the_last_file_is_followed_until_it_is_silent(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """A runtime opens the next file for its two streams one after the other."""
    writer.write(numbered(0))
    source = reader()
    old = os.open(writer.path, os.O_WRONLY | os.O_APPEND)
    rotate(writer, now=AT)
    writer.write(numbered(20))
    assert source.read() == numbered(0)
    assert source.read() == b""
    os.write(old, numbered(10))
    os.close(old)
    clock.now += files.SETTLE_SECONDS * 0.9

    assert source.read() == numbered(10)
    assert read_all(source, clock) == numbered(20)


@pytest.mark.parametrize("rotations", range(4))
@pytest.mark.parametrize("step", [0, -3_600], ids=["clock", "clock goes back"])
def test_reading_continues_from_a_position(
    writer: ContainerWriter, clock: Clock, reader: Reader, rotations: int, step: int
) -> None:
    """Even if the file has been renamed or compressed, or has newer ones with older names."""
    for number in range(2):
        writer.write(numbered(10 * number))
        rotate(writer, now=AT + number)
    writer.write(numbered(20))
    source = reader()
    assert read_all(source, clock) == numbered(0) + numbered(10) + numbered(20)
    position = position_of(source, len(numbered(22, 1)))
    source.close()
    rest = []
    for number in range(rotations):
        at = AT + (step if number else 0)
        rotate(writer, 9, now=at + 60 + number)
        rest.append(numbered(30 + 10 * number, at=at))
        writer.write(rest[-1])

    again = reader(position)
    assert again.go_to(Position(*position))
    may_lack = b"?" if step and rotations > 1 else b""
    assert read_all(again, clock) == numbered(22, 1) + b"".join(rest[:1]) + may_lack + b"".join(rest[1:])


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("seen", ["held", "known", "new"])
def test_files_removed_while_the_clock_was_back_are_a_gap(
    writer: ContainerWriter, clock: Clock, reader: Reader, seen: str, is_empty: bool
) -> None:
    """The oldest names are removed first, now those of the newest files. The remaining ones keep their order."""
    lines = [cri_line("line 0", at=AT - 1)]
    writer.write(lines[0])
    source = reader()
    assert source.read() == lines[0]
    position = source.position()
    for now in (AT, AT + 1, AT - 100, AT - 99, AT - 98):
        rotate(writer, max_files=5, now=now)
        lines.append(cri_line(f"line {len(lines)}", at=now + 0.5))
        writer.write(lines[-1])
    if is_empty:
        os.truncate(writer.path, 0)
        lines.pop()
    assert not [*writer.path.parent.glob("0.log.20260303-095825*")]
    if seen != "held":
        source = reader(position if seen == "known" else None)
    if seen == "known":
        assert source.go_to(position)

    assert read_all(source, clock) == b"".join([*lines[seen != "new" : 2], b"?", *lines[3:]])


def test_a_removed_file_after_known_ones_is_a_gap(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """The clock went back, so the kubelet removes it before those."""
    for number in range(2):
        writer.write(numbered(10 * number))
        rotate(writer, now=AT + number)
    writer.write(b"removed")
    position = position_of(reader())
    for number in range(2):
        rotate(writer, max_files=4, now=AT - 100 + number)
        writer.write(numbered(20 + 10 * number, at=AT - 100))

    again = reader(position)
    assert again.go_to(position)
    rest = numbered(20, at=AT - 100) + numbered(30, at=AT - 100)
    assert read_all(again, clock) == numbered(0) + numbered(10) + b"?" + rest


def test_a_position_in_a_file_that_is_gone_is_not_found(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """Nor one beyond the end of a file. Everything is then read."""
    writer.write(numbered(0))
    source = reader()
    source.read()
    position = position_of(source)
    for number in range(1, 4):
        rotate(writer, max_files=2, now=AT + number)
        writer.write(numbered(10 * number))

    assert not reader(position).go_to(position)
    again = reader(position)
    assert not again.go_to(position_of(again)._replace(offset=10_000))
    assert read_all(again, clock) == numbered(20) + numbered(30)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_position_in_a_short_file_is_not_found_in_another(
    writer: ContainerWriter, reader: Reader, lines: int
) -> None:
    """Its first bytes prove nothing, nor its inode: a file system can reuse that for the next one."""
    short = numbered(0, 1)[:40]
    writer.write(short * lines)
    position = position_of(reader())
    other = writer.path.with_name("other")
    other.write_bytes((short if lines else b"") + numbered(0))
    other.rename(writer.path)
    assert not reader(position).go_to(position if lines else position._replace(inode=writer.path.stat().st_ino))


def test_read_lines_are_held_until_released(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """Even if their files are removed: what a store rejected is read again."""
    writer.write(numbered(0))
    source = reader()
    source.read()
    position = position_of(source, len(numbered(1, 2)))
    for number in range(1, 4):
        rotate(writer, max_files=2, now=AT + number)
        writer.write(numbered(10 * number))
        source.find_newer()
    rest = numbered(10) + numbered(20) + numbered(30)
    assert read_all(source, clock) == rest

    assert source.go_to(position)
    assert read_all(source, clock) == numbered(1, 2) + rest
    source.release(position_of(source).inode)
    assert not source.go_to(position)
    assert read_all(source, clock) == numbered(30)


def test_the_number_of_held_files_is_bounded(
    writer: ContainerWriter, clock: Clock, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped ones are recorded, also for whoever reads from the beginning again."""
    monkeypatch.setattr(files, "HELD_FILES", 3)
    writer.write(numbered(0))
    source = reader()
    for number in range(1, 5):
        rotate(writer, now=AT + number)
        writer.write(numbered(10 * number))
        source.find_newer()
    whole = b"?" + numbered(20) + numbered(30) + numbered(40)
    assert read_all(source, clock) == whole
    assert not source.go_to(None)
    assert read_all(source, clock) == whole
    # Files that were read are dropped without a gap.
    for number in range(5, 7):
        rotate(writer, now=AT + number)
        writer.write(numbered(10 * number))
        source.find_newer()
    assert read_all(source, clock) == numbered(50) + numbered(60)


@pytest.mark.parametrize("max_files", [2, 5])
def test_unseen_files_are_a_gap(writer: ContainerWriter, clock: Clock, reader: Reader, max_files: int) -> None:
    """If the newest known file is gone, others can be too. If it is present, so are all later ones."""
    writer.write(numbered(0))
    source = reader()
    source.read()
    for number in range(1, 4):
        rotate(writer, max_files, now=AT + number)
        writer.write(numbered(10 * number))

    assert read_all(source, clock) == (b"?" if max_files == 2 else numbered(10)) + numbered(20) + numbered(30)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_a_gap_where_it_is_damaged(
    writer: ContainerWriter, clock: Clock, reader: Reader, damage: str, is_last: bool
) -> None:
    """Its checksum reveals it only at the end, although earlier data can be wrong."""
    noise = b"".join(cri_line(os.urandom(500).hex(), at=AT) for _ in range(1_000))
    whole = bytearray(gzip.compress(noise))
    whole[-1_000:] = b"" if damage == "cut" else bytes(1_000)
    writer.path.with_name("0.log.20260303-100005.gz").write_bytes(whole)
    if is_last:
        writer.path.unlink()
    else:
        writer.write(numbered(10))
    source = reader()
    assert source.unread

    data = read_all(source, clock)
    part, gap, rest = data.partition(b"?")
    assert (part[:900_000], gap, rest) == (noise[:900_000], b"?", b"" if is_last else numbered(10))
    assert not source.unread


def test_a_truncated_file_is_a_gap(writer: ContainerWriter, clock: Clock, reader: Reader) -> None:
    """Somebody freed disk space."""
    writer.write(numbered(0))
    source = reader()
    assert source.read() == numbered(0)
    os.truncate(writer.path, 0)
    writer.write(numbered(10, 2))

    assert read_all(source, clock) == b"?" + numbered(10, 2)
