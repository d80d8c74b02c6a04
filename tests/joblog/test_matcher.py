"""Where a line matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.matcher import MAX_SPANS, Matcher, strip_sequences

PIECES = ["a", "b", "ab", "ü", "🙂", "\x1b[31m", "\x1b[0m", "\x1b]0;ab\x07", "\x1b"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@given(TEXTS, st.sampled_from(["a", "ab", "b\x1b", "üa", "[31m"]))
def test_places_are_in_characters_of_the_line_as_it_was_written(text: str, query: str) -> None:
    """A place may go over control sequences. Without these it says what was looked for."""
    matcher = Matcher(query)
    places = [place for place in matcher.spans(text) if place]

    assert bool(places) == matcher.matches(text)
    for start, end in places:
        assert query in (text[start:end], strip_sequences(text[start:end]))


@pytest.mark.parametrize("text", ["ab" * 5000, "\x1b[1m" + "ab" * 5000])
def test_places_are_bounded(text: str) -> None:
    """Once for the line as it was written, and once for the line as it is read."""
    times = 2 if "\x1b" in text else 1

    assert len(list(Matcher("a").spans(text))) == times * MAX_SPANS


def test_a_match_of_nothing_is_a_step_without_a_place() -> None:
    """So that somebody who counts the time can stop between any two."""
    assert list(Matcher("b*", regex=True).spans("aba")) == [None, (1, 2), None, None]
