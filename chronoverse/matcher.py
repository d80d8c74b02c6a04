"""Does a line say it, and where. RE2 alone, since its time grows with the text and never faster."""

import re
from itertools import islice
from typing import Final

import re2

#: Characters of a query. A longer one is no search but a program.
MAX_QUERY: Final = 256
#: Instructions of a compiled query, at most. A Unicode class such as `\pL` has 1,200 by itself.
MAX_PROGRAM: Final = 2000
#: Instructions times characters that may take more than a few milliseconds, where a text defeats RE2's automaton:
#: `(?:a.{0,50}){4}z`, with 1,809 instructions, took 105 ms for 64 KiB of as and bs.
HEAVY: Final = 1_000_000
#: Bytes that one compiled query may take for its automaton. RE2 goes on more slowly, not further, beyond it.
PROGRAM_BYTES: Final = 4 * 2**20
#: Places named in one line: a line of 64 KiB may hold 65,536 of one letter, and nobody looks at so many.
MAX_PLACES: Final = 1000

#: Control sequences of a terminal: CSI, and OSC and its like with their end. Each try ends at the next ESC: linear.
_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\))")


class Matcher:
    """A query, compiled: text that is looked for as it stands, or a regular expression; in any case of letters.

    It is looked for in a line as it was written, and as it is read, without the terminal's control sequences.
    Raises ValueError for an expression that is malformed or too expensive.
    """

    def __init__(self, query: str, *, regex: bool = False) -> None:
        options = re2.Options()
        options.literal = not regex
        options.case_sensitive = False
        options.never_capture = True
        options.log_errors = False
        options.max_mem = PROGRAM_BYTES
        try:
            self._pattern = re2.compile(query, options)
        except re2.error as error:
            said = error.args[0]
            detail = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
            raise ValueError(f"is not a regular expression that RE2 takes: {detail}") from error
        if regex and self._pattern.programsize > MAX_PROGRAM:
            raise ValueError("is too expensive a regular expression: use smaller repetitions and fewer classes")

    def is_heavy(self, text: str) -> bool:
        """Whether it may take long, and is better done by another thread: RE2 lets the others run meanwhile."""
        return len(text) * int(self._pattern.programsize) > HEAVY

    def matches(self, text: str) -> bool:
        """Whether it is in ``text``."""
        if self._pattern.search(text.encode()) is not None:
            return True
        return "\x1b" in text and self._pattern.search(_SEQUENCE.sub("", text).encode()) is not None

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where, as [start, end) in characters: the first :data:`MAX_PLACES`. A match of nothing has no place."""
        places = self._places(text)
        if "\x1b" in text:
            read, at = _as_read(text)
            places = sorted({*places, *((at[start], at[end - 1] + 1) for start, end in self._places(read))})
        return places[:MAX_PLACES]

    def _places(self, text: str) -> list[tuple[int, int]]:
        spans = (match.span() for match in self._pattern.finditer(text))
        return list(islice(((start, end) for start, end in spans if start < end), MAX_PLACES))


def _as_read(text: str) -> tuple[str, list[int]]:
    """``text`` without control sequences, and where in it each character of that was."""
    at: list[int] = []
    end = 0
    for sequence in _SEQUENCE.finditer(text):
        at += range(end, sequence.start())
        end = sequence.end()
    at += range(end, len(text))
    return _SEQUENCE.sub("", text), at
