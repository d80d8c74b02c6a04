"""The number of lines to read at once, adapted to the size of the last read."""


def next_lines(asked: int, lines: int, size: int, wanted: int, least: int, most: int) -> int:
    """How many lines to ask for next, to get about ``wanted`` bytes: at most four times the ``asked`` lines of the last
    read.

    The last read returned ``lines`` lines of ``size`` bytes.
    """
    return max(least, min(most, wanted * lines // max(size, 1), asked * 4))


class AdaptiveBatch:
    """Adapts how many lines to ask for to get about 1 MiB. Starts small."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        self.lines = next_lines(self.lines, lines, size, 2**20, 4, 2048)
