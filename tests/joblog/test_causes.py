"""Without good runs, the lines of a failed log are scored, and those with the highest scores are its cause."""

import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.causes import CAUSE_LINES, FEATURES, MAX_CLUES, Cause, Clues, LineReader

MARK = "##[error]Process completed with exit code 1."
READER = LineReader()


def cause_of(messages: list[str]) -> Cause | None:
    clues = Clues()
    for number, message in enumerate(messages, 1):
        if READER.is_signal(message):
            clues.add(number, READER.read(message).features)
    return clues.best(1, len(messages), READER.read(messages[-1]).features)


def features(message: str) -> set[str]:
    return {FEATURES[index].name for index in READER.read(message).features}


@pytest.mark.parametrize(
    ("failure", "telling"),
    [
        (["--- FAIL: TestTotals (0.00s)", "    totals_test.go:41: got 3, want 4"], 2),
        ([">   smtp.send(mail, timeout=5)", "E   TimeoutError: no answer", "shop/mail.py:12: TimeoutError"], 2),
        (["  \u2717 adds the totals", "    expected 3 to equal 4"], 2),
        (["src/app.ts(3,5): error TS2322: Type 'string' is not assignable to type 'number'."], 1),
        (["./deploy.sh: line 3: kubectl: command not found"], 1),
    ],
)
@pytest.mark.parametrize("mark", [[MARK], ['The command "make test" exited with 2.'], []])
def test_the_cause_is_near_the_end_of_the_failed_step(failure: list[str], telling: int, mark: list[str]) -> None:
    """Not at an early, tolerated error, a passing test's name, or in the output after the step.

    The most telling line is one of the last ``telling`` lines of the failure.
    """
    before = ["warning: mirror failed, trying the next one", *["--- PASS: TestAnErrorIsRaised (0.00s)"] * 400]
    after = [
        "Post job cleanup.",
        *["git config --unset-all core.sshCommand"] * 60,
        "rm: cannot remove 'x': No such file",
    ]
    found = cause_of([*before, *failure, "", *mark, *(after if mark else [])])
    assert found is not None
    last = len(before) + len(failure)
    assert found.first <= last <= found.last < found.first + CAUSE_LINES
    assert last - telling < found.telling <= last


def test_a_cause_that_stands_out_has_a_large_share() -> None:
    """Among ten similar places, none has."""
    one = cause_of([*["step"] * 500, "fatal: no such branch", MARK])
    ten = cause_of([*(["step"] * 50 + ["fatal: no such branch"]) * 10, *["step"] * 900])
    assert one is not None
    assert ten is not None
    assert one.share > 0.9
    assert ten.share < 0.4
    assert cause_of(["step"] * 9) is None


def test_of_equal_lines_the_first_is_the_most_telling() -> None:
    found = cause_of([*["step"] * 30, *["fatal: no such branch"] * 2, MARK])
    assert found is not None
    assert found.telling == 31


@given(st.lists(st.sampled_from(["error: x", MARK, "Post job cleanup.", "step", "FAIL", "  at a.js:3:1"]), max_size=90))
def test_the_order_of_scanning_makes_no_difference(messages: list[str]) -> None:
    """Nor does saving the clues between requests."""
    if not messages:
        return
    clues = Clues()
    numbered = [*enumerate(messages, 1)]
    random.Random(3).shuffle(numbered)
    for number, message in numbered:
        if READER.is_signal(message):
            json = orjson.dumps(clues.to_json())
            clues = Clues()
            clues.restore(orjson.loads(json))
            clues.add(number, READER.read(message).features)
    assert clues.best(1, len(messages), READER.read(messages[-1]).features) == cause_of(messages)


def test_a_log_full_of_errors_takes_bounded_memory() -> None:
    """The best clues are kept, wherever they are."""
    found = Clues()
    weak, best = (READER.read(text).features for text in ("no such option", "FATAL ERROR: segmentation fault"))
    for number in range(20_000, 0, -1):
        found.add(number, best if number == 10_700 else weak)
    assert len(found.to_json()[2]) <= 2 * MAX_CLUES
    cause = found.best(1, 20_000, frozenset())
    assert cause is not None
    assert cause.telling == 10_700


def test_the_features_of_a_line() -> None:
    """A command that exited with 0 has not failed. An annotation names a place, like the compiler's line in it."""
    for code, is_mark in ((1, True), (0, False), (2, True), (137, True)):
        assert ("mark of a CI system" in features(f'The command "make" exited with {code}.')) is is_mark
    assert "red" in features("\x1b[31mgone\x1b[0m")
    assert "red" not in features("\x1b[34mgone\x1b[0m")
    assert "begins with one" in features("2026-03-03T10:00:05.123Z error: gone")
    assert "begins with one" in features("progress 10 %\rerror: gone")
    assert "place in a file" in features("shop/mail_test.go:88:9: undefined: os")
    assert "place in a file" in features("##[error]shop/mail_test.go:88:9: undefined: os")
    assert "place in a file" not in features("##[error]undefined: os")


def test_the_whole_line_is_searched_for_error_words() -> None:
    """Even if the line is not remembered."""
    for size in (100, 300, 1_100, 5_000):
        assert READER.read("x" * size + " error").is_error
        assert not READER.read("x" * size + " steps").is_error
