"""Lines that were dropped because there was no room, and the drop marker that stands for them in the log."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from chronoverse.joblog.values import LineRun


@dataclass(frozen=True, slots=True)
class DroppedRange:
    """The dropped lines from ``ordinal`` on. ``size`` is in bytes, 0 if it is not known: then a file
    that a runner left lacks them.

    ``open_streams`` are the streams whose last line before them is partial. ``timestamp`` is that of the drop marker.
    It is empty until the marker is read, and the range may grow until then. ``numbered``: the marker names the
    sequence numbers of its neighbours.
    """

    ordinal: int
    lines: int
    size: int
    open_streams: str
    timestamp: str = ""
    numbered: bool = True

    @property
    def end(self) -> int:
        """The ordinal after the last dropped line."""
        return self.ordinal + self.lines

    @property
    def marker_lines(self) -> int:
        """How many lines the drop marker has."""
        return 1 + len(self.open_streams.split())

    @property
    def shift(self) -> int:
        """How much the index of a line after them grows by them. It is negative if the marker has fewer lines."""
        return self.marker_lines - self.lines

    def marker(self, number: int) -> list[LineRun]:
        """The drop marker. Its first line has the sequence number ``number``."""
        number += self.marker_lines - 1
        size, why = f" ({self.size} bytes) dropped", "there was no room to keep them"
        if not self.size:
            size, why = " missing", "they are not in the runner's file"
        where = f" between line {number - 1} and line {number + 1}" if self.numbered else " here"
        text = f"[chronoverse] {self.lines} lines{size}{where}: {why}"
        # A partial line whose end was dropped must end here. Else the marker would look like its next piece.
        ends = [LineRun(self.timestamp, stream, False, [b""]) for stream in self.open_streams.split()]
        return [*ends, LineRun(self.timestamp, "stderr", False, [text.encode()])]

    def to_json(self) -> list[Any]:
        """Its values, in the order of the arguments."""
        return [self.ordinal, self.lines, self.size, self.open_streams, self.timestamp, self.numbered]


def add_range(ranges: Iterable[DroppedRange], new: DroppedRange) -> list[DroppedRange]:
    """The ``ranges`` and the ``new`` one, in order. Ranges that touch become one, unless their marker was read."""
    joined: list[DroppedRange] = []
    for each in sorted([*ranges, new], key=lambda each: each.ordinal):
        last = joined[-1] if joined else None
        if last is not None and last.end == each.ordinal and not last.timestamp and not each.timestamp:
            joined[-1] = replace(last, lines=last.lines + each.lines, size=last.size + each.size)
        else:
            joined.append(each)
    return joined
