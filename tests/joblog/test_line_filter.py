"""A filter lets those lines pass that a search finds."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.line_filter import MAX_CHARACTERS, LineFilter, matcher_of
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Gap, Line
from tests.support.memory import bytes_left_by

NOW = "2026-03-03T10:00:05.123Z"
#: Texts that are hard for what looks at JSON: escapes, control sequences, letters with more than one lower case.
TEXTS = st.text(st.sampled_from('abAB"\\\n\t\x1b[31mK\u212a\u017fsß €😀event: log'), max_size=30)


def frames(messages: list[str]) -> list[tuple[str | None, bytes]]:
    """The frames of these lines, on both streams in turn."""
    lines = [Line(n, NOW, text, "stdout" if n % 2 else "stderr") for n, text in enumerate(messages, 1)]
    return [(line.stream, line.to_frame()) for line in lines]


@given(st.lists(TEXTS, max_size=8), TEXTS.filter(bool), st.sampled_from([None, "stdout", "stderr"]))
def test_a_text_passes_where_a_search_finds_it(messages: list[str], q: str, stream: str | None) -> None:
    expected = [
        stream in (None, "stdout" if n % 2 else "stderr") and Matcher(q).matches(text)
        for n, text in enumerate(messages, 1)
    ]
    assert LineFilter(stream, q).select(frames(messages)) == expected


@given(messages=st.lists(TEXTS, max_size=8))
def test_an_expression_passes_where_a_search_finds_it(messages: list[str]) -> None:
    for q in ("^a", "b$", r"\ba.b\b", "(?:ab|ba)+", r"a\\b", 'a"', "[^a]", "log", r"\s", "É?€"):
        expected = [Matcher(q, regex=True).matches(text) for text in messages]
        assert LineFilter(None, q, True).select(frames(messages)) == expected, q


def test_what_is_not_a_line_always_passes() -> None:
    """Gaps, for example, are never left out."""
    gap = (None, Gap(1, 3, "trimmed").to_frame())
    assert LineFilter("stdout", "needle").select([gap, *frames(["hay", "needle"])]) == [True, False, False]
    assert LineFilter(None, "needle").select([gap]) == [True]


def test_an_expression_has_bounds() -> None:
    """The event loop waits for an expression. The error says how far it is from being taken."""
    with pytest.raises(ValueError, match=r"1809 instructions, of at most 200"):
        matcher_of("(?:a.{0,50}){4}z", True)


@pytest.mark.parametrize("before", ["", "\x1b[1m", "\\"])
def test_an_expression_is_compared_with_the_first_characters_of_a_long_line(before: str) -> None:
    """Also where what only looks at JSON cannot decide it. A text may be anywhere."""
    long = before + "é" * (MAX_CHARACTERS - len(before) - 1)
    lines = frames([f"{long}error", f"{long[:-5]}error"])
    assert LineFilter(None, "err?or", True).select(lines) == [False, True]
    assert LineFilter(None, "error").select(lines) == [True, True]


def filter_by_many_expressions() -> None:
    random = Random(1)
    lines = frames(["".join(random.choice("ab") for _ in range(20_000))])
    for number in range(40):
        assert LineFilter(None, f"a.{{12}}b.{{2}}x{number}", True).select(lines) == [False]


def test_the_states_of_many_expressions_need_little_memory() -> None:
    """All that a worker has cached stay for as long as their streams."""
    assert bytes_left_by(filter_by_many_expressions) < 20 * 2**20
