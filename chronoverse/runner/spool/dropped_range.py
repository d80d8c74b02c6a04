"""Where lines were dropped, and what the log says there. Pure."""

import re
from dataclasses import dataclass
from typing import Final

from chronoverse.runner.capture.line_splitter import LineBatch

#: The part of a marker that names its neighbours.
_NUMBERS: Final = re.compile(rb"^(\[chronoverse\] .* dropped) between line \d+ and line \d+:")


@dataclass(slots=True)
class DroppedRange:
    """Lines dropped before the segment ``order``, and the streams left with half a line before them."""

    order: int
    open_streams: frozenset[str]
    lines: int = 0
    size: int = 0

    @property
    def marker_lines(self) -> int:
        """Lines of the marker."""
        return 1 + len(self.open_streams)

    def marker(self, index: int, base: int | None, timestamp: str) -> list[LineBatch]:
        """The lines that stand in their place from ``index`` on. Without a ``base`` nobody knows the numbers yet."""
        size = f" ({self.size} bytes)" if self.size else ""
        number = index + self.marker_lines - 1 + (base or 0)
        place = f" between line {number - 1} and line {number + 1}" if base else " here"
        text = f"[chronoverse] {self.lines} lines{size} dropped{place}: there was no room to keep them"
        # A line whose end was dropped must end here, or the marker would be read as a piece of it.
        ends = [LineBatch(stream, timestamp, b"", 1) for stream in sorted(self.open_streams)]
        return [*ends, LineBatch("stderr", timestamp, text.encode(), 1)]


def without_numbers(text: bytes) -> bytes:
    """A marker's text for a log in which the lines have other numbers. Other text stays as it is."""
    return _NUMBERS.sub(rb"\1 here:", text)
