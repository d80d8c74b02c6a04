"""What of a stream is published when: bars, prompts and lines, with the time given by hand."""

from collections.abc import Iterable

from chronoverse.runner.capture.line_assembler import PARTIAL_SECONDS, STATE_SECONDS, LineAssembler
from chronoverse.runner.capture.line_splitter import LineBatch

NOW = "2026-03-03T10:00:05.123Z"


def run(steps: Iterable[tuple[float, bytes]], until: float) -> list[tuple[str, bool]]:
    """Feeds each text at its time, with what is due done in time: every entry, and whether its line goes on."""
    scribe = LineAssembler("stdout")
    blocks: list[LineBatch] = []

    def wait(moment: float) -> None:
        while scribe.due is not None and scribe.due <= moment:
            blocks.extend(scribe.flush_due(scribe.due))

    for moment, text in steps:
        wait(moment)
        blocks.extend(scribe.feed(text, NOW, moment))
    wait(until)
    blocks.extend(scribe.close())
    return [(message, block.partial) for block in blocks for message in block.messages()]


def test_a_bar_is_published_four_times_a_second() -> None:
    """40,000 states in ten seconds; none of the lines is a piece, and the last is the bar's end."""
    states = [(number / 4_000, b"\rstep %d" % number) for number in range(1, 40_001)]
    entries = run([*states, (10.0, b"\n")], 12)
    assert 38 <= len(entries) <= 41
    assert entries[-1] == ("step 40000", False)
    assert not any(partial for _, partial in entries)


def test_a_bar_that_is_written_byte_by_byte_loses_no_byte_of_a_state_that_stays() -> None:
    """A state is looked at when it is due, and complete or not: all of it is in one line."""
    text = b"".join(b"<%d>\r" % number for number in range(300))
    entries = run([(at / 500, text[at : at + 1]) for at in range(len(text))] + [(3.0, b"end\n")], 3)
    assert all(message.startswith("<") and message.endswith(">") for message, _ in entries[:-1])
    assert entries[-1] == ("end", False)


def test_a_fast_bar_is_one_line() -> None:
    """What nobody could have read is not published."""
    assert run([(0.01 * number, b"%d%%\r" % number) for number in range(20)] + [(0.2, b"\n")], 1) == [("19%", False)]


def test_a_slow_bar_shows_each_state() -> None:
    """As a line, once the next one has come; before that as a piece, when it has stood for a second."""
    steps = [(number * 0.4, b"\r%d%%" % number) for number in range(1, 4)]
    assert run(steps, 9) == [("1%", False), ("2%", False), ("3%", True), ("", False)]


def test_a_prompt_is_shown_after_a_second_from_its_first_byte() -> None:
    """It is not put off by what goes on with it."""
    scribe = LineAssembler("stdout")
    scribe.feed(b"Pass", NOW, 10.0)
    scribe.feed(b"word: ", NOW, 10.9)
    assert scribe.due == 10 + STATE_SECONDS
    assert scribe.flush_due(10 + STATE_SECONDS) == []
    assert scribe.due == 10 + PARTIAL_SECONDS
    assert [block.text for block in scribe.flush_due(scribe.due)] == [b"Password: "]
    assert scribe.due is None


def test_a_text_after_which_nothing_waits_has_nothing_due() -> None:
    """So nobody wakes for it."""
    scribe = LineAssembler("stdout")
    scribe.feed(b"line\n", NOW, 10.0)
    assert scribe.due is None
