"""Finds matching lines in a frame's JSON Lines. Searches the bytes, and decodes only the *candidates* that it finds:
decoding a line takes 0.7 µs.
"""

from collections.abc import Iterator
from typing import Any, Final

from chronoverse.archive.codec import decode_lines
from chronoverse.errors import SearchTooExpensive
from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.model import Line

PART_BYTES: Final = 16 * 2**10


def matching_lines(matcher: Matcher, text: bytes) -> list[Line]:
    for candidates in _searches(matcher, text) if matcher.is_feasible(len(text)) else ():
        if candidates is not None:
            return _verify(matcher, candidates)
    lines: list[Line] = []
    start = 0
    while start < len(text):
        # Small parts: a match across several lines is searched for again from each of them.
        stop = text.find(b"\n", start + PART_BYTES) + 1 or len(text)
        if not matcher.is_feasible(stop - start):
            raise SearchTooExpensive(f"an archived line of {stop - start} bytes is too long for this expression")
        lines += _verify(matcher, text[start:stop])
        start = stop
    return lines


def _searches(matcher: Matcher, text: bytes) -> Iterator[bytes | None]:
    """Searches for all candidates. Each search is slower than the one before, but excludes more lines."""
    if in_json := matcher.in_json:
        yield _candidates(text, in_json(text), matcher.in_interrupted_json(text))
        # The last pattern is rarely needed, and takes 0.2 ms to compile.
        yield _candidates(text, matcher.in_any_json(text))
    elif in_line := matcher.in_unescaped_json:
        yield _candidates(text, in_line(text), _escapes(text))


def _escapes(text: bytes) -> Iterator[tuple[int, int]]:
    """The first backslash of each line that has one, as a span."""
    position = text.find(b"\\")
    while position >= 0:
        yield position, position + 1
        position = text.find(b"\\", text.find(b"\n", position) + 1 or len(text))


def _candidates(text: bytes, *searches: Iterator[tuple[int, int]]) -> bytes | None:
    """The lines in which a span of ``searches`` starts. None if there are many spans: decoding all lines is faster."""
    candidates: dict[int, bytes] = {}
    for spans in searches:
        position = 0
        for count, (start, end) in enumerate(spans):
            if start >= position:
                line_start = text.rfind(b"\n", position, start) + 1 or position
                position = text.find(b"\n", start) + 1 or len(text)
                candidates[line_start] = text[line_start:position]
            # The next match starts after this one, so a match across lines can hide others.
            if count >= max(32, position // 1024) or end > position:
                return None
    return b"".join([candidates[line_start] for line_start in sorted(candidates)])


def _verify(matcher: Matcher, lines: bytes) -> list[Line]:
    decoded = decode_lines(lines)
    if matcher.in_joined_lines is not None:
        return [Line.from_json(each) for each in _joined_matches(matcher, decoded)]
    return [Line.from_json(each) for each in decoded if matcher.matches(each["message"])]


def _joined_matches(matcher: Matcher, decoded: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The matching lines. One search in all joined messages is several times as fast as one per message."""
    messages = [each["message"] for each in decoded]
    # Some lines match only without their control sequences.
    texts = [f"{message}\n{strip_sequences(message)}" if "\x1b" in message else message for message in messages]
    joined = "\n".join(texts).encode()
    # Without anchors, a match within one line is a match of that line.
    pattern, is_exact = matcher.in_joined_lines, matcher.in_unescaped_json is not None
    start, found, end = 0, -1, 0
    for line, text in zip(decoded, texts, strict=True):
        stop = start + (len(text) if text.isascii() else len(text.encode())) + 1
        if found < start:
            match = pattern.search(joined, start)
            found, end = (len(joined) + 1, 0) if match is None else match.span()
        if found < stop and ((is_exact and joined.find(b"\n", found, end) < 0) or matcher.matches(line["message"])):
            yield line
        start = stop
