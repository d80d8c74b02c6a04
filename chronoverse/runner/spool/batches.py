"""A stored batch of lines, and the batches that wait in memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple

from chronoverse.runner.capture.line_splitter import LineBatch

#: Bytes that a batch in memory takes beside its text, about.
OVERHEAD_BYTES: Final = 400

_ordinal: Final = attrgetter("ordinal")


class StoredBatch(NamedTuple):
    """A batch, and what the job had printed before it: ``ordinal`` lines, with ``position`` bytes.

    So the ordinal is the index of its first line.
    """

    ordinal: int
    position: int
    batch: LineBatch

    @property
    def end(self) -> int:
        """The ordinal after its last line."""
        return self.ordinal + self.batch.lines

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return OVERHEAD_BYTES + len(self.batch.text)


class MemoryBatches:
    """Batches in memory, by ordinal. :class:`chronoverse.runner.spool.spool_file.SpoolFile` has the same methods."""

    def __init__(self) -> None:
        self._batches: list[StoredBatch] = []
        #: Bytes that they take.
        self.size = 0

    def __iter__(self) -> Iterator[StoredBatch]:
        return iter(self._batches)

    def add(self, batch: StoredBatch) -> None:
        """Adds a batch after all others."""
        self._batches.append(batch)
        self.size += batch.size

    def read(self, index: int) -> Iterator[StoredBatch]:
        """The batches from the last one on that begins at ``index`` or before it."""
        return islice(self._batches, max(0, bisect_right(self._batches, index, key=_ordinal) - 1), None)

    def next_at(self, index: int) -> StoredBatch | None:
        """The first batch that begins at ``index`` or later."""
        at = bisect_left(self._batches, index, key=_ordinal)
        return self._batches[at] if at < len(self._batches) else None

    def first_kept(self, index: int, position: int) -> int | None:
        """The ordinal of the first batch that has lines from ``index`` on, or bytes from ``position`` on."""
        kept = (each for each in self if each.end > index or each.position + len(each.batch.text) > position)
        return next(map(_ordinal, kept), None)

    def count(self, start: int, stop: int) -> int:
        """How many lines the batches have that lie from ``start`` on and before ``stop``."""
        return sum(each.batch.lines for each in self._batches[self._slice(start, stop)])

    def delete(self, start: int, stop: int) -> None:
        """Removes the batches that lie from ``start`` on and before ``stop``."""
        removed = self._slice(start, stop)
        self.size -= sum(each.size for each in self._batches[removed])
        del self._batches[removed]

    def _slice(self, start: int, stop: int) -> slice:
        first = bisect_left(self._batches, start, key=_ordinal)
        return slice(first, max(first, bisect_right(self._batches, stop, key=attrgetter("end"))))
