"""Reading lines back, to compare them with a copy that is about to be deleted.

Lines are compared by digests, so that the service can be asked whether it has them without sending them again.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from chronoverse.errors import JobNotFound
from chronoverse.history.source import Archive
from chronoverse.history.tiered_log import MissingArchive, StoredLog, TieredLog
from chronoverse.joblog.values import JobRef, Line
from chronoverse.runner.log_writer import Comparison, LogComparer, LogWriter, line_digest
from chronoverse.runner.spool.spool import Spool
from chronoverse.store import Store

#: Entries that are read from the store at a time: 13 MB with lines of 64 KiB.
READ_ENTRIES: Final = 200
#: Characters of messages after which a question is answered: comparing them takes some 10 ms.
ANSWER_CHARACTERS: Final = 2 * 2**20


class StoredLogComparer:
    """Reads lines back from the store, and from ``archive`` those that the store has let go."""

    def __init__(self, store: StoredLog, archive: Archive | None = None) -> None:
        self._store: Final = store
        self._archive: Final[Archive] = archive or MissingArchive()

    def compare(self, job: JobRef, lines: Sequence[Line]) -> Comparison:
        """As :meth:`Reader.compare`."""
        first = lines[0].sequence_num
        return compare_lines(self._read(job, first), first, [line_digest(line) for line in lines])

    def _read(self, ref: JobRef, first: int) -> Iterator[Line]:
        """The log's lines from ``first`` on. Raises: :class:`JobNotFound`, :class:`StoreError`."""
        job = self._store.get_job(ref)
        if job is None:
            raise JobNotFound("no such job")
        history, place = TieredLog(self._store, self._archive, job), first - 1
        while place < job.last:
            read = history.after(place, READ_ENTRIES)
            yield from (entry for entry in read.entries if isinstance(entry, Line))
            if read.last or read.place <= place:
                return
            place = read.place


def compare_lines(log: Iterable[Line], first: int, digests: Sequence[str]) -> Comparison:
    """Compares the lines of ``log``, which begins with line ``first``, with those that have the ``digests``.

    No more are looked at than there are digests, and none behind :data:`ANSWER_CHARACTERS` of messages.
    """
    following, characters = first, 0
    for digest, line in zip(digests, log, strict=False):
        if line.sequence_num != following or characters >= ANSWER_CHARACTERS:
            break
        if line_digest(line) != digest:
            return Comparison(following, differs=True)
        following += 1
        characters += len(line.message)
    return Comparison(following, differs=False)


def compare_spool(reader: LogComparer, job: JobRef, spool: Spool, base: int) -> Comparison:
    """Compares all that ``spool`` holds, a line's number being its index plus ``base``. Raises as :class:`Reader`."""
    index = spool.first
    while batch := spool.take(index, base):
        lines = batch.lines(base)
        compared = reader.compare(job, lines)
        reached = min(compared.next_number - base, batch.end)
        if compared.differs or reached <= index:
            return Comparison(max(reached, index) + base, compared.differs)
        index = reached
    return Comparison(index + base, differs=False)


def comparer_for(ledger: LogWriter, archive: Archive | None = None) -> LogComparer:
    """Who reads back what is published to ``ledger``: the service itself, or we do, from the store and ``archive``."""
    if isinstance(ledger, Store):
        return StoredLogComparer(ledger, archive)
    if isinstance(ledger, LogComparer):
        return ledger
    raise TypeError(f"nobody can read back from {ledger!r}")
