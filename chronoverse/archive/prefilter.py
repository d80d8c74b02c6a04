"""Finds the matching lines in the JSON Lines of a frame. It rules out most lines as bytes, and decodes only the rest.

Decoding a line takes 2 µs, so a search in bytes is much faster. A line that is not ruled out is a *candidate*. A
candidate that does not match after all is a *miss*. After many misses the filter uses a slower pattern that has fewer.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Final

from chronoverse.archive.codec import decode_entry, decode_lines
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.values import Line

#: Misses of a text in one frame (2 µs each) after which only messages are searched (200 µs a frame). A word such as
#: "stream" is in the JSON of every line, and a number is in that of some lines.
TEXT_MISSES: Final = 100
#: Misses at control sequences in one frame after which the pattern allows such sequences between any two characters
#: (60 µs a frame).
SEQUENCE_MISSES: Final = 30
#: Misses of an expression in joined lines after which lines are searched one by one. Each search in joined lines may go
#: through all the rest of them.
JOINED_MISSES: Final = 4
#: Candidates of an expression in one part, of some 90 lines, after which all further lines of the frame are decoded.
#: That takes 1 µs for each line, instead of 3 µs.
MAX_CANDIDATES: Final = 16
#: Bytes of JSON in which an expression is searched for at once, or one line if it is longer. That takes 0.2 ms.
PART_BYTES: Final = 16 * 2**10
#: After so many searches in a part, the part is changed to lower case. That takes 80 µs, and then 0.4 µs for each
#: search. A search with RE2 takes 2 µs.
LOWERCASE_AFTER: Final = 16
#: ESC in JSON. All control sequences begin with it.
ESC_IN_JSON: Final = rb"\u001b"

#: Takes a position in a text, and returns that of the next occurrence of something. Without one, it returns the text's
#: end.
Finder = Callable[[int], int]


class Prefilter:
    """Finds matching lines in the frames of a log. What it learns from the misses in a frame holds for the next."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher: Final = matcher
        self._message_only = False
        self._across_sequences = False
        #: True when an expression has so many candidates in this frame that its lines are decoded without a filter.
        self._many_candidates = False

    def matching_lines(self, text: bytes) -> list[Line]:
        """The matching lines of a frame's JSON Lines, in order. Raises :class:`SearchTooExpensive`."""
        if self._matcher.in_json(across_sequences=False, message_only=False) is not None:
            return self._search_text(text)
        self._many_candidates = False
        lines: list[Line] = []
        start = 0
        while start < len(text):
            stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
            if not self._matcher.is_feasible(stop - start):
                raise SearchTooExpensive(f"an archived line of {stop - start} bytes is too long for this expression")
            lines += self._search_expression(text[start:stop])
            start = stop
        return lines

    def _search_text(self, text: bytes) -> list[Line]:
        """The lines that contain a literal text."""
        lines: list[Line] = []
        has_sequences = ESC_IN_JSON in text
        across_sequences = has_sequences and self._across_sequences
        plain = not (across_sequences or self._message_only)
        pattern = self._matcher.in_json(across_sequences=across_sequences, message_only=self._message_only)
        after_sequence = self._matcher.after_sequences if has_sequences and not across_sequences else None
        misses = sequence_misses = 0
        # No match extends beyond its line, since JSON escapes a newline in a message.
        find_text = _TextFinder(self._matcher, text) if plain else _finder(pattern, text)
        for start, end, by_text in _candidate_lines(text, find_text, _finder(after_sequence, text)):
            entry = decode_entry(text[start:end])
            if isinstance(entry, Line) and self._matcher.matches(entry.message):
                lines.append(entry)
            elif by_text:
                misses += 1
            else:
                sequence_misses += 1
        self._message_only = self._message_only or misses > TEXT_MISSES
        self._across_sequences = self._across_sequences or sequence_misses > SEQUENCE_MISSES
        return lines

    def _search_expression(self, text: bytes) -> list[Line]:
        """The lines of one part that match a regular expression. Lines with escapes are always candidates."""
        pattern = None if self._many_candidates else self._matcher.in_unescaped_json
        if pattern is None:
            return self._search_joined(decode_lines(text))
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
            # A match that extends into the next lines may extend to the end of the part, and so may the next matches.
            if len(candidates) == MAX_CANDIDATES or (matches and match_end > end):
                self._many_candidates = True
                return self._search_joined(decode_lines(b"".join([*candidates, text[start:]])))
            candidates.append(text[start:end])
        return self._verify(decode_lines(b"".join(candidates))) if candidates else []

    def _search_joined(self, decoded: list[dict[str, Any]]) -> list[Line]:
        """The decoded lines that match a regular expression. Searches all of their messages at once, if possible."""
        pattern = self._matcher.in_joined_lines
        if pattern is None:
            return self._verify(decoded)
        #: The texts to search, and for each the index of its line. A line with control sequences has two texts.
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
        next_owner = misses = 0
        while next_owner < len(decoded) and misses <= JOINED_MISSES:
            position = starts[bisect_right(owners, next_owner - 1)]
            found = pattern.search(joined, position)
            if found is None:
                return lines
            next_text = bisect_right(starts, found.start())
            owner = owners[next_text - 1]
            verified = self._verify(decoded[owner : owner + 1])
            lines += verified
            # A match that extends into the next lines may extend to the end of all, and so may the next matches.
            misses += not verified or found.end() >= starts[next_text]
            next_owner = owner + 1
        return lines + self._verify(decoded[next_owner:])

    def _verify(self, decoded: list[dict[str, Any]]) -> list[Line]:
        return [Line.from_json(each) for each in decoded if self._matcher.matches(each["message"])]


def _finder(pattern: Any, text: bytes) -> Finder:
    """A finder of ``pattern`` in ``text``. Without a pattern it finds nothing."""
    stop = len(text)
    if pattern is None:
        return lambda _: stop

    def find(position: int) -> int:
        found = pattern.search(text, position)
        return stop if found is None else int(found.start())

    return find


class _TextFinder:
    """A finder of a literal text. When the text is frequent, it searches in lower case instead of with RE2."""

    def __init__(self, matcher: Matcher, text: bytes) -> None:
        self._matcher: Final = matcher
        self._text: Final = text
        self._stop: Final = len(text)
        self._find_by_pattern: Final = _finder(matcher.in_json(across_sequences=False, message_only=False), text)
        self._searches = 0
        #: The part from ``_start`` to ``_end`` in lower case.
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
        """Changes the next part to lower case, if that is worth it. Returns whether it did."""
        self._searches += 1
        if self._searches < LOWERCASE_AFTER:
            return False
        end = self._text.find(b"\n", position + PART_BYTES) + 1 or self._stop
        part = self._text[position:end]
        wanted = self._matcher.lowercase_in_json(part)
        if wanted is None:
            return False
        self._start, self._end, self._lowercase, self._wanted = position, end, part.lower(), wanted
        return True


def _candidate_lines(text: bytes, first: Finder, second: Finder) -> Iterator[tuple[int, int, bool]]:
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
