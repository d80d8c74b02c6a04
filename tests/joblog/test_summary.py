"""A summary has the most important lines in a bounded number of bytes, and says when it has left something out."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.summary import (
    MAX_BYTES,
    MAX_GROUPS,
    MIN_BYTES,
    LineGroups,
    compose,
    error_matcher,
    looks_like_error,
)
from chronoverse.joblog.values import Job, JobRef, Line, Status

NOW = "2026-03-03T10:00:05.123Z"


def line(number: int, message: str) -> Line:
    return Line(number, NOW, message, "stdout")


def group(lines: list[Line]) -> LineGroups:
    """The lines, those that differ in numbers only together."""
    groups = LineGroups(lambda message: re.sub("[0-9]+", "0", message))
    for each in lines:
        groups.add(each)
    return groups


def summarize(errors: list[Line], last: list[Line], max_bytes: int = 16_384, **more: Any) -> dict[str, Any]:
    """A summary, which is no longer than it may be."""
    job = Job(JobRef("w" * 128, "j" * 128), Status.FAILED, last=len(last))
    json = compose(job, group(errors), last, max_bytes=max_bytes, is_complete=more.pop("is_complete", True), **more)
    assert len(json) <= max_bytes
    summary: dict[str, Any] = orjson.loads(json)
    assert list(summary) == ["job", "compared_with", "new", "errors", "last", "truncated"]
    return summary


def test_lines_of_one_shape_come_once() -> None:
    """The first line of a shape stands for all of them, and says how many there are."""
    errors = [line(3, "error 1"), line(4, "fatal"), line(7, "error 2")]
    summary = summarize(errors, [line(7, "error 2")])
    assert summary["errors"] == {
        "count": 3,
        "first": [{**errors[0].to_json(), "repeated": 2}, errors[1].to_json()],
    }
    assert (summary["last"], summary["truncated"]) == ([errors[2].to_json()], False)
    assert (summary["compared_with"], summary["new"]) == (None, {"count": 0, "first": []})


def test_new_lines_and_what_they_were_compared_with() -> None:
    """They come in the order of the log."""
    new = [line(1, "one"), line(2, "two")]
    summary = summarize([], [], compared_with=["job_1", "job_2"], new=group(new))
    assert summary["compared_with"] == ["job_1", "job_2"]
    assert summary["new"] == {"count": 2, "first": [each.to_json() for each in new]}


def test_a_long_line_is_cut_and_marked() -> None:
    """The rest of it is in the log."""
    (shown,) = summarize([line(1, "x" * 100_000)], [])["errors"]["first"]
    assert (shown["message"], shown["truncated"]) == ("x" * 1_000, True)


def test_the_kinds_of_lines_share_the_room() -> None:
    """Each kind has some lines. The last lines are the very last ones, in the order of the log."""
    many = [line(number, f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)} error") for number in range(1, 400)]
    summary = summarize(many, many, 8_000, compared_with=["job_1"], new=group(many))
    sizes = [len(summary["new"]["first"]), len(summary["errors"]["first"]), len(summary["last"])]
    assert min(sizes) > 10
    assert max(sizes) - min(sizes) <= 1
    assert [each["sequence_num"] for each in summary["last"]] == list(range(400 - sizes[2], 400))
    assert summary["truncated"] is True


@pytest.mark.parametrize("why", ["not all was read", "too many shapes"])
def test_a_summary_that_leaves_something_out_says_so(why: str) -> None:
    """It says so even when all the lines that were found fit into it."""
    if why == "not all was read":
        assert summarize([], [], is_complete=False)["truncated"] is True
    else:
        errors = [line(n, "error " + "x" * n) for n in range(1, MAX_GROUPS + 2)]
        assert summarize(errors, [], MAX_BYTES)["errors"]["count"] == MAX_GROUPS + 1
        assert group(errors).is_complete is False


@given(
    st.lists(st.text(max_size=3_000), max_size=20),
    st.lists(st.text(max_size=300), max_size=20),
    st.lists(st.text("j", min_size=128, max_size=128), max_size=10),
    st.integers(MIN_BYTES, 20_000),
)
def test_it_never_has_more_bytes_than_it_may(
    errors: list[str], last: list[str], compared_with: list[str], max_bytes: int
) -> None:
    """That holds whatever the lines contain."""
    lines = [line(number, text) for number, text in enumerate(errors, 1)]
    summarize(
        lines,
        [line(number, text) for number, text in enumerate(last, 1)],
        max_bytes,
        compared_with=compared_with,
        new=group(lines),
    )


@pytest.mark.parametrize(
    "message",
    [
        "error: no such file",
        "E   AssertionError: assert 1 == 2",
        "Traceback (most recent call last):",
        "npm ERR! code ELIFECYCLE",
        "FAILED tests/test_x.py::test_y",
        "main.c:(.text+0x5): undefined reference to `f'",
        "java.lang.IllegalStateException: closed",
        "\x1b[31mFatal\x1b[0m: bad object",
        "3 errors, 0 failures",
        "thread 'main' panicked at src/main.rs:2",
    ],
)
def test_what_looks_like_an_error(message: str) -> None:
    matcher = error_matcher()
    assert matcher.matches(message)
    assert looks_like_error(matcher, message)


@pytest.mark.parametrize(
    "message",
    [
        "0 errors",
        "build finished without errors",
        "errors: 0, warnings: 3",
        "12 passed, 0 failed",
        "terror",
        "failsafe",
    ],
)
def test_what_does_not_look_like_an_error(message: str) -> None:
    matcher = error_matcher()
    assert not (matcher.matches(message) and looks_like_error(matcher, message))
