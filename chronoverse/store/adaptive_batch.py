"""Decides how many lines to read at once, from the size of the last read."""


def next_lines(asked: int, lines: int, size: int, wanted: int, least: int, most: int) -> int:
    """How many lines to request next, to get about ``wanted`` bytes.

    The last read requested ``asked`` lines, and returned ``lines`` lines of ``size`` bytes. The result is at most four
    times ``asked``, and from ``least`` to ``most``.
    """
    return max(least, min(most, wanted * lines // max(size, 1), asked * 4))


class AdaptiveBatch:
    """Adapts the number of lines to request so that a read returns about 1 MiB. Starts small."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        self.lines = next_lines(self.lines, lines, size, 2**20, 4, 2048)
