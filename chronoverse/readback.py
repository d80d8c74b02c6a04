"""Reading lines back, to compare them with a copy that is about to be deleted.

Lines are compared by digests, so that the service can be asked whether it has them without sending them again.
"""

from collections.abc import Sequence
from typing import Final

from chronoverse.errors import JobNotFound
from chronoverse.history import History, NoArchive, Stored
from chronoverse.joblog import JobRef, Line
from chronoverse.ledger import Compared, Ledger, Reader, line_digest
from chronoverse.source import Archive
from chronoverse.spool import Spool
from chronoverse.store import Store

#: Entries read at a time, and characters of messages after which an answer is given: so one question holds 12 MiB at
#: most, with lines of 64 KiB, and mostly 2 MiB.
READ_ENTRIES: Final = 200
ANSWER_CHARACTERS: Final = 2 * 2**20


class StoredLines:
    """Reads lines back from the store, and from ``archive`` those that the store has let go."""

    def __init__(self, store: Stored, archive: Archive | None = None) -> None:
        self._store: Final = store
        self._archive: Final[Archive] = archive or NoArchive()

    def compare(self, job: JobRef, lines: Sequence[Line]) -> Compared:
        """As :meth:`Reader.compare`."""
        digests = [line_digest(line) for line in lines]
        return compare(self._store, self._archive, job, lines[0].sequence_num, digests)


def compare(store: Stored, archive: Archive, ref: JobRef, first: int, digests: Sequence[str]) -> Compared:
    """Compares the log's lines from ``first`` on with ``digests``, until about :data:`ANSWER_CHARACTERS` are read.

    Raises: :class:`JobNotFound`, :class:`StoreError`.
    """
    job = store.look(ref)
    if job is None:
        raise JobNotFound("no such job")
    history, following, last = History(store, archive, job), first, min(first + len(digests) - 1, job.last)
    characters = 0
    while following <= last and characters < ANSWER_CHARACTERS:
        read = history.after(following - 1, min(READ_ENTRIES, last - following + 1))
        for entry in read.entries:
            if not isinstance(entry, Line) or entry.sequence_num != following:
                return Compared(following, differs=False)
            if line_digest(entry) != digests[following - first]:
                return Compared(following, differs=True)
            characters += len(entry.message)
            following += 1
        if not read.entries:
            break
    return Compared(following, differs=False)


def read_back(reader: Reader, job: JobRef, spool: Spool, base: int) -> Compared:
    """Compares all that ``spool`` holds, a line's number being its index plus ``base``. Raises as :class:`Reader`."""
    index = spool.first
    while batch := spool.take(index, base):
        lines = batch.lines(base)
        compared = reader.compare(job, lines)
        reached = min(compared.following - base, batch.end)
        if compared.differs or reached <= index:
            return Compared(max(reached, index) + base, compared.differs)
        index = reached
    return Compared(index + base, differs=False)


def reader_of(ledger: Ledger, archive: Archive | None = None) -> Reader:
    """Who reads back what is published to ``ledger``: the service itself, or we do, from the store and ``archive``."""
    if isinstance(ledger, Store):
        return StoredLines(ledger, archive)
    if isinstance(ledger, Reader):
        return ledger
    raise TypeError(f"nobody can read back from {ledger!r}")
