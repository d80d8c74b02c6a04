"""A filter passes the lines that a search finds."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.line_filter import MAX_CHARACTERS, LineFilter, matcher_of
from chronoverse.joblog.matcher import Matcher
from tests.support.memory import bytes_left_by

#: Texts that are hard to compare: escapes, control sequences, letters with several lowercase forms.
TEXTS = st.text(st.sampled_from('abAB"\\\n\t\x1b[31mK\u212a\u017fsß €😀event: log'), max_size=30)


def lines_of(messages: list[str]) -> list[tuple[str | None, bytes | None]]:
    """Lines with these messages, on alternating streams."""
    return [("stdout" if n % 2 else "stderr", text.encode()) for n, text in enumerate(messages, 1)]


@given(st.lists(TEXTS, max_size=8), TEXTS.filter(bool), st.sampled_from([None, "stdout", "stderr"]))
def test_a_text_passes_where_a_search_finds_it(messages: list[str], q: str, stream: str | None) -> None:
    expected = [
        stream in (None, "stdout" if n % 2 else "stderr") and Matcher(q).matches(text)
        for n, text in enumerate(messages, 1)
    ]
    assert LineFilter(stream, q).select(lines_of(messages)) == expected


@given(messages=st.lists(TEXTS, max_size=8))
def test_an_expression_passes_where_a_search_finds_it(messages: list[str]) -> None:
    for q in ("^a", "b$", r"\ba.b\b", "(?:ab|ba)+", r"a\\b", 'a"', "[^a]", "log", r"\s", "É?€"):
        expected = [Matcher(q, regex=True).matches(text) for text in messages]
        assert LineFilter(None, q, True).select(lines_of(messages)) == expected, q


def test_entries_that_are_not_lines_always_pass() -> None:
    """Such as gaps."""
    gap = (None, None)
    assert LineFilter("stdout", "needle").select([gap, *lines_of(["hay", "needle"])]) == [True, False, False]
    assert LineFilter(None, "needle").select([gap]) == [True]


def test_an_expression_is_limited() -> None:
    """It runs on the event loop. The error says by how much it is too expensive."""
    with pytest.raises(ValueError, match=r"1809 instructions, of at most 200"):
        matcher_of("(?:a.{0,50}){4}z", True)


@pytest.mark.parametrize("before", ["", "\x1b[1m", "\\"])
def test_an_expression_only_searches_the_beginning_of_a_long_line(before: str) -> None:
    """Also if one search over all lines is inconclusive. Literal text is found anywhere."""
    long = before + "é" * (MAX_CHARACTERS - len(before) - 1)
    lines = lines_of([f"{long}error", f"{long[:-5]}error"])
    assert LineFilter(None, "err?or", True).select(lines) == [False, True]
    assert LineFilter(None, "error").select(lines) == [True, True]


def filter_by_many_expressions() -> None:
    random = Random(1)
    lines = lines_of(["".join(random.choice("ab") for _ in range(20_000))])
    for number in range(40):
        assert LineFilter(None, f"a.{{12}}b.{{2}}x{number}", True).select(lines) == [False]


def test_the_states_of_many_expressions_need_little_memory() -> None:
    """Cached matchers stay as long as their streams."""
    assert bytes_left_by(filter_by_many_expressions) < 20 * 2**20


def test_changes_pass_by_status_and_labels_of_their_jobs() -> None:
    """A deleted job passes whatever its labels were, if nobody knows them."""
    main, other = (("branch", "main"),), (("branch", "other"),)
    jobs = [("FAILED", main), ("FAILED", other), ("RUNNING", main), ("DELETED", ()), ("DELETED", other), ("FAILED", ())]
    for wanted, passing in (
        (LineFilter(status="FAILED"), [0, 1, 5]),
        (LineFilter(labels=main), [0, 2, 3]),
        (LineFilter(status="FAILED", labels=main), [0]),
    ):
        selected = wanted.select([(None, job) for job in jobs])
        assert [at for at, passes in enumerate(selected) if passes] == passing
