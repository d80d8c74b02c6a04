"""From bytes to lines: the cutter for any bytes in any chunks, the loop on real processes."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.runner.capture.line_assembler import PARTIAL_SECONDS
from chronoverse.runner.capture.line_splitter import LineBatch, LineSplitter
from chronoverse.runner.capture.pipes import ORPHAN_QUIET_SECONDS, Capture

NOW = "2026-03-03T10:00:05.123Z"

#: Bytes with much of what makes cutting hard: newlines, the parts of long characters, what is never UTF-8.
hostile = st.lists(
    st.sampled_from([b"\n", b"\n\n", b"\r\n", b"a", b"\x00", "é".encode(), "€".encode(), "🙂".encode()])
    | st.sampled_from([b"\xf0", b"\x9f", b"\xe2\x82", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", "\u2028".encode()])
    | st.binary(max_size=9)
).map(b"".join)


def entries(blocks: Iterable[LineBatch]) -> list[tuple[str, bool]]:
    """Every published entry: message and whether its line goes on."""
    return [(message, block.partial) for block in blocks for message in block.messages()]


def joined(blocks: Iterable[LineBatch]) -> list[str]:
    """The lines that the pieces make."""
    lines, line = [], ""
    for message, partial in entries(blocks):
        line += message
        if not partial:
            lines.append(line)
            line = ""
    assert not line, "a line was left open"
    return lines


def expected(data: bytes) -> list[str]:
    """The lines of ``data``, cut the slow way."""
    lines = [line.decode("utf-8", "replace") for line in data.split(b"\n")]
    return lines if lines[-1] else lines[:-1]


def cut(chunks: Iterable[bytes], max_line_bytes: int = 65_536) -> list[LineBatch]:
    cutter = LineSplitter("stdout", max_line_bytes)
    blocks = [block for chunk in chunks for block in cutter.feed(chunk, NOW)]
    return blocks + cutter.close()


@given(st.lists(hostile), st.integers(4, 20), st.sets(st.integers(0, 20)))
def test_any_chunks_of_any_bytes_give_the_same_lines(chunks: list[bytes], limit: int, quiet: set[int]) -> None:
    """Neither where reads cut the bytes, nor flushes between them, nor the limit on pieces changes a line."""
    cutter = LineSplitter("stdout", limit)
    blocks: list[LineBatch] = []
    for number, chunk in enumerate(chunks):
        blocks += cutter.feed(chunk, NOW)
        if number in quiet:
            blocks += cutter.flush()
    assert joined([*blocks, *cutter.close()]) == expected(b"".join(chunks))


@given(st.lists(hostile), st.integers(4, 20))
def test_no_piece_is_longer_than_the_limit_and_every_block_counts_its_lines(chunks: list[bytes], limit: int) -> None:
    """The limit is on the job's own bytes; a block's ``lines`` is how many messages it gives."""
    for block in cut(chunks, limit):
        assert all(len(line) <= limit for line in block.text.split(b"\n"))
        assert len(block.messages()) == block.lines
        assert block.lines == 1 or not block.partial


@given(st.text(alphabet="aé€🙂\n"), st.integers(4, 9))
def test_pieces_of_good_text_are_good_text(text: str, limit: int) -> None:
    """A long line is cut between characters, never through one."""
    assert "\ufffd" not in "".join(message for message, _ in entries(cut([text.encode()], limit)))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n\n", ["", "", ""]),
        (b"no newline", ["no newline"]),
        (b"a\r\nb\r\n", ["a\r", "b\r"]),
        (b"50%\r100%\n", ["50%\r100%"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
        (b"\xff\xfe ok\n", ["\ufffd\ufffd ok"]),
    ],
)
def test_lines_end_at_newlines_only(data: bytes, lines: list[str]) -> None:
    """Blank lines are lines, carriage returns stay, and what is not UTF-8 is replaced."""
    assert entries(cut([data])) == [(line, False) for line in lines]


def test_a_line_of_just_the_limit_is_one_entry() -> None:
    """Only a longer one is cut, and its newline does not count."""
    assert entries(cut([b"12345678\n123456789\n"], 8)) == [("12345678", False), ("12345678", True), ("9", False)]


def test_a_flushed_line_is_closed_by_an_empty_entry_when_its_newline_comes_alone() -> None:
    """The reader learns that the line goes no further, though there is nothing left to say."""
    cutter = LineSplitter("stdout")
    blocks = [*cutter.feed(b"Password: ", NOW), *cutter.flush(), *cutter.feed(b"\nnext\n", NOW)]
    assert entries(blocks) == [("Password: ", True), ("", False), ("next", False)]


def test_a_flush_keeps_back_the_beginning_of_a_character() -> None:
    """It is shown with the rest of it."""
    cutter = LineSplitter("stdout")
    blocks = [*cutter.feed(b"one \xe2\x82", NOW), *cutter.flush(), *cutter.feed(b"\xac\n", NOW)]
    assert entries(blocks) == [("one ", True), ("€", False)]


def test_a_line_of_ten_megabytes_takes_linear_time() -> None:
    """In reads of 64 KiB, with and without its newline near, and byte by byte at the end."""
    started = time.process_time()
    blocks = cut([b"x" * 65_536] * 160 + [b"y"] * 100_000 + [b"\n"])
    assert joined(blocks) == ["x" * 65_536 * 160 + "y" * 100_000]
    assert time.process_time() - started < 5


def test_a_limit_without_room_for_a_character_is_refused() -> None:
    """Or a long line could not be cut at all."""
    with pytest.raises(ValueError, match="4 bytes"):
        LineSplitter("stdout", 3)


def listen(code: str, *, interval: float = 0.0) -> tuple[list[LineBatch], bytes, bytes, int]:
    """Runs Python code as the command: its blocks, what was shown of stdout and of stderr, its exit code.

    With ``interval`` the clock moves on by that much whenever it is read.
    """
    shown: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    blocks: list[LineBatch] = []
    moments = iter(range(1_000_000))
    clock: Callable[[], float] = (lambda: 1_000_000.0 + interval * next(moments)) if interval else time.time
    echoes = {stream: shown[stream].append for stream in shown}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, bufsize=0) as child:
        Capture(child, echoes, blocks.append, clock=clock).run()
        exit_code = child.wait()
    return blocks, b"".join(shown["stdout"]), b"".join(shown["stderr"]), exit_code


SETTLED_WRITE = """
import fcntl, os, sys, termios, time
def write(fd, data):
    os.write(fd, data)
    while any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):
        time.sleep(0.0002)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe's writer can see there that it was read")
def test_lines_of_both_pipes_come_in_the_order_they_were_written() -> None:
    """One counter over both: a line that was written after another was read comes after it."""
    blocks, out, err, _ = listen(SETTLED_WRITE + "for i in range(400): write(1 + (i // 3) % 2, b'%d\\n' % i)")
    assert [int(message) for message, _ in entries(blocks)] == list(range(400))
    assert [int(line) for line in out.split()] == [i for i in range(400) if (i // 3) % 2 == 0]
    assert [int(line) for line in err.split()] == [i for i in range(400) if (i // 3) % 2 == 1]


def test_times_are_those_of_the_arrival_by_one_clock() -> None:
    """The clock is read once for each read of a pipe, whichever pipe it was."""
    blocks, _, _, _ = listen(SETTLED_WRITE + "for i in range(4): write(1 + i % 2, b'.\\n')", interval=1.0)
    assert [block.timestamp[14:19] for block in blocks] == ["46:40", "46:41", "46:42", "46:43"]


def test_bytes_are_shown_as_they_are() -> None:
    """Whatever the log makes of them."""
    binary = bytes(range(256)) * 400
    blocks, out, err, _ = listen(f"import sys; sys.stdout.buffer.write({binary[:256]!r} * 400)")
    assert (out, err) == (binary, b"")
    assert joined(blocks) == expected(re.sub(rb"[^\r\n]*\r", b"", binary))


def test_text_without_a_newline_is_shown_in_time() -> None:
    """A prompt, and each second's dots, go out as pieces though the job is never quiet for long."""
    code = "import os, time\nfor _ in range(30): os.write(1, b'.'); time.sleep(0.1)\nos.write(1, b'done\\n')"
    blocks, _, _, _ = listen(code)
    assert 2 <= sum(block.partial for block in blocks) <= 3
    assert joined(blocks) == ["." * 30 + "done"]


def test_pieces_of_both_streams_may_interleave() -> None:
    """Each stream's line goes on in its own next piece."""
    code = f"""
import os, time
os.write(1, b'out: '); os.write(2, b'err: ')
time.sleep({PARTIAL_SECONDS + 0.5})
os.write(1, b'one\\n'); os.write(2, b'two')
"""
    blocks, _, _, _ = listen(code)
    for stream, line in (("stdout", "out: one"), ("stderr", "err: two")):
        pieces = [block for block in blocks if block.stream == stream]
        assert [block.partial for block in pieces] == [True, False]
        assert joined(pieces) == [line]


def test_a_command_that_closes_its_pipes_is_waited_for() -> None:
    """Its exit code is still to come."""
    code = "import os, time; os.write(1, b'bye\\n'); os.close(1); os.close(2); time.sleep(0.5); os._exit(7)"
    blocks, _, _, exit_code = listen(code)
    assert (entries(blocks), exit_code) == ([("bye", False)], 7)


GRANDCHILD = """
import os, sys, time
if os.fork() == 0:
    {grandchild}
    os._exit(0)
os.write(1, b'child\\n')
"""


def test_a_grandchild_that_speaks_is_heard_after_the_command_ended() -> None:
    """Its pipe is still open, and silence is what ends the waiting."""
    blocks, _, _, _ = listen(GRANDCHILD.format(grandchild="time.sleep(1); os.write(1, b'grandchild\\n')"))
    assert sorted(joined(blocks)) == ["child", "grandchild"]


def test_a_grandchild_that_is_silent_does_not_hold_us() -> None:
    """A daemon may keep the pipe for ever."""
    started = time.monotonic()
    listen(GRANDCHILD.format(grandchild="time.sleep(6)"))
    assert ORPHAN_QUIET_SECONDS <= time.monotonic() - started < ORPHAN_QUIET_SECONDS + 2


def test_a_busy_command_is_read_in_large_blocks() -> None:
    """Lines that arrive together stay together: that is what makes a busy job cheap."""
    blocks, out, _, _ = listen("import sys; sys.stdout.write(('x' * 99 + '\\n') * 100_000)")
    assert len(out) == 10_000_000
    assert sum(block.lines for block in blocks) == 100_000
    assert len(blocks) < 2_000
    assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(blocks))


def test_binary_output_ends_as_it_should() -> None:
    """Right exit code, every byte shown, nothing hangs."""
    code = "import os, random, sys; sys.stdout.buffer.write(random.Random(1).randbytes(3_000_000)); sys.exit(3)"
    blocks, out, _, exit_code = listen(code)
    assert (len(out), exit_code) == (3_000_000, 3)
    assert sum(block.lines for block in blocks if not block.partial) >= out.count(b"\n")


def test_two_hundred_children_may_print_at_once() -> None:
    """Each whole line is there, on its stream."""
    code = """
import subprocess, sys
children = [subprocess.Popen(["sh", "-c", f"echo out {n}; echo err {n} >&2"]) for n in range(200)]
sys.exit(sum(child.wait() for child in children) + 4)
"""
    blocks, _, _, exit_code = listen(code)
    assert exit_code == 4
    for stream, name in (("stdout", "out"), ("stderr", "err")):
        lines = joined(block for block in blocks if block.stream == stream)
        assert sorted(lines) == sorted(f"{name} {number}" for number in range(200))


def test_a_command_that_closes_stdout_goes_on_being_heard_on_stderr() -> None:
    """One pipe's end is not the command's."""
    code = (
        "import os, time; os.write(1, b'bye\\n'); os.close(1); time.sleep(0.3); os.write(2, b'still\\n'); os._exit(6)"
    )
    blocks, _, _, exit_code = listen(code)
    assert (entries(blocks), exit_code) == ([("bye", False), ("still", False)], 6)


def test_the_end_of_endless_output_is_the_commands() -> None:
    """``yes``, cut off: 2 million lines, of which none is lost."""
    blocks, out, _, exit_code = listen("import subprocess; subprocess.run('yes | head -c 4M', shell=True, check=True)")
    assert (len(out), exit_code) == (4 << 20, 0)
    assert sum(block.lines for block in blocks) == 2 << 20
