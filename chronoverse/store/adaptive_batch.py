"""The number of lines to read at once, adapted to the size of the last read."""


def next_lines(asked: int, lines: int, size: int, wanted: int, least: int, most: int) -> int:
    """How many lines to ask for next: some ``wanted`` bytes, and at most four times as many lines as ``asked`` before.

    The last read returned ``lines`` lines of ``size`` bytes.
    """
    return max(least, min(most, wanted * lines // max(size, 1), asked * 4))


class AdaptiveBatch:
    """How many lines to ask for when 1 MiB is wanted. Starts small."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        self.lines = next_lines(self.lines, lines, size, 2**20, 4, 2048)
