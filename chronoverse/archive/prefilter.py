"""Finds the matching lines in the JSON Lines of a frame. It rules out most lines as bytes, and decodes only the rest.

Decoding a line takes 0.7 µs, so a search in bytes is much faster. A line that is not ruled out is a *candidate*.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final

from chronoverse.archive.codec import decode_lines
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.model import Line

#: Bytes of JSON in which an expression is searched for at once, or one line if it is longer. That takes 0.2 ms.
PART_BYTES: Final = 16 * 2**10
#: What a line's JSON has in front of its message and behind it. A message has neither, since JSON escapes its quotes.
_MESSAGE: Final = b'"message":"'
_BEHIND: Final = b'","sequence_num":'

#: Returns the position of the next occurrence of something in a text after a position, or the text's end.
Finder = Callable[[int], int]


class Prefilter:
    """Finds matching lines in the frames of a log."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher: Final = matcher

    def matching_lines(self, text: bytes) -> list[Line]:
        """The matching lines of a frame's JSON Lines, in order. Raises :class:`SearchTooExpensive`."""
        if self._matcher.in_json is not None:
            return self._search_text(text)
        lines: list[Line] = []
        start, decodes_all = 0, False
        while start < len(text):
            stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
            if not self._matcher.is_feasible(stop - start):
                raise SearchTooExpensive(f"an archived line of {stop - start} bytes is too long for this expression")
            part = text[start:stop]
            candidates = None if decodes_all else self._find_expression(part)
            decodes_all = candidates is None
            lines += self._verify(part if candidates is None else candidates)
            start = stop
        return lines

    def _search_text(self, text: bytes) -> list[Line]:
        """The lines that contain a literal text."""
        # No match extends beyond its line, since JSON escapes a newline in a message.
        found = _candidate_lines(text, _text_finder(self._matcher, text))
        return self._verify(b"".join([text[start:end] for start, end, _ in found]))

    def _find_expression(self, text: bytes) -> bytes | None:
        """The lines of one part that may match a regular expression. Lines with escapes always may.

        None when the expression has many candidates. Then it is faster to decode all lines.
        """
        pattern = self._matcher.in_unescaped_json
        if pattern is None:
            return None
        stop, match_end = len(text), 0

        def find_match(position: int) -> int:
            nonlocal match_end
            found = pattern.search(text, position)
            start, match_end = (stop, stop) if found is None else found.span()
            return int(start)

        def find_escape(position: int) -> int:
            found = text.find(b"\\", position)
            return stop if found < 0 else found

        candidates: list[bytes] = []
        for start, end, matches in _candidate_lines(text, find_match, find_escape):
            # A part has some 90 lines. A match that extends into the next lines may extend to the end of the part, and
            # so may the next matches.
            if len(candidates) == 16 or (matches and match_end > end):
                return None
            candidates.append(text[start:end])
        return b"".join(candidates)

    def _verify(self, lines: bytes) -> list[Line]:
        decoded = decode_lines(lines)
        pattern = self._matcher.in_joined_lines
        if pattern is not None:
            # One search in all of them is faster than one in each, and mostly it finds nothing.
            messages = [each["message"] for each in decoded]
            plain = [strip_sequences(message) for message in messages if "\x1b" in message]
            if pattern.search("\n".join(messages + plain).encode()) is None:
                return []
        return [Line.from_json(each) for each in decoded if self._matcher.matches(each["message"])]


def _text_finder(matcher: Matcher, text: bytes) -> Finder:
    """A finder of a literal text in JSON Lines, in upper and lower case.

    It finds all lines whose messages contain the text, and some others. The first occurrences in a frame are found by
    RE2, which takes 2 µs for each. The others are searched for in lower case, and only in messages: a number or a word
    such as "stream" is in the JSON of every line.
    """
    stop, searches, lowercase = len(text), 0, b""
    # All control sequences begin with ESC.
    wanted = None if rb"\u001b" in text else matcher.lowercase_in_json(text)

    def find(position: int) -> int:
        nonlocal searches, lowercase
        searches += 1
        if wanted is None or searches < 16:
            match = matcher.in_json.search(text, position)
            return stop if match is None else int(match.start())
        lowercase = lowercase or text.lower()
        while (found := lowercase.find(wanted, position)) >= 0:
            message = text.find(_MESSAGE, text.rfind(b"\n", 0, found) + 1) + len(_MESSAGE)
            if found < message:
                position = message
                continue
            end = text.find(b"\n", found)
            if found + len(wanted) <= text.rfind(_BEHIND, message, end):
                return found
            position = end
        return stop

    return find


def _candidate_lines(
    text: bytes, first: Finder, second: Finder = lambda _: sys.maxsize
) -> Iterator[tuple[int, int, bool]]:
    """Each line in which one of the two finders finds something: its start, its end, and whether the first one did."""
    position, stop = 0, len(text)
    first_at = second_at = -1
    while True:
        if first_at < position:
            first_at = first(position)
        if second_at < position:
            second_at = second(position)
        found_at = min(first_at, second_at)
        if found_at >= stop:
            return
        start = text.rfind(b"\n", position, found_at) + 1 or position
        position = text.find(b"\n", found_at) + 1
        yield start, position, first_at < position
