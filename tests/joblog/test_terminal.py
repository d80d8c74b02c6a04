"""Lines are made safe for a terminal: text and colors stay, everything else is removed."""

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.joblog.model import Gap, Line
from chronoverse.joblog.terminal import LineRenderer, gap_notice, plain_text, redaction_notice, sanitize

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
        *(f"{ESC}[{each}mcolored{ESC}[0m plain" for each in ("", "31", "1;38;5;8", "38;2;8;8;8", "38:5:8")),
        f"{ESC}[31mred{ESC}[m",
    ],
)
def test_harmless_text_is_unchanged(text: str) -> None:
    """Even if it looks like a control sequence in another notation. Colors make build output easier to read."""
    assert sanitize(text, colour=True) == text
    assert sanitize(text, colour=False) == re.sub(r"\x1b\[[0-9;:]*m", "", text)


@pytest.mark.parametrize(
    "hostile",
    [
        *(
            f"{ESC}[{each}"
            for each in ("2J", "H", "1;1H", "A", "21t", "6n", "c", ">c", "?1049h", "?25l", " q", "!p", "1$r")
        ),
        *("\x9b2J", "\x9b31m", f"{ESC}]0;title{BEL}", f"{ESC}]2;title{ST}", f"{ESC}]52;c;cm0gLXJmIH4={BEL}"),
        *(f"{ESC}]8;;javascript:alert(1){ST}", f"{ESC}]8;;{ST}", f'{ESC}]8;id="x";http://evil/{BEL}'),
        *(f"{ESC}]1337;File=inline=1:AAAA{BEL}", "\x9d0;title\x9c", f"{ESC}P$q{ST}", "\x90+q\x9c", f"{ESC}Xstring{ST}"),
        *(f"{ESC}^message{ST}", f"{ESC}_Gf=100;AAAA{ST}", "\x98string\x9c", "\x9emessage\x9c", "\x9fcommand\x9c"),
        *(f"{ESC}{each}" for each in ("c", "7", "(0", "#8", "%G")),
    ],
)
def test_a_control_sequence_is_removed_and_the_text_around_it_stays(hostile: str) -> None:
    """Cursor, screen, title, clipboard, links, and queries that the terminal would answer as input."""
    assert sanitize(f"before{hostile}after", colour=True) == "beforeafter"
    assert sanitize(f"before{hostile}after", colour=False) == "beforeafter"


def test_no_control_character_is_left() -> None:
    """All of C0 except tabs, all of C1, and DEL."""
    controls = [chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))]
    assert [each for each in controls if each in sanitize(f"a{each}b", colour=True)] == []


@pytest.mark.parametrize("start", [ESC + "]0;", ESC + "P", ESC + "X", ESC + "^", ESC + "_", "\x9d", "\x90"])
def test_a_string_without_an_end_ends_with_its_line(start: str) -> None:
    """Nothing of the next line is removed."""
    assert sanitize(f"a{start}title", colour=True) == "a"
    assert sanitize(f"a{start}title\nnext", colour=True) == "a<U+000A>next"
    assert sanitize("the next line", colour=True) == "the next line"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # A character that aborts a sequence is read again as the start of something new.
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
        # Removing a sequence creates no new one.
        (ESC + ESC + "[2J[2J" + "\x9b" + ESC + "[K2J", "[2J2J"),
        # Colours end with their line. Otherwise they would colour the next line, our own messages and the prompt.
        (ESC + "[31mred", ESC + "[31mred" + ESC + "[0m"),
        # A foreign runner could write a line break, and the rest would look like another line.
        ("a\n\nevent: end", "a<U+000A><U+000A>event: end"),
        # Characters that change the direction are shown, and the text stays in its order.
        *((f"a{each}b", f"a<U+{ord(each):04X}>b") for each in "\u202e\u202a\u2066\u2069\u200e\u200f\u061c\u2028"),
    ],
)
def test_nothing_hides_or_changes_later_text(text: str, clean: str) -> None:
    assert sanitize(text, colour=True) == clean


@pytest.mark.parametrize("parameters", ["8", "08", "8:1", "1;8", "8;31", "38;5;8;8"])
def test_text_cannot_be_hidden(parameters: str) -> None:
    """SGR 8 is removed: readers would copy invisible text without knowing."""
    shown = sanitize(f"{ESC}[{parameters}mhidden", colour=True)

    assert re.sub("38;5;8", "", shown.removeprefix(ESC + "[").partition("m")[0]).count("8") == 0


@given(st.text(st.sampled_from("\x1b[]P\\;:0138mJ \x07\x18\x9b\x9c\x9d\n\t\u202eaé")), st.booleans())
def test_only_complete_colours_stay(text: str, colour: bool) -> None:
    """Hypothesis mixes parts of sequences."""
    rest = re.sub("\x1b\\[[0-9;:]*m" if colour else "(?!)", "", sanitize(text, colour))

    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f\u202e]", rest)


def test_a_huge_line_is_sanitized_in_linear_time() -> None:
    """Many beginnings without ends. A quadratic pattern would take minutes."""
    assert sanitize((ESC + "]0;") * 300_000, colour=True) == ""
    assert sanitize((ESC + "[0;") * 300_000, colour=True) == ""


@pytest.mark.parametrize("character", ["\x01", "\u202e"])
def test_a_huge_line_of_unsafe_characters_is_fast(character: str) -> None:
    """A download is rendered in the worker, while its viewers wait. A function call per character would be too slow."""

    def seconds(work: Callable[[], object]) -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    text = character * 2**18
    calls = min(seconds(lambda: re.sub(character, lambda found: found[0], text)) for _ in range(3))
    assert min(seconds(lambda: sanitize(text, colour=False)) for _ in range(3)) < calls


@pytest.mark.parametrize(
    ("gap", "notice"),
    [
        (Gap(2, 900, "trimmed"), "--- lines 2-900 are gone (trimmed) ---"),
        (Gap(7, 7, "malformed"), "--- line 7 is gone (malformed) ---"),
        (Gap(7, 7, "x" + ESC + "[2J"), "--- line 7 is gone (x) ---"),
    ],
)
def test_the_notice_of_a_gap(gap: Gap, notice: str) -> None:
    """It names the missing lines and the reason."""
    assert gap_notice(gap) == notice
    assert redaction_notice(2, 2) == "--- text in line 2 was redacted ---"
    assert redaction_notice(2, 9) == "--- text in lines 2-9 was redacted ---"


@pytest.mark.parametrize(
    ("renderer", "lines", "shown"),
    [
        (LineRenderer(), [line(1, "a"), line(2, "")], "a\n\n"),
        # A foreign runner may write anything into a timestamp.
        (LineRenderer(timestamps=True), [line(1, "a"), Line(2, ESC + "[2Jnow", "b", "stdout")], f"{TIME} a\nnow b\n"),
        # A joined line has one timestamp and one newline.
        (
            LineRenderer(timestamps=True),
            [line(1, "a", partial=True), line(2, "b", partial=True), line(3, "c")],
            f"{TIME} abc\n",
        ),
        # A line of another stream does not continue an open one.
        (LineRenderer(), [line(1, "a", partial=True), line(2, "oops", "stderr"), line(3, "b")], "a\noops\nb\n"),
        # The rest of an open line may be among missing lines, but not among those of the other stream.
        (LineRenderer(), [line(1, "a", partial=True), line(3, "b")], "a\nb\n"),
        (LineRenderer(skips_numbers=True), [line(1, "a", partial=True), line(3, "b")], "ab\n"),
        (
            LineRenderer(only_stream="stdout"),
            [line(1, "a", partial=True), line(2, "oops", "stderr"), line(3, "b", partial=True), line(5, "c")],
            "ab\nc\n",
        ),
        (LineRenderer(raw=True), [line(1, ESC + "[2J\r")], ESC + "[2J\r\n"),
    ],
    ids=["newlines", "timestamps", "parts", "streams", "missing", "skipped", "one stream", "raw"],
)
def test_lines_are_rendered(renderer: LineRenderer, lines: list[Line], shown: str) -> None:
    assert "".join(map(renderer.render, lines)) == shown


def test_a_text_of_several_lines_has_no_colours() -> None:
    """Nor anything else that a terminal would obey."""
    assert plain_text(f"{ESC}[31mred{ESC}[0m\n{ESC}]0;title{BEL}b\n\n") == "red\nb\n\n"
