"""Carriage returns: states of progress bars, and line ends, for any bytes in any chunks."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.line_splitter import ProgressFilter
from tests.support.parameters import long_after

#: Bytes of a state that these tests hold back.
HELD = 5

#: Bytes that are hard for the filter, and states of about the maximum length.
bars = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\r\n", b"10%", b" ", "é".encode(), b"\xff", b"xxxxx", b"y"])
).map(b"".join)


def expected_lines(data: bytes) -> list[bytes]:
    """The lines of ``data`` if no time passes: each line's last state, and states too long to hold back."""
    lines = []
    for line in data.split(b"\n"):
        *overwritten, last = re.split(rb"\r+", line.rstrip(b"\r"))
        lines += [state for state in overwritten if len(state) > HELD] + [last]
    return lines


@given(st.lists(bars))
def test_any_chunks_give_the_last_state_of_every_line(chunks: list[bytes]) -> None:
    """Chunks do not matter while no time passes."""
    progress_filter = ProgressFilter(HELD)
    given_out = b"".join([*map(progress_filter.feed, chunks), progress_filter.release()])
    assert given_out.split(b"\n") == expected_lines(b"".join(chunks))


@given(st.lists(st.tuples(bars, st.booleans())))
def test_a_state_is_published_or_dropped_as_a_whole(steps: list[tuple[bytes, bool]]) -> None:
    """The output consists of lines of the input's states, in order, including each line's last state."""
    progress_filter = ProgressFilter(HELD)
    given_out = b""
    for chunk, quiet in steps:
        given_out += progress_filter.feed(chunk)
        given_out += progress_filter.release() if quiet else b""
    lines = (given_out + progress_filter.release()).split(b"\n")
    data = b"".join(chunk for chunk, _ in steps)
    states = iter(re.split(rb"\r*\n|\r+", data))
    assert all(any(state == line for state in states) for line in lines if line)
    lasts = iter(lines)
    assert all(any(line == last for line in lasts) for last in expected_lines(data) if len(last) <= HELD)


@given(st.lists(st.binary(max_size=9).map(lambda data: data.replace(b"\r", b""))), st.sets(st.integers(0, 20)))
def test_without_a_carriage_return_nothing_changes(chunks: list[bytes], quiet: set[int]) -> None:
    """The output is the input, byte for byte."""
    progress_filter = ProgressFilter()
    given_out = b""
    for number, chunk in enumerate(chunks):
        given_out += progress_filter.feed(chunk)
        given_out += progress_filter.release() if number in quiet else b""
    assert given_out + progress_filter.release() == b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "given_out"),
    [
        (b"10%\r20%\r100%\n", b"100%\n"),
        (b"\r10%\r20%\r100%\n", b"100%\n"),
        (b"10%\r100%\r\n", b"100%\n"),
        (b"10%\r100%\r", b"100%"),
        (b"a\r\n\r\nb\r\r\n", b"a\n\nb\n"),
        (b"text\n50%\r\n", b"text\n50%\n"),
    ],
)
def test_a_line_is_its_last_state(data: bytes, given_out: bytes) -> None:
    """A carriage return can come before or after a state, and lines can end in any way."""
    progress_filter = ProgressFilter()
    assert progress_filter.feed(data) + progress_filter.release() == given_out


def test_a_state_that_was_shown_for_a_while_is_a_line() -> None:
    """If it was incomplete at that time, its rest still follows."""
    progress_filter = ProgressFilter()
    parts = [
        progress_filter.feed(b"\r1%\r2%\r3"),
        progress_filter.release(),
        progress_filter.feed(b"0%"),
        progress_filter.feed(b"\r40%\r50%\n"),
    ]
    assert parts == [b"", b"3", b"0%", b"\n50%\n"]


@pytest.mark.parametrize("hostile", long_after(2, [b"\r\r\n", b"x" * 5_000 + b"\r", b"\r", b"\rx", b"x\r"]))
def test_a_megabyte_of_returns_takes_linear_time(hostile: bytes) -> None:
    """In one chunk and in many."""
    data = hostile * (1_000_000 // len(hostile))
    started = time.process_time()
    for size in (1_000_000, 10_000):
        progress_filter = ProgressFilter()
        for start in range(0, len(data), size):
            progress_filter.feed(data[start : start + size])
    assert time.process_time() - started < 2
