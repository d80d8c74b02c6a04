"""Reads lines back from a log, and compares them with a copy that is about to be deleted.

Lines are compared by their digests. A runner that reaches only the service can then ask the service to compare, without
sending the lines again.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import JobNotFound
from chronoverse.history.tiered_log import StoredLog, TieredLog
from chronoverse.joblog.model import JobRef, Line
from chronoverse.runner.log_writer import Comparison, LogComparer, LogWriter, line_digest
from chronoverse.runner.spool.spool import Spool
from chronoverse.store import Store

#: A comparison stops after messages of that many characters. Comparing them takes some 10 ms.
ANSWER_CHARACTERS: Final = 2 * 2**20


class StoredLogComparer:
    """A :class:`LogComparer` that reads the store, and ``archive`` for lines that have left the store."""

    def __init__(self, store: StoredLog, archive: ArchiveReader | None = None) -> None:
        self._store: Final = store
        self._archive: Final = archive or ArchiveReader()

    def compare(self, job: JobRef, lines: Sequence[Line]) -> Comparison:
        """As :meth:`LogComparer.compare`."""
        first = lines[0].sequence_num
        return compare_lines(self._read(job, first), first, [line_digest(line) for line in lines])

    def _read(self, ref: JobRef, first: int) -> Iterator[Line]:
        """The log's lines from number ``first`` on. Raises: :class:`JobNotFound`, :class:`StoreError`."""
        job = self._store.get_job(ref)
        if job is None:
            raise JobNotFound("no such job")
        log, cursor = TieredLog(self._store, self._archive, job), first - 1
        while cursor < job.last:
            # Entries of one read of the store: 13 MB with lines of 64 KiB.
            page = log.after(cursor, 200)
            yield from page.lines
            if page.is_last or page.position <= cursor:
                return
            cursor = page.position


def compare_lines(log: Iterable[Line], first: int, digests: Sequence[str]) -> Comparison:
    """Compares the lines of ``log``, which begins with number ``first``, with lines that have the ``digests``.

    It stops after as many lines as there are digests, and after messages of :data:`ANSWER_CHARACTERS`.
    """
    next_number, characters = first, 0
    for digest, line in zip(digests, log, strict=False):
        if line.sequence_num != next_number or characters >= ANSWER_CHARACTERS:
            break
        if line_digest(line) != digest:
            return Comparison(next_number, differs=True)
        next_number += 1
        characters += len(line.message)
    return Comparison(next_number, differs=False)


def compare_spool(comparer: LogComparer, job: JobRef, spool: Spool, base: int) -> Comparison:
    """Compares all lines in ``spool`` with the log. A line's number is its index plus ``base``.

    Lines that are not in the spool count as equal.

    Raises: as :meth:`LogComparer.compare`.
    """
    index = spool.first
    while (batch := spool.take(index)) and batch.runs:
        lines = batch.lines(base)
        comparison = comparer.compare(job, lines)
        next_index = min(comparison.next_number - base, batch.end)
        if comparison.differs or next_index <= batch.start:
            return Comparison(max(next_index, batch.start) + base, comparison.differs)
        index = next_index
    return Comparison(spool.end + base, differs=False)


def comparer_for(writer: LogWriter, archive: ArchiveReader | None = None) -> LogComparer:
    """A comparer for logs that ``writer`` writes: the service compares itself; for a store we do, with ``archive``."""
    if isinstance(writer, Store):
        return StoredLogComparer(writer, archive)
    if isinstance(writer, LogComparer):
        return writer
    raise TypeError(f"lines cannot be read back from {writer!r}")
