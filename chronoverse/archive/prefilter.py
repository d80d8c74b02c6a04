"""Which of a frame's JSON Lines match: as many as can be are ruled out as bytes, and only the rest is decoded."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, Final

import orjson

from chronoverse.archive.codec import decode_entry
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.values import Line

#: Lines of a frame that were decoded for nothing (2 µs each), at which looking more closely first (200 µs a frame) is
#: better. A word such as "stream" is in the JSON of each line; a number is in that of some.
TEXT_MISSES: Final = 100
#: The same for those found by what is behind control sequences, at which to allow for some between any two characters
#: is better (60 µs a frame).
SEQUENCE_MISSES: Final = 30
#: The same for an expression, at which lines are looked at one by one: it may go through the rest of a frame each time.
JOINED_MISSES: Final = 4
#: Lines of a part (some 90) that an expression may match, at which all others of the frame are decoded as well: at 1 µs
#: each, instead of 3.
MAX_CANDIDATES: Final = 16
#: Bytes of JSON in which an expression is looked for at a time, or one line if that is longer: some 0.2 ms.
PART_BYTES: Final = 16 * 2**10
#: The same for a text: some 0.1 ms.
TEXT_PART_BYTES: Final = 128 * 2**10

#: Times that a text was found in a part, at which small letters (80 µs a part, and 0.4 µs each time) are better than
#: RE2 (2 µs each time).
LOWERCASE_AFTER: Final = 16

#: How JSON spells ESC, with which all control sequences begin.
ESC_IN_JSON: Final = rb"\u001b"

#: Where something is in a text, from a place on; at least the end of what is looked through where it is not.
Finder = Callable[[int], int]

#: Calls what it is given, wherever.
HeavyRunner = Callable[[Callable[[], list[Line]]], list[Line]]


class Prefilter:
    """Finds lines in JSON Lines, and learns from how often it was wrong."""

    def __init__(self, matcher: Matcher, run_heavy: HeavyRunner, pause: Callable[[], object]) -> None:
        self._matcher: Final = matcher
        self._run_heavy: Final = run_heavy
        self._pause: Final = pause
        self._message_only = False
        self._across_sequences = False
        #: Set when an expression finds too much in this frame to be looked for before lines are decoded.
        self._many_candidates = False

    def matching_lines(self, text: bytes) -> list[Line]:
        """Those that match, in order."""
        self._pause()
        if self._matcher.in_json(apart=False, message=False) is not None:
            return self._search_text(text)
        self._many_candidates = False
        lines: list[Line] = []
        start = 0
        while start < len(text):
            stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
            if not self._matcher.is_feasible(stop - start):
                raise SearchTooExpensive(f"an archived line of {stop - start} bytes is too long for this expression")
            look = partial(self._search_expression, text[start:stop])
            lines += self._run_heavy(look) if self._matcher.is_heavy(stop - start) else look()
            self._pause()
            start = stop
        return lines

    def _search_text(self, text: bytes) -> list[Line]:
        lines: list[Line] = []
        coloured = ESC_IN_JSON in text
        across_sequences = coloured and self._across_sequences
        plain = not (across_sequences or self._message_only)
        pattern = self._matcher.in_json(apart=across_sequences, message=self._message_only)
        after_sequence = self._matcher.after_sequences() if coloured and not across_sequences else None
        misses = sequence_misses = position = 0
        while position < len(text):
            self._pause()
            # No match goes beyond its line: a newline in a message is spelt otherwise.
            stop = text.find(b"\n", position + TEXT_PART_BYTES) + 1 or len(text)
            find_text = _TextFinder(self._matcher, text, stop) if plain else _finder(pattern, text, stop)
            for start, end, by_text in _candidate_lines(
                text, position, stop, find_text, _finder(after_sequence, text, stop)
            ):
                self._pause()
                entry = decode_entry(text[start:end])
                if isinstance(entry, Line) and self._matcher.matches(entry.message):
                    lines.append(entry)
                elif by_text:
                    misses += 1
                else:
                    sequence_misses += 1
            position = stop
        self._message_only = self._message_only or misses > TEXT_MISSES
        self._across_sequences = self._across_sequences or sequence_misses > SEQUENCE_MISSES
        return lines

    def _search_expression(self, text: bytes) -> list[Line]:
        pattern = None if self._many_candidates else self._matcher.in_unescaped_json()
        if pattern is None:
            return self._search_joined(_decode_lines(text))
        stop, reached = len(text), 0

        def matching(position: int) -> int:
            nonlocal reached
            found = pattern.search(text, position)
            start, reached = (stop, stop) if found is None else found.span()
            return int(start)

        def escaped(position: int) -> int:
            found = text.find(b"\\", position)
            return stop if found < 0 else found

        candidates: list[bytes] = []
        for start, end, matches in _candidate_lines(text, 0, stop, matching, escaped):
            # One that goes on into the next lines may go on to the end of all, each time.
            if len(candidates) == MAX_CANDIDATES or (matches and reached > end):
                self._many_candidates = True
                return self._search_joined(_decode_lines(b"".join([*candidates, text[start:]])))
            candidates.append(text[start:end])
        return self._verify(_decode_lines(b"".join(candidates))) if candidates else []

    def _search_joined(self, decoded: list[dict[str, Any]]) -> list[Line]:
        pattern = self._matcher.in_joined_lines()
        if pattern is None:
            return self._verify(decoded)
        texts, owners = [], []
        for owner, each in enumerate(decoded):
            message = each["message"]
            texts.append(message.encode())
            owners.append(owner)
            if "\x1b" in message:
                texts.append(strip_sequences(message).encode())
                owners.append(owner)
        starts = list(accumulate((len(each) + 1 for each in texts), initial=0))
        joined = b"\n".join(texts)
        lines: list[Line] = []
        following = misses = 0
        while following < len(decoded) and misses <= JOINED_MISSES:
            at = starts[bisect_right(owners, following - 1)]
            found = pattern.search(joined, at)
            if found is None:
                return lines
            at = bisect_right(starts, found.start())
            owner = owners[at - 1]
            verified = self._verify(decoded[owner : owner + 1])
            lines += verified
            # One that goes on into the next lines may go on to the end of all, each time.
            misses += not verified or found.end() >= starts[at]
            following = owner + 1
        return lines + self._verify(decoded[following:])

    def _verify(self, decoded: list[dict[str, Any]]) -> list[Line]:
        return [Line.from_json(each) for each in decoded if self._matcher.matches(each["message"])]


def _decode_lines(text: bytes) -> list[dict[str, Any]]:
    """What JSON Lines say that are lines."""
    return [each for each in orjson.loads(b"[" + text[:-1].replace(b"\n", b",") + b"]") if "message" in each]


def _finder(pattern: Any, text: bytes, stop: int) -> Finder:
    """Where ``pattern`` is in ``text`` up to ``stop``; nowhere without one."""
    if pattern is None:
        return lambda _: stop

    def find(position: int) -> int:
        found = pattern.search(text, position, stop)
        return stop if found is None else int(found.start())

    return find


class _TextFinder:
    """The same for a text by itself: when it comes often, that is looked for in small letters."""

    def __init__(self, matcher: Matcher, text: bytes, stop: int) -> None:
        self._matcher: Final = matcher
        self._text: Final = text
        self._stop: Final = stop
        self._find_by_pattern: Final = _finder(matcher.in_json(apart=False, message=False), text, stop)
        self._found = 0
        #: Up to ``_end`` the text from ``_start`` on is known in small letters.
        self._start = self._end = 0
        self._lowercase = self._wanted = b""

    def __call__(self, position: int) -> int:
        while position < self._stop:
            if position >= self._end and not self._lowercase_next_part(position):
                return self._find_by_pattern(position)
            found = self._lowercase.find(self._wanted, position - self._start)
            if found >= 0:
                return self._start + found
            position = self._end
        return self._stop

    def _lowercase_next_part(self, position: int) -> bool:
        """Whether the next lines are known in small letters now."""
        self._found += 1
        if self._found < LOWERCASE_AFTER:
            return False
        end = min(self._text.find(b"\n", position + PART_BYTES) + 1 or self._stop, self._stop)
        part = self._text[position:end]
        wanted = self._matcher.lowercase_in_json(part)
        if wanted is None:
            return False
        self._start, self._end, self._lowercase, self._wanted = position, end, part.lower(), wanted
        return True


def _candidate_lines(
    text: bytes, position: int, stop: int, first: Finder, second: Finder
) -> Iterator[tuple[int, int, bool]]:
    """The bounds of each line that one of the two finds, and whether it was the first that did."""
    here = there = -1
    while True:
        if here < position:
            here = first(position)
        if there < position:
            there = second(position)
        at = here if here < there else there
        if at >= stop:
            return
        start = text.rfind(b"\n", position, at) + 1 or position
        position = text.find(b"\n", at) + 1
        yield start, position, here < position
