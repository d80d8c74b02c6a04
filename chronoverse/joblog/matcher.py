"""Matches lines against a search query. Uses only RE2, whose time is linear in the text."""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from operator import methodcaller
from typing import Any, Final

import orjson
import re2

MAX_QUERY: Final = 256
#: Maximum instructions of a compiled query. A Unicode class such as `\pL` alone has 1,200.
MAX_PROGRAM: Final = 2000
#: Bytes of memory for a compiled query's automaton. If the automaton needs more, RE2 becomes slower.
PROGRAM_BYTES: Final = 4 * 2**20
MAX_SPANS: Final = 1000

#: Maximum instructions of an expression that is searched for in many lines at once.
MAX_JOINED_PROGRAM: Final = 200

#: Terminal control sequences: CSI, and string sequences such as OSC. Each ends at the next ESC, for linear time.
_CONTROL_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\))")
_STRING_SEQUENCE: Final = re.compile("\x1b[]PX^_]")

#: Matches control sequences in a JSON string, and some other text. The case-sensitive start makes it ten times as fast.
_JSON_SEQUENCE: Final = (
    r'(?-i:\\u001b)(?:\[[0-?]*(?:[ !#-/]|\\")*(?:[@-\[\]-~]|\\\\)'
    r'|[\]PX^_](?:[^"\\]|\\.)*?(?:\\u0007|\\u001b\\\\))'
)
#: Parts of an expression whose meaning differs between joined lines and a single line.
ENDS: Final = re.compile(r"\\[Az]|\(\?\w*-")
#: Tokens of an expression, enough to distinguish the anchor ``^`` from a negated class.
_TOKENS: Final = re.compile(r"(?s)\\.|\[\^|.")
#: Anchors match at the ends of a line, but not at the same places in its JSON. ``\Q`` can hide an anchor.
_ANCHORS: Final = frozenset({"^", "$", r"\A", r"\z", r"\Q"})

#: A match, as [start, end).
Span = tuple[int, int]
#: Finds spans in JSON Lines.
SpanFinder = Callable[[bytes], Iterator[Span]]

_TOO_EXPENSIVE: Final = "is too expensive a regular expression: use smaller repetitions and fewer classes"


class Matcher:
    """A compiled query: literal text or a regular expression, case-insensitive.

    Searches the line both as written and without control sequences. The ``in_…_json`` functions find candidates in JSON
    Lines, if the compiled query has up to ``max_joined`` instructions. ``max_bytes`` limits its automaton. Raises
    ValueError for a malformed or too expensive expression.
    """

    def __init__(
        self, query: str, *, regex: bool = False, max_bytes: int = PROGRAM_BYTES, max_joined: int = MAX_JOINED_PROGRAM
    ) -> None:
        self._query: Final = query
        self._regex: Final = regex
        self._max_bytes: Final = max_bytes
        self._max_joined: Final = max_joined
        #: Compiled only to check the query's syntax and size. This blocks the event loop, so memory is limited: RE2
        #: gives up on `\pL{145}` after 0.8 ms with 128 KiB, after 49 ms with 4 MiB. A program of 2,000 instructions
        #: takes 39,000 bytes before RE2 simplifies it, or 71,000 bytes with empty groups.
        self._size: Final = int(_compiled(query, not regex, 128 * 2**10).programsize)
        if regex and self._size > MAX_PROGRAM:
            raise ValueError(_TOO_EXPENSIVE)
        #: The query in lower case. None if only RE2 can compare it.
        self._lowercase: Final = query.lower() if query.isascii() and not regex else None

    @property
    def program_size(self) -> int:
        """Instructions of a regular expression. 0 for literal text, whose search is always fast."""
        return self._size if self._regex else 0

    def is_heavy(self, size: int) -> bool:
        """Whether searching ``size`` characters can take long, and should run in another thread, without the GIL.

        RE2 can need many states: `(?:a.{0,50}){4}z` has 1,809 instructions, and took 105 ms for 64 KiB of a and b.
        """
        return size * self._size > 1_000_000

    def is_feasible(self, size: int) -> bool:
        """Whether ``size`` characters may be searched at all. Always true for literal text.

        The limit allows the largest expression on a line of 1 MiB, the longest that our runner writes. This takes about
        3 s, and RE2 cannot be interrupted.
        """
        return self.program_size * size <= MAX_PROGRAM * 2**20

    def matches(self, text: str) -> bool:
        """Whether the query matches ``text``, with or without its control sequences."""
        return self._is_in(text) or ("\x1b" in text and self._is_in(strip_sequences(text)))

    def may_match(self, texts: Iterable[str]) -> bool:
        """Searches all ``texts`` at once. False means that none of them matches, True that one of them may."""
        joined = "\n".join(texts)
        if "\x1b" in joined:
            if _STRING_SEQUENCE.search(joined):
                return True
            # All other sequences end within their line, so they can be stripped from the joined text.
            joined = f"{joined}\n{strip_sequences(joined)}"
        if self._lowercase is not None and joined.isascii():
            return self._lowercase in joined.lower()
        pattern = self.in_joined_lines if self._regex else self._pattern
        return pattern is None or not self.is_feasible(len(joined)) or pattern.search(joined.encode()) is not None

    def spans(self, text: str) -> Iterator[tuple[int, int] | None]:
        """Yields each match in ``text`` as [start, end) in characters; None for an empty match. Can yield duplicates.

        Yields at most twice :data:`MAX_SPANS` spans. Finding each takes at most as long as :meth:`matches`, but
        every character can be a match.
        """
        yield from self._spans(text)
        if "\x1b" in text:
            stripped, original = strip_and_map(text)
            for span in self._spans(stripped):
                yield span and (original(span[0]), original(span[1] - 1) + 1)

    @cached_property
    def in_json(self) -> SpanFinder | None:
        """Finds the text in a line's JSON, also outside the message. Not across control sequences. None for a regex."""
        return None if self._regex else self._in_lines("".join(self._in_json))

    @cached_property
    def in_interrupted_json(self) -> SpanFinder:
        """Finds a control sequence, then the rest of the text. Has false positives: the rest can be one character."""
        *others, last = self._in_json or [""]
        rest = ""
        for each in others[1:]:
            rest = f"(?:{rest}{each})?"
        return _finder(_compiled(_JSON_SEQUENCE + rest + last, False, self._max_bytes))

    @cached_property
    def in_any_json(self) -> SpanFinder:
        """Finds the text in a line's JSON, even if control sequences interrupt it. Half as fast as :attr:`in_json`."""
        return _finder(_compiled(f"(?:{_JSON_SEQUENCE})*".join(self._in_json), False, self._max_bytes))

    @property
    def is_whole_in_json(self) -> bool:
        """Whether :meth:`in_json` and :meth:`in_any_json` search for the whole text, not just its beginning."""
        return len(self._query) <= 40

    @property
    def _in_json(self) -> list[str]:
        """Expressions for the text's first 40 characters in JSON. Few lines match these but not the whole text."""
        return [re2.escape(orjson.dumps(each)[1:-1].decode()) for each in self._query[:40]]

    @cached_property
    def in_joined_lines(self) -> Any:
        """A pattern that searches messages joined by newlines, with false positives. None if impossible."""
        if not self._regex or self._size > self._max_joined or ENDS.search(self._query):
            return None
        return _compiled(f"(?m){self._query}", False, self._max_bytes)

    @cached_property
    def in_unescaped_json(self) -> SpanFinder | None:
        """Finds matches in the JSON of lines without escapes, with false positives. None if impossible."""
        if not self._regex or self._size > self._max_joined:
            return None
        return self._in_lines(self._query) if _ANCHORS.isdisjoint(_TOKENS.findall(self._query)) else None

    def _in_lines(self, expression: str) -> SpanFinder:
        """Searches ASCII lines as Latin-1, because the Unicode case variants of `k` and `s` would double RE2's time."""
        find = _finder(_compiled(expression, False, self._max_bytes))
        # If the expression has a character that Latin-1 lacks, such as \x{17f}, only the Unicode pattern is used.
        with contextlib.suppress(ValueError):
            find_in_ascii = _finder(_compiled(expression.encode("ascii"), False, self._max_bytes))
            return lambda text: (find_in_ascii if text.isascii() else find)(text)
        return find

    @cached_property
    def _pattern(self) -> Any:
        return _compiled(self._query, not self._regex, self._max_bytes)

    def _is_in(self, text: str) -> bool:
        if self._lowercase is not None and text.isascii():
            return self._lowercase in text.lower()
        return self._pattern.search(text.encode()) is not None

    def _spans(self, text: str) -> Iterator[tuple[int, int] | None]:
        left = MAX_SPANS
        if (query := self._lowercase) and text.isascii():
            # Takes a fifth of the time of a pattern.
            lowered, end = text.lower(), 0
            while left and (start := lowered.find(query, end)) >= 0:
                end, left = start + len(query), left - 1
                yield start, end
            return
        data = text.encode()
        is_ascii = len(data) == len(text)
        # The number of bytes counted so far, and of the characters in them.
        counted = characters = 0
        for start, end in (match.span() for match in self._pattern.finditer(data)):
            if start == end:
                yield None
                continue
            if not is_ascii:
                # `\C` can match a part of a character.
                begin = characters + len(data[counted:start].decode(errors="replace"))
                characters = begin + len(data[start:end].decode(errors="replace"))
                start, counted, end = begin, end, characters
            yield start, end
            left -= 1
            if not left:
                return


class ExpressionSet:
    """RE2 expressions, all searched for at once. Raises ValueError if they are too expensive together."""

    def __init__(self, expressions: Iterable[str], *, is_folded: bool = True) -> None:
        options = _options(32 * 2**20)
        options.case_sensitive = not is_folded
        self._set: Final = re2.Set.SearchSet(options)
        for expression in expressions:
            self._set.Add(expression)
        try:
            self._set.Compile()
        except re2.error as error:
            raise ValueError(_TOO_EXPENSIVE) from error

    def matches(self, text: bytes) -> frozenset[int]:
        """The indices of the expressions that match somewhere in ``text``, which is UTF-8."""
        return frozenset(self._set.Match(text) or ())


def whole_match(expression: str) -> Callable[[str], bool]:
    """A function that matches a whole string, case-sensitively. Raises ValueError for an invalid expression."""
    compiled = _compiled(expression, False, PROGRAM_BYTES, case_sensitive=True)
    return lambda text: compiled.fullmatch(text) is not None


def compile_groups(expression: str) -> Any:
    """A pattern with groups, case-sensitive. Raises ValueError for a malformed or too expensive expression."""
    return _compiled(expression, False, PROGRAM_BYTES, case_sensitive=True, captures=True)


def _compiled(
    query: str | bytes, literal: bool, max_bytes: int, *, case_sensitive: bool = False, captures: bool = False
) -> Any:
    options = _options(max_bytes)
    options.literal = literal
    options.case_sensitive = case_sensitive
    options.never_capture = not captures
    if isinstance(query, bytes):
        options.encoding = re2.Options.Encoding.LATIN1
    try:
        # Purges the cache of re2, which would keep the last 128 patterns with their automata. Callers keep their own.
        compiled = re2.compile(query, options)
        re2.purge()
        return compiled
    except re2.error as error:
        message = error.args[0]
        detail = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
        if detail.startswith("pattern too large"):
            raise ValueError(_TOO_EXPENSIVE) from error
        raise ValueError(f"invalid regular expression: {detail}") from error


def _finder(pattern: Any) -> SpanFinder:
    return lambda text: map(methodcaller("span"), pattern.finditer(text))


def _options(max_bytes: int) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = max_bytes
    return options


def strip_sequences(text: str) -> str:
    """``text`` without terminal control sequences."""
    return _CONTROL_SEQUENCE.sub("", text)


def strip_and_map(text: str) -> tuple[str, Callable[[int], int]]:
    """``text`` without control sequences, and a function that maps its indices to indices in ``text``."""
    starts, ends = [0], [0]
    for sequence in _CONTROL_SEQUENCE.finditer(text):
        starts.append(starts[-1] + sequence.start() - ends[-1])
        ends.append(sequence.end())

    def original(index: int) -> int:
        part = bisect_right(starts, index) - 1
        return ends[part] + index - starts[part]

    return strip_sequences(text), original
