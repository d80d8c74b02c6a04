"""What a job's lines may do to a terminal: show text and colours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.client.terminal import LineRenderer, gap_notice, sanitize
from chronoverse.joblog.values import Gap, Line

ESC, BEL, ST = "\x1b", "\x07", "\x1b\\"
TIME = "2026-03-03T10:00:05.123Z"


def line(number: int, message: str, stream: str = "stdout", partial: bool = False) -> Line:
    return Line(number, TIME, message, stream, partial)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "tab\there",
        "ünï çødé 日本語 🙂",
        "data: x",
        "id: 999",
        ": comment",
        "event: end",
        "<img src=x onerror=alert(1)></script>",
        "[chronoverse] job succeeded",
        "=cmd|'/c calc'!A0",
        "e\u0301" * 1_000,
    ],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    """Whatever it looks like to somebody else."""
    assert sanitize(text, colour=True) == text
    assert sanitize(text, colour=False) == text


@pytest.mark.parametrize(
    "hostile",
    [
        ESC + "[2J",
        ESC + "[H",
        ESC + "[1;1H",
        ESC + "[A",
        ESC + "[21t",
        ESC + "[6n",
        ESC + "[c",
        ESC + "[>c",
        ESC + "[?1049h",
        ESC + "[?25l",
        ESC + "[ q",
        ESC + "[!p",
        ESC + "[1$r",
        "\x9b2J",
        "\x9b31m",
        ESC + "]0;title" + BEL,
        ESC + "]2;title" + ST,
        ESC + "]52;c;cm0gLXJmIH4=" + BEL,
        ESC + "]8;;javascript:alert(1)" + ST,
        ESC + "]8;;" + ST,
        ESC + ']8;id="x";http://evil/' + BEL,
        ESC + "]1337;File=inline=1:AAAA" + BEL,
        "\x9d0;title\x9c",
        ESC + "P$q" + ST,
        "\x90+q\x9c",
        ESC + "Xstring" + ST,
        ESC + "^message" + ST,
        ESC + "_Gf=100;AAAA" + ST,
        "\x98string\x9c",
        "\x9emessage\x9c",
        "\x9fcommand\x9c",
        ESC + "c",
        ESC + "7",
        ESC + "(0",
        ESC + "#8",
        ESC + "%G",
        "\x0e",
        "\x00",
        "\x08",
        BEL,
        "\r",
        "\x0b",
        "\x0c",
        "\x7f",
        "\x84",
        "\x85",
        "\x8d",
    ],
)
@pytest.mark.parametrize("colour", [True, False])
def test_a_control_sequence_is_taken_out_and_the_text_around_it_stays(hostile: str, colour: bool) -> None:
    """Cursor, screen, title, clipboard, links, questions that the terminal would answer by typing."""
    assert sanitize(f"before{hostile}after", colour) == "beforeafter"


@pytest.mark.parametrize("control", [chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))])
def test_no_single_control_character_is_left(control: str) -> None:
    """All of C0 but the tab, all of C1, and DEL."""
    assert control not in sanitize(f"a{control}b", colour=True)


@pytest.mark.parametrize("start", [ESC + "]0;", ESC + "P", ESC + "X", ESC + "^", ESC + "_", "\x9d", "\x90"])
def test_a_string_without_an_end_eats_no_later_line(start: str) -> None:
    """It is over where its line is."""
    assert sanitize(f"a{start}title", colour=True) == "a"
    assert sanitize(f"a{start}title\nnext", colour=True) == "a<U+000A>next"
    assert sanitize("the next line", colour=True) == "the next line"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a" + ESC, "a"),
        ("a" + ESC + "[", "a"),
        ("a" + ESC + "[31", "a"),
        ("a" + ESC + "[31é", "aé"),
        (ESC + "]0;x" + ESC + "[2Jb", "b"),
        (ESC + "]0;x" + ESC + "]0;y" + BEL + "b", "b"),
        (ESC + ESC + "[2Jb", "b"),
        (ESC + "[" + ESC + "[2Jb", "b"),
        (ESC + "]0;x\x18b", "b"),
        (ESC + "é", "é"),
    ],
)
def test_a_broken_sequence_hides_nothing_behind_it(text: str, clean: str) -> None:
    """Whatever aborts a sequence starts afresh."""
    assert sanitize(text, colour=True) == clean


def test_taking_a_sequence_out_joins_no_new_one() -> None:
    """The result is as clean as if it had been cleaned again."""
    text = ESC + ESC + "[2J[2J" + "\x9b" + ESC + "[K2J"

    assert ESC not in sanitize(text, colour=True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (ESC + "[31mred" + ESC + "[0m", ESC + "[31mred" + ESC + "[0m"),
        (ESC + "[31mred" + ESC + "[0m plain", ESC + "[31mred" + ESC + "[0m plain"),
        (ESC + "[mplain" + ESC + "[m", ESC + "[mplain" + ESC + "[m"),
        (ESC + "[1;38;5;8mgrey" + ESC + "[0m", ESC + "[1;38;5;8mgrey" + ESC + "[0m"),
        (ESC + "[38;2;8;8;8mgrey" + ESC + "[0m", ESC + "[38;2;8;8;8mgrey" + ESC + "[0m"),
        (ESC + "[38:5:8mgrey" + ESC + "[0m", ESC + "[38:5:8mgrey" + ESC + "[0m"),
    ],
)
def test_colours_stay(text: str, kept: str) -> None:
    """They are what builds are read by."""
    assert sanitize(text, colour=True) == kept
    assert ESC not in sanitize(text, colour=False)


def test_colours_end_with_their_line() -> None:
    """Else they would reach the next line, our own messages and the prompt."""
    assert sanitize(ESC + "[31mred", colour=True) == ESC + "[31mred" + ESC + "[0m"


@pytest.mark.parametrize("parameters", ["8", "08", "8:1", "1;8", "8;31", "38;5;8;8"])
def test_text_cannot_be_hidden(parameters: str) -> None:
    """SGR 8 is no colour: what it covers would be copied without having been seen."""
    shown = sanitize(f"{ESC}[{parameters}mhidden", colour=True)

    assert re.sub("38;5;8", "", shown.removeprefix(ESC + "[").partition("m")[0]).count("8") == 0


@pytest.mark.parametrize("control", ["\u202e", "\u202a", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "\u2028"])
def test_what_turns_the_text_is_shown_by_its_number(control: str) -> None:
    """A reader sees that it is there, and the text stays in the order it was written in."""
    assert sanitize(f"a{control}b", colour=True) == f"a<U+{ord(control):04X}>b"


def test_a_line_break_within_a_line_is_shown_by_its_number() -> None:
    """A foreign runner could write one, and what follows would look like a line of its own."""
    assert sanitize("a\n\nevent: end", colour=True) == "a<U+000A><U+000A>event: end"


@given(st.text(st.sampled_from("\x1b[]P\\;:0138mJ \x07\x18\x9b\x9c\x9d\n\t\u202eaé")), st.booleans())
def test_only_whole_colours_come_through(text: str, colour: bool) -> None:
    """Of any mixture of pieces of sequences."""
    rest = re.sub("\x1b\\[[0-9;:]*m" if colour else "(?!)", "", sanitize(text, colour))

    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f\u202e]", rest)


def test_a_huge_line_is_cleaned_in_linear_time() -> None:
    """Openings without ends, a million times: a quadratic pattern would take hours."""
    assert sanitize((ESC + "]0;") * 1_000_000, colour=True) == ""
    assert sanitize((ESC + "[0;") * 1_000_000, colour=True) == ""


@pytest.mark.parametrize(
    ("gap", "notice"),
    [
        (Gap(2, 900, "trimmed"), "--- lines 2-900 are gone (trimmed) ---"),
        (Gap(7, 7, "malformed"), "--- line 7 is gone (malformed) ---"),
        (Gap(7, 7, "x" + ESC + "[2J"), "--- line 7 is gone (x) ---"),
    ],
)
def test_a_gap_is_told(gap: Gap, notice: str) -> None:
    """Which lines, and why."""
    assert gap_notice(gap) == notice


def test_a_line_ends_with_a_newline() -> None:
    """An empty one is nothing but that."""
    rendering = LineRenderer()

    assert [rendering.render(line(1, "a")), rendering.render(line(2, ""))] == ["a\n", "\n"]


def test_timestamps_come_first_and_are_as_clean() -> None:
    """A foreign runner writes them too."""
    rendering = LineRenderer(timestamps=True)

    assert rendering.render(line(1, "a")) == f"{TIME} a\n"
    assert rendering.render(Line(2, ESC + "[2Jnow", "b", "stdout")) == "now b\n"


def test_pieces_of_a_long_line_are_joined_again() -> None:
    """One timestamp, one newline."""
    rendering = LineRenderer(timestamps=True)
    pieces = [line(1, "a", partial=True), line(2, "b", partial=True), line(3, "c")]

    assert "".join(map(rendering.render, pieces)) == f"{TIME} abc\n"


def test_another_stream_does_not_run_into_an_open_line() -> None:
    """It starts a line of its own."""
    rendering = LineRenderer()
    lines = [line(1, "a", partial=True), line(2, "oops", "stderr"), line(3, "b")]

    assert "".join(map(rendering.render, lines)) == "a\noops\nb\n"


def test_raw_lines_are_left_alone() -> None:
    """Whoever asks for them gets what the job wrote."""
    assert LineRenderer(raw=True).render(line(1, ESC + "[2J\r")) == ESC + "[2J\r\n"
