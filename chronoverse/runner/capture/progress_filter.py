r"""Progress bars as lines: what a carriage return has overwritten is dropped, what could be read for a while stays.

On a terminal ``\r`` begins the line again. What stands between two of them is a *state* of that line, and a bar
goes through thousands. Published text cannot be taken back, so a state that others follow becomes a line of its
own or nothing: see :class:`ProgressFilter`.
"""

import re
from typing import Final

#: Bytes that are held back because a carriage return may overwrite them. A longer state is no progress bar.
STATE_BYTES: Final = 4_096

# Possessive and anchored to the beginning of a run, so that hostile input costs linear time too.
_LINE_END = re.compile(rb"(?<!\r)\r++\n")
_EDGE = re.compile(rb"[\r\n]")


class ProgressFilter:
    r"""Takes one stream's bytes and gives them back without any ``\r``. No clock: :meth:`release` is called by one.

    ``\r`` before ``\n`` is part of the line's end. Any other ends a state: it is dropped when it was overwritten
    before :meth:`release` was called, and given out as a line, ended by ``\n``, when it was there at the time
    (or is longer than ``state_bytes``). A line's last state always stays, and is the line.
    """

    def __init__(self, state_bytes: int = STATE_BYTES) -> None:
        self._limit = state_bytes
        self._held = b""
        self._out = False
        self._returned = False

    @property
    def is_holding(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """What ``data`` makes certain. The beginning of a line that may still be overwritten is held back."""
        text = self._held + b"\r" + data if self._returned else self._held + data
        self._returned = False
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            if b"\r\n" in text:
                text = _LINE_END.sub(b"\n", text)
        return self._continued(text) if self._out else self._fresh(text)

    def release(self) -> bytes:
        """The state that is shown now. It can no longer be dropped; what goes on with it is not held back."""
        text, self._held = self._held, b""
        self._out = self._out or bool(text)
        return text

    def close(self) -> bytes:
        """The rest."""
        return self.release()

    def _continued(self, text: bytes) -> bytes:
        """``text`` goes on with a state whose beginning is out."""
        edge = _EDGE.search(text)
        if edge is None:
            return text
        state, rest = text[: edge.start()], text[edge.start() :]
        following = rest.lstrip(b"\r")
        if not following:
            self._returned = True
            return state
        self._out = False
        return state + self._fresh(rest) if rest[0] == ord("\n") else state + b"\n" + self._fresh(following)

    def _fresh(self, text: bytes) -> bytes:
        """``text`` begins with a state of which nothing is out."""
        if b"\r" in text:
            states = text.rstrip(b"\r")
            self._returned = len(states) < len(text)
            text = b"\n".join(map(self._collapsed, states.split(b"\n")))
        end = text.rfind(b"\n") + 1
        if len(text) - end > self._limit:
            self._out, self._held = True, b""
            return text
        self._held = text[end:]
        return text[:end]

    def _collapsed(self, line: bytes) -> bytes:
        """The states of ``line`` that stay, as lines: the last one, and those that were too long to be held."""
        if len(line) <= self._limit:
            return line[line.rfind(b"\r") + 1 :]
        *overwritten, last = line.split(b"\r")
        return b"\n".join([*(state for state in overwritten if len(state) > self._limit), last])
