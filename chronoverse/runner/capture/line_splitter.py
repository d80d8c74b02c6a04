"""From bytes to lines: the pure part of capture.

Lines travel as :class:`LineBatch`: what one read brought stays together until it is published, which costs
a busy job a few operations for each read instead of for each line.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from chronoverse.joblog.values import MAX_LINE_BYTES

#: The fewest bytes a piece may have: the longest UTF-8 character must fit.
MIN_LINE_BYTES: Final = 4


class LineBatch(NamedTuple):
    """Lines of one stream that arrived at one instant, or one piece of a longer line (``partial``).

    ``text`` is the bytes of its lines (``lines`` of them) with a newline between them and none at the end.
    """

    stream: str
    timestamp: str
    text: bytes
    lines: int
    partial: bool = False

    def messages(self) -> list[str]:
        """The lines as text. What is not UTF-8 is replaced here, once."""
        return self.text.decode("utf-8", "replace").split("\n")

    def encoded(self) -> list[bytes]:
        """The lines as UTF-8: what :meth:`messages` gives, without a string for each."""
        text = self.text if self.text.isascii() else self.text.decode("utf-8", "replace").encode()
        return text.split(b"\n")


class LineSplitter:
    """Cuts one stream's bytes into lines, at newlines only. No I/O, no clock.

    However the bytes come in, the pieces up to and with the next one that is not ``partial`` are, joined,
    exactly one line. Pieces have at most ``max_line_bytes`` bytes and are cut between UTF-8 characters.
    """

    def __init__(self, stream: str, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        if max_line_bytes < MIN_LINE_BYTES:
            raise ValueError(f"a line needs room for {MIN_LINE_BYTES} bytes")
        self._stream = stream
        self._max = max_line_bytes
        self._rest = bytearray()
        self._open = False
        self._timestamp = ""

    @property
    def has_partial(self) -> bool:
        """Whether there is text whose newline has not come."""
        return bool(self._rest)

    def feed(self, data: bytes, timestamp: str) -> list[LineBatch]:
        """What ``data``, which arrived at ``timestamp``, completes."""
        self._timestamp = timestamp
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            return list(self._overflow())
        text = bytes(self._rest) + data[:end] if self._rest else data[:end]
        self._rest[:] = data[end + 1 :]
        self._open = False
        return [*self._lines(text), *self._overflow()]

    def flush(self) -> list[LineBatch]:
        """The text that waits for its newline, as a piece: the rest of its line comes later."""
        whole = len(self._rest) - _unfinished(self._rest)
        return [self._piece(whole)] if whole else []

    def close(self) -> list[LineBatch]:
        """The last line, when no newline ended it."""
        if not self._rest and not self._open:
            return []
        text = bytes(self._rest)
        self._rest.clear()
        self._open = False
        return [LineBatch(self._stream, self._timestamp, text, 1)]

    def _lines(self, text: bytes) -> Iterator[LineBatch]:
        """Blocks of whole lines, and of pieces where a line is too long. It hops, it does not visit each line."""
        start = position = 0
        while len(text) - position > self._max:
            newline = text.rfind(b"\n", position, position + self._max + 1)
            if newline >= 0:
                position = newline + 1
                continue
            if position > start:
                yield self._block(text[start : position - 1])
            start = position + _boundary(text, position, self._max)
            yield LineBatch(self._stream, self._timestamp, text[position:start], 1, partial=True)
            position = start
        yield self._block(text[start:])

    def _block(self, text: bytes) -> LineBatch:
        return LineBatch(self._stream, self._timestamp, text, text.count(b"\n") + 1)

    def _overflow(self) -> Iterator[LineBatch]:
        while len(self._rest) > self._max:
            yield self._piece(_boundary(self._rest, 0, self._max))

    def _piece(self, length: int) -> LineBatch:
        text = bytes(self._rest[:length])
        del self._rest[:length]
        self._open = True
        return LineBatch(self._stream, self._timestamp, text, 1, partial=True)


def _boundary(text: bytes | bytearray, start: int, limit: int) -> int:
    """The most bytes, up to ``limit``, that can be cut off ``text[start:]`` without cutting a character.

    A character has at most three continuation bytes; a fourth in a row belongs to none.
    """
    for back in range(MIN_LINE_BYTES):
        if text[start + limit - back] & 0xC0 != 0x80:
            return limit - back
    return limit


def _unfinished(text: bytearray) -> int:
    """How many bytes at the end of ``text`` are the beginning of a character. RFC 3629."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte & 0xC0 != 0x80:
            length = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
            return back if length > back else 0
    return 0
