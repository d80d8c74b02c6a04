"""Which chunk has a line, as known for a second."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.values import JobRef

#: Seconds for which a record is believed: a redaction replaces records, and is to be seen soon.
RECORD_SECONDS: Final = 1.0
#: Records believed at a time. Each has some 65 frames, 20 KiB in all, and is searched for from the newest on.
RECORDS: Final = 128


class ChunkIndexReader(Protocol):
    """Where the records are; see :class:`chronoverse.store.chunk_index.ChunkIndex`."""

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk in which line ``number`` is, or the first behind it. None when no chunk reaches so far."""


class _Known(NamedTuple):
    job: JobRef
    chunk: Chunk
    asked_at: float


class ChunkRecordCache:
    """The chunks of jobs, asked for in ``index`` and remembered for :data:`RECORD_SECONDS`."""

    def __init__(self, index: ChunkIndexReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._index: Final = index
        self._clock: Final = clock
        self._known: deque[_Known] = deque(maxlen=RECORDS)

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """As :meth:`ChunkIndexReader.chunk`, up to :data:`RECORD_SECONDS` ago."""
        earliest = self._clock() - RECORD_SECONDS
        for known in tuple(self._known):
            if known.chunk.first <= number <= known.chunk.last and known.job == job and known.asked_at >= earliest:
                return known.chunk
        return self.ask(job, number)

    def ask(self, job: JobRef, number: int) -> Chunk | None:
        """As :meth:`ChunkIndexReader.chunk`, now."""
        asked_at = self._clock()
        found = self._index.chunk(job, number)
        if found is not None:
            self._known.appendleft(_Known(job, found, asked_at))
        return found

    def forget(self, job: JobRef) -> None:
        """Believes nothing of ``job`` any more."""
        for known in [known for known in tuple(self._known) if known.job == job]:
            try:
                self._known.remove(known)
            except ValueError:
                continue
