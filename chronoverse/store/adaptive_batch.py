"""How many lines to ask the store for at once."""

from typing import Final

#: Bytes that a read should bring.
READ_BYTES: Final = 2**20
#: The least and the most lines that are asked for to get there.
READ_LINES: Final = (4, 2048)


class AdaptiveBatch:
    """How many lines to ask for, adapted to the size of the last answer. Starts small, since the size is unknown."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        """Adapts to an answer of ``lines`` lines that had ``size`` bytes."""
        least, most = READ_LINES
        fitting = READ_BYTES * lines // max(size, 1)
        self.lines = max(least, min(most, fitting, self.lines * 4))
