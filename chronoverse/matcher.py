"""Does a line say it, and where. RE2 alone, since its time grows with the text and never faster."""

from typing import Final

import re2

#: Characters of a query. A longer one is no search but a program.
MAX_QUERY: Final = 256
#: Instructions of a compiled query, at most: a line of 64 KiB then takes a few milliseconds in the worst case, where
#: `(?:.?){1000}b`, with 9,000 of them, took 590. A Unicode class such as `\pL` has 1,200 by itself.
MAX_PROGRAM: Final = 2000
#: Bytes that one compiled query may take for its automaton. RE2 goes on more slowly, not further, beyond it.
PROGRAM_BYTES: Final = 4 * 2**20
#: Places named in one line: a line of 64 KiB may hold 65,536 of one letter, and nobody looks at so many.
MAX_PLACES: Final = 1000


class Matcher:
    """A query, compiled: text that is looked for as it stands, or a regular expression; in any case of letters.

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

    def matches(self, text: str) -> bool:
        """Whether it is in ``text``."""
        return self._pattern.search(text.encode()) is not None

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where, as [start, end) in characters: the first :data:`MAX_PLACES`. A match of nothing has no place."""
        places: list[tuple[int, int]] = []
        for match in self._pattern.finditer(text):
            if match.start() < match.end():
                places.append(match.span())
                if len(places) == MAX_PLACES:
                    break
        return places
