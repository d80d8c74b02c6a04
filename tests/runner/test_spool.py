"""The spool: lines come out in order until released, from memory, its file, or a recovered file."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chronoverse.errors import SpoolError, SpoolInUse
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Gap, Line
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.spool import spool_file
from chronoverse.runner.spool.spool import BATCH_LINES, BATCH_RUNS, OVERHEAD_BYTES, Spool, SpoolBatch
from chronoverse.runner.spool.spool_file import MAX_BATCH_BYTES, SpoolFile, SpoolRoom, orphaned_spools
from tests.support.parameters import long_after
from tests.support.waiting import wait_until

NOW = "2026-03-03T10:00:05.123Z"
ROOT = Path(__file__).parents[2]
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


def take_batch(spool: Spool, index: int) -> SpoolBatch:
    found = spool.take(index)
    assert found is not None
    return found


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


def lost(spool: Spool) -> int:
    """The number of lines that the spool reports as lost."""
    return sum(each.last - each.first + 1 for each in spool.entries() if isinstance(each, Gap))


def plain(messages: list[str]) -> list[int]:
    return [int(message) for message in messages if message.isdigit()]


def test_a_batch_has_a_bounded_number_of_lines_numbered_from_the_base() -> None:
    """Whatever the sizes of the batches that were put in."""
    spool = Spool()
    for start in range(0, 1200, 300):
        spool.put(make_batch(*(str(number) for number in range(start, start + 300))))
    lines = take_batch(spool, 0).lines(100)
    assert [line.message for line in lines] == [str(number) for number in range(BATCH_LINES)]
    assert [line.sequence_num for line in lines] == list(range(100, 100 + BATCH_LINES))
    assert take_batch(spool, BATCH_LINES).lines(100)[0].message == str(BATCH_LINES)


def test_a_batch_has_a_bounded_number_of_bytes() -> None:
    """Long lines make batches shorter, but never empty."""
    spool = Spool()
    for _ in range(3):
        spool.put(make_batch("x" * 600_000))
    assert take_batch(spool, 0).end == 2


def test_a_batch_can_be_taken_again() -> None:
    """An append whose answer was lost is repeated."""
    spool = Spool()
    spool.put(make_batch("a", "b", "c"))
    assert take_batch(spool, 0) == take_batch(spool, 0)
    assert [line.message for line in take_batch(spool, 2).lines(1)] == ["c"]


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    """Other lines of the same batch are unchanged."""
    spool = Spool()
    spool.put(LineBatch("stderr", NOW, b"\xff\xfe\n\xc3\xa9\nplain", 3))
    assert drain(spool) == ["\ufffd\ufffd", "é", "plain"]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_acknowledged_lines_can_be_taken_again_until_they_are_released(kind: str, tmp_path: Path) -> None:
    """Even from the middle of a batch. Released lines can still be requested, and are then lost."""
    spool = Spool(in_memory(200) if kind == "memory" else in_file(tmp_path))
    fill(spool, 0, 95)
    spool.put(make_batch("x", "y"))
    everything = drain(spool)
    assert (spool.path is not None) == (kind == "file")
    for index in (96, 13, 0, 40):
        spool.acknowledge(index)
        assert drain(spool) == everything[index:]
    spool.release(42)
    assert spool.first == 42
    spool.acknowledge(41)
    assert take_batch(spool, 41).start == 42
    assert drain(spool) == everything[42:]


def test_what_does_not_fit_into_memory_goes_to_the_file(tmp_path: Path) -> None:
    """No line is lost, only the file's owner can read it, and it is removed once all lines are durable."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 505)
    assert spool.path is not None
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 2
    assert plain(drain(spool, release=True)) == list(range(505))
    assert spool.dropped == 0
    assert list(tmp_path.iterdir()) == []


def test_space_in_the_file_is_reused(tmp_path: Path) -> None:
    """The file is about as large as the lines that waited at the same time."""
    spool = Spool(in_file(tmp_path, 40))
    fill(spool, 0, 1000)
    for start in range(1000, 20_000, 500):
        fill(spool, start, start + 500)
        spool.acknowledge(take_batch(spool, spool.acked).end)
        spool.release(spool.acked)
    assert spool.path is not None
    assert spool.path.stat().st_size <= (EMPTY + 10) * PAGE
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


def test_lines_can_be_dropped_repeatedly(tmp_path: Path) -> None:
    """Each time, exactly their numbers are lost."""
    spool = Spool(in_file(tmp_path))
    messages: list[str] = []
    for start in range(0, 9000, 3000):
        fill(spool, start, start + 3000)
        messages += drain(spool, release=True)
    assert len(messages) + spool.dropped == 9000
    assert spool.dropped > 3000
    assert plain(messages) == sorted(set(plain(messages)))


def test_a_batch_that_is_too_large_for_the_file_is_dropped(tmp_path: Path) -> None:
    """Also the last one: the file records where the log ends."""
    spool = Spool(in_file(tmp_path))
    spool.put(make_batch("a"))
    spool.put(make_batch("x" * TOO_LONG, "y"))
    path = spool.preserve()
    assert path is not None
    spool = Spool.recover(path)
    assert list(spool.entries()) == [Line(1, NOW, "a", "stdout"), Gap(2, 3, "lost")]
    assert (drain(spool), spool.dropped, spool.end) == (["a"], 2, 3)


def test_a_reassigned_file_has_the_same_lines_when_recovered_again(tmp_path: Path) -> None:
    """A delivery to another job was interrupted. The next one must find the lines that the first one sent."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 3000)
    path = spool.preserve()
    assert path is not None
    spool = Spool.recover(path, keep_all=True)
    spool.reassign()
    spool.save_state(workflow="wf_1", job="job_2", attempt=1, base=1)
    sent = list(spool.entries())
    assert isinstance(sent[0], Gap)
    assert spool.preserve() == path
    assert list(Spool.recover(path).entries()) == sent


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 8), marks=pytest.mark.long)], ids=["few", "more"])
def test_any_order_of_operations_accounts_for_all_lines(seeds: range, tmp_path: Path) -> None:
    """Each line has its own number, and is either taken or dropped, never both."""
    for seed in seeds:
        chance = random.Random(seed)
        directory = tmp_path / str(seed)
        spool = Spool(in_file(directory) if seed % 2 else in_memory())
        log: dict[int, str] = {}
        put = 0
        for _ in range(300):
            match chance.randrange(5):
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
        while found := spool.take(spool.acked):
            for line in found.lines(1):
                assert log.setdefault(line.sequence_num, line.message) == line.message, seed
            spool.acknowledge(found.end)
        assert all(int(message) == number - 1 for number, message in log.items()), seed
        assert len(log) + spool.dropped == spool.end == put, seed


def test_waiting_ends_with_lines_a_close_or_a_timeout() -> None:
    """The result tells whether there are lines."""
    spool = Spool()
    assert not spool.wait_for_lines(1, 0.01)
    threading.Timer(0.05, spool.put, [make_batch("a")]).start()
    assert spool.wait_for_lines(1, 10)
    threading.Timer(0.05, spool.close).start()
    started = time.monotonic()
    assert spool.wait_for_lines(BATCH_LINES, 10)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("wait", "change"),
    [
        (lambda spool: spool.wait_for_unsafe(60), lambda spool: spool.acknowledge(2)),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.put(make_batch("c"))),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.skip(1)),
        (lambda spool: spool.wait_for_lines(3, 60), lambda spool: spool.close()),
    ],
    ids=["acknowledge", "put", "skip", "close"],
)
def test_each_change_wakes_its_waiters(wait: Callable[[Spool], bool], change: Callable[[Spool], None]) -> None:
    """Immediately, not after the timeout."""
    spool, found = Spool(), list[bool]()
    spool.put(make_batch("a", "b"))
    thread = threading.Thread(target=lambda: found.append(wait(spool)))
    thread.start()
    wait_until(lambda: spool._changed._waiters, 10, "the thread waits")  # type: ignore[attr-defined]
    change(spool)
    thread.join(20)
    assert found == [True]


def test_only_acknowledged_lines_become_durable() -> None:
    """However far a release reaches. The others are sent again."""
    spool = Spool()
    fill(spool, 0, 5)
    spool.acknowledge(2)
    spool.release(5)
    assert (spool.safe, take_batch(spool, 2).end) == (2, 5)
    spool.acknowledge(5)
    assert spool.safe == 2
    spool.release(5)
    assert spool.safe == 5


def test_an_append_has_no_more_runs_than_its_lines_need() -> None:
    """It starts after the lines already taken and ends with its last line, wherever batches end."""
    spool = Spool()
    for messages in (("a", "b"), ("c",), ("d", "e")):
        spool.put(make_batch(*messages))
    for index in range(5):
        for lines in range(1, 6):
            batch = spool.take(index, lines)
            assert batch is not None
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


@pytest.mark.parametrize("lines", [3, 1000, 4000])
def test_a_preserved_spool_can_be_recovered(lines: int, tmp_path: Path) -> None:
    """Another process gets the lines, the saved state, and the number of dropped lines."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, lines)
    spool.save_state(workflow="wf_1", job="job_1", base=7)
    found = take_batch(spool, 0)
    spool.acknowledge(found.end)
    spool.release(found.end)
    path = spool.preserve()
    if lines == 3:
        assert path is None
        return
    assert path is not None
    assert list(tmp_path.iterdir()) == list(orphaned_spools(tmp_path)) == [path]
    again = Spool.recover(path)
    assert again.state["base"] == 7
    assert again.acked == again.first == found.end
    messages = drain(again, 7)
    assert again.dropped == spool.dropped == found.start
    assert (again.dropped > 0) == (lines == 4000)
    assert plain(messages) == list(range(found.end, lines))


def test_a_recovered_spool_accepts_more_lines(tmp_path: Path) -> None:
    """A later runner of the job continues with the same file."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 55)
    path = spool.preserve()
    assert path is not None
    again = Spool.recover(path, in_file(tmp_path))
    fill(again, 55, 130)
    assert plain(drain(again)) == list(range(130))


def test_a_file_that_is_being_written_cannot_be_recovered(tmp_path: Path) -> None:
    """It is not orphaned."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 50)
    assert spool.path is not None
    for _ in range(2):
        assert not orphaned_spools(tmp_path)
        with pytest.raises(SpoolInUse, match="is in use"):
            Spool.recover(spool.path)


@pytest.mark.parametrize("content", [b"", b"not a spool file", b"\0" * 5000])
def test_any_other_file_is_rejected(content: bytes, tmp_path: Path) -> None:
    """And left unchanged."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(SpoolError):
        Spool.recover(path)
    assert path.read_bytes() == content
    assert orphaned_spools(tmp_path) == {path: {}}


def test_removed_lines_are_reported(tmp_path: Path) -> None:
    """Somebody deleted some with the ``sqlite3`` program, which can read the file too."""
    spool = Spool(in_file(tmp_path))
    fill(spool, 0, 100)
    path = spool.preserve()
    assert path is not None
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
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as writer:
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no small file system to fill")
def test_without_a_writable_directory_lines_stay_in_memory(tmp_path: Path) -> None:
    """Only the memory limit applies then."""
    (tmp_path / "file").write_text("in the way")
    spool = Spool(SpoolRoom(tmp_path / "file", "job_1", 80 * LINE, 10**6, 0))
    fill(spool, 0, 1000)
    messages = drain(spool)
    assert len(plain(messages)) + spool.dropped == 1000


def test_the_last_attempt_to_write_a_file_is_not_delayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the one before has just failed, and left nothing."""
    spool = Spool(SpoolRoom(tmp_path, "job_1"))
    fill(spool, 0, 10)
    with monkeypatch.context() as broken:
        broken.setattr(spool_file, "_TABLES", ("CREATE TABLE",))
        spool.force_spill(True)
    assert (type(spool.file_error), [*tmp_path.iterdir()]) == (sqlite3.OperationalError, [])
    path = spool.preserve()
    assert path
    assert Spool.recover(path).line_count == 10


FULL = """
import os, resource, signal, sys
from pathlib import Path
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory = Path(sys.argv[1])
for arguments in sys.argv[2:]:
    limit, release = map(int, arguments.split())
    spool = Spool(SpoolRoom(directory, "job_1", 20_000, 10_000_000, 0))
    if limit < 0:
        spool.force_spill(True)
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%010d" % 0, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (abs(limit), resource.RLIM_INFINITY))
    for number in range(limit < 0, 6_000):
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%010d" % number, 1))
    seen = []
    while found := spool.take(spool.acked):
        seen += [line.message for line in found.lines(1) if line.message.isdigit()]
        spool.acknowledge(found.end)
        if release:
            spool.release(found.end)
    files = os.listdir(directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(seen) + spool.dropped, len(seen), seen == sorted(set(seen)), seen[0], seen[-1], len(files))
    spool.abandon()
"""


@pytest.mark.parametrize(
    "limits",
    [[60_000], pytest.param([1, 30_000, 60_000, 200_000, -1, -60_000, -200_000], marks=pytest.mark.long)],
    ids=["60000", "others"],
)
def test_a_full_disk_makes_the_spool_drop_lines(limits: list[int], tmp_path: Path) -> None:
    """The job continues, lines are dropped, and every line is accounted for.

    The disk is full at some size of the file, before or after its first line is written; a negative limit means
    after it. Lines are released as they are taken, or stay.
    """
    cases = [(limit, release) for limit in limits for release in ([0, 1] if len(limits) > 1 else [0])]
    command = [sys.executable, "-c", FULL, str(tmp_path), *(f"{limit} {release}" for limit, release in cases)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True, text=True)
    for (limit, release), said in zip(cases, done.stdout.splitlines(), strict=True):
        total, seen, ordered, first, last, files = said.split()
        assert (total, ordered, int(last)) == ("6000", "True", 5_999), limit
        assert int(seen) > (2000 if abs(limit) >= 200_000 else 40), limit
        assert int(first) == 0 or abs(limit) < 60_000, limit
        assert not release or int(files) == 0, limit


ACKNOWLEDGED = """
import resource, sys
from pathlib import Path
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
acknowledged, file_bytes = map(int, sys.argv[2:])
spool = Spool(SpoolRoom(Path(sys.argv[1]), "job_1", 20_000, file_bytes, 0))
def put(first, last):
    for number in range(first, last):
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%010d" % number, 1))
spool.force_spill(True)
put(0, 1_000)
spool.acknowledge(acknowledged)
spool.force_spill(False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
put(1_000, 5_000)
seen = []
while found := spool.take(spool.acked):
    seen += [int(line.message) for line in found.lines(1) if line.message.isdigit()]
    spool.acknowledge(found.end)
print(acknowledged + len(seen) + spool.dropped, seen == sorted(set(seen)), seen[0], seen[-1], spool.first)
"""


@pytest.mark.parametrize(("acknowledged", "file_bytes"), [(500, 120_000), (0, 120_000)])
def test_lines_stuck_on_a_full_disk_do_not_stop_the_job(acknowledged: int, file_bytes: int, tmp_path: Path) -> None:
    """SQLite needs some disk space even to delete, so lines in memory are dropped then.

    What could not be deleted is still there: as the first line, not as a dropped one.
    """
    command = [sys.executable, "-c", ACKNOWLEDGED, str(tmp_path), str(acknowledged), str(file_bytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True, text=True, timeout=60)
    assert done.stdout.split() == ["5000", "True", str(acknowledged), "4999", "0"]


def test_a_store_that_was_rolled_back_needs_durable_lines_again() -> None:
    """They are no longer durable until it confirms them again."""
    spool = Spool()
    fill(spool, 0, 100)
    for index in (100, 50):
        spool.acknowledge(index)
        spool.release(index)
        assert (spool.acked, spool.safe) == (index, index)
    spool.acknowledge(80)
    assert spool.safe == 50


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
    assert saved == {"attempt": 2, "dropped": 0, "first": 0, "end": 1}


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


def test_an_append_has_a_bounded_number_of_runs() -> None:
    """Otherwise a service could refuse to parse it, while the appends after it have already been sent."""
    spool = Spool()
    for number in range(BATCH_RUNS + 1):
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", str(number).encode(), 1))

    first = spool.take(0, 5000)
    assert first is not None
    assert (first.end, len(first.runs)) == (BATCH_RUNS, BATCH_RUNS)
    writer = HttpLogWriter("http://127.0.0.1:1")
    assert writer._fits(5000, BATCH_RUNS)
