"""Which of a frame's JSON Lines match: as many as can be are ruled out as bytes, and only the rest is decoded."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, Final

import orjson

from chronoverse.archive.codec import read_line
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.matcher import Matcher, as_read
from chronoverse.joblog.values import Line

#: Lines of a frame that were decoded for nothing (2 µs each), at which looking more closely first (200 µs a frame) is
#: better. A word such as "stream" is in the JSON of each line; a number is in that of some.
MISSES: Final = 100
#: The same for those found by what is behind control sequences, at which to allow for some between any two characters
#: is better (60 µs a frame).
BEHIND_MISSES: Final = 30
#: The same for an expression, at which lines are looked at one by one: it may go through the rest of a frame each time.
LINES_MISSES: Final = 4
#: Lines of a part (some 90) that an expression may match, at which all others of the frame are decoded as well: at 1 µs
#: each, instead of 3.
CANDIDATES: Final = 16
#: Bytes of JSON in which an expression is looked for at a time, or one line if that is longer: some 0.2 ms.
PART_BYTES: Final = 16 * 2**10
#: The same for a text: some 0.1 ms.
TEXT_PART_BYTES: Final = 128 * 2**10

#: Times that a text was found in a part, at which small letters (80 µs a part, and 0.4 µs each time) are better than
#: RE2 (2 µs each time).
OFTEN: Final = 16

#: How JSON spells ESC, with which all control sequences begin.
ESC: Final = rb"\u001b"

#: Where something is in a text, from a place on; at least the end of what is looked through where it is not.
Places = Callable[[int], int]

#: Calls what it is given, wherever.
Work = Callable[[Callable[[], list[Line]]], list[Line]]


class Prefilter:
    """Finds lines in JSON Lines, and learns from how often it was wrong."""

    def __init__(self, matcher: Matcher, work: Work, pause: Callable[[], object]) -> None:
        self._matcher: Final = matcher
        self._work: Final = work
        self._pause: Final = pause
        self._message = False
        self._apart = False
        #: Set when an expression finds too much in this frame to be looked for before lines are decoded.
        self._crowded = False

    def lines(self, text: bytes) -> list[Line]:
        """Those that match, in order."""
        self._pause()
        if self._matcher.in_json(apart=False, message=False) is not None:
            return self._by_text(text)
        self._crowded = False
        lines: list[Line] = []
        start = 0
        while start < len(text):
            stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
            if not self._matcher.is_feasible(stop - start):
                raise SearchTooExpensive(f"an archived line of {stop - start} bytes is too long for this expression")
            look = partial(self._by_expression, text[start:stop])
            lines += self._work(look) if self._matcher.is_heavy(stop - start) else look()
            self._pause()
            start = stop
        return lines

    def _by_text(self, text: bytes) -> list[Line]:
        lines: list[Line] = []
        coloured = ESC in text
        apart = coloured and self._apart
        plain = not (apart or self._message)
        pattern = self._matcher.in_json(apart=apart, message=self._message)
        behind = self._matcher.behind_sequences() if coloured and not apart else None
        wrong = wrong_behind = position = 0
        while position < len(text):
            self._pause()
            # No match goes beyond its line: a newline in a message is spelt otherwise.
            stop = text.find(b"\n", position + TEXT_PART_BYTES) + 1 or len(text)
            places = _Small(self._matcher, text, stop) if plain else _places(pattern, text, stop)
            for start, end, by_text in _candidates(text, position, stop, places, _places(behind, text, stop)):
                self._pause()
                entry = read_line(text[start:end])
                if isinstance(entry, Line) and self._matcher.matches(entry.message):
                    lines.append(entry)
                elif by_text:
                    wrong += 1
                else:
                    wrong_behind += 1
            position = stop
        self._message = self._message or wrong > MISSES
        self._apart = self._apart or wrong_behind > BEHIND_MISSES
        return lines

    def _by_expression(self, text: bytes) -> list[Line]:
        pattern = None if self._crowded else self._matcher.in_verbatim()
        if pattern is None:
            return self._together(_said(text))
        stop, reached = len(text), 0

        def matching(position: int) -> int:
            nonlocal reached
            found = pattern.search(text, position)
            start, reached = (stop, stop) if found is None else found.span()
            return int(start)

        def escaped(position: int) -> int:
            found = text.find(b"\\", position)
            return stop if found < 0 else found

        suspects: list[bytes] = []
        for start, end, matches in _candidates(text, 0, stop, matching, escaped):
            # One that goes on into the next lines may go on to the end of all, each time.
            if len(suspects) == CANDIDATES or (matches and reached > end):
                self._crowded = True
                return self._together(_said(b"".join([*suspects, text[start:]])))
            suspects.append(text[start:end])
        return self._verified(_said(b"".join(suspects))) if suspects else []

    def _together(self, said: list[dict[str, Any]]) -> list[Line]:
        pattern = self._matcher.in_lines()
        if pattern is None:
            return self._verified(said)
        texts, owners = [], []
        for owner, each in enumerate(said):
            message = each["message"]
            texts.append(message.encode())
            owners.append(owner)
            if "\x1b" in message:
                texts.append(as_read(message).encode())
                owners.append(owner)
        starts = list(accumulate((len(each) + 1 for each in texts), initial=0))
        together = b"\n".join(texts)
        lines: list[Line] = []
        following = misses = 0
        while following < len(said) and misses <= LINES_MISSES:
            at = starts[bisect_right(owners, following - 1)]
            found = pattern.search(together, at)
            if found is None:
                return lines
            at = bisect_right(starts, found.start())
            owner = owners[at - 1]
            verified = self._verified(said[owner : owner + 1])
            lines += verified
            # One that goes on into the next lines may go on to the end of all, each time.
            misses += not verified or found.end() >= starts[at]
            following = owner + 1
        return lines + self._verified(said[following:])

    def _verified(self, said: list[dict[str, Any]]) -> list[Line]:
        return [Line.from_json(each) for each in said if self._matcher.matches(each["message"])]


def _said(text: bytes) -> list[dict[str, Any]]:
    """What JSON Lines say that are lines."""
    return [each for each in orjson.loads(b"[" + text[:-1].replace(b"\n", b",") + b"]") if "message" in each]


def _places(pattern: Any, text: bytes, stop: int) -> Places:
    """Where ``pattern`` is in ``text`` up to ``stop``; nowhere without one."""
    if pattern is None:
        return lambda _: stop

    def place(position: int) -> int:
        found = pattern.search(text, position, stop)
        return stop if found is None else int(found.start())

    return place


class _Small:
    """The same for a text by itself: when it comes often, that is looked for in small letters."""

    def __init__(self, matcher: Matcher, text: bytes, stop: int) -> None:
        self._matcher: Final = matcher
        self._text: Final = text
        self._stop: Final = stop
        self._by_pattern: Final = _places(matcher.in_json(apart=False, message=False), text, stop)
        self._times = 0
        #: Up to ``_end`` the text from ``_start`` on is known in small letters.
        self._start = self._end = 0
        self._small = self._wanted = b""

    def __call__(self, position: int) -> int:
        while position < self._stop:
            if position >= self._end and not self._goes_on(position):
                return self._by_pattern(position)
            found = self._small.find(self._wanted, position - self._start)
            if found >= 0:
                return self._start + found
            position = self._end
        return self._stop

    def _goes_on(self, position: int) -> bool:
        """Whether the next lines are known in small letters now."""
        self._times += 1
        if self._times < OFTEN:
            return False
        end = min(self._text.find(b"\n", position + PART_BYTES) + 1 or self._stop, self._stop)
        part = self._text[position:end]
        wanted = self._matcher.small_in_json(part)
        if wanted is None:
            return False
        self._start, self._end, self._small, self._wanted = position, end, part.lower(), wanted
        return True


def _candidates(
    text: bytes, position: int, stop: int, first: Places, second: Places
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
