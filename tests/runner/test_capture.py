"""The line splitter with arbitrary bytes and chunks, and the capture of real processes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.runner.capture.pipes import ORPHAN_QUIET_SECONDS, Capture, Child
from chronoverse.runner.command import SignalForwarder, run_command

NOW = "2026-03-03T10:00:05.123Z"
OFF = SecretForms(None)

#: Bytes that are hard to split: newlines, parts of multi-byte characters, and invalid UTF-8.
hostile = st.lists(
    st.sampled_from([b"\n", b"\n\n", b"\r\n", b"a", b"\x00", "é".encode(), "€".encode(), "🙂".encode()])
    | st.sampled_from([b"\xf0", b"\x9f", b"\xe2\x82", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", "\u2028".encode()])
    | st.binary(max_size=9)
).map(b"".join)


def entries(batches: Iterable[LineBatch]) -> list[tuple[str, bool]]:
    """Every published entry: its message and whether it is partial."""
    return [(message, batch.partial) for batch in batches for message in map(bytes.decode, batch.messages())]


def joined(batches: Iterable[LineBatch]) -> list[str]:
    """The lines, with partial lines joined."""
    lines, line = [], ""
    for message, partial in entries(batches):
        line += message
        if not partial:
            lines.append(line)
            line = ""
    assert not line, "a line was left open"
    return lines


def expected(data: bytes) -> list[str]:
    """The lines of ``data``, split in the simplest possible way."""
    lines = [line.decode("utf-8", "replace") for line in data.split(b"\n")]
    return lines if lines[-1] else lines[:-1]


def cut(chunks: Iterable[bytes], max_line_bytes: int = 65_536) -> list[LineBatch]:
    splitter = LineSplitter("stdout", max_line_bytes, OFF)
    batches = [batch for chunk in chunks for batch in splitter.feed(chunk, NOW)]
    return batches + splitter.close()


@given(st.lists(hostile), st.integers(4, 20), st.sets(st.integers(0, 20)))
def test_any_chunks_of_any_bytes_give_the_same_lines(chunks: list[bytes], limit: int, quiet: set[int]) -> None:
    """Chunk boundaries, flushes and the partial-line limit never change a line."""
    splitter = LineSplitter("stdout", limit, OFF)
    batches: list[LineBatch] = []
    for number, chunk in enumerate(chunks):
        batches += splitter.feed(chunk, NOW)
        if number in quiet:
            batches += splitter.flush()
    assert joined([*batches, *splitter.close()]) == expected(b"".join(chunks))


def test_a_line_is_cut_only_if_it_is_too_long() -> None:
    assert entries(cut([b"12345678\n123456789\n"], 8)) == [("12345678", False), ("12345678", True), ("9", False)]
    with pytest.raises(ValueError, match="4 bytes"):
        cut([], 3)


def test_a_line_of_ten_megabytes_takes_linear_time() -> None:
    """Read in chunks of 64 KiB, and byte by byte at the end."""
    started = time.process_time()
    batches = cut([b"x" * 65_536] * 160 + [b"y"] * 100_000 + [b"\n"])
    assert joined(batches) == ["x" * 65_536 * 160 + "y" * 100_000]
    assert time.process_time() - started < 5


def capture(code: str, *, interval: float = 0.0) -> tuple[list[LineBatch], bytes, bytes, int]:
    """Runs Python code as the command: its batches, what was shown on stdout and stderr, and its exit code.

    With ``interval``, the clock advances by that many seconds on each reading.
    """
    shown: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    batches: list[LineBatch] = []
    moments = iter(range(1_000_000))
    clock: Callable[[], float] = (lambda: 1_000_000.0 + interval * next(moments)) if interval else time.time
    tees = {stream: shown[stream].append for stream in shown}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, bufsize=0) as child:
        Capture(tees, batches.append, clock=clock).run(child)
        exit_code = child.wait()
    return batches, b"".join(shown["stdout"]), b"".join(shown["stderr"]), exit_code


SETTLED_WRITE = """
import fcntl, os, sys, termios, time
def write(fd, data):
    os.write(fd, data)
    while any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):
        time.sleep(0.0002)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe's writer can see there that it was read")
def test_lines_of_both_pipes_come_in_the_order_they_were_written() -> None:
    """A line written after another one was read follows it, whichever pipes they use. One clock is read per read."""
    code = SETTLED_WRITE + "for i in range(200): write(1 + (i // 3) % 2, b'%d\\n' % i)"
    batches, out, err, _ = capture(code, interval=1.0)
    assert [int(message) for message, _ in entries(batches)] == list(range(200))
    assert [int(line) for line in out.split()] == [i for i in range(200) if (i // 3) % 2 == 0]
    assert [int(line) for line in err.split()] == [i for i in range(200) if (i // 3) % 2 == 1]
    assert [batch.timestamp[14:19] for batch in batches[:3]] == ["46:40", "46:41", "46:42"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, a pipe has no room for a backlog")
def test_an_error_follows_the_output_that_waits_before_it() -> None:
    """The reader of our output is slow, so that the command's end finds much output in its pipe."""
    code = "import os; [os.write(1, b'x' * 99_999 + b'\\n') for _ in range(25)]; os.write(2, b'failed\\n')"
    batches: list[LineBatch] = []
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        tees = {"stdout": lambda data: time.sleep(0.05), "stderr": lambda data: None}
        Capture(tees, batches.append, max_line_bytes=2**18).run(child)
    assert [batch.stream for batch in batches][-1] == "stderr"
    assert sum(batch.lines for batch in batches) == 26


def test_bytes_are_shown_unchanged() -> None:
    """Even where the log differs."""
    binary = bytes(range(256)) * 400
    batches, out, err, _ = capture(f"import sys; sys.stdout.buffer.write({binary[:256]!r} * 400)")
    assert (out, err) == (binary, b"")
    assert joined(batches) == expected(re.sub(rb"[^\r\n]*\r", b"", binary))


def test_text_without_a_newline_is_published_in_time() -> None:
    """Even if the job is never quiet: dots printed ten times a second. Each stream continues its own partial line."""
    code = """
import os, time
os.write(2, b'err: ')
for _ in range(13): os.write(1, b'.'); time.sleep(0.1)
os.write(1, b'done\\n'); os.write(2, b'two')
"""
    batches, _, _, _ = capture(code)
    for stream, line in (("stdout", "." * 13 + "done"), ("stderr", "err: two")):
        parts = [batch for batch in batches if batch.stream == stream]
        assert [batch.partial for batch in parts] == [True, False]
        assert joined(parts) == [line]


GRANDCHILD = """
import os, sys, time
if os.fork() == 0:
    {grandchild}
    os._exit(0)
os.write(1, b'child\\n')
"""


def test_a_grandchild_can_print_after_the_command_has_ended() -> None:
    """Its pipe is still open, perhaps forever; the capture ends after a period of silence."""
    started = time.monotonic()
    grandchild = "time.sleep(1); os.write(1, b'grandchild\\n'); time.sleep(30)"
    batches, _, _, _ = capture(GRANDCHILD.format(grandchild=grandchild))
    assert sorted(joined(batches)) == ["child", "grandchild"]
    assert 1 + ORPHAN_QUIET_SECONDS <= time.monotonic() - started < 20


@pytest.mark.parametrize(("read_at", "deadline"), [(90, 102), (105, 107), (109, 110), (1_000, 110)])
def test_a_grandchild_that_never_stops_printing_is_left_after_ten_seconds(read_at: float, deadline: float) -> None:
    """The command ended at 100."""
    ended = Capture({}, print)
    ended._pipes, ended._ended_at, ended._last_read_at = {cast("Any", "pipe")}, 100.0, read_at
    assert ended._deadline() == deadline


def test_what_a_slow_reader_left_in_the_pipe_is_read() -> None:
    """Even long after the command's end. An earlier version neither showed nor published its last output."""
    shown: list[bytes] = []
    batches: list[LineBatch] = []
    code = "print('x' * 99, flush=True)\nfor _ in range(8_000): print('x' * 99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:

        def show(data: bytes) -> None:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            shown.append(data)
            # As long as a reader waits for a key, then as long as the silence after which a grandchild is abandoned.
            time.sleep(ORPHAN_QUIET_SECONDS if len(shown) == 3 else 0)

        Capture({"stdout": show, "stderr": show}, batches.append).run(child)
    assert len(b"".join(shown)) == 800_100
    assert joined(batches) == ["x" * 99] * 8_001


def test_a_busy_command_is_read_in_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that arrive together stay together, and the reader waits for more, which keeps a busy job cheap."""
    pauses: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    capture("print('a few lines'); print('are shown at once')")
    assert pauses == []
    batches, out, _, _ = capture("import sys; sys.stdout.write(('x' * 99 + '\\n') * 100_000)")
    assert 0 < len(pauses) <= len(batches)
    assert len(out) == 10_000_000
    assert sum(batch.lines for batch in batches) == 100_000
    assert len(batches) < 2_000
    assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(batches))


def test_a_command_that_closes_its_pipes_is_waited_for() -> None:
    """The other one is still read, and the exit code follows later."""
    code = (
        "import os, time; os.write(1, b'bye\\n'); os.close(1); time.sleep(0.3); os.write(2, b'still\\n'); os.close(2)"
    )
    batches, _, _, exit_code = capture(f"{code}; time.sleep(0.3); os._exit(6)")
    assert (entries(batches), exit_code) == ([("bye", False), ("still", False)], 6)


def test_a_command_whose_output_cannot_be_captured_is_killed() -> None:
    """Its output would be lost, and it could wait for a reader forever."""

    class Failing(Capture):
        def run(self, child: Child) -> None:
            for pipe in filter(None, (child.stdout, child.stderr)):
                pipe.close()
            raise MemoryError

    capture, began = Failing({}, lambda batch: None), time.monotonic()
    with pytest.raises(MemoryError):
        run_command(["sleep", "60"], capture, print, SignalForwarder())
    assert time.monotonic() - began < 50
