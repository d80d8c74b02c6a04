"""Splits bytes into lines. No I/O.

Lines travel in a :class:`LineBatch`: the lines of one read stay together until they are published. A command that
prints a lot then costs a few operations for each read instead of for each line.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from chronoverse.joblog.model import MAX_LINE_BYTES

#: The smallest ``max_line_bytes``: the longest UTF-8 character must fit.
MIN_LINE_BYTES: Final = 4


class LineBatch(NamedTuple):
    """Lines of one stream that arrived together, or one piece of a longer line (``partial``).

    ``text`` has ``lines`` lines, with a newline between two of them and none at the end. In a spool, ``ordinal`` is the
    index of the first line (the number of lines that the job had printed before it), and ``position`` the number of
    bytes before it.
    """

    stream: str
    timestamp: str
    text: bytes
    lines: int
    partial: bool = False
    ordinal: int = 0
    position: int = 0

    @property
    def end(self) -> int:
        """The index after its last line."""
        return self.ordinal + self.lines

    def messages(self) -> list[bytes]:
        """The lines in UTF-8. Bytes that are not UTF-8 are replaced."""
        text = self.text if self.text.isascii() else self.text.decode("utf-8", "replace").encode()
        return text.split(b"\n")


class LineSplitter:
    """Splits one stream's bytes into lines, at newlines only.

    A line that is longer than ``max_line_bytes`` becomes several pieces, which are cut between UTF-8 characters. All
    but the last are ``partial``; joined, they are the line. However the bytes come in, the lines are the same.
    """

    def __init__(self, stream: str, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        if max_line_bytes < MIN_LINE_BYTES:
            raise ValueError(f"a line needs room for {MIN_LINE_BYTES} bytes")
        self._stream = stream
        self._max = max_line_bytes
        #: Text after the last newline, which waits for its own. It is not in any batch yet.
        self.rest = b""
        #: Whether the last batch was partial.
        self._is_open = False
        self._timestamp = ""

    def feed(self, data: bytes, timestamp: str) -> list[LineBatch]:
        """Takes bytes that arrived at ``timestamp``, and returns the lines that they complete."""
        self._timestamp = timestamp
        lines, newline, rest = (self.rest + data).rpartition(b"\n")
        batches = list(self._split(lines)) if newline else []
        self._is_open = self._is_open and not newline
        self.rest = rest
        while len(self.rest) > self._max:
            batches.append(self._cut_partial(_cut_length(self.rest, 0, self._max)))
        return batches

    def flush(self) -> list[LineBatch]:
        """Returns the text that waits for its newline, as a partial line."""
        length = len(self.rest) - _incomplete_bytes(self.rest)
        return [self._cut_partial(length)] if length else []

    def close(self) -> list[LineBatch]:
        """Call this at the end of the stream. Returns the last line, if no newline ended it."""
        if not self.rest and not self._is_open:
            return []
        text, self.rest, self._is_open = self.rest, b"", False
        return [LineBatch(self._stream, self._timestamp, text, 1)]

    def _split(self, text: bytes) -> Iterator[LineBatch]:
        """Batches of complete lines, and pieces of lines that are too long. It does not look at each short line."""
        start = position = 0
        while len(text) - position > self._max:
            newline = text.rfind(b"\n", position, position + self._max + 1)
            if newline >= 0:
                position = newline + 1
                continue
            if position > start:
                yield self._batch(text[start : position - 1])
            start = position + _cut_length(text, position, self._max)
            yield LineBatch(self._stream, self._timestamp, text[position:start], 1, partial=True)
            position = start
        yield self._batch(text[start:])

    def _batch(self, text: bytes) -> LineBatch:
        return LineBatch(self._stream, self._timestamp, text, text.count(b"\n") + 1)

    def _cut_partial(self, length: int) -> LineBatch:
        text, self.rest, self._is_open = self.rest[:length], self.rest[length:], True
        return LineBatch(self._stream, self._timestamp, text, 1, partial=True)


def _cut_length(text: bytes, start: int, limit: int) -> int:
    """The most bytes, up to ``limit``, that can be cut off ``text[start:]`` without splitting a character.

    A character has at most three continuation bytes. A fourth one in a row does not belong to any character.
    """
    for back in range(MIN_LINE_BYTES):
        if text[start + limit - back] & 0xC0 != 0x80:
            return limit - back
    return limit


def _incomplete_bytes(text: bytes) -> int:
    """How many bytes at the end of ``text`` are the beginning of a character whose rest is missing. RFC 3629."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte & 0xC0 != 0x80:
            length = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
            return back if length > back else 0
    return 0
