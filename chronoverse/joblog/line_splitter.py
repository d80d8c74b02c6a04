"""Splits bytes, including progress bars, into lines. No I/O.

The lines of one read stay together in a :class:`LineBatch` until they are published. A command that prints a lot then
costs a few operations per read instead of per line.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from chronoverse.joblog.secret_forms import MAX_HELD, SecretForms, StreamMask

#: The smallest ``max_line_bytes``: the longest UTF-8 character must fit.
_MIN_LINE_BYTES: Final = 4

_STATE_END = re.compile(rb"[\r\n]")


class LineBatch(NamedTuple):
    """Lines of one stream that arrived together, or one piece of a longer line (``partial``).

    ``text`` has ``lines`` lines, separated by newlines. In a spool, ``ordinal`` is the first line's index (the number
    of lines that the job printed before), and ``position`` the number of bytes before it.
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
        """The index after the last line."""
        return self.ordinal + self.lines

    def messages(self) -> list[bytes]:
        """The lines in UTF-8. Invalid bytes are replaced."""
        text = self.text if self.text.isascii() else self.text.decode("utf-8", "replace").encode()
        return text.split(b"\n")


class LineSplitter:
    """Splits one stream's bytes into lines, at newlines only.

    Cuts a line longer than ``max_line_bytes`` into pieces, between UTF-8 characters. All pieces but the last are
    ``partial``; joined, they are the line. The result does not depend on how the bytes are divided into reads. Masks
    secrets that match ``forms`` before a line is cut.
    """

    def __init__(self, stream: str, max_line_bytes: int, forms: SecretForms) -> None:
        if max_line_bytes < _MIN_LINE_BYTES:
            raise ValueError(f"a line needs room for {_MIN_LINE_BYTES} bytes")
        self._stream = stream
        self._max = max_line_bytes
        self.mask: Final = StreamMask(forms)
        self.rest = b""
        self.is_open = False
        self.timestamp = ""

    def feed(self, data: bytes, timestamp: str) -> list[LineBatch]:
        """Adds bytes that arrived at ``timestamp``. Returns the lines that they complete."""
        self.timestamp = timestamp
        lines, newline, rest = (self.rest + data).rpartition(b"\n")
        batches = list(self._split(self.mask(lines))) if newline else []
        self.is_open = self.is_open and not newline
        self.rest = rest
        while len(self.rest) > self._max:
            pieces = [*self._cut_partial(_cut_length(self.rest, 0, self._max))]
            if not pieces:
                break
            batches += pieces
        return batches

    def flush(self) -> list[LineBatch]:
        """Returns the rest, which has no newline yet, as a partial line."""
        return [*self._cut_partial(len(self.rest) - _incomplete_bytes(self.rest))]

    def close(self, *, is_torn: bool = False) -> list[LineBatch]:
        """Ends the stream. Returns the last line if it has no newline: ``partial`` if a gap follows (``is_torn``)."""
        if not self.rest and not self.is_open:
            return []
        text, self.rest, self.is_open = self.mask(self.rest), b"", False
        *batches, last = self._split(text)
        return [*batches, last._replace(partial=is_torn)]

    def _split(self, text: bytes) -> Iterator[LineBatch]:
        """Yields batches of complete lines, and pieces of lines that are too long. Processes short lines in bulk."""
        start = position = 0
        while len(text) - position > self._max:
            newline = text.rfind(b"\n", position, position + self._max + 1)
            if newline >= 0:
                position = newline + 1
                continue
            if position > start:
                yield self._batch(text[start : position - 1])
            start = position + _cut_length(text, position, self._max)
            yield LineBatch(self._stream, self.timestamp, text[position:start], 1, partial=True)
            position = start
        yield self._batch(text[start:])

    def _batch(self, text: bytes) -> LineBatch:
        return LineBatch(self._stream, self.timestamp, text, text.count(b"\n") + 1)

    def _cut_partial(self, length: int) -> Iterator[LineBatch]:
        """Cuts partial lines off the first ``length`` bytes of the rest. Keeps the possible beginning of a secret.

        If a possible secret is at the start, cuts nothing until the rest is longer than any secret and than a line.
        """
        decided = length - self.mask.undecided(self.rest[:length])
        longest = max(self._max, MAX_HELD)
        if not decided and len(self.rest) > longest:
            length = _cut_length(self.rest, 0, longest)
            decided = length - self.mask.undecided(self.rest[:length]) or length
        if not decided:
            return
        text, self.rest, self.is_open = self.mask.mask_part(self.rest[:decided]), self.rest[decided:], True
        while text:
            # A mask can be longer than the text it replaces.
            cut = _cut_length(text, 0, self._max) if len(text) > self._max else len(text)
            yield LineBatch(self._stream, self.timestamp, text[:cut], 1, partial=True)
            text = text[cut:]


def _cut_length(text: bytes, start: int, limit: int) -> int:
    """The most bytes, up to ``limit``, that can be cut off ``text[start:]`` without splitting a character."""
    for back in range(_MIN_LINE_BYTES):
        if text[start + limit - back] & 0xC0 != 0x80:
            return limit - back
    return limit


def _incomplete_bytes(text: bytes) -> int:
    """The number of bytes at the end of ``text`` that begin an incomplete character (RFC 3629)."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte & 0xC0 != 0x80:
            length = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
            return back if length > back else 0
    return 0


class ProgressFilter:
    r"""Turns progress bars into lines: drops text that a carriage return overwrites. The caller provides the timing.

    ``\r`` before ``\n`` is part of the line's end. Any other ``\r`` ends a *state* of the line. A state becomes a line
    if it existed when :meth:`release` was called, is longer than ``state_bytes``, or is the last; others are dropped.
    """

    def __init__(self, state_bytes: int = 4_096) -> None:
        self._limit = state_bytes
        #: The beginning of a state, held back because it can still be overwritten.
        self.held = b""
        self._is_released = False
        #: Whether the last byte was a ``\r``, whose meaning depends on the next one.
        self._ends_with_return = False

    def feed(self, data: bytes) -> bytes:
        """Adds bytes. Returns the text that can no longer be overwritten."""
        text = self.held + b"\r" + data if self._ends_with_return else self.held + data
        self._ends_with_return = False
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        return self._continue_state(text) if self._is_released else self._start_state(text)

    def release(self) -> bytes:
        """Returns the held-back beginning of a state, so that it is not dropped. Its rest will not be held back."""
        text, self.held = self.held, b""
        self._is_released = self._is_released or bool(text)
        return text

    def _continue_state(self, text: bytes) -> bytes:
        """Handles ``text`` that continues a state whose beginning was already returned."""
        end = _STATE_END.search(text)
        if end is None:
            return text
        state, rest = text[: end.start()], text[end.start() :].lstrip(b"\r")
        if not rest:
            self._ends_with_return = True
            return state
        self._is_released = False
        return state + (b"" if rest.startswith(b"\n") else b"\n") + self._start_state(rest)

    def _start_state(self, text: bytes) -> bytes:
        """Handles ``text`` that starts at the beginning of a line's state: a new one, or one that was held back."""
        if b"\r" in text:
            states = text.rstrip(b"\r")
            self._ends_with_return = len(states) < len(text)
            text = b"\n".join(map(self._drop_overwritten, states.split(b"\n")))
        end = text.rfind(b"\n") + 1
        if len(text) - end > self._limit:
            self._is_released, self.held = True, b""
            return text
        self.held = text[end:]
        return text[:end]

    def _drop_overwritten(self, line: bytes) -> bytes:
        """The states of ``line`` to publish as lines: the last one, and those that are too long to hold back."""
        line = line.rstrip(b"\r")
        if len(line) <= self._limit:
            return line[line.rfind(b"\r") + 1 :]
        *overwritten, last = line.split(b"\r")
        return b"\n".join([*(state for state in overwritten if len(state) > self._limit), last])
