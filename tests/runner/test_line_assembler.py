"""When progress bars, prompts and lines are published. Tests control the time."""

import math
from collections.abc import Iterable

from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.capture.line_assembler import PARTIAL_SECONDS, STATE_SECONDS, LineAssembler

NOW = "2026-03-03T10:00:05.123Z"


def run(steps: Iterable[tuple[float, bytes]], until: float) -> list[tuple[str, bool]]:
    """Feeds each text at its time, and flushes what is due: every entry and whether it is partial."""
    assembler = LineAssembler("stdout")
    batches: list[LineBatch] = []

    def wait(moment: float) -> None:
        while assembler.due <= moment:
            batches.extend(assembler.flush_due(assembler.due))

    for moment, text in steps:
        wait(moment)
        batches.extend(assembler.feed(text, NOW, moment))
    wait(until)
    batches.extend(assembler.close())
    return [(message, batch.partial) for batch in batches for message in map(bytes.decode, batch.messages())]


def test_a_progress_bar_is_published_four_times_a_second() -> None:
    """Of 40,000 states in ten seconds. No line is partial, and the last line is the bar's last state."""
    states = [(number / 4_000, b"\rstep %d" % number) for number in range(1, 40_001)]
    entries = run([*states, (10.0, b"\n")], 12)
    assert 38 <= len(entries) <= 41
    assert entries[-1] == ("step 40000", False)
    assert not any(partial for _, partial in entries)


def test_no_byte_of_a_published_state_is_lost() -> None:
    """A state can be incomplete when it is due; its rest becomes part of the same line."""
    text = b"".join(b"<%d>\r" % number for number in range(300))
    entries = run([(at / 500, text[at : at + 1]) for at in range(len(text))] + [(3.0, b"end\n")], 3)
    assert all(message.startswith("<") and message.endswith(">") for message, _ in entries[:-1])
    assert entries[-1] == ("end", False)


def test_a_fast_progress_bar_is_one_line() -> None:
    """States that nobody could have read are not published."""
    assert run([(0.01 * number, b"%d%%\r" % number) for number in range(20)] + [(0.2, b"\n")], 1) == [("19%", False)]


def test_every_state_of_a_slow_progress_bar_is_published() -> None:
    """As a line when the next state arrives, and as a partial line once it has been visible for a second."""
    steps = [(number * 0.4, b"\r%d%%" % number) for number in range(1, 4)]
    assert run(steps, 9) == [("1%", False), ("2%", False), ("3%", True), ("", False)]


def test_a_prompt_is_published_a_second_after_its_first_byte() -> None:
    """Text that continues it does not delay it. Nothing is due when no text waits.

    A character's beginning waits for its rest, but not bytes that cannot begin one.
    """
    assembler = LineAssembler("stdout")
    assembler.feed(b"line\n", NOW, 9.0)
    assert assembler.due == math.inf
    assembler.feed(b"Pass", NOW, 10.0)
    assembler.feed(b"word: ", NOW, 10.9)
    assert assembler.due == 10 + STATE_SECONDS
    assert assembler.flush_due(10 + STATE_SECONDS) == []
    assert assembler.due == 10 + PARTIAL_SECONDS
    assert [batch.text for batch in assembler.flush_due(assembler.due)] == [b"Password: "]
    assert assembler.due == math.inf
    character = "\N{GRINNING FACE}".encode()
    for data, texts in ((character[:3], []), (b"\nab" + character[1:], [b"ab" + character[1:]])):
        assembler.feed(data, NOW, 20.0)
        assert [batch.text for batch in assembler.flush_due(20.0 + PARTIAL_SECONDS)] == texts
