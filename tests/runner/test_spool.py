"""The spool: lines come out in order until released, from memory, its file, or a recovered file."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chronoverse.errors import SpoolInUse
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Gap, Line
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.spool import spool_file
from chronoverse.runner.spool.spool import BATCH_LINES, BATCH_RUNS, OVERHEAD_BYTES, Spool, SpoolBatch
from chronoverse.runner.spool.spool_file import MAX_BATCH_BYTES, MAX_ORPHANS, SpoolFile, SpoolRoom, orphaned_spools
from tests.support.parameters import long_after
from tests.support.waiting import wait_until

NOW = "2026-03-03T10:00:05.123Z"
#: Memory of a line of ten characters that is put in alone, in bytes.
LINE = OVERHEAD_BYTES + 10
#: Size of a batch that is always dropped, in bytes.
TOO_LONG = MAX_BATCH_BYTES + 1
#: Size of the file's pages in bytes (each has room for some 200 of these lines), and pages of a file without lines.
PAGE, EMPTY = 16_384, 3


def make_batch(*messages: str, stream: str = "stdout", partial: bool = False) -> LineBatch:
    return LineBatch(stream, NOW, "\n".join(messages).encode(), len(messages), partial)


def in_memory(lines: int = 80) -> SpoolRoom:
    """Capacity for that many lines, only in memory."""
    return SpoolRoom(memory_bytes=lines * LINE, keep_bytes=0)


def in_file(directory: Path, pages: int = 8) -> SpoolRoom:
    """Capacity for ten lines in memory, then for that many pages of lines in a file."""
    return SpoolRoom(directory, "job_1", 10 * LINE, (EMPTY + pages) * PAGE, 0)


def fill(spool: Spool, first: int, last: int) -> None:
    """Lines of ten characters: 0000000001, …"""
    for number in range(first, last):
        spool.put(make_batch(f"{number:010}"))


def take_batch(spool: Spool, index: int, lines: int = BATCH_LINES) -> SpoolBatch:
    found = spool.take(index, lines)
    assert found is not None
    return found


def preserve(spool: Spool) -> Path:
    path = spool.preserve()
    assert path is not None
    return path


def drain(spool: Spool, base: int = 1, release: bool = False) -> list[str]:
    """Takes and acknowledges all lines. Each line's index is its number."""
    messages: list[str] = []
    while found := spool.take(spool.acked):
        lines = found.lines(base)
        assert [line.sequence_num for line in lines] == list(range(base + found.start, base + found.end))
        messages += [line.message for line in lines]
        spool.acknowledge(found.end)
        if release:
            spool.release(found.end)
    assert spool.acked == spool.end
    return messages


def plain(messages: list[str]) -> list[int]:
    return [int(message) for message in messages if message.isdigit()]


@pytest.mark.parametrize(
    ("batches", "lines", "end"),
    [
        ([["x"] * 300] * 4, BATCH_LINES, BATCH_LINES),
        ([["x" * 600_000]] * 3, BATCH_LINES, 2),
        # The service counts them, and later appends were already sent.
        ([["x"]] * (BATCH_RUNS + 1), 5_000, BATCH_RUNS),
    ],
    ids=["lines", "bytes", "runs"],
)
def test_an_append_is_bounded(batches: list[list[str]], lines: int, end: int) -> None:
    """Whatever the sizes of the batches that were put in. It is never empty."""
    spool = Spool()
    for batch in batches:
        spool.put(make_batch(*batch))
    found = take_batch(spool, 0, lines)
    assert (found.end, len(found.runs) <= BATCH_RUNS) == (end, True)
    assert HttpLogWriter("http://127.0.0.1:1")._fits(5_000, BATCH_RUNS)


def test_space_in_the_file_is_reused(tmp_path: Path) -> None:
    """The file is about as large as the lines that waited at the same time. Only its owner can read it."""
    spool = Spool(in_file(tmp_path, 40))
    fill(spool, 0, 1000)
    for start in range(1000, 8_000, 500):
        fill(spool, start, start + 500)
        spool.acknowledge(take_batch(spool, spool.acked).end)
        spool.release(spool.acked)
    assert spool.path is not None
    assert spool.path.stat().st_size <= (EMPTY + 10) * PAGE
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 2
    assert spool.dropped == 0


def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    """Lines of all lengths are dropped in time, and the space of dropped ones is reused."""
    spool, chance = Spool(SpoolRoom(tmp_path, "job_1", 100_000, 2_000_000, 0)), random.Random(1)
    for _ in range(3000):
        spool.put(make_batch(*["x" * chance.choice([1, 90, 20_000])] * chance.choice([1, 3])))
    assert spool.path is not None
    assert 1_500_000 < spool.path.stat().st_size <= 2_000_000
    assert spool.dropped > 1000


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_full_spool_drops_and_reports_the_oldest_lines(kind: str, tmp_path: Path) -> None:
    """The newest lines stay, all keep their numbers, and a gap has exactly the dropped numbers."""
    spool = Spool(in_memory() if kind == "memory" else in_file(tmp_path))
    fill(spool, 0, 3000)
    gap, *lines = spool.entries()
    assert gap == Gap(1, spool.dropped, "lost")
    assert [(line.sequence_num, line.message) for line in lines if isinstance(line, Line)] == [
        (index + 1, f"{index:010}") for index in range(spool.dropped, 3000)
    ]
    assert spool.line_count == len(lines) >= 60


def test_sent_lines_are_not_dropped(tmp_path: Path) -> None:
    """The store may have them, so they would be both reported as lost and present."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 600)
    sent = take_batch(spool, 0)
    fill(spool, 600, 6000)
    assert take_batch(spool, 0) == sent
    following = take_batch(spool, sent.end)
    assert following.start == sent.end + spool.dropped


def test_a_batch_that_is_acknowledged_in_part_is_not_dropped(tmp_path: Path) -> None:
    """To make room, acknowledged batches go first, but only whole ones."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 1)
    spool.put(make_batch(*map(str, range(1, 1000))))
    spool.acknowledge(500)
    fill(spool, 1000, 4000)
    assert spool.dropped > 0
    assert take_batch(spool, 500).start == 500


def test_a_batch_that_is_too_large_for_the_file_is_dropped(tmp_path: Path) -> None:
    """Also the last one: the file records where the log ends."""
    spool = Spool(in_file(tmp_path))
    spool.put(make_batch("a"))
    spool.put(make_batch("x" * TOO_LONG, "y"))
    spool = Spool.recover(preserve(spool))
    assert list(spool.entries()) == [Line(1, NOW, "a", "stdout"), Gap(2, 3, "lost")]
    assert (drain(spool), spool.dropped, spool.end) == (["a"], 2, 3)


def test_a_reassigned_file_has_the_same_lines_when_recovered_again(tmp_path: Path) -> None:
    """A delivery to another job was interrupted. The next one must find the lines that the first one sent.

    Until the other job has an attempt, the file belongs to the first one.
    """
    spool = Spool(in_file(tmp_path))
    spool.save_state(workflow="wf_1", job="job_1", attempt=3, base=5)
    fill(spool, 0, 3000)
    path = preserve(spool)
    for job in ("job_1", "job_2"):
        spool = Spool.recover(path, keep_all=True)
        assert (spool.state["job"], spool.state["base"]) == ("job_1", 5)
        spool.reassign()
        spool.save_state(workflow="wf_1", job="job_2", token="a" * 32)
        if job == "job_2":
            spool.save_state(attempt=1, base=1)
        sent = list(spool.entries())
        assert isinstance(sent[0], Gap)
        spool.acknowledge(spool.end)
        spool.release(spool.end)
        assert spool.preserve() == path
    again = Spool.recover(path)
    assert (again.state["job"], list(again.entries())) == ("job_2", sent)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 8), marks=pytest.mark.long)], ids=["few", "more"])
def test_any_order_of_operations_accounts_for_all_lines(seeds: range, tmp_path: Path) -> None:
    """Each line has its own number, and is either taken or dropped, never both. Another process can continue."""
    for seed in seeds:
        chance = random.Random(seed)
        directory = tmp_path / str(seed)
        room = in_file(directory) if seed % 2 else in_memory()
        spool = Spool(room)
        log: dict[int, str] = {}
        put = 0
        for _ in range(200):
            match chance.randrange(6):
                case 0 | 1:
                    count = chance.randrange(30 if seed % 2 == 0 else 300)
                    fill(spool, put, put + count)
                    put += count
                case 2 | 3:
                    if found := spool.take(spool.acked):
                        for line in found.lines(1):
                            assert log.setdefault(line.sequence_num, line.message) == line.message, seed
                        spool.acknowledge(found.end)
                case 4:
                    spool.release(spool.acked)
                    spool.acknowledge(chance.randrange(spool.first, spool.acked + 1))
                case 5 if path := seed % 2 and spool.preserve():
                    spool = Spool.recover(path, room)
        while found := spool.take(spool.acked):
            for line in found.lines(1):
                assert log.setdefault(line.sequence_num, line.message) == line.message, seed
            spool.acknowledge(found.end)
        assert all(int(message) == number - 1 for number, message in log.items()), seed
        assert len(log) + spool.dropped == spool.end == put, seed


@pytest.mark.parametrize(
    ("wait", "change"),
    [
        (lambda spool: spool.wait_for_unsafe(60, threading.Event()), lambda spool: spool.acknowledge(2)),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.put(make_batch("c"))),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.skip(1)),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.close()),
    ],
    ids=["acknowledge", "put", "skip", "close"],
)
def test_each_change_wakes_its_waiters(wait: Callable[[Spool], bool], change: Callable[[Spool], None]) -> None:
    """Immediately, not after the timeout."""
    spool, found = Spool(), list[bool]()
    assert not spool.wait_for_lines(1, 0.01)
    spool.put(make_batch("a", "b"))
    assert not spool.wait_for_unsafe(0.01, threading.Event())
    thread = threading.Thread(target=lambda: found.append(wait(spool)))
    thread.start()
    wait_until(lambda: spool._changed._waiters, 10, "the thread waits")  # type: ignore[attr-defined]
    change(spool)
    thread.join(20)
    assert found == [True]


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "file"])
def test_only_acknowledged_lines_become_safe(in_memory: bool, tmp_path: Path) -> None:
    """However far a release reaches. After a rollback of the store, they have to be confirmed again."""
    spool = Spool(SpoolRoom(tmp_path, keep_bytes=30))
    spool.force_spill(not in_memory)
    fill(spool, 0, 10)
    found = []
    for acknowledged, released in ((2, 5), (5, 0), (5, 4), (3, 0), (4, 4), (10, 10)):
        spool.acknowledge(acknowledged)
        spool.release(released)
        found.append((spool.acked, spool.safe, spool.first, spool.line_count))
    # The newest 30 bytes of safe lines are kept: the store can lose these lines.
    assert found == [(2, 2, 0, 10), (5, 2, 0, 10), (5, 4, 1, 9), (3, 3, 1, 9), (4, 4, 1, 9), (10, 10, 7, 3)]
    assert (spool.memory_bytes, spool.path is None) == ((3 * LINE, True) if in_memory else (0, False))
    assert take_batch(spool, 0).start == 7


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "file"])
def test_an_earlier_runners_lines_can_be_removed(in_memory: bool, tmp_path: Path) -> None:
    spool = Spool(SpoolRoom(tmp_path, keep_bytes=0))
    spool.force_spill(not in_memory)
    fill(spool, 0, 10)
    spool.drop_earlier(6)
    assert (spool.line_count, spool.first, spool.undelivered) == (4, 6, 4)
    recovered = Spool.recover(preserve(spool), SpoolRoom(keep_bytes=30))
    assert plain(drain(recovered)) == [6, 7, 8, 9]
    fill(recovered, 10, 20)
    assert plain(drain(recovered, release=True)) == [*range(10, 20)]
    assert recovered.first == 17  # the newest 30 bytes are kept


def test_an_append_has_no_more_runs_than_its_lines_need() -> None:
    """It starts after the lines already taken and ends with its last line, wherever batches end."""
    spool = Spool()
    for messages in (("a", "b"), ("c",), ("d", "e")):
        spool.put(make_batch(*messages))
    for index in range(5):
        for lines in range(1, 6):
            batch = take_batch(spool, index, lines)
            assert (batch.start, batch.end) == (index, min(5, index + lines))
            assert [line for run in batch.runs for line in run.messages] == [
                bytes([each]) for each in b"abcde"[index : index + lines]
            ]
            assert all(run.messages for run in batch.runs)
    assert spool.take(5) is None


def test_an_abandoned_spool_only_counts_lines(tmp_path: Path) -> None:
    """Nobody will take the lines, so they are not kept."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 100)
    spool.abandon()
    spool.put(make_batch("b", "c"))
    assert (spool.take(0), spool.end - spool.acked) == (None, 102)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["empty", "delivered", "abandoned"])
def test_nothing_to_preserve_leaves_no_file(kind: str, tmp_path: Path) -> None:
    """Even if the job has ended: its end needs a file only if the job has no lines."""
    spool = Spool(in_file(tmp_path))
    spool.force_spill(True)
    if kind == "delivered":
        fill(spool, 0, 3)
        drain(spool, release=True)
    if kind != "empty":
        spool.save_state(ending=["COMPLETED", 0])
    if kind == "abandoned":
        spool.abandon()
    assert spool.preserve() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lines", [1000, 4000])
def test_a_preserved_spool_can_be_recovered(lines: int, tmp_path: Path) -> None:
    """Another process gets the lines, the saved state, and the number of dropped lines."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, lines)
    spool.save_state(workflow="wf_1", job="job_1", base=7)
    found = take_batch(spool, 0)
    spool.acknowledge(found.end)
    spool.release(found.end)
    path = preserve(spool)
    assert list(tmp_path.iterdir()) == list(orphaned_spools(tmp_path)) == [path]
    again = Spool.recover(path)
    assert again.state["base"] == 7
    assert again.acked == again.first == found.end
    messages = drain(again, 7)
    assert again.dropped == spool.dropped == found.start
    assert (again.dropped > 0) == (lines == 4000)
    assert plain(messages) == list(range(found.end, lines))


def test_orphaned_files_are_listed_oldest_first(tmp_path: Path) -> None:
    """A file that is being written is not orphaned, and cannot be recovered."""
    spools = [Spool(SpoolRoom(tmp_path, name)) for name in ("a", "b", "open")]
    for spool in spools:
        fill(spool, 0, 50)
        spool.force_spill(True)
    paths = [preserve(spool) for spool in spools[:2]]
    for seconds, path in zip((1_000, 500), paths, strict=True):
        os.utime(path, (seconds, seconds))
    for _ in range(2):
        assert list(orphaned_spools(tmp_path)) == paths[::-1]
        assert spools[2].path
        with pytest.raises(SpoolInUse, match="is in use"):
            Spool.recover(spools[2].path)
    # Of many files only the oldest are opened, and those of the job.
    for number in range(MAX_ORPHANS):
        path = tmp_path / f"other-{number}.sqlite"
        path.write_bytes(b"")
        os.utime(path, (100, 100))
    assert len(orphaned_spools(tmp_path)) == MAX_ORPHANS
    assert list(orphaned_spools(tmp_path, "a"))[MAX_ORPHANS:] == paths[:1]


def test_files_of_beginning_and_ending_runners_are_not_orphaned(tmp_path: Path) -> None:
    """A file is empty at first. It can be deleted while it is listed or opened."""

    def begin_and_end() -> None:
        for _ in range(200):
            SpoolFile.create(tmp_path, "job_1").remove()

    runners = threading.Thread(target=begin_and_end)
    runners.start()
    found = set[Path]()
    while runners.is_alive():
        found |= orphaned_spools(tmp_path).keys()
    assert found == set()


def test_removed_lines_are_reported(tmp_path: Path) -> None:
    """Somebody deleted some with the ``sqlite3`` program, which can read the file too."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 100)
    path = preserve(spool)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        (text,) = database.execute("SELECT CAST(text AS TEXT) FROM batches WHERE ordinal = 34").fetchone()
        assert text == "0000000034"
        database.execute("DELETE FROM batches WHERE ordinal BETWEEN 34 AND 39")
    spool = Spool.recover(path)
    assert [each for each in spool.entries() if isinstance(each, Gap)] == [Gap(35, 40, "lost")]
    assert plain(drain(spool)) == [*range(34), *range(40, 100)]
    assert spool.dropped == 0


WRITER = """
import os, sys
from pathlib import Path
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
spool = Spool(SpoolRoom(Path(sys.argv[1]), "job_1", 100_000, 300_000, 0))
spool.force_spill(True)
for number in range(1_000_000):
    spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%010d" % number, 1))
    os.write(1, b"%010d\\n" % number)
"""


@pytest.mark.parametrize("lines", long_after(1, [999, 1, 50, 5000]))
def test_a_killed_writer_leaves_complete_lines(lines: int, tmp_path: Path) -> None:
    """All of its lines in order, and the number of dropped ones, whenever it was killed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        last = -1
        while last < lines:
            last = int(writer.stdout.readline())
        writer.kill()
        last = max([last, *map(int, writer.stdout.read().split())])
    (path,) = orphaned_spools(tmp_path)
    spool = Spool.recover(path)
    seen = plain(drain(spool))
    assert seen == sorted(set(seen))
    assert seen[-1] in (last, last + 1)
    assert len(seen) + spool.dropped == seen[-1] + 1
    assert (spool.dropped > 0) == (lines > 4000)


def test_without_a_writable_directory_lines_stay_in_memory(tmp_path: Path) -> None:
    """Only the memory limit applies then."""
    (tmp_path / "file").write_text("in the way")
    spool = Spool(SpoolRoom(tmp_path / "file", "job_1", 80 * LINE, 10**6, 0))
    fill(spool, 0, 1000)
    assert spool.memory_bytes <= 80 * LINE
    assert len(plain(drain(spool))) + spool.dropped == 1000


def test_the_last_attempt_to_write_a_file_is_not_delayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the one before has just failed, and left nothing."""
    spool = Spool(SpoolRoom(tmp_path, "job_1"))
    fill(spool, 0, 10)
    with monkeypatch.context() as broken:
        broken.setattr(spool_file, "_TABLES", ("CREATE TABLE",))
        spool.force_spill(True)
    assert (type(spool.file_error), [*tmp_path.iterdir()]) == (sqlite3.OperationalError, [])
    assert Spool.recover(preserve(spool)).line_count == 10


FULL = """
import os, resource, sys
from pathlib import Path
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
before, acknowledged, limit, file_bytes, releases = map(int, sys.argv[2:])
spool = Spool(SpoolRoom(Path(sys.argv[1]), "job_1", 20_000, file_bytes, 0))
def put(first, last):
    for number in range(first, last):
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%010d" % number, 1))
spool.force_spill(before > 0)
put(0, before)
spool.acknowledge(acknowledged)
spool.force_spill(False)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
put(before, 6_000)
seen = []
while found := spool.take(spool.acked):
    seen += [int(line.message) for line in found.lines(1) if line.message.isdigit()]
    spool.acknowledge(found.end)
    if releases:
        spool.release(found.end)
print(acknowledged + len(seen) + spool.dropped, seen == sorted(set(seen)), seen[-1], len(seen) > 40)
print(seen[0], spool.first, len(os.listdir(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("before", "acknowledged", "limit", "file_bytes", "releases", "left"),
    [
        (0, 0, 60_000, 10_000_000, 0, "0 0 2"),
        pytest.param(0, 0, 60_000, 10_000_000, 1, "0 6000 0", marks=pytest.mark.long),
        pytest.param(1, 0, 200_000, 10_000_000, 1, "0 6000 0", marks=pytest.mark.long),
        # SQLite needs some space even to delete. What is not deleted is the first line, and not dropped.
        (1_000, 500, 1, 120_000, 0, "500 0 2"),
        (1_000, 0, 1, 120_000, 0, "0 0 2"),
    ],
    ids=str,
)
def test_a_full_disk_makes_the_spool_drop_lines(
    before: int, acknowledged: int, limit: int, file_bytes: int, releases: int, left: str, tmp_path: Path
) -> None:
    """The job continues, and every line is accounted for. The disk is full after ``before`` lines, at some size.

    ``left``: the first line, the first index in the file, and the number of files.
    """
    numbers = map(str, (before, acknowledged, limit, file_bytes, releases))
    command = [sys.executable, "-c", FULL, str(tmp_path), *numbers]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["6000 True 5999 True", left]


def test_the_state_is_written_immediately(tmp_path: Path) -> None:
    """A killed runner's file has it, without removed values, even if no line follows."""
    spool = Spool(SpoolRoom(directory=tmp_path))
    spool.put(make_batch("a"))
    spool.force_spill(True)
    for state in ({"job": "job_1", "attempt": 1}, {"attempt": 2}, {"job": None}):
        spool.save_state(**state)
    assert spool.path
    copied = tmp_path / "copy.sqlite"
    shutil.copyfile(spool.path, copied)
    file, saved = SpoolFile.open(copied)
    file.close()
    spool.abandon()
    assert saved == {"attempt": 2, "dropped": 0, "first": 0, "acked": 0, "end": 1}


def test_a_state_that_was_not_written_is_written_next_time(tmp_path: Path) -> None:
    """The write had failed because of its lines."""
    file = SpoolFile.create(tmp_path, "job")
    lines = make_batch("a")
    file.write({"first": 1}, add=[lines])
    with pytest.raises(sqlite3.IntegrityError):
        file.write({"first": 2}, add=[lines])
    file.write({"first": 2})
    file.close()
    reopened, state = SpoolFile.open(file.path)
    reopened.close()
    assert state["first"] == 2
