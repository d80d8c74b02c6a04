"""Where a query matches a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.matcher import MAX_SPANS, Matcher, strip_sequences

PARTS = ["a", "b", "ab", "ü", "🙂", "\x1b[31m", "\x1b[0m", "\x1b]0;ab\x07", "\x1b"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=20).map("".join)


@given(TEXTS, st.sampled_from(["a", "ab", "b\x1b", "üa", "[31m"]))
def test_spans_are_in_characters_of_the_line_as_it_was_written(text: str, query: str) -> None:
    """A span may contain control sequences. Without them it contains the query."""
    matcher = Matcher(query)
    spans = [span for span in matcher.spans(text) if span]

    assert bool(spans) == matcher.matches(text)
    for start, end in spans:
        assert query in (text[start:end], strip_sequences(text[start:end]))


@pytest.mark.parametrize("text", ["ab" * 5000, "\x1b[1m" + "ab" * 5000])
def test_the_number_of_spans_is_bounded(text: str) -> None:
    """The bound applies to the line as it was written, and again to the line without control sequences."""
    times = 2 if "\x1b" in text else 1

    assert len(list(Matcher("a").spans(text))) == times * MAX_SPANS


def test_an_empty_match_yields_none() -> None:
    """It has no span. It is yielded nevertheless, so that a caller can check the time after each match."""
    assert list(Matcher("b*", regex=True).spans("aba")) == [None, (1, 2), None, None]
