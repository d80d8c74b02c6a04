"""Which of a frame's JSON Lines match: as many as can be are ruled out as bytes, and only the rest is decoded."""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, Final

import orjson

from chronoverse.archive.packing import read_line
from chronoverse.joblog import Line
from chronoverse.matcher import Matcher, as_read

#: Lines of a frame that were decoded for nothing (2 µs each), at which looking more closely first (200 µs a frame) is
#: better. A word such as "stream" is in the JSON of each line; a number is in that of some.
MISSES: Final = 100
#: The same for an expression, at which lines are looked at one by one: it may go through the rest of a frame each time.
LINES_MISSES: Final = 4
#: Bytes of JSON in which an expression is looked for at a time, or one line if that is longer: some 0.2 ms.
PART_BYTES: Final = 16 * 2**10
#: The same for a text: some 0.1 ms.
TEXT_PART_BYTES: Final = 128 * 2**10

#: Calls what it is given, wherever.
Work = Callable[[Callable[[], list[Line]]], list[Line]]


class Sieve:
    """Finds lines in JSON Lines, and learns from how often it was wrong."""

    def __init__(self, matcher: Matcher, work: Work, pause: Callable[[], object]) -> None:
        self._matcher: Final = matcher
        self._work: Final = work
        self._pause: Final = pause
        self._message = False

    def lines(self, text: bytes) -> list[Line]:
        """Those that match, in order."""
        self._pause()
        pattern = self._matcher.in_json(apart=rb"\u001b" in text, message=self._message)
        if pattern is not None:
            return self._by_text(text, pattern)
        lines: list[Line] = []
        start = 0
        while start < len(text):
            stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
            look = partial(self._by_expression, text[start:stop])
            lines += self._work(look) if self._matcher.is_heavy(stop - start) else look()
            self._pause()
            start = stop
        return lines

    def _by_text(self, text: bytes, pattern: Any) -> list[Line]:
        lines: list[Line] = []
        position = looked = stop = 0
        while position < len(text):
            if position >= stop:
                self._pause()
                # No match goes beyond its line: a newline in a message is spelt otherwise.
                stop = text.find(b"\n", position + TEXT_PART_BYTES) + 1 or len(text)
            found = pattern.search(text, position, stop)
            at = stop if found is None else found.start()
            if at >= stop:
                position = stop
                continue
            start = text.rfind(b"\n", position, at) + 1 or position
            position = text.find(b"\n", at) + 1
            looked += 1
            self._pause()
            entry = read_line(text[start : position - 1])
            if isinstance(entry, Line) and self._matcher.matches(entry.message):
                lines.append(entry)
        self._message = self._message or looked - len(lines) > MISSES
        return lines

    def _by_expression(self, text: bytes) -> list[Line]:
        said = [each for each in orjson.loads(b"[" + text[:-1].replace(b"\n", b",") + b"]") if "message" in each]
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
