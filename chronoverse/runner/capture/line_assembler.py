"""Turns one stream's bytes into batches of lines, and says when waiting text must be published. No I/O."""

import math
import re
from typing import Final

from chronoverse.joblog.model import MAX_LINE_BYTES
from chronoverse.runner.capture.line_splitter import LineBatch, LineSplitter
from chronoverse.runner.capture.masking import Masks

#: Seconds that text waits for its newline. Then it is published as a partial line: a prompt, or a row of dots.
PARTIAL_SECONDS: Final = 1.0
#: Seconds between two published states of a progress bar. People can read four lines a second.
STATE_SECONDS: Final = 0.25

_STATE_END = re.compile(rb"[\r\n]")


class ProgressFilter:
    r"""Turns progress bars into lines: drops what a carriage return overwrites. It has no clock: the caller has one.

    ``\r`` before ``\n`` belongs to the end of the line. Any other ``\r`` ends a *state* of the line. A state is dropped
    if it was overwritten before :meth:`release` was called. If it was there at the time of a call, or is longer than
    ``state_bytes``, it becomes a line: a published line cannot be taken back. The last state always stays, and is the
    line.
    """

    def __init__(self, state_bytes: int = 4_096) -> None:
        self._limit = state_bytes
        #: The beginning of a state. It is held back, since it may be overwritten.
        self.held = b""
        #: Whether the beginning of the current state was already returned. The state can then not be dropped.
        self._is_released = False
        #: Whether the last byte was a ``\r``. The next one decides what it means.
        self._ends_with_return = False

    def feed(self, data: bytes) -> bytes:
        """Takes bytes, and returns what cannot be overwritten any more."""
        text = self.held + b"\r" + data if self._ends_with_return else self.held + data
        self._ends_with_return = False
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        return self._continue_state(text) if self._is_released else self._start_state(text)

    def release(self) -> bytes:
        """Returns the state that is shown now, also at the end. It is not dropped any more, nor its rest held back."""
        text, self.held = self.held, b""
        self._is_released = self._is_released or bool(text)
        return text

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
            self._is_released, self.held = True, b""
            return text
        self.held = text[end:]
        return text[:end]

    def _drop_overwritten(self, line: bytes) -> bytes:
        """The states of ``line`` that stay, as lines: the last one, and those that are too long to be held back."""
        line = line.rstrip(b"\r")
        if len(line) <= self._limit:
            return line[line.rfind(b"\r") + 1 :]
        *overwritten, last = line.split(b"\r")
        return b"\n".join([*(state for state in overwritten if len(state) > self._limit), last])


class LineAssembler:
    """Assembles one stream's lines. ``now`` is monotonic seconds. A batch's ``timestamp`` is that of its last bytes."""

    def __init__(self, stream: str, max_line_bytes: int = MAX_LINE_BYTES, masks: Masks | None = None) -> None:
        self._progress_filter = ProgressFilter()
        self._masks = masks or Masks()
        #: The end of the text, which may be the beginning of a secret.
        self._undecided = b""
        self._splitter = LineSplitter(stream, max_line_bytes)
        self._timestamp = ""
        self._partial_at = self._state_at = math.inf

    @property
    def due(self) -> float:
        """When to call :meth:`flush_due`, unless more text comes before; infinite if nothing waits."""
        return min(self._partial_at, self._state_at)

    def feed(self, data: bytes, timestamp: str, now: float) -> list[LineBatch]:
        """Takes bytes, and returns the lines that they complete."""
        self._timestamp = timestamp
        batches = self._split(self._progress_filter.feed(data))
        if not self._progress_filter.held:
            self._state_at = math.inf
            if not self._splitter.rest:
                self._partial_at = math.inf
                return batches
        elif batches or self._state_at == math.inf:
            self._state_at = now + STATE_SECONDS
        if batches or self._partial_at == math.inf:
            self._partial_at = now + PARTIAL_SECONDS
        return batches

    def flush_due(self, now: float) -> list[LineBatch]:
        """Returns what is due by ``now``: the current state of a progress bar, or text without a newline as a partial
        line. Text that may be the beginning of a secret still waits."""
        batches: list[LineBatch] = []
        is_partial_due = now >= self._partial_at
        if is_partial_due or now >= self._state_at:
            self._state_at = math.inf
            batches = self._split(self._progress_filter.release())
        if is_partial_due:
            self._partial_at = math.inf
            batches += self._splitter.flush()
        return batches

    def close(self) -> list[LineBatch]:
        """Call this at the end of the stream. Returns the last line, if no newline ended it."""
        batches = self._split(self._progress_filter.release())
        if self._undecided:
            batches += self._splitter.feed(self._masks.mask(self._undecided), self._timestamp)
        return batches + self._splitter.close()

    def _split(self, text: bytes) -> list[LineBatch]:
        if text:
            text, self._undecided = self._masks.mask_decided(self._undecided + text)
        return self._splitter.feed(text, self._timestamp) if text else []
