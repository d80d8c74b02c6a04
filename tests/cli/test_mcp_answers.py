"""What fits into an answer, for any lines, gaps and sizes."""

from operator import itemgetter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.cli.mcp.answers import CUT_LINE_BYTES, FRAME_BYTES, MAX_BYTES, cut, fill, line_json, tidy, visible
from chronoverse.cli.mcp.tools import Tools, tool_list
from chronoverse.client.client import Client
from chronoverse.client.follower import name_gaps
from chronoverse.errors import ChronoverseError
from chronoverse.joblog.model import Gap
from tests.support.examples import CHARACTERS
from tests.support.scripted import ScriptedService, problem
from tests.support.waiting import deadline

ANY_TEXT = st.text(CHARACTERS, max_size=200)


def line(number: int, message: str = "x") -> dict[str, Any]:
    return {"timestamp": "2026-03-03T10:00:05.123Z", "message": message, "sequence_num": number, "stream": "stdout"}


@given(ANY_TEXT)
def test_invisible_characters_are_shown(text: str) -> None:
    """Only tabs and spaces of other widths are kept. Applying it twice changes nothing."""
    shown = visible(text)
    assert all(each.isprintable() or each == "\t" or each.isspace() for each in shown)
    assert not {"\n", "\r", "\x1b", "\x85", "\u2028"} & set(shown)
    assert visible(shown) == shown


@pytest.mark.parametrize(
    "each", ["\u200b", "\u202e", "\u3164", "\ufe01", "\ufeff", "\U000e0041", "\U000e0101", "\ue000"]
)
def test_invisible_characters_become_numbers(each: str) -> None:
    """Other scripts and emoji are unchanged."""
    text = "\u65e5\u672c \u26a0\ufe0f\u00a0\u00fcber\t"
    assert visible(text + each) == f"{text}<U+{ord(each):04X}>"


@given(ANY_TEXT, st.integers(2, 300))
def test_a_truncated_text_is_the_longest_prefix_that_fits(text: str, max_bytes: int) -> None:
    """Measured as JSON."""
    found = cut(text, max_bytes)
    assert text.startswith(found)
    assert len(orjson.dumps(found)) <= max_bytes
    assert (found == text) == (len(orjson.dumps(text)) <= max_bytes)


@given(
    st.sets(st.integers(1, 40), max_size=30),
    st.integers(1, 20),
    st.booleans(),
    st.integers(CUT_LINE_BYTES + 50, 1_500),
    st.lists(st.sampled_from(["x", "\x1b[31mred", "long " * 100, "\u202e" * 60]), min_size=1, max_size=5),
)
def test_each_number_comes_once_as_a_line_or_in_a_gap(
    known: set[int], first: int, descending: bool, room: int, messages: list[str]
) -> None:
    """In either order, from the first number to the last, in as many answers as it takes."""
    readable = [line(number, messages[number % len(messages)]) for number in sorted(known) if number >= first]
    last = 41
    position = last if descending else 0
    seen: list[int] = []
    in_time = deadline(30, "the last answer")
    while in_time():
        left = [each for each in readable if (each["sequence_num"] < position) == descending]
        left = [each for each in left if each["sequence_num"] != position]
        number, end = itemgetter("sequence_num"), 0 if descending else last
        parts = name_gaps(left[:: -1 if descending else 1], number, position, end, first, descending=descending)
        filling = fill(parts, room, descending=descending)
        found = filling.parts
        assert sum(len(orjson.dumps(each)) + 1 for each in found) <= room
        for each in found:
            numbers = [each["sequence_num"]] if "message" in each else range(each["from"], each["to"] + 1)
            seen += reversed(numbers) if descending else numbers
        if filling.is_all:
            break
        assert filling.position is not None
        position = filling.position
    assert seen == sorted(range(1, last), reverse=descending)


def test_a_match_far_inside_a_line_is_shown() -> None:
    """After some of the text before it, which gets less room."""
    found = line_json({**line(7, "\u202e" * 500 + "needle" + "y" * 500), "highlights": [[500, 506]]}, 128)
    assert "needleyyy" in found["message"]
    assert found["message"].startswith("E><U+202E>") or "<U+202E>needle" in found["message"]
    assert (found["truncated"], found["message_bytes"]) == (True, 500 * 3 + 6 + 500)
    assert found["whole"]["tool"] == "read_lines"


@pytest.mark.parametrize("more", [0, 1])
def test_a_truncated_line_names_a_call_that_returns_all_of_it(more: int) -> None:
    """Unless no answer has room for the line."""
    message = "x" * (MAX_BYTES - FRAME_BYTES - len('""') + more)
    found = line_json(line(7, message), 100)
    call = {"tool": "read_lines", "first": 7, "last": 7, "max_bytes": MAX_BYTES}
    assert found["whole"] == ({"command": "chronoverse download"} if more else call)


def test_text_other_than_messages_is_short() -> None:
    """A foreign runner can write any time."""
    assert tidy({"created_at": "\x1b[1m" + "z" * 9_999, "lines": 3, "ids": ["a"]}, 10) == {
        "created_at": "z" * 6,
        "lines": 3,
        "ids": ["a"],
    }


def test_too_little_room_is_an_error() -> None:
    """Rather than an answer that leads nowhere."""
    with pytest.raises(ChronoverseError):
        fill([line(1)], 80)
    assert fill([Gap(1, 2, "trimmed")], 80).position == 2


def test_a_listing_of_another_server_is_not_found() -> None:
    """It has no workflow whose neighbours could be named."""
    # Imported here, because the SDK takes a second, and each process of a test run imports all tests.
    from chronoverse.cli.mcp.server import _answer

    tool = next(each for each in tool_list(50) if each.name == "list_workflows")
    with ScriptedService(problem("404 Not Found", "Not found, or no access.")) as service:
        is_error, answer = _answer(Tools(Client(service.url), service.url), tool, tool.name, {"max_bytes": 4_096})
    assert (is_error, orjson.loads(answer)["error"]["title"]) == (True, "Not Found")
