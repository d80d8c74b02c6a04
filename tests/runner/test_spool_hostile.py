"""Spool files that no runner has written. Each is refused with one line and an exit code, in little memory and time."""

import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronoverse.cli.main import main
from chronoverse.errors import SpoolError
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.spool import records
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import MAX_SLOTS, SpoolRoom, orphaned_spools
from tests.support.examples import examples
from tests.support.jobs import JOB, key, read_lines
from tests.support.servers import RedisServer, running

NOW: Final = "2026-03-03T10:00:05.123Z"
SLOT: Final = 4096
#: Exit codes: all is in the store; not a spool file; not delivered in time; the job has ended without the lines.
OK, DATA, UNAVAILABLE, NOT_IN_LOG = 0, 65, 69, 76
#: Bytes of memory and seconds that no file may take: some slots of the largest size, and enough for a busy machine.
MEMORY: Final = 16 * 2**20
SECONDS: Final = 10.0

STATE: Final[dict[str, Any]] = {
    "workflow": JOB.workflow_id,
    "job": JOB.job_id,
    "token": "a" * 32,
    "base": 1,
    "attempt": 1,
    "ending": ["COMPLETED", 0],
    "slot_bytes": SLOT,
}
RECORD: Final = struct.Struct("<II24sIB3x")


def record(text: bytes, order: int, *, time: bytes = NOW.encode(), lines: int | None = None, flags: int = 0) -> bytes:
    """A record with a right checksum, whatever it says."""
    lines = text.count(b"\n") + 1 if lines is None else lines
    rest = RECORD.pack(0, 0, time, lines, flags)[8:]
    return struct.pack("<II", len(text), zlib.crc32(text, zlib.crc32(rest, order & 0xFFFFFFFF))) + rest + text


def slot(order: int = 0, start: int = 0, ordinal: int = 0, marker: bytes = b"", content: bytes | None = None) -> bytes:
    """A slot with right checksums; two lines by default."""
    head = records.pack_slot(records.SlotHead(order, start, ordinal, marker)).ljust(records.SLOT_HEAD_BYTES, b"\0")
    return (head + (record(b"a\nb", order) if content is None else content)).ljust(SLOT, b"\0")


def file(*slots: bytes, raw_state: bytes | None = None, **state: Any) -> bytes:
    """A file with right checksums. A None removes a value from the state."""
    said = {name: value for name, value in {**STATE, **state}.items() if value is not None}
    packed = records.pack_state(said, 2)[1]
    if raw_state is not None:
        rest = struct.pack("<IQ", len(raw_state), 2) + raw_state
        packed = (b"CVSPOOL1" + struct.pack("<I", zlib.crc32(rest)) + rest).ljust(records.STATE_BYTES, b"\0")
    return packed.ljust(records.SLOTS_AT, b"\0") + b"".join(slots or [slot()])


REFUSED: Final[dict[str, bytes]] = {
    "empty": b"",
    "another kind of file": b"#!/bin/sh\n" * 1000,
    "no JSON in the state": file(raw_state=b"{"),
    "a list for a state": file(raw_state=b"[1]"),
    "a number for a state": file(raw_state=b"7"),
    "deep JSON in the state": file(raw_state=b"[" * 2000),
    "no size of slots": file(slot_bytes=None),
    "slots of no bytes": file(slot_bytes=0),
    "slots of a negative size": file(slot_bytes=-1),
    "slots without room": file(slot_bytes=records.SLOT_HEAD_BYTES),
    "slots of an exabyte": file(slot_bytes=2**60),
    "a size that is a text": file(slot_bytes="4096"),
    "a size that is a truth": file(slot_bytes=True),
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
    "printed lines that are a text": file(printed="x"),
    "printed lines beyond all numbers": file(printed=10**15),
    "two slots at one place": file(slot(), slot(start=2, ordinal=2)),
    "a place beyond all numbers": file(slot(order=2**64 - 1)),
    "a start beyond all numbers": file(slot(start=2**62)),
    "a line beyond all numbers": file(slot(), slot(1, 2, 2**63)),
}
#: Of these files the valid lines are taken.
TAKEN: Final[dict[str, tuple[bytes, list[str]]]] = {
    "whole": (file(), ["a", "b"]),
    "more lines than there are": (
        file(slot(content=record(b"a\nb", 0) + record(b"c", 0, lines=2**32 - 1))),
        ["a", "b"],
    ),
    "fewer lines than there are": (file(slot(content=record(b"a\nb", 0) + record(b"c\nd", 0, lines=1))), ["a", "b"]),
    "no lines": (file(slot(content=record(b"a\nb", 0) + record(b"", 0, lines=0))), ["a", "b"]),
    "a time that is none": (file(slot(content=record(b"a\nb", 0) + record(b"c", 0, time=b"\xff" * 24))), ["a", "b"]),
    "a time that is a sequence": (file(slot(content=record(b"a", 0, time=b"\x1b]0;title\x07".ljust(24)))), []),
    "flags that there are not": (file(slot(content=record(b"a\nb", 0) + record(b"c", 0, flags=255))), ["a", "b"]),
    "pieces of several lines": (file(slot(content=record(b"a\nb", 0) + record(b"c\nd", 0, flags=2))), ["a", "b"]),
    "a length beyond the slot": (file(slot(content=struct.pack("<II", 2**32 - 1, 0) + b"x" * 100)), []),
    "a drop marker of random bytes": (file(slot(marker=b"\xff" * 900)), ["a", "b"]),
    "bytes that are no text": (file(slot(content=record(b"\xff\0\x1b[2J", 0))), ["\ufffd\0\x1b[2J"]),
    "a state with more in it": (file(other="x" * 1500), ["a", "b"]),
    "no slots": (file()[: records.SLOTS_AT], []),
    "half a slot": (file()[: records.SLOTS_AT + 100], []),
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A data directory of the test's own."""
    monkeypatch.setenv("CHRONOVERSE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def bounded(work: Callable[[], int]) -> int:
    """What ``work`` returns, within its bounds."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        code = work()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < SECONDS
    return code


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_no_runner_has_written_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: None
) -> None:
    """The message is one line, and the file stays unchanged."""
    path = tmp_path / "x.spool"
    path.write_bytes(REFUSED[name])
    assert bounded(lambda: main(["deliver", str(path)])) == DATA
    assert bounded(lambda: main(["deliver", "--print", str(path)])) == DATA
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(str(path))[0] for line in err.splitlines()] == ["chronoverse: "] * 2
    assert path.read_bytes() == REFUSED[name]


@pytest.mark.parametrize("name", TAKEN)
def test_valid_lines_of_a_damaged_file_are_taken(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    environ: None,
    monkeypatch: pytest.MonkeyPatch,
    server: RedisServer,
) -> None:
    """They are printed and delivered up to the first invalid one."""
    content, expected = TAKEN[name]
    path = tmp_path / "x.spool"
    path.write_bytes(content)
    assert bounded(lambda: main(["deliver", "--print", "--raw", str(path)])) == OK
    assert capsys.readouterr().out == "".join(f"{line}\n" for line in expected)
    server.ask("FLUSHALL")
    monkeypatch.setenv("CHRONOVERSE_REDIS_URL", server.url)
    assert bounded(lambda: main(["deliver", "--deliver-timeout", "5s", str(path)])) == OK
    assert read_lines(server) == expected
    assert server.ask("HGET", key("job"), "status") == b"COMPLETED"
    assert not path.exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path, environ: None) -> None:
    """A pipe is refused without waiting for its writer."""
    make(tmp_path / "x.spool")
    assert main(["deliver", str(tmp_path / "x.spool")]) == DATA
    assert orphaned_spools(tmp_path) == []


def test_an_empty_file_of_a_terabyte_is_refused(tmp_path: Path, environ: None) -> None:
    """Its slots are not all read."""
    path = tmp_path / "x.spool"
    path.write_bytes(file())
    os.truncate(path, records.SLOTS_AT + (MAX_SLOTS + 1) * SLOT)
    assert bounded(lambda: main(["deliver", "--print", str(path)])) == DATA


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file as a runner leaves it, with lines that were dropped in the middle."""
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(SpoolRoom(directory, "job", SLOT, records.SLOTS_AT + 6 * SLOT, 0, SLOT))
    spool.save_state(**{name: value for name, value in STATE.items() if name != "slot_bytes"})
    for number in range(1000):
        spool.put(LineBatch("stdout", NOW, b"%030d" % number, 1))
    path = spool.preserve()
    assert path is not None
    return path.read_bytes()


changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "put", "copy"]), st.binary(max_size=40)
    ),
    min_size=1,
    max_size=6,
)


@given(changes)
@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_makes_new_lines(written: bytes, tmp_path: Path, changes: list[tuple[float, str, bytes]]) -> None:
    """Whatever is changed, cut off or inserted: the result is an error, or lines that were written."""
    data = bytearray(written)
    for where, what, content in changes:
        at = int(where * len(data))
        match what:
            case "flip" if at < len(data):
                data[at] ^= content[0] if content else 1
            case "cut":
                del data[max(at, records.SLOTS_AT) :]
            case "put":
                data[at : at + len(content)] = content
            case "copy":
                data += data[at : at + SLOT]
    path = tmp_path / "x.spool"
    path.write_bytes(data)
    try:
        spool = Spool.recover(path)
    except SpoolError:
        return
    messages = [line.message for line in spool.lines()]
    assert all(message.startswith("[chronoverse] ") or int(message) < 1000 for message in messages)
    spool.abandon()
