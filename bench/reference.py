"""The bytes that every viewer of a job must receive: built once, from the first that pass the strict check.

A message: ``T=<ns> J=<job> N=<number> <filler>``. All viewers but the first are compared with ``memcmp``.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

#: Text after the numbers, which makes a line as long as those of builds (about 100 characters).
FILLER: Final = "compiling module of many, with some text behind it, as builds print it"
#: Size limit of a block in bytes, above that of any line.
MAX_BLOCK: Final = 4096

_MESSAGE: Final = rb"T=(?P<stamp>[0-9]+) J=(?P<job>[0-9]+) N=(?P<number>[0-9]+) " + re.escape(FILLER.encode())
_DATA: Final = (
    rb'\{"timestamp":"[0-9T:.Z-]{24}","message":"%b","sequence_num":(?P=number),"stream":"stdout"\}' % _MESSAGE
)


def message(stamp_ns: int, job: int, number: int) -> str:
    return f"T={stamp_ns} J={job} N={number} {FILLER}"


@dataclass(frozen=True)
class Grammar:
    """A peer's framing of events. ``{data}`` in ``log`` is the line as JSON. ``noise``: blocks without a line."""

    log: bytes
    noise: bytes = rb"(?!)"
    newline: bytes = b"\n"

    def compiled(self) -> tuple["re.Pattern[bytes]", "re.Pattern[bytes]"]:
        """Patterns of one log block and of one block of noise, including the blank line at their end."""
        return re.compile(self.log.replace(b"{data}", _DATA)), re.compile(self.noise)


class Wrong(Exception):
    """Raised if received bytes differ from those sent."""


class Reference:
    """A job's bytes after line ``after``, up to line ``last``, as far as any viewer has received them."""

    def __init__(self, grammar: Grammar, job: int, after: int, last: int) -> None:
        self.body = bytearray()
        self.job = job
        self.after = after
        self.number = after
        self.last = last
        #: The end of the body, once its last line is known.
        self.goal = 1 << 62
        self.ends: list[int] = [0]
        self.stamps: list[int] = [0]
        #: Cached small reads: the viewer's position before, the bytes, its position after.
        self.memo: dict[int, tuple[int, bytes, int]] = {}
        self.blank = grammar.newline * 2
        self._newline = grammar.newline
        self._log, self._noise = grammar.compiled()

    def position(self, after: int) -> int:
        """The position of the first line after ``after``, which the reference must have reached."""
        return self.ends[after - self.after]

    def lines_before(self, position: int) -> int:
        """The number of complete lines before ``position``."""
        return bisect_right(self.ends, position) - 1

    def block_start(self, position: int) -> int:
        """The start of the block that contains ``position``, or ``position`` itself between two blocks."""
        return self.ends[self.lines_before(position)]

    def stamps_between(self, start: int, end: int, warm: int) -> list[int]:
        """The sending times of the lines after ``warm`` that end after position ``start``, but not after ``end``."""
        least = max(bisect_right(self.ends, start), warm - self.after + 1)
        return self.stamps[least : bisect_right(self.ends, end)]

    def same(self, text: memoryview, position: int) -> int:
        """Number of leading bytes of ``text`` that equal the body at ``position``; only whole blocks if some differ."""
        size = min(len(text), len(self.body) - position)
        if self.body.startswith(text[:size], position):
            return size
        index, matched = self.lines_before(position), 0
        while True:
            end = self.ends[index + 1] - position
            if end > len(text) or not self.body.startswith(text[matched:end], position + matched):
                return matched
            index, matched = index + 1, end

    def noise(self, text: bytes, at: int) -> int:
        """Length of the noise at ``at`` in ``text``: 0 if there is none, -1 if more bytes are needed to decide."""
        if text.startswith(self._newline, at):
            return len(self._newline)
        if text.startswith(b":", at):
            return text.find(b"\n", at) + 1 - at if b"\n" in text[at : at + MAX_BLOCK] else -1
        end = text.find(self.blank, at)
        if end < 0:
            return -1
        end += len(self.blank)
        return end - at if self._noise.fullmatch(text, at, end) else 0

    def extend(self, text: bytes, at: int) -> int:
        """Adds the block at ``at`` in ``text`` as the next line. Returns its length. Raises :class:`Wrong`."""
        end = text.find(self.blank, at) + len(self.blank)
        found = self._log.fullmatch(text, at, end)
        if found is None:
            raise Wrong(f"line {self.number + 1} of job {self.job} came as {text[at : at + 200]!r}")
        number, job, stamp = int(found["number"]), int(found["job"]), int(found["stamp"])
        if (number, job) != (self.number + 1, self.job):
            raise Wrong(f"line {number} of job {job} came as line {self.number + 1} of job {self.job}")
        if number > self.last or stamp < self.stamps[-1]:
            raise Wrong(f"line {number} of job {job} was never sent like this: {text[at:end]!r}")
        self.number = number
        self.body += text[at:end]
        self.ends.append(len(self.body))
        self.stamps.append(stamp)
        if number == self.last:
            self.goal = len(self.body)
        return end - at
