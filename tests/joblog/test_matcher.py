"""Where a query matches a line."""

import contextlib
import re
import time
from random import Random

import pytest
import re2
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog.matcher import MAX_PROGRAM, MAX_QUERY, MAX_SPANS, PROGRAM_BYTES, Matcher, strip_sequences
from tests.support.memory import bytes_left_by

PARTS = ["a", "b", "ab", "ü", "🙂", "\x1b[31m", "\x1b[0m", "\x1b]0;ab\x07", "\x1b"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=20).map("".join)


@given(TEXTS, st.sampled_from(["a", "ab", "b\x1b", "üa", "[31m"]))
@example("a\x1b[31mb\x1b[0m", "ab")
def test_spans_are_in_characters_of_the_line_as_it_was_written(text: str, query: str) -> None:
    """A span can contain control sequences, but not at its ends. Without them, it contains the query."""
    matcher = Matcher(query)
    spans = [span for span in matcher.spans(text) if span]

    assert bool(spans) == matcher.matches(text)
    for start, end in spans:
        assert query in (text[start:end], strip_sequences(text[start:end]))
        assert (text[start], text[end - 1]) == (query[0], query[-1])


@given(st.lists(TEXTS, max_size=5), st.sampled_from([("ab", False), ("Üa", False), ("a$", True), (r"\Ab", True)]))
def test_texts_of_which_one_matches_are_never_passed_over(texts: list[str], query: tuple[str, bool]) -> None:
    matcher = Matcher(query[0], regex=query[1])

    assert matcher.may_match(texts) or not any(map(matcher.matches, texts))


@pytest.mark.parametrize("query", ["nowhere", "nowhere|a{3}"])
def test_texts_of_which_none_matches_are_passed_over(query: str) -> None:
    """Short ones without a thread."""
    matcher = Matcher(query, regex="|" in query)
    assert not matcher.may_match(["ab", "Übung"])
    assert (matcher.is_heavy(1_000), matcher.is_heavy(1_000_000)) == (False, True)


@pytest.mark.parametrize("text", ["ab" * 5000, "\x1b[1m" + "ab" * 5000])
def test_the_number_of_spans_is_bounded(text: str) -> None:
    """The limit applies to the raw line, and again to the line without control sequences."""
    times = 2 if "\x1b" in text else 1

    assert len(list(Matcher("a").spans(text))) == times * MAX_SPANS


def test_an_empty_match_yields_none() -> None:
    """It has no span, but is yielded so that callers can check the time after each match."""
    assert list(Matcher("b*", regex=True).spans("aba")) == [None, (1, 2), None, None]


#: Parts of expressions: single and multi-byte characters, classes of all sizes, anchors, nothing. No empty class: RE2
#: drops everything that needs one, and nobody searches for what can never match.
ATOMS = [
    *(
        "",
        "a",
        "k",
        "é",
        "€",
        "😀",
        "error",
        ".",
        "(?s:.)",
        r"\d",
        r"\w",
        r"\W",
        r"\s",
        "[a-z]",
        "[^a]",
        "[aceg]",
        "[é€]",
    ),
    *(r"\pL", r"\PL", r"\pN", r"\p{Lu}", r"\p{Greek}", r"[^\x00-\x7f]", r"\b", r"\B", "^", "$", "(?-i:k)", "(?i)"),
    *("[é€]", r"\Qa.b\E", "[[:alpha:]]", r"\x{10ffff}", r"\C", "(?m:^)"),
]
QUANTIFIERS = ["*", "+", "?", "*?", "??", "{2}", "{10}", "{30}", "{100}", "{1000}", "{3,}", "{0,40}", "{5,20}"]


def any_expression(random: Random, depth: int) -> str:
    """A random expression, at most ``depth`` levels deep."""
    if depth == 0 or random.random() < 0.15:
        return random.choice(ATOMS)
    parts = [any_expression(random, depth - 1) for _ in range(random.randint(1, 4))]
    shape = random.choice(["{}", "(?:{})", "({})"])
    if shape == "{}":
        return "".join(parts)
    return shape.format(random.choice(["", "|"]).join(parts)) + random.choice([*QUANTIFIERS, ""])


@pytest.mark.parametrize(("count", "seed"), [(30, 3), pytest.param(150, 4, marks=pytest.mark.long)])
def test_spans_are_those_of_re2(count: int, seed: int) -> None:
    """Except empty ones, in characters."""
    random = Random(seed)
    options = re2.Options()
    options.case_sensitive, options.never_capture, options.log_errors = False, True, False
    for _ in range(20 * count):
        # These can match within a character, where the module's positions are wrong.
        expression = re.sub(r"\\[BC]", ".", any_expression(random, random.randint(1, 3)))
        parts = (
            random.choice("abxé🙂.7") * random.choice((1, 2, 63, 64, 65, 130)) for _ in range(random.randint(1, 6))
        )
        text = "".join(parts)
        with contextlib.suppress(ValueError):
            found = list(Matcher(expression, regex=True).spans(text))
            matches = [match.span() for match in re2.compile(expression, options).finditer(text)]
            spans = [(start, end) for start, end in matches if start < end]
            assert [span for span in found if span] == spans[:MAX_SPANS], (expression, text)


@pytest.mark.parametrize(("count", "seed"), [(60, 27), pytest.param(120, 28, marks=pytest.mark.long)])
def test_an_expression_is_refused_only_for_its_size(count: int, seed: int) -> None:
    """First compiling it with little memory refuses no usable expression."""
    random, passed, large = Random(seed), 0, 0
    options = re2.Options()
    options.case_sensitive, options.never_capture, options.log_errors = False, True, False
    options.max_mem = PROGRAM_BYTES
    while passed < count:
        expression = any_expression(random, random.randint(1, 5))
        if len(expression) > MAX_QUERY:
            continue
        with contextlib.suppress(re2.error):
            size = re2.compile(expression, options).programsize
            if size <= MAX_PROGRAM:
                assert Matcher(expression, regex=True).program_size == size, expression
                passed, large = passed + 1, large + (size > MAX_PROGRAM / 4)
    assert large > count / 20


def test_a_refused_expression_costs_little() -> None:
    """The worker waits for it. Compiling it with the full memory takes 49 ms for each new number."""
    options = re2.Options()
    options.case_sensitive, options.log_errors, options.max_mem = False, False, PROGRAM_BYTES

    def refuse(number: int) -> float:
        began = time.process_time()
        with pytest.raises(ValueError, match="too expensive"):
            Matcher(rf"\pL{{145}}x{number}", regex=True)
        return time.process_time() - began

    began = time.process_time()
    re2.compile(r"\pL{145}x", options)
    whole = time.process_time() - began
    assert min(map(refuse, range(5))) < whole / 8


def search_for_many_expressions() -> None:
    random = Random(1)
    text = "".join(random.choice("ab") for _ in range(20_000))
    for number in range(20):
        assert not Matcher(f"a.{{12}}b.{{12}}x{number}", regex=True).matches(text)


def test_no_pattern_outlives_its_matcher() -> None:
    """The RE2 module would keep the last 128, each with its states."""
    assert bytes_left_by(search_for_many_expressions) < 10 * 2**20


def test_the_patterns_for_json_exclude_most_lines() -> None:
    """Such as those with the query's characters in another order."""
    matcher = Matcher('an "old" needle')
    assert matcher.in_json is not None
    assert [*matcher.in_json(rb'{"message":"an \"old\" needle"')]
    assert [*matcher.in_interrupted_json(rb'{"message":"\u001b[1man\u001b[0m \"old\" needle"')]
    for text in (
        rb'{"message":"an \"new\" needle"',
        rb'{"message":"\u001b[1mhay"',
        rb'{"message":"\u001b[1mnew needle"',
    ):
        assert not [*matcher.in_json(text)]
    for text in (rb'"\u001b[1mnew needles"', rb'"an \"old\" needle"', rb'"\u001b[0m an \u001b[1mneedl e"'):
        assert not [*matcher.in_interrupted_json(text)]
    assert Matcher("an.*needle", regex=True).in_json is None
