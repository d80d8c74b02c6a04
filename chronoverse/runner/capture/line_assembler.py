"""Turns one stream's bytes into batches of lines, and schedules when waiting text is published. No I/O."""

import math
from typing import Final

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter, ProgressFilter
from chronoverse.joblog.model import MAX_LINE_BYTES
from chronoverse.runner.capture.masking import Masks

#: Seconds after which unfinished text, such as a prompt or a row of dots, is published as a partial line.
PARTIAL_SECONDS: Final = 1.0
#: Seconds between published states of a progress bar. People can read four lines per second.
STATE_SECONDS: Final = 0.25


class LineAssembler:
    """Assembles one stream's lines. ``now``: monotonic seconds. A batch has the ``timestamp`` of its last bytes."""

    def __init__(self, stream: str, max_line_bytes: int = MAX_LINE_BYTES, masks: Masks | None = None) -> None:
        self._progress_filter = ProgressFilter()
        self._masks = masks or Masks()
        self._undecided = b""
        self._splitter = LineSplitter(stream, max_line_bytes, self._masks.forms)
        self._timestamp = ""
        self._partial_at = self._state_at = math.inf

    @property
    def due(self) -> float:
        """When to call :meth:`flush_due`, unless more text arrives. Infinite if no text waits."""
        return min(self._partial_at, self._state_at)

    def feed(self, data: bytes, timestamp: str, now: float) -> list[LineBatch]:
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
        """Returns text that is due: a progress bar's state, or an unfinished line up to a possible secret."""
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
        """Ends the stream. Returns the last line, if it had no newline."""
        batches = self._split(self._progress_filter.release())
        if self._undecided:
            batches += self._splitter.feed(self._masks.mask(self._undecided), self._timestamp)
        return batches + self._splitter.close()

    def _split(self, text: bytes) -> list[LineBatch]:
        if text:
            text, self._undecided = self._masks.mask_decided(self._undecided + text)
        return self._splitter.feed(text, self._timestamp) if text else []
