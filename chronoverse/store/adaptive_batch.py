"""How many lines to ask the store for at once."""

from typing import Final

#: Bytes that a read should bring.
READ_BYTES: Final = 2**20


class AdaptiveBatch:
    """How many lines to ask for, adapted to the size of the last answer. Starts small, since the size is unknown."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        """Adapts to an answer of ``lines`` lines that had ``size`` bytes."""
        fitting = READ_BYTES * lines // max(size, 1)
        # At least 4 and at most 2,048 lines are asked for.
        self.lines = max(4, min(2048, fitting, self.lines * 4))
