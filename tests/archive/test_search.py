"""A search of the archive finds the same lines as matching every decoded line."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.prefilter import PART_BYTES, matching_lines
from chronoverse.errors import SearchTooExpensive
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.matches import MatchEncoder
from chronoverse.joblog.entries import Match
from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.model import Job, Line, Status, TimeRange
from tests.support.archives import JOB, ArchiveBuilder, raw_line
from tests.support.examples import examples

#: Parts of lines: characters that JSON escapes, control sequences, letters with unusual cases, the JSON's own words.
PARTS = [
    *"aBkK\u212asS\u017fßİi\u0131üÜΣς\u03c3😀 \u2028",
    *['"', "\\", "\\u001b", "\n", "\r", "\t", "\x00", "\x07", "\x1b", "\x7f", "\x9b", "\ufffd", "/", "{", "}", ":"],
    *["\x1b[31m", "\x1b[0m", '\x1b["x', "\x1b[\\", "\x1b[1;2", "\x1b]0;t\x07", '\x1b]8;;"u"\x1b\\', "\x1bP\\x\x1b\\"],
    *["\u2028", "message", "stdout", "stream", "2026", '","', "e", "error"],
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
EXPRESSIONS = [
    *["a|k", "^a", "a$", "^$", "a*", "s.*k", "(?s)a.*k", "[^a]k", r"\Ak", r"k\z", "(?-i)K", "(?i)\u017f", r"\bk\b"],
    *[r"\x1b", r"\\", '"', r"a\nB", r"(?m)^a$", r"\pL", "(?-m)^a", "k{2,3}", ".", r"\s", r"\d+", "[[:upper:]]"],
    *[r"\Ba", "(?:ab?){150}", "k(?:a|s){0,150}", r"k\W", r"\x22", r"a\b", "[[^]k", "[$]|a", r"\Qa^"],
    *[r"\x{17f}", r"[^\x{212a}]a", r"\p{Lu}+", r"\PL", r"[^\pL]k|\p{Greek}", r"\xe5?k", r"\C", "[[:^ascii:]]|s"],
]


def found(builder: ArchiveBuilder, matcher: Matcher, position: int, descending: bool = False) -> list[str]:
    """All lines that a search finds, after checking its cursors, and that a match is shown as its decoded line."""
    matches, cursors = [], [position]

    def shown(line: Line | Match) -> dict[int, bytes] | None:
        encode = MatchEncoder(lambda *_: iter(()), Job(JOB, Status.RUNNING), matcher, None, descending, 0, 0)
        return encode(line, PageBudget(clock=lambda: 0.0))

    for batch in builder.reader().search(JOB, partial(matching_lines, matcher), position, descending=descending):
        matches += [f"{line.sequence_num} {line.message}" for line in batch.lines]
        for match, line in zip(batch.matches or (), batch.lines, strict=True):
            assert match.encode() == line.encode()
            assert shown(match) == shown(line)
        cursors.append(batch.position)
    assert cursors[1:] == sorted(set(cursors[1:]), reverse=descending)
    return matches


def expected(messages: list[str], matcher: Matcher) -> list[str]:
    """The lines that match when decoded."""
    return [f"{number} {text}" for number, text in enumerate(messages, 1) if matcher.matches(text)]


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[str], str]:
    """Messages, and a query that is usually a part of one of them, perhaps in another case."""
    messages = draw(st.lists(TEXTS, min_size=1, max_size=30))
    text = draw(st.sampled_from(messages))
    if draw(st.booleans()):
        text = strip_sequences(text)
    start = draw(st.integers(0, max(len(text) - 1, 0)))
    part = text[start : start + draw(st.integers(1, 15))]
    return messages, draw(st.sampled_from([part, part.upper(), part.lower(), part.swapcase(), draw(TEXTS)]))


@settings(deadline=None, max_examples=examples(100))
@given(searches(), st.integers(50, 2000), st.integers(1, 30))
@example((["\x1b[31ma\x1b[0mB", "aB"], "ab"), 50, 9)
def test_a_literal_query_finds_the_same_as_decoding_each_line(
    tmp_path_factory: pytest.TempPathFactory, searched: tuple[list[str], str], frame_bytes: int, chunk: int
) -> None:
    """For any text, in both directions, from any number."""
    messages, query = searched
    builder = ArchiveBuilder.in_directory(tmp_path_factory.mktemp("archive"))
    builder.fill([raw_line(number, text) for number, text in enumerate(messages, 1)], chunk, frame_bytes)
    matcher = Matcher(query)
    wanted = expected(messages, matcher)
    assert found(builder, matcher, 0) == wanted
    assert found(builder, matcher, len(messages) + 1, descending=True) == wanted[::-1]
    middle = len(messages) // 2
    assert found(builder, matcher, middle) == [each for each in wanted if int(each.split(" ")[0]) > middle]
    assert found(builder, matcher, middle, descending=True) == [
        each for each in wanted[::-1] if int(each.split(" ")[0]) < middle
    ]


@settings(deadline=None, max_examples=examples(100))
@given(st.lists(TEXTS, min_size=1, max_size=30), st.sampled_from(EXPRESSIONS), st.integers(50, 2000))
@example(["😀😀", "😀k", "😀a", "k"], ".", 2000)
def test_an_expression_finds_the_same_as_decoding_each_line(
    tmp_path_factory: pytest.TempPathFactory, messages: list[str], query: str, frame_bytes: int
) -> None:
    """Including anchors, newlines and control sequences."""
    builder = ArchiveBuilder.in_directory(tmp_path_factory.mktemp("archive"))
    builder.fill([raw_line(number, text) for number, text in enumerate(messages, 1)], 20, frame_bytes)
    matcher = Matcher(query, regex=True)
    assert found(builder, matcher, 0) == expected(messages, matcher)


def test_a_search_in_ascii_has_unicode_cases() -> None:
    """Each ASCII character before a few others, and all of them in a row."""
    options = re2.Options()
    options.case_sensitive = False
    characters = [bytes([code]) for code in range(128)]
    texts = [b"".join(characters), *map(b"".join, product(characters, (b"a", b"k", b"S", b"\n")))]
    for expression in EXPRESSIONS:
        pattern = re2.compile(expression, options)
        if find := Matcher(expression, regex=True).in_unescaped_json:
            for text in texts:
                assert [*find(text)] == [match.span() for match in pattern.finditer(text)]


#: A log's messages, and its archive.
Archived = tuple[list[str], ArchiveBuilder]


@pytest.fixture(scope="module", params=["\x1b[1m", "", "\x1b]8;;http://example.com\x1b\\"])
def coloured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Archived:
    """A log with a control sequence in each line. Every hundredth line is missing."""
    messages = [
        f"line {request.param}{number} {'k' * (number % 20)}{request.param}x the message" for number in range(1, 600)
    ]
    builder = ArchiveBuilder.in_directory(tmp_path_factory.mktemp("archive"))
    builder.fill([raw_line(number, text) for number, text in enumerate(messages, 1) if number % 100], 200, 10_000)
    return messages, builder


@pytest.fixture(scope="module", params=["", "\u00fc", "\u212a", "\u017f", "\u0130"])
def frequent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Archived:
    """A log whose lines have one of a few letters, and perhaps another."""
    words = ["k", "K", "s", "S", "i", *request.param]
    messages = [f'{words[number % len(words)]} Line {number} "{words[number % len(words)]}\\' for number in range(700)]
    builder = ArchiveBuilder.in_directory(tmp_path_factory.mktemp("archive"))
    builder.fill([raw_line(number, text) for number, text in enumerate(messages, 1)], 700, 14 * PART_BYTES)
    return messages, builder


@pytest.mark.parametrize(
    ("query", "regex"),
    [
        ("message", False),
        ("2026-03-03T", False),
        ("123", False),
        ('":"', False),
        ("stdERR", False),
        ("k" * 13 + "x", False),
        ("0 x", False),
        ("zx", False),
        ("(?s)x.*1", True),
        ("(?s)l.*", True),
        (r"\n", True),
        ("line 1$", True),
        ("line 7", True),
        ("7[^9]*9", True),
        ("^(?:line|xyz)", True),
        ("(?:a.{0,9}){3}z|77", True),
        ("(?:x|k{1,3}){90}|k{5}x", True),
    ],
)
def test_frames_in_which_many_lines_nearly_match(coloured: Archived, query: str, regex: bool) -> None:
    """Many lines contain the text where it must not match, and there are gaps between the lines."""
    messages, builder = coloured
    matcher = Matcher(query, regex=regex)
    wanted = [each for each in expected(messages, matcher) if int(each.split(" ")[0]) % 100]
    assert found(builder, matcher, 0) == wanted


@pytest.mark.parametrize("query", ["LINE", "k line", '"s\\', "1"])
def test_a_frequent_text(frequent: Archived, query: str) -> None:
    """Including non-ASCII letters whose other case is ASCII."""
    messages, builder = frequent
    matcher = Matcher(query)
    pattern = re2.compile(f"(?i){re2.escape(query)}")
    wanted = [f"{number} {text}" for number, text in enumerate(messages, 1) if pattern.search(text)]
    assert len(wanted) > 100
    assert found(builder, matcher, 0) == wanted == expected(messages, matcher)


def test_frames_of_other_times_are_not_read(tmp_path: Path) -> None:
    """Unless one of their lines has an invalid time. Lines need not be in order of time. Both bounds are included."""

    class Counting(FileObjectStore):
        read = 0

        def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
            data = super().get(name, start, stop)
            self.read += len(data)
            return data

    # Fifty lines a day, but every other line of day six has a time of day three, and line 371 has an invalid time.
    times = {number: f"2026-03-{1 + (number - 1) // 50:02}T10:00:00.000Z" for number in range(1, 501)}
    times |= {number: times[number - 150] for number in range(252, 301, 2)} | {371: "yesterday"}
    objects = Counting(tmp_path)
    builder = ArchiveBuilder(objects)
    for start in range(1, 501, 50):
        builder.add(
            [raw_line(number, f"line {number}", timestamp=times[number]) for number in range(start, start + 50)]
        )
    since = until = times[101]

    def wanted(line: Line) -> bool:
        return since <= line.timestamp <= until or line.timestamp == "yesterday"

    def numbers(position: int, descending: bool) -> list[int]:
        results = builder.reader().search(
            JOB,
            partial(matching_lines, Matcher("line")),
            position,
            descending=descending,
            time_range=TimeRange(since, until),
        )
        return [line.sequence_num for batch in results for line in batch.lines if wanted(line)]

    expected = [*range(101, 151), *range(252, 301, 2), 371]
    assert numbers(0, False) == expected
    assert objects.read < sum(chunk.size for chunk in builder.chunks) / 2
    assert numbers(501, True) == expected[::-1]


@pytest.mark.parametrize(("query", "wanted"), [(r"line (?:7|x{90})\.", [7]), ("x line", range(1, 301))])
def test_an_expression_is_searched_for_in_parts(tmp_path: Path, query: str, wanted: Sequence[int]) -> None:
    """Matches at any boundary of parts are found."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    texts = (f"{'.' * (number % 97)}x line {number}." for number in range(1, 301))
    builder.fill([raw_line(number, text) for number, text in enumerate(texts, 1)], 150, 2 * PART_BYTES)

    batches = list(builder.reader().search(JOB, partial(matching_lines, Matcher(query, regex=True)), 0))

    assert [line.sequence_num for batch in batches for line in batch.lines] == [*wanted]
    assert batches[-1].position == 300


def test_an_archived_line_too_long_for_an_expression_is_refused(tmp_path: Path) -> None:
    """RE2 cannot be interrupted. Smaller expressions and literals can still be searched for."""
    builder = ArchiveBuilder.in_directory(tmp_path)
    builder.fill([raw_line(1, "a" * 3 * 2**20), raw_line(2, "z")], 2, PART_BYTES)

    with pytest.raises(SearchTooExpensive, match="too long for this expression"):
        found(builder, Matcher("(?:a.{0,50}){4}z", regex=True), 0)
    assert found(builder, Matcher("^z", regex=True), 0) == found(builder, Matcher("z"), 0) == ["2 z"]
