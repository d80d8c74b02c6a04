"""Spool files that no runner wrote: each is rejected with one line and an exit code, using little memory and time."""

import contextlib
import os
import sqlite3
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronoverse.cli.main import main
from chronoverse.errors import SpoolError
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import End, Gap, Line
from chronoverse.runner.spool.salvage import recover_whole
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom, orphaned_spools
from tests.support.examples import examples
from tests.support.jobs import JOB, key, read_lines
from tests.support.parameters import long_after
from tests.support.servers import RedisServer, running

NOW: Final = "2026-03-03T10:00:05.123Z"
#: Exit codes: everything stored; not a spool file; not delivered in time; the job has ended without the lines.
OK, DATA, UNAVAILABLE, NOT_IN_LOG = 0, 65, 69, 76
#: Limits for any file, in bytes of memory and seconds: several batches of maximum size, and a busy machine's time.
MEMORY: Final = 16 * 2**20
SECONDS: Final = 10.0

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
    values = {"position": 3, "open_streams": "", "stream": "stdout", "timestamp": NOW, "partial": 0, **other}
    return (
        ordinal,
        *(values[name] for name in ("position", "open_streams", "stream", "timestamp")),
        text,
        lines,
        values["partial"],
    )


def file(*rows: Row, raw_state: Any = None, sql: str = "", **state: Any) -> Callable[[Path], None]:
    """Writes a file with these rows, by default two lines. None removes a value from the state."""

    def write(path: Path) -> None:
        SpoolFile.create(path.parent, "x").close()
        [made] = path.parent.glob("x-*.sqlite")
        made.rename(path)
        said = {name: value for name, value in {**STATE, **state}.items() if value is not None}
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "UPDATE state SET json = ?", (orjson.dumps(said).decode() if raw_state is None else raw_state,)
            )
            database.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows or [TWO_LINES])
            database.executescript(sql)

    return write


def content(data: bytes) -> Callable[[Path], object]:
    """Writes a file with these bytes."""
    return lambda path: path.write_bytes(data)


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
    "a number for a state": file(raw_state=7),
    "bytes for a state": file(raw_state=b"\xff"),
    "nothing for a state": file(sql="UPDATE state SET json = NULL"),
    "deep JSON in the state": file(raw_state="[" * 2000),
    "a state of 40 MB": file(sql="UPDATE state SET json = zeroblob(40000000)"),
    "a workflow with a slash": file(workflow="../../etc"),
    "a workflow that is a list": file(workflow=["a"]),
    "a job with a brace": file(job="x}:y"),
    "an empty job": file(job=""),
    "a token with a newline": file(token="a" * 32 + "\n"),
    "a token that is a number": file(token=1),
    "a base that is a text": file(base="1"),
    "a base beyond all numbers": file(base=10**18),
    "a first line below one": file(base=-5),
    "an attempt that is none": file(attempt=-1),
    "an attempt that is a fraction": file(attempt=1.5),
    "an ending that is a text": file(ending="COMPLETED"),
    "an ending that is none": file(ending=["RUNNING", 0]),
    "an ending of one part": file(ending=["FAILED"]),
    "an exit code of a megabyte": file(ending=["FAILED", 2**62]),
    "an exit code that is a text": file(ending=["FAILED", "1"]),
    "dropped lines below zero": file(dropped=-1),
    "dropped lines beyond all numbers": file(dropped=2**63),
    "a first line that is a text": file(first="x"),
    "a first line below zero": file(first=-1),
    "a first line beyond all numbers": file(first=10**15),
    "an end that is a text": file(end="x"),
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
        f"a {column} of 40 MB": file(TWO_LINES, row(), sql=f"UPDATE batches SET {column} = {value} WHERE ordinal = 2")
        for column in ("text", "stream", "timestamp")
        for value in ("zeroblob(40000000)",)
    },
    "a stream of 40 MB of text": file(
        TWO_LINES, row(), sql="UPDATE batches SET stream = replace(hex(zeroblob(20000000)), '0', 'x') WHERE ordinal = 2"
    ),
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test's own data directory."""
    monkeypatch.setenv("CHRONOVERSE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def bounded(work: Callable[[], int]) -> int:
    """The result of ``work``, within its limits."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        code = work()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < SECONDS
    return code


@pytest.mark.long
@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_no_runner_has_written_is_rejected(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: None
) -> None:
    """With a one-line message; the file is unchanged. Whole lines of unknown owners are printed."""
    path = tmp_path / "x.sqlite"
    REFUSED[name](path)
    content = path.read_bytes()
    assert bounded(lambda: main(["deliver", str(path)])) == DATA
    assert bounded(lambda: main(["deliver", "--print", str(path)])) == DATA
    out, err = capsys.readouterr()
    assert out in ("", "a\nb\n")
    assert [line.partition(str(path))[0] for line in err.splitlines()] == ["chronoverse: "] * 2
    assert path.read_bytes() == content


#: Takes a second, and proves for text what "a stream of 40 MB" proves for any type.
SLOW: Final = "a stream of 40 MB of text"


@pytest.mark.parametrize("name", long_after(21, sorted((*WHOLE, *DAMAGED), key=lambda name: name == SLOW)))
def test_whole_lines_are_recovered(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    environ: None,
    monkeypatch: pytest.MonkeyPatch,
    server: RedisServer,
) -> None:
    """Printed and delivered. Everything else in the file is reported and kept, and reflected in the exit code."""
    is_whole = name in WHOLE
    write, expected = WHOLE[name] if is_whole else (DAMAGED[name], ["a", "b"])
    path = tmp_path / "x.sqlite"
    write(path)
    content = path.read_bytes()
    code = OK if is_whole else DATA
    assert bounded(lambda: main(["deliver", "--print", "--raw", str(path)])) == code
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{line}\n" for line in expected)
    assert is_whole or printed.err.startswith(f"chronoverse: {path} is damaged: ")
    assert printed.err.count("\n") == (0 if is_whole else 1)
    assert path.read_bytes() == content

    server.ask("FLUSHALL")
    monkeypatch.setenv("CHRONOVERSE_REDIS_URL", server.url)
    assert bounded(lambda: main(["deliver", "--deliver-timeout", "5s", str(path)])) == code
    assert read_lines(server) == expected
    assert server.ask("HGET", key("job"), "status") == b"COMPLETED"
    assert not path.exists()
    assert [each.read_bytes() for each in tmp_path.glob("x*")] == [content] * (not is_whole)


@pytest.mark.parametrize(
    ("rows", "printed", "said", "damage"),
    [
        (
            [TWO_LINES, row(2, stream="x"), row(3), row(4, text=b"", lines=0)],
            ["a", "b", "c"],
            ["--- line 3 is gone (lost) ---"],
            "lines 3 to 3, everything after line 4",
        ),
        ([row(1, stream="x"), row(7)], ["c"], [], "everything before line 8"),
        ([TWO_LINES, row(2, stream="x")], ["a", "b"], [], "everything after line 2"),
        (
            [TWO_LINES, *(row(number, stream="x" if number % 2 else "stdout") for number in range(3, 33))],
            ["a", "b", *"c" * 15],
            [
                "--- lines 3-4 are gone (lost) ---",
                *(f"--- line {number} is gone (lost) ---" for number in range(6, 33, 2)),
            ],
            "lines 3 to 4, " + ", ".join(f"lines {n} to {n}" for n in range(6, 23, 2)) + ", 5 other ranges",
        ),
    ],
    ids=["middle", "beginning", "end", "many"],
)
def test_damaged_lines_are_reported_in_place(
    rows: list[Row],
    printed: list[str],
    said: list[str],
    damage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    environ: None,
) -> None:
    """A gap has the numbers of those that others follow. No message claims a lack of space."""
    path = tmp_path / "x.sqlite"
    file(*rows)(path)
    assert main(["deliver", "--print", str(path)]) == DATA
    out, err = capsys.readouterr()
    assert out.splitlines() == printed
    assert err.splitlines() == [*said, f"chronoverse: {path} is damaged: {damage} cannot be read"]


@pytest.mark.long
def test_the_delivery_of_a_damaged_file_can_be_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, whole lines are delivered from the same path, once."""
    path = tmp_path / "x.sqlite"
    DAMAGED["a stream that there is not"](path)
    with running(tmp_path / "server") as server:
        monkeypatch.setenv("CHRONOVERSE_REDIS_URL", server.url)
        server.stop()
        assert main(["deliver", "--deliver-timeout", "1s", str(path)]) == UNAVAILABLE
        server.start()
        assert main(["deliver", str(path)]) == OK
        assert read_lines(server) == ["a", "b"]
    assert [each.suffix for each in tmp_path.glob("x*")] == [".damaged"]
    assert "is damaged" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path, environ: None) -> None:
    """A pipe is rejected without waiting for its writer."""
    make(tmp_path / "x.sqlite")
    assert main(["deliver", str(tmp_path / "x.sqlite")]) == DATA
    assert not orphaned_spools(tmp_path)


@pytest.mark.long
def test_an_empty_file_of_a_terabyte_is_rejected(tmp_path: Path, environ: None) -> None:
    """Without reading all of its pages."""
    path = tmp_path / "x.sqlite"
    path.touch()
    os.truncate(path, 2**40)
    assert bounded(lambda: main(["deliver", "--print", str(path)])) == DATA


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a runner leaves it, with dropped lines."""
    spool = Spool(SpoolRoom(tmp_path_factory.mktemp("spool"), "job", 10_000, 200_000, 0))
    spool.save_state(**STATE)
    for number in range(3000):
        spool.put(LineBatch("stdout", NOW, b"%030d" % number, 1))
    assert spool.dropped
    path = spool.preserve()
    assert path is not None
    return path


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


#: Lines of that file, bytes of its pages and of a disk's blocks.
LARGE: Final = 3000
PAGE: Final = 16_384
BLOCK: Final = 4_096


@pytest.mark.long
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.99])
def test_the_beginning_of_a_truncated_file_is_recovered(
    share: float, large: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: None
) -> None:
    """All lines up to the first missing page."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(large[: int(share * len(large))])
    assert main(["deliver", "--print", str(path)]) == DATA
    out, err = capsys.readouterr()
    numbers = [int(line) for line in out.splitlines()]
    assert numbers == list(range(len(numbers)))
    assert (share - 0.2) * LARGE <= len(numbers) < LARGE
    assert err.endswith(f"chronoverse: {path} is damaged: everything after line {len(numbers)} cannot be read\n")
    # If most pages are present, so is the state, with the number of lines.
    assert err.startswith((f"--- lines {len(numbers) + 1}-{LARGE} are gone (lost) ---\n", "chronoverse: "))


@pytest.mark.long
def test_the_beginning_of_a_truncated_file_is_delivered(
    large: bytes, tmp_path: Path, environ: None, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    """The job then ends as its runner recorded. The damaged file is kept next to it."""
    server.ask("FLUSHALL")
    monkeypatch.setenv("CHRONOVERSE_REDIS_URL", server.url)
    path = tmp_path / "x.sqlite"
    path.write_bytes(large[: len(large) // 2])
    assert main(["deliver", str(path)]) == DATA
    *entries, end = read_entries(server.ask("XRANGE", key("log"), "-", "+"), 0)
    delivered = [entry.message for entry in entries if isinstance(entry, Line)]
    assert entries[-1] == Gap(len(delivered) + 1, LARGE, "lost")
    assert isinstance(end, End)
    assert [int(line) for line in delivered] == list(range(len(delivered)))
    assert len(delivered) > 1000
    assert server.ask("HGET", key("job"), "status") == b"COMPLETED"
    assert [each.read_bytes() for each in tmp_path.glob("x*")] == [large[: len(large) // 2]]


def test_the_journal_of_a_damaged_file_is_moved_along(
    large: bytes, tmp_path: Path, environ: None, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    """SQLite would apply it to the new file of that name."""
    server.ask("FLUSHALL")
    monkeypatch.setenv("CHRONOVERSE_REDIS_URL", server.url)
    path = tmp_path / "x.sqlite"
    path.write_bytes(bytes(BLOCK) + large[BLOCK:])
    Path(f"{path}-journal").write_bytes(bytes(1_024))
    assert main(["deliver", str(path)]) == DATA
    kept = {each.suffix: each for each in tmp_path.glob("x*")}
    assert kept.keys() == {".damaged", ".damaged-journal"}
    assert kept[".damaged-journal"].read_bytes() == bytes(1_024)


@pytest.mark.parametrize("at", [0, PAGE - BLOCK, 2 * PAGE, 3 * PAGE, 8 * PAGE, 9 * PAGE + BLOCK, 12 * PAGE - BLOCK])
def test_everything_around_a_lost_block_is_recovered(
    at: int, large: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: None
) -> None:
    """The disk lost 4 KiB. Lines on all other pages are recovered, even without the file's first page."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(large[:at] + bytes(BLOCK) + large[at + BLOCK :])
    assert main(["deliver", "--print", str(path)]) == DATA
    out, err = capsys.readouterr()
    numbers = [int(line) for line in out.splitlines() if line.isdigit()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= LARGE - 250
    assert len(numbers) == LARGE or "cannot be read" in err


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
def test_a_damaged_file_is_rejected_or_read(
    written: Path, tmp_path: Path, changes: list[tuple[float, str, bytes]]
) -> None:
    """After any change, cut or insertion: an error, or each number exactly once, in a line or a gap."""
    data = bytearray(written.read_bytes())
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
                data += data[at : at + 16_384]
    path = tmp_path / "x.sqlite"
    (tmp_path / "x.sqlite-journal").unlink(missing_ok=True)
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
