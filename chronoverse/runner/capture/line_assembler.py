"""One stream's bytes to blocks of lines, and when what waits is due: capture without its processes and pipes.

bytes ─> carriage ─> masker ─> cutter ─> blocks
"""

from typing import Final

from chronoverse.joblog.values import MAX_LINE_BYTES
from chronoverse.runner.capture.line_splitter import LineBatch, LineSplitter
from chronoverse.runner.capture.masking import Masker, Masks
from chronoverse.runner.capture.progress_filter import ProgressFilter

#: Seconds that text may wait for its newline before it is shown as it is: a prompt, a row of dots.
PARTIAL_SECONDS: Final = 1.0
#: Seconds of which only the last state of a progress bar is published: four lines a second can be read.
STATE_SECONDS: Final = 0.25


class LineAssembler:
    """Writes down one stream. ``now`` is monotonic seconds; a block's ``timestamp`` is its last bytes' arrival."""

    def __init__(self, stream: str, max_line_bytes: int = MAX_LINE_BYTES, masks: Masks | None = None) -> None:
        self._carriage = ProgressFilter()
        self._masker = Masker(masks) if masks else None
        self._cutter = LineSplitter(stream, max_line_bytes)
        self._timestamp = ""
        self._partial_at: float | None = None
        self._state_at: float | None = None

    @property
    def due(self) -> float | None:
        """When :meth:`tick` has something to do, if no text comes before."""
        if self._partial_at is None or self._state_at is None:
            return self._partial_at if self._state_at is None else self._state_at
        return min(self._partial_at, self._state_at)

    def feed(self, data: bytes, timestamp: str, now: float) -> list[LineBatch]:
        """The lines that ``data`` completes."""
        self._timestamp = timestamp
        blocks = self._written(self._carriage.feed(data))
        if not self._carriage.is_holding:
            self._state_at = None
            if not self._cutter.has_partial:
                self._partial_at = None
                return blocks
        elif blocks or self._state_at is None:
            self._state_at = now + STATE_SECONDS
        if blocks or self._partial_at is None:
            self._partial_at = now + PARTIAL_SECONDS
        return blocks

    def flush_due(self, now: float) -> list[LineBatch]:
        """What is due by ``now``: the state that a bar is in, and text whose newline has not come, as a piece.

        What may be the beginning of a secret is held back even then, until it is decided.
        """
        blocks: list[LineBatch] = []
        partial = self._partial_at is not None and now >= self._partial_at
        if partial or (self._state_at is not None and now >= self._state_at):
            self._state_at = None
            blocks = self._written(self._carriage.release())
        if partial:
            self._partial_at = None
            blocks += self._cutter.flush()
        return blocks

    def close(self) -> list[LineBatch]:
        """The last line, when no newline ended it."""
        blocks = self._written(self._carriage.close())
        if self._masker is not None and (rest := self._masker.close()):
            blocks += self._cutter.feed(rest, self._timestamp)
        return blocks + self._cutter.close()

    def _written(self, text: bytes) -> list[LineBatch]:
        if text and self._masker is not None:
            text = self._masker.feed(text)
        return self._cutter.feed(text, self._timestamp) if text else []
