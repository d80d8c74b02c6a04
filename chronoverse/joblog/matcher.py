"""Does a line say it, and where. RE2 alone, since its time grows with the text and never faster."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import orjson
import re2

#: Characters of a query. A longer one is no search but a program.
MAX_QUERY: Final = 256
#: Instructions of a compiled query, at most. A Unicode class such as `\pL` has 1,200 by itself.
MAX_PROGRAM: Final = 2000
#: Instructions times characters that may take more than a few milliseconds, where a text defeats RE2's automaton:
#: `(?:a.{0,50}){4}z`, with 1,809 instructions, took 105 ms for 64 KiB of as and bs.
HEAVY_WORK: Final = 1_000_000
#: The same that one text may take: a line of 1 MiB, the longest that our runner writes, and the largest expression. It
#: takes about 3 s, and RE2 cannot be stopped.
MAX_WORK: Final = MAX_PROGRAM * 2**20
#: Bytes that one compiled query may take for its automaton. RE2 goes on more slowly, not further, beyond it.
PROGRAM_BYTES: Final = 4 * 2**20
#: Places named in one line: a line of 64 KiB may hold 65,536 of one letter, and nobody looks at so many.
MAX_SPANS: Final = 1000

#: Characters of a text that are looked for in JSON between which control sequences may lie: few lines have so many and
#: not the rest, and each takes 40 instructions.
MAX_SPLIT_CHARACTERS: Final = 12
#: Instructions of an expression that is looked for in many lines at once: it may have to go through all of them again
#: for some of them, at a gigabyte of instructions times characters a second.
MAX_JOINED_PROGRAM: Final = 200

#: Control sequences of a terminal: CSI, and OSC and its like with their end. Each try ends at the next ESC: linear.
_CONTROL_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\))")

#: The same in a JSON string; this finds more than there is, never less. Its beginning has no other case: so RE2 goes
#: from ESC to ESC at ten times the pace.
_JSON_SEQUENCE: Final = (
    r'(?-i:\\u001b)(?:\[[0-?]*(?:[ !#-/]|\\")*(?:[@-\[\]-~]|\\\\)'
    r'|[\]PX^_](?:[^"\\]|\\.)*?(?:\\u0007|\\u001b\\\\))'
)
#: The beginning of a line's message in its JSON, and whatever of it comes before what is looked for.
_JSON_MESSAGE: Final = r'"message":"(?:[^"\\]|\\.)*?'
#: Letters that are letters of ASCII in another case, KELVIN SIGN and LONG S; small letters do not say so.
_ALSO_ASCII: Final = ("\u212a".encode(), "\u017f".encode())
#: What means something else in a text of many lines than in a line: its very ends, and flags taken back.
_ENDS: Final = re.compile(r"\\[Az]|\(\?\w*-")
#: The pieces of an expression, as far as it takes to see an anchor that is none in a class.
_TOKENS: Final = re.compile(r"(?s)\\.|\[\^|.")
#: What a line has at its ends and its JSON elsewhere; and what may hide that.
_ANCHORS: Final = frozenset({"^", "$", r"\A", r"\z", r"\Q"})


class Matcher:
    """A query, compiled: text that is looked for as it stands, or a regular expression; in any case of letters.

    It is looked for in a line as it was written, and as it is read, without the terminal's control sequences.
    Raises ValueError for an expression that is malformed or too expensive.
    """

    def __init__(self, query: str, *, regex: bool = False) -> None:
        self._query: Final = query
        self._regex: Final = regex
        self._pattern = _compiled(query, literal=not regex)
        if regex and self._pattern.programsize > MAX_PROGRAM:
            raise ValueError("is too expensive a regular expression: use smaller repetitions and fewer classes")
        #: In small letters; None where RE2 is asked in any case.
        self._lowercase: Final = query.lower() if query.isascii() and not regex else None
        self.in_json = cache(self._in_json)
        self.after_sequences = cache(self._after_sequences)
        self.in_joined_lines = cache(self._in_joined_lines)
        self.in_unescaped_json = cache(self._in_unescaped_json)

    def is_heavy(self, size: int) -> bool:
        """Whether a text of so many characters may take long, and is better left to another thread.

        RE2 lets the others run meanwhile.
        """
        return size * int(self._pattern.programsize) > HEAVY_WORK

    def is_feasible(self, size: int) -> bool:
        """Whether a text of so many characters may be searched at all. Text is always looked for in linear time."""
        return not self._regex or size * int(self._pattern.programsize) <= MAX_WORK

    def matches(self, text: str) -> bool:
        """Whether it is in ``text``."""
        return self._is_in(text) or ("\x1b" in text and self._is_in(strip_sequences(text)))

    def spans(self, text: str) -> Iterator[tuple[int, int] | None]:
        """Each place where it is, as [start, end) in characters, perhaps twice; None for a match of nothing.

        At most twice :data:`MAX_SPANS`. One step takes no longer than :meth:`matches`, but there may be as many steps
        as characters, and each may look at all the rest of the text.
        """
        yield from self._spans(text)
        if "\x1b" in text:
            read, at = _strip_and_map(text)
            for place in self._spans(read):
                yield place and (at(place[0]), at(place[1] - 1) + 1)

    def lowercase_in_json(self, text: bytes) -> bytes | None:
        """What finds in the small letters of ``text``, JSON, what :meth:`in_json` by itself finds in ``text``.

        None where nothing does.
        """
        if self._lowercase is None or not (text.isascii() or all(text.find(each) < 0 for each in _ALSO_ASCII)):
            return None
        return orjson.dumps(self._lowercase)[1:-1]

    def _is_in(self, text: str) -> bool:
        if self._lowercase is not None and text.isascii():
            return self._lowercase in text.lower()
        return self._pattern.search(text.encode()) is not None

    def _in_json(self, *, apart: bool, message: bool) -> Any:
        """A pattern that finds a line's JSON by any message that matches, and by others; None for an expression.

        Without ``apart`` not by one that matches where control sequences are left out, which takes half the time; what
        finds those is :meth:`behind_sequences`. With ``message`` it looks at nothing but the message, which takes three
        times as long.
        """
        if self._regex:
            return None
        said = [
            re2.escape(orjson.dumps(each)[1:-1].decode())
            for each in self._query[: MAX_SPLIT_CHARACTERS if apart else None]
        ]
        return _compiled((_JSON_MESSAGE if message else "") + (f"(?:{_JSON_SEQUENCE})*" if apart else "").join(said))

    def _after_sequences(self) -> Any:
        """A pattern that finds, in a line's JSON, the control sequences in any text that matches without them.

        And others: of what matches it looks at nothing but what is behind the last of them. None for an expression,
        and for a text of one character, which none can be in.
        """
        if self._regex or len(self._query) < 2:
            return None
        following, *rest = [re2.escape(orjson.dumps(each)[1:-1].decode()) for each in self._query[1:]]
        for each in rest:
            following = f"(?:{following})?{each}"
        # Not spelt with a plus, of which RE2 does not see the beginning.
        return _compiled(f"{_JSON_SEQUENCE}(?:{_JSON_SEQUENCE})*{following}")

    def _in_joined_lines(self) -> Any:
        """A pattern that finds, in a text of many lines, any line that matches, and others; None where none does."""
        if not self._regex or self._pattern.programsize > MAX_JOINED_PROGRAM or _ENDS.search(self._query):
            return None
        return _compiled(f"(?m){self._query}")

    def _in_unescaped_json(self) -> Any:
        """A pattern that finds the JSON of any line that matches and in which nothing is escaped, and others.

        None where none does. A match may go on into the next lines.
        """
        if not self._regex or self._pattern.programsize > MAX_JOINED_PROGRAM:
            return None
        return self._pattern if _ANCHORS.isdisjoint(_TOKENS.findall(self._query)) else None

    def _spans(self, text: str) -> Iterator[tuple[int, int] | None]:
        left = MAX_SPANS
        # Characters of bytes need not be counted: a third of the cost.
        for match in self._pattern.finditer(text.encode() if text.isascii() else text):
            start, end = match.span()
            yield (start, end) if start < end else None
            left -= start < end
            if not left:
                return


def _compiled(query: str, *, literal: bool = False) -> Any:
    options = re2.Options()
    options.literal = literal
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = PROGRAM_BYTES
    try:
        return re2.compile(query, options)
    except re2.error as error:
        said = error.args[0]
        detail = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        raise ValueError(f"is not a regular expression that RE2 takes: {detail}") from error


def strip_sequences(text: str) -> str:
    """``text`` without a terminal's control sequences."""
    return _CONTROL_SEQUENCE.sub("", text)


def _strip_and_map(text: str) -> tuple[str, Callable[[int], int]]:
    """``text`` without control sequences, and what says where in it a character of that was."""
    starts, ends = [0], [0]
    for sequence in _CONTROL_SEQUENCE.finditer(text):
        starts.append(starts[-1] + sequence.start() - ends[-1])
        ends.append(sequence.end())

    def at(place: int) -> int:
        piece = bisect_right(starts, place) - 1
        return ends[piece] + place - starts[piece]

    return strip_sequences(text), at
