"""Compares a copy of lines with a log by digests, so that no line needs to be resent."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chronoverse.joblog.model import Line


class Comparison(NamedTuple):
    """How far a log agrees with a copy of its lines: all lines below ``next_number`` are equal.

    ``differs``: the log has a line ``next_number``, too, but it is different.
    """

    next_number: int
    differs: bool


def line_digest(line: Line) -> str:
    """SHA-256, in hexadecimal, of the line's JSON (``Line.to_json``). Copies of a line are compared by this."""
    import hashlib  # which takes 3 ms, and no run needs it

    return hashlib.sha256(line.encode()).hexdigest()


def compare_lines(log: Iterable[Line], first: int, digests: Sequence[str]) -> Comparison:
    """Compares the lines of ``log``, which begins with number ``first``, with lines that have the ``digests``.

    Stops after as many lines as there are digests, or after 2 Mi characters, which takes about 10 ms.
    """
    next_number, characters = first, 0
    for digest, line in zip(digests, log, strict=False):
        if line.sequence_num != next_number or characters >= 2 * 2**20:
            break
        if line_digest(line) != digest:
            return Comparison(next_number, differs=True)
        next_number += 1
        characters += len(line.message)
    return Comparison(next_number, differs=False)
