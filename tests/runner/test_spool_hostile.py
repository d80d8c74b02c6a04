"""Spool files that no runner wrote: undamaged lines are recovered, the rest is reported, in little memory and time."""

import contextlib
import os
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronoverse.errors import SpoolError
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import Gap, Line
from chronoverse.runner.spool.salvage import recover_whole
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom, orphaned_spools
from tests.support.commands import call_main
from tests.support.examples import examples
from tests.support.jobs import JOB, key
from tests.support.servers import RedisServer

NOW: Final = "2026-03-03T10:00:05.123Z"
#: Exit code of ``deliver`` for a file that is not a spool file, or is damaged.
DATA: Final = 65
#: Limits for any file, in bytes of memory and seconds: several batches of maximum size, and a busy machine's time.
MEMORY: Final = 16 * 2**20
SECONDS: Final = 10.0
#: Lines of a large file; bytes of its pages, and of a disk's blocks.
LARGE: Final = 3000
PAGE: Final = 16_384
BLOCK: Final = 4_096

STATE: Final[dict[str, Any]] = {
    "workflow": JOB.workflow_id,
    "job": JOB.job_id,
    "token": "a" * 32,
    "base": 1,
    "attempt": 1,
    "ending": ["COMPLETED", 0],
}
#: The values of a row: ordinal, position, open streams, stream, timestamp, text, number of lines, partial.
TWO_LINES: Final = (0, 0, "", "stdout", NOW, b"a\nb", 2, 0)
Row = tuple[Any, ...]


def row(ordinal: Any = 2, text: Any = b"c", lines: Any = 1, **other: Any) -> Row:
    """A row with an additional line, whatever it contains."""
    values = {"position": 3, "stream": "stdout", "timestamp": NOW, "partial": 0, **other}
    return ordinal, values["position"], "", values["stream"], values["timestamp"], text, lines, values["partial"]


def file(*rows: Row, raw_state: Any = None, sql: str = "", **state: Any) -> Callable[[Path], None]:
    """Writes a file with these rows, by default two lines."""

    def write(path: Path) -> None:
        made = SpoolFile.create(path.parent, "x")
        made.close()
        made.path.rename(path)
        said = orjson.dumps({**STATE, **state}).decode() if raw_state is None else raw_state
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE state SET json = ?", (said,))
            database.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows or [TWO_LINES])
            database.executescript(sql)

    return write


def content(data: bytes) -> Callable[[Path], object]:
    """Writes a file with these bytes."""
    return lambda path: path.write_bytes(data)


#: Files without a usable state, or without the tables of a spool file.
REFUSED: Final[dict[str, Callable[[Path], object]]] = {
    "empty": content(b""),
    "another kind of file": content(b"#!/bin/sh\n" * 1000),
    "the beginning of a database": content(b"SQLite format 3\0"),
    "another database": file(sql="DROP TABLE state"),
    "a view that never ends": file(
        sql="DROP TABLE batches; CREATE VIEW batches AS WITH RECURSIVE n(ordinal) AS "
        "(SELECT 1 UNION ALL SELECT ordinal + 1 FROM n) SELECT * FROM n"
    ),
    "no state": file(sql="DELETE FROM state"),
    "no JSON in the state": file(raw_state="{"),
    "a list for a state": file(raw_state="[1]"),
    "bytes for a state": file(raw_state=b"\xff"),
    "nothing for a state": file(sql="UPDATE state SET json = NULL"),
    "deep JSON in the state": file(raw_state="[" * 2000),
    "a state of 40 MB": file(sql="UPDATE state SET json = zeroblob(40000000)"),
    "a workflow with a slash": file(workflow="../../etc"),
    "a workflow that is a list": file(workflow=["a"]),
    "a job with a brace": file(job="x}:y"),
    "a token with a newline": file(token="a" * 32 + "\n"),
    "a base that is a text": file(base="1"),
    "a base beyond all numbers": file(base=10**18),
    "a first line below one": file(row(2), base=-5),
    "an attempt that is none": file(attempt=-1),
    "an attempt that is a fraction": file(attempt=1.5),
    "an ending that is none": file(ending=["RUNNING", 0]),
    "an ending of one part": file(ending=["FAILED"]),
    "an exit code of a megabyte": file(ending=["FAILED", 2**62]),
    "a server that is a command": file(server="http://x; rm"),
    "dropped lines below zero": file(dropped=-1),
    "dropped lines beyond all numbers": file(dropped=2**63),
    "a first line that is a text": file(first="x"),
    "a first line beyond all numbers": file(first=10**15),
    "an end beyond all numbers": file(end=10**15 - 1),
}
#: Files whose lines are all accepted.
WHOLE: Final[dict[str, tuple[Callable[[Path], None], list[str]]]] = {
    "two lines": (file(), ["a", "b"]),
    "bytes that are no text": (file(row(0, text=b"\xff\0\x1b[2J")), ["\ufffd\0\x1b[2J"]),
    "a state with more in it": (file(other="x" * 1500), ["a", "b"]),
    "no rows": (file(sql="DELETE FROM batches"), []),
}
#: Files with two lines, ``a`` and ``b``, and a row that no runner has written.
DAMAGED: Final[dict[str, Callable[[Path], None]]] = {
    "a line beyond all numbers": file(TWO_LINES, row(2**62)),
    "a line below zero": file(TWO_LINES, row(-9)),
    "lines that overlap": file(TWO_LINES, row(1)),
    "lines that overlap with nothing": file(TWO_LINES, row(1, text=None)),
    "one table more": file(sql="CREATE TABLE more (x)"),
    "a trigger": file(sql="CREATE TRIGGER t AFTER DELETE ON batches BEGIN DELETE FROM state; END"),
    "more lines than there are": file(TWO_LINES, row(lines=2**32)),
    "fewer lines than there are": file(TWO_LINES, row(text=b"c\nd")),
    "no lines": file(TWO_LINES, row(text=b"", lines=0)),
    "lines of a text": file(TWO_LINES, row(lines="x")),
    "a time that is none": file(TWO_LINES, row(timestamp=b"\xff" * 24)),
    "a time that is a sequence": file(TWO_LINES, row(timestamp="\x1b]0;title\x07")),
    "a stream that there is not": file(TWO_LINES, row(stream="stdin")),
    "a position that is a text": file(TWO_LINES, row(position="x")),
    "parts of several lines": file(TWO_LINES, row(text=b"c\nd", lines=2, partial=1)),
    "a text that is no bytes": file(TWO_LINES, row(text="c")),
    "a text that is nothing": file(TWO_LINES, row(text=None)),
    **{
        f"a {column} of 40 MB": file(
            TWO_LINES, row(), sql=f"UPDATE batches SET {column} = zeroblob(40000000) WHERE ordinal = 2"
        )
        for column in ("text", "stream", "timestamp")
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file's path."""
    return tmp_path / "x.sqlite"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Checks the limits of the ``with`` block."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < SECONDS


def texts(spool: Spool) -> list[str | tuple[int, int]]:
    """The lines, and the first and last number of each gap."""
    return [each.message if isinstance(each, Line) else (each.first, each.last) for each in spool.entries()]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_no_runner_has_written_is_rejected(name: str, path: Path) -> None:
    """And left unchanged. Without a job that owns them, whole lines can only be printed."""
    REFUSED[name](path)
    os.utime(path, (100, 100))  # an empty file can be a new one
    before = path.read_bytes()
    with bounded(), pytest.raises(SpoolError) as refused:
        recover_whole(path, in_place=True)
    with bounded(), contextlib.suppress(SpoolError):
        spool, damage = recover_whole(path, in_place=False)
        assert (texts(spool), damage != "") == (["a", "b"], True)
        spool.abandon()
    assert f"{path} " in str(refused.value)
    assert str(refused.value).endswith("number -3") == (name == "a first line below one")
    assert (path.read_bytes(), [*path.parent.glob("*.damaged")]) == (before, [])
    assert path in orphaned_spools(path.parent)


@pytest.mark.parametrize("name", [*WHOLE, *DAMAGED])
def test_whole_lines_are_recovered(name: str, path: Path) -> None:
    """Everything else in the file is reported and kept. The new file of that name is undamaged."""
    is_whole = name in WHOLE
    write, expected = WHOLE[name] if is_whole else (DAMAGED[name], ["a", "b"])
    write(path)
    before = path.read_bytes()
    with bounded():
        printed, damage = recover_whole(path, in_place=False)
    assert texts(printed) == expected
    assert is_whole == (damage == "")
    printed.preserve()
    assert path.read_bytes() == before
    with bounded():
        spool, again = recover_whole(path, in_place=True)
    assert (texts(spool), spool.state["job"], spool.path) == (expected, JOB.job_id, path)
    assert again.startswith(damage)
    spool.preserve()
    kept = [*path.parent.glob("*.damaged")]
    assert [each.read_bytes() for each in kept] == [before] * (not is_whole)
    assert all(again.endswith(f"kept as {each}") for each in kept)
    recovered, nothing = recover_whole(path, in_place=True)
    assert (texts(recovered), nothing) == (expected, "")
    recovered.abandon()


@pytest.mark.parametrize(
    ("rows", "found", "damage"),
    [
        (
            [TWO_LINES, row(2, stream="x"), row(3), row(4, text=b"", lines=0)],
            ["a", "b", (3, 3), "c"],
            "lines 3 to 3, everything after line 4",
        ),
        ([row(1, stream="x"), row(7)], ["c"], "everything before line 8"),
        ([TWO_LINES, row(2, stream="x")], ["a", "b"], "everything after line 2"),
        (
            [TWO_LINES, *(row(number, stream="x" if number % 2 else "stdout") for number in range(3, 33))],
            ["a", "b", (3, 4), "c", *(each for number in range(6, 33, 2) for each in ((number, number), "c"))],
            "lines 3 to 4, " + ", ".join(f"lines {n} to {n}" for n in range(6, 23, 2)) + ", 5 other ranges",
        ),
    ],
    ids=["middle", "beginning", "end", "many"],
)
def test_damaged_lines_are_reported_in_place(
    rows: list[Row], found: list[str | tuple[int, int]], damage: str, path: Path
) -> None:
    """A gap has the numbers of those that others follow."""
    file(*rows)(path)
    spool, said = recover_whole(path, in_place=False)
    assert (texts(spool), said) == (found, f"{path} is damaged: {damage} cannot be read")
    spool.abandon()


def test_the_command_line_delivers_what_is_whole(path: Path, server: RedisServer) -> None:
    """Its exit code and messages report the damage, in a line each."""
    environ = {"CHRONOVERSE_DATA_DIR": str(path.parent / "data"), "CHRONOVERSE_REDIS_URL": server.url}
    # The job's own numbers are printed, which can begin after an earlier attempt's.
    for base, gone in ((5, 7), (1, 3)):
        path.unlink(missing_ok=True)
        file(TWO_LINES, row(2, stream="x"), row(3, text=b"\x1b[31md"), base=base)(path)
        printed = call_main("deliver", "--print", "--raw", str(path), environ=environ)
        assert (printed.returncode, printed.stdout) == (DATA, "a\nb\n\x1b[31md\n")
        assert printed.stderr.splitlines() == [
            f"--- line {gone} is gone (lost) ---",
            f"chronoverse: {path} is damaged: lines 3 to 3 cannot be read",
        ]
    assert call_main("deliver", str(path), environ=environ).returncode == DATA
    assert server.ask("HGET", key("job"), "status") == b"COMPLETED"
    assert not path.exists()
    REFUSED["another kind of file"](path)
    refused = call_main("deliver", str(path), environ=environ)
    assert (refused.returncode, refused.stderr) == (DATA, f"chronoverse: {path} is not a spool file\n")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_opened(make: Callable[[Path], None], path: Path) -> None:
    """A pipe is rejected without waiting for its writer."""
    make(path)
    with pytest.raises(SpoolError):
        recover_whole(path, in_place=True)
    assert not orphaned_spools(path.parent)


def test_an_empty_file_of_a_terabyte_is_rejected(path: Path) -> None:
    """Without reading all of its pages."""
    path.touch()
    os.truncate(path, 2**40)
    with bounded(), pytest.raises(SpoolError):
        recover_whole(path, in_place=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with 3,000 batches on many pages, as a runner leaves it."""
    spool = Spool(SpoolRoom(tmp_path_factory.mktemp("spool"), "job"))
    spool.save_state(**STATE)
    for number in range(LARGE):
        spool.put(LineBatch("stdout", NOW, b"%030d" % number, 1))
    path = spool.preserve()
    assert path is not None
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.99])
def test_the_beginning_of_a_truncated_file_is_recovered(share: float, large: bytes, path: Path) -> None:
    """All lines up to the first missing page. If the state is still there, so is the number of lines."""
    path.write_bytes(large[: int(share * len(large))])
    spool, damage = recover_whole(path, in_place=False)
    numbers = [int(each) for each in texts(spool) if isinstance(each, str)]
    assert numbers == list(range(len(numbers)))
    assert (share - 0.2) * LARGE <= len(numbers) < LARGE
    assert damage == f"{path} is damaged: everything after line {len(numbers)} cannot be read"
    assert texts(spool)[len(numbers) :] in ([], [(len(numbers) + 1, LARGE)])
    spool.abandon()


@pytest.mark.parametrize("at", [0, PAGE - BLOCK, 2 * PAGE, 3 * PAGE, 8 * PAGE, 9 * PAGE + BLOCK, 12 * PAGE - BLOCK])
def test_everything_around_a_lost_block_is_recovered(at: int, large: bytes, path: Path) -> None:
    """The disk lost 4 KiB. Lines on all other pages are recovered, even without the file's first page.

    The journal is moved along with the damaged file: SQLite would apply it to the new one.
    """
    path.write_bytes(large[:at] + bytes(BLOCK) + large[at + BLOCK :])
    Path(f"{path}-journal").write_bytes(bytes(1_024))
    try:
        spool, damage = recover_whole(path, in_place=True)
    except SpoolError:  # the state is lost, and with it the job
        spool, damage = recover_whole(path, in_place=False)
    numbers = [int(each) for each in texts(spool) if isinstance(each, str)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= LARGE - 250
    assert len(numbers) == LARGE or "cannot be read" in damage
    if at == 0:  # SQLite removes the journal of a file that it can open
        (journal,) = path.parent.glob("*.damaged-journal")
        assert journal.read_bytes() == bytes(1_024)
    spool.abandon()


changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "put", "copy"]), st.binary(max_size=40)
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.long
@given(changes)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_rejected_or_read(large: bytes, path: Path, changes: list[tuple[float, str, bytes]]) -> None:
    """After any change, cut or insertion: an error, or each number exactly once, in a line or a gap."""
    data = bytearray(large)
    for where, what, content in changes:
        at = int(where * len(data))
        match what:
            case "flip" if at < len(data):
                data[at] ^= content[0] if content else 1
            case "cut":
                del data[at:]
            case "put":
                data[at : at + len(content)] = content
            case "copy":
                data += data[at : at + PAGE]
    Path(f"{path}-journal").unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        spool, _ = recover_whole(path, in_place=False)
    except SpoolError:
        return
    reached = spool.first
    for each in spool.entries():
        first, last = (each.first, each.last) if isinstance(each, Gap) else (each.sequence_num,) * 2
        assert first == reached + 1
        reached = last
    assert reached == spool.end
    spool.abandon()
