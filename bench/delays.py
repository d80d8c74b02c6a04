"""The delay of every line at every viewer. Recording is cheap; the calculation comes later."""

import time
from array import array

from bench.reference import Reference


class Delays:
    """Records of each viewer's moves: from which position to which, and when."""

    def __init__(self) -> None:
        self._references: list[Reference] = []
        self._known: dict[int, int] = {}
        #: Rows of (reference, position before, position after, monotonic nanoseconds).
        self._rows = array("q")

    def note(self, reference: Reference, before: int, position: int) -> None:
        """Records that a viewer has just moved from ``before`` to ``position``."""
        index = self._known.get(id(reference))
        if index is None:
            index = self._known[id(reference)] = len(self._references)
            self._references.append(reference)
        self._rows.extend((index, before, position, time.monotonic_ns()))

    def quantiles(self, warm: int) -> tuple[float, float]:
        """Median and 99th percentile, in milliseconds, of the lines after number ``warm``."""
        delays = array("d")
        stamps: dict[tuple[int, int, int], list[int]] = {}
        rows = iter(self._rows)
        for index, before, position, now in zip(rows, rows, rows, rows, strict=True):
            key = (index, before, position)
            sent = stamps.get(key)
            if sent is None:
                sent = stamps[key] = self._references[index].stamps_between(before, position, warm)
            delays.extend([(now - stamp) / 1e6 for stamp in sent])
        ranked = sorted(delays)
        if not ranked:
            return (float("nan"),) * 2
        return ranked[len(ranked) // 2], ranked[int((len(ranked) - 1) * 0.99)]
