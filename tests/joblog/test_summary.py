"""A summary has the most important lines in a limited number of bytes, and marks omissions."""

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.causes import Cause, LineReader
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.past_runs import PastRuns
from chronoverse.joblog.summary import (
    MAX_BYTES,
    MAX_GROUPS,
    MAX_HUNKS,
    MIN_BYTES,
    Findings,
    FoundLines,
    Hunk,
    compose,
    weight_of,
)
from tests.support.examples import CHARACTERS

NOW = "2026-03-03T10:00:05.123Z"


def line(number: int, message: str) -> Line:
    return Line(number, NOW, message, "stdout")


def weigh(message: str) -> int:
    """The weight of a line: errors are telling."""
    return int("error" in message)


def group(lines: list[Line], low: int = 1) -> FoundLines:
    """The lines, grouped without regard to digits. Those from number ``low`` on were scanned."""
    groups = FoundLines(lambda message: hash(re.sub("[0-9]+", "0", message)), weigh, low, len(lines))
    for each in lines:
        groups.add(each)
    return groups


def summarize(errors: list[Line], last: list[Line], max_bytes: int = 16_384, **more: Any) -> dict[str, Any]:
    """A summary, after checking its size."""
    job = Job(JobRef("w" * 128, "j" * 128), more.pop("status", Status.FAILED), last=len(last))
    found = group(errors, more.pop("low", 1))
    others = {name: more.pop(name) for name in ("read_past", "baseline") if name in more}
    json = compose(job, Findings(found, last, **more), max_bytes, read(errors), **others)
    assert len(json) <= max_bytes
    summary: dict[str, Any] = orjson.loads(json)
    kinds = ["new", "errors", "last"]
    said = ["cause", "complete", "scanned_to", "truncated", "verdict", "slower"]
    assert list(summary) == ["job", "compared_with", "baseline", *kinds, *said]
    return summary


def read(lines: list[Line]) -> Callable[[int], Line]:
    return lambda number: next(line for line in lines if line.sequence_num == number)


def test_lines_of_one_shape_come_once() -> None:
    """The first line represents all lines of its shape, with their number."""
    errors = [line(3, "error 1"), line(4, "fatal"), line(7, "error 2")]
    summary = summarize(errors, [line(7, "error 2")])
    assert summary["errors"] == {"count": 3, "first": [{**errors[0].to_json(), "repeated": 2}, errors[1].to_json()]}
    assert (summary["last"], summary["truncated"]) == ([errors[2].to_json()], False)
    assert (summary["compared_with"], summary["new"]) == (None, {"count": 0, "first": []})


def test_pauses_get_a_quarter_of_the_room() -> None:
    """Omitted pauses are marked: without any, nothing would seem slower."""
    slower = [b'"%b"' % (b"x" * 1_000)] * 3
    for max_bytes, count in ((16_384, 3), (6_000, 1), (1_024, None)):
        summary = summarize([], [line(1, "one")], max_bytes, slower=slower)
        assert (summary["slower"], summary["truncated"]) == (count and ["x" * 1_000] * count, count != 3)
    assert summarize([], [line(1, "one")], slower=[])["slower"] == []
    assert summarize([], [line(1, "one")])["slower"] is None


def test_new_lines_and_what_they_were_compared_with() -> None:
    """In the order of the log."""
    new = [line(1, "one"), line(2, "two")]
    summary = summarize([], [], compared_with=["job_1", "job_2"], new=group(new))
    assert summary["compared_with"] == ["job_1", "job_2"]
    assert summary["new"] == {"count": 2, "first": [each.to_json() for each in new]}


def test_a_long_line_is_cut_and_marked() -> None:
    """The rest of it is in the log."""
    (shown,) = summarize([line(1, "x" * 100_000)], [])["errors"]["first"]
    assert (shown["message"], shown["truncated"]) == ("x" * 1_000, True)


def test_the_kinds_of_lines_share_the_room() -> None:
    """Each kind has some lines. The last lines are the log's very last ones, in order."""
    many = [line(number, f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)} error") for number in range(1, 400)]
    summary = summarize(many, many, 8_000, compared_with=["job_1"], new=group(many))
    sizes = [len(summary["new"]["first"]), len(summary["errors"]["first"]), len(summary["last"])]
    assert min(sizes) > 10
    assert max(sizes) - min(sizes) <= 1
    assert [each["sequence_num"] for each in summary["last"]] == list(range(400 - sizes[2], 400))
    assert summary["truncated"] is True


def test_a_summary_marks_omissions() -> None:
    """Even if all found lines fit."""
    errors = [line(n, "error " + "x" * n) for n in range(1, MAX_GROUPS + 2)]
    summary = summarize(errors, errors[-1:], MAX_BYTES)
    assert (summary["errors"]["count"], summary["truncated"]) == (MAX_GROUPS + 1, True)


def test_unscanned_lines_are_not_counted() -> None:
    """There is no count and no verdict, and the summary says where scanning stopped."""
    lines = [line(number, "error") for number in range(1, 11)]
    summary = summarize(lines[5:], lines, low=6, read_past=lambda _: PastRuns([]))
    assert (summary["complete"], summary["scanned_to"], summary["truncated"]) == (False, 6, True)
    assert summary["verdict"] is None
    assert (summary["errors"]["count"], summary["errors"]["first"][0]["repeated"]) == (None, 5)
    summary = summarize(lines, lines, compared_with=["a"], new=group([], 9))
    assert (summary["complete"], summary["scanned_to"]) == (False, 9)
    assert (summary["errors"]["count"], summary["new"]["count"]) == (10, None)
    summary = summarize(lines, lines, read_past=lambda _: PastRuns([]))
    assert (summary["complete"], summary["scanned_to"], summary["truncated"]) == (True, 1, False)
    assert summary["verdict"] == {"kind": "new", "id": None}


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_the_order_of_scanning_makes_no_difference(is_found: list[bool], start: int, stop: int) -> None:
    """From the end backwards, with new lines meanwhile and saved state between requests, or in one pass."""
    lines = [line(number, f"{'xyz'[number % 3]} {number}") for number, each in enumerate(is_found, 1) if each]
    start, stop = sorted((start, stop))
    backwards = FoundLines(lambda message: ord(message[0]), lambda message: message[0] == "x", start, start)
    for each in reversed([each for each in lines if each.sequence_num <= start]):
        backwards.add(each)
    for each in [each for each in lines if each.sequence_num > start]:
        restored = FoundLines(backwards.shape_of, backwards.weigh, 0, 0)
        restored.restore(orjson.loads(orjson.dumps(backwards.to_json())))
        backwards = restored
        backwards.add(each)
    forwards = FoundLines(backwards.shape_of, backwards.weigh, start, start)
    for each in lines:
        forwards.add(each)
    assert (backwards.count, backwards.best_hunk()) == (forwards.count, forwards.best_hunk())
    assert [(each.number, each.repeated) for each in backwards.groups()] == [
        (each.number, each.repeated) for each in forwards.groups()
    ]


@pytest.mark.parametrize("telling", [1, 301, 3 * MAX_HUNKS + 1])
@pytest.mark.parametrize("step", [3, -3])
def test_the_best_of_too_many_hunks_is_kept(telling: int, step: int) -> None:
    """Wherever it is, and in whichever order lines are scanned."""
    found = FoundLines(hash, lambda message: 3 * weigh(message), 1, 1)
    for number in range(1, 3 * MAX_HUNKS + 2, 3)[:: step // 3]:
        found.add(line(number, "error" if number == telling else "x"))
    assert found.best_hunk() == Hunk(telling, telling, 1, telling, 3)


def cause(messages: dict[int, str], status: Status = Status.FAILED, new: FoundLines | None = None) -> Any:
    """The cause of a job with 100 lines: ``messages`` by number, and ``step`` for all others. A guess is line 40."""
    lines = [line(number, messages.get(number, "step")) for number in range(1, 101)]
    guess = Cause(30, 59, 40, 0.7) if messages else None
    job = Job(JobRef("w", "j"), status, last=100)
    more: dict[str, Any] = {"new": new, "compared_with": ["good"]} if new else {}
    json = compose(job, Findings(group([]), lines[-50:], guess=guess, **more), 16_384, read(lines))
    found = orjson.loads(json)["cause"]
    return found and (found["from"], found["to"], found["line"]["sequence_num"], found["kind"], found["confidence"])


def test_the_cause_of_a_job() -> None:
    """The best hunk of new lines, the guess, or the last lines. Only failed and lost jobs have one."""
    errors = {40: "error a", 90: "error c"}
    assert cause(errors) == (30, 59, 40, "error", "high")
    assert cause(errors, new=group([line(70, "x"), line(71, "error y")])) == (70, 71, 71, "error", "high")
    assert cause(errors, new=group([line(70, "x"), line(71, "y")])) == (70, 71, 70, "new", "low")
    assert cause({}, new=group([line(number, "x") for number in range(1, 101)])) == (71, 100, 100, "last", "low")
    assert cause(errors, new=group([])) == (30, 59, 40, "error", "high")
    assert cause({}) == (71, 100, 100, "last", "low")
    assert cause(errors, Status.LOST) == (71, 100, 100, "last", "low")
    assert {cause(errors, status) for status in (Status.RUNNING, Status.COMPLETED, Status.CANCELED)} == {None}


def test_a_commit_subject_is_not_a_hunk() -> None:
    """It is new in every run."""
    found = FoundLines(hash, lambda message: weight_of(message, "error" in message), 1, 9)
    found.add(line(3, "HEAD is now at 0a1b2c3 Fix the error of the totals"))
    assert (found.count, found.best_hunk()) == (1, None)


@pytest.mark.parametrize(
    ("message", "weight"),
    [
        ("> smtp.send(mail, timeout=5)", 0),
        ("helm upgrade --timeout 10m shop ./chart", 0),
        ("E       assert 3 == 4", 3),
        ("request timed out", 3),
        ("timeout exceeded", 3),
        ("error: no such file", 3),
        ("--- FAIL: TestX", 2),
        ("not ok 3", 2),
        ("build failed", 1),
        ("Process completed with exit code 1", 1),
        ("[ERROR] Failed to execute goal compile on project shop: Compilation failure: src/Cart.java is missing", 2),
        ("[ERROR] src/main/java/Cart.java:[3,13] cannot access shop.Price", 3),
        ("[ERROR] [Help 1] https://maven.example.org/MojoFailureException", 1),
        ("[ERROR] Re-run Maven using the -X switch to enable full debug logging.", 1),
        ("[ERROR]   mvn <goals> -rf :shop", 1),
        ("Build step 'Execute shell' marked build as failure", 1),
    ],
)
def test_how_telling_a_line_is(message: str, weight: int) -> None:
    assert weight_of(message, LineReader().read(message).is_error) == weight


@given(
    st.lists(st.text(CHARACTERS, max_size=3_000), max_size=20),
    st.lists(st.text(CHARACTERS, max_size=300), max_size=20),
    st.lists(st.text("j", min_size=128, max_size=128), max_size=10),
    st.integers(MIN_BYTES, 20_000),
)
def test_it_never_exceeds_its_size(
    errors: list[str], last: list[str], compared_with: list[str], max_bytes: int
) -> None:
    """Whatever the lines contain."""
    lines = [line(number, text) for number, text in enumerate(errors, 1)]
    summarize(
        lines,
        [line(number, text) for number, text in enumerate(last, 1)],
        max_bytes,
        compared_with=compared_with,
        new=group(lines),
    )


@pytest.mark.parametrize(
    ("message", "is_error"),
    [
        ("error: no such file", True),
        ("E   AssertionError: assert 1 == 2", True),
        ("Traceback (most recent call last):", True),
        ("npm ERR! code ELIFECYCLE", True),
        ("FAILED tests/test_x.py::test_y", True),
        ("main.c:(.text+0x5): undefined reference to `f'", True),
        ("java.lang.IllegalStateException: closed", True),
        ("\x1b[31mFatal\x1b[0m: bad object", True),
        ("3 errors, 0 failures", True),
        ("thread 'main' panicked at src/main.rs:2", True),
        ("--- FAIL: TestTotals (0.00s)", True),
        ("not ok 3 - adds", True),
        ("  \u2717 adds", True),
        ("0 errors", False),
        ("build finished without errors", False),
        ("errors: 0, warnings: 3", False),
        ("12 passed, 0 failed", False),
        ("terror", False),
        ("failsafe", False),
        ("tests/test_errors.py::test_an_error PASSED", False),
        ("test errors::an_error_is_kept ... ok", False),
        ("  \u2713 throws an error", False),
        ("--- PASS: TestError (0.00s)", False),
        ("ok 12 - an error is raised", False),
        ("compiling src/error.rs", False),
        ("fail-fast: true", False),
    ],
)
def test_what_looks_like_an_error(message: str, is_error: bool) -> None:
    assert LineReader().read(message).is_error is is_error


def test_a_line_that_only_reports_a_failure_is_no_better_cause_than_others() -> None:
    """Of such hunks, the largest one is."""
    found = FoundLines(hash, lambda message: int(message == "build failed"), 1, 9)
    for number, message in ((1, "build failed"), (5, "x"), (6, "y")):
        found.add(line(number, message))
    assert found.best_hunk() == Hunk(5, 6, 2, 5, 0)
