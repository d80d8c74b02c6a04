"""How many lines to ask the store for at once."""

from typing import Final

#: Bytes a read should bring, and the least and most lines asked for to get there.
READ_BYTES: Final = 2**20
READ_LINES: Final = (4, 2048)


class AdaptiveBatch:
    """How many lines to ask for, learnt from what the last answer weighed. Starts small: nobody knows the lines yet."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        """After an answer of ``lines`` lines that came to ``size`` bytes."""
        least, most = READ_LINES
        fitting = READ_BYTES * lines // max(size, 1)
        self.lines = max(least, min(most, fitting, self.lines * 4))
