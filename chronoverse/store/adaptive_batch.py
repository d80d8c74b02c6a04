"""How much of a log is read at once."""


class AdaptiveBatch:
    """How many lines to ask for, adapted to the size of the last answer: 1 MiB is wanted. Starts small."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        fitting = 2**20 * lines // max(size, 1)
        self.lines = max(4, min(2048, fitting, self.lines * 4))
