r"""Turns progress bars into lines: drops what a carriage return overwrites, and keeps what could be read for a while.

On a terminal ``\r`` starts the line again. The text between two of them is a *state* of that line, and a progress bar
has thousands of states. A published line cannot be taken back. So a state that is followed by another one is either
published as a line of its own or dropped: see :class:`ProgressFilter`.
"""

import re
from typing import Final

#: Bytes that are held back at most, since a carriage return may overwrite them. A longer state is not a progress bar.
STATE_BYTES: Final = 4_096

_STATE_END = re.compile(rb"[\r\n]")


class ProgressFilter:
    r"""Takes one stream's bytes, and returns them without any ``\r``. It has no clock: the caller has one.

    ``\r`` before ``\n`` belongs to the end of the line. Any other ``\r`` ends a state. The state is dropped if it was
    overwritten before :meth:`release` was called. If it was there at the time of a call, or is longer than
    ``state_bytes``, it becomes a line. The last state of a line always stays, and is the line.
    """

    def __init__(self, state_bytes: int = STATE_BYTES) -> None:
        self._limit = state_bytes
        #: The beginning of a state. It is not returned yet, since it may be overwritten.
        self._held = b""
        #: Whether the beginning of the current state was already returned. The state can then not be dropped.
        self._is_released = False
        #: Whether the last byte was a ``\r``. The next one decides what it means.
        self._ends_with_return = False

    @property
    def is_holding(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """Takes bytes, and returns what cannot be overwritten any more."""
        text = self._held + b"\r" + data if self._ends_with_return else self._held + data
        self._ends_with_return = False
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        return self._continue_state(text) if self._is_released else self._start_state(text)

    def release(self) -> bytes:
        """Returns the state that is shown now. It is not dropped any more, and its rest is not held back."""
        text, self._held = self._held, b""
        self._is_released = self._is_released or bool(text)
        return text

    def close(self) -> bytes:
        """Call this at the end of the stream. Returns the text that was held back."""
        return self.release()

    def _continue_state(self, text: bytes) -> bytes:
        """``text`` continues a state whose beginning was already returned."""
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
        """``text`` begins with a state of which nothing was returned."""
        if b"\r" in text:
            states = text.rstrip(b"\r")
            self._ends_with_return = len(states) < len(text)
            text = b"\n".join(map(self._drop_overwritten, states.split(b"\n")))
        end = text.rfind(b"\n") + 1
        if len(text) - end > self._limit:
            self._is_released, self._held = True, b""
            return text
        self._held = text[end:]
        return text[:end]

    def _drop_overwritten(self, line: bytes) -> bytes:
        """The states of ``line`` that stay, as lines: the last one, and those that are too long to be held back."""
        line = line.rstrip(b"\r")
        if len(line) <= self._limit:
            return line[line.rfind(b"\r") + 1 :]
        *overwritten, last = line.split(b"\r")
        return b"\n".join([*(state for state in overwritten if len(state) > self._limit), last])
