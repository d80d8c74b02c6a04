"""One log over both tiers: reads a job's entries upwards or downwards, from the archive or from the store.

The archive has the numbers up to ``Job.archived``, the store has those from ``Job.first_stored`` on. Where both have a
number, the store is asked, because it is nearer. An archiver may move lines after a job was fetched. So when the store
does not have what it should have, the job is fetched again, and the archive is asked, before numbers are missing.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.entries import Batch, Entry, RawEntry, entry_number, in_sequence, missing_numbers, read_entries
from chronoverse.joblog.model import End, Gap, Job, JobRef, OutOfSequence

_Result = TypeVar("_Result")


class StoredLog(Protocol):
    """What this module needs of the store; see :class:`chronoverse.store.Store`."""

    def get_job(self, job: JobRef) -> Job | None: ...
    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]: ...


def read_tiers(
    known: Job | None,
    after: int,
    read_archive: Callable[[], _Result | None],
    read_store: Callable[[], tuple[_Result | None, Sequence[RawEntry] | None]],
    get_job: Callable[[], Job | None],
) -> tuple[_Result | None, Sequence[RawEntry], Job | None]:
    """Reads what follows line ``after`` from the right tier. Streams, pages and downloads all choose by this function.

    ``known`` is the job as it was fetched some time ago. ``read_archive`` returns None when the archive has nothing
    there. ``read_store`` returns a result, or, when numbers are left out, None and the raw entries.

    Returns the result, or None; without a result, the incomplete entries of the store, whose missing numbers the caller
    reports as gaps; and the job, if it was fetched again.
    """
    if known and only_in_archive(known, after + 1) and (found := read_archive()) is not None:
        return found, (), None
    found, incomplete = read_store()
    if incomplete is None:
        return found, (), None
    job = get_job()
    if job and in_archive(job, after + 1) and (found := read_archive()) is not None:
        return found, (), job
    return None, incomplete, job


class TieredLog:
    """Reads one job's log for one request. ``job`` was just fetched; it is fetched again when it is out of date."""

    def __init__(self, store: StoredLog, archive: ArchiveReader, job: Job) -> None:
        self.job = job
        self._store: Final = store
        self._archive: Final = archive

    def after(self, position: int, count: int) -> Batch:
        """About ``count`` entries after line ``position``, upwards. Raises :class:`StoreError`."""
        if self.job.is_past_end(position):
            return Batch([], position, True)

        def read_archive() -> Batch | None:
            found = self._archive.entries(self.job.ref, position, count)
            return Batch(found, _last_number(found, position), False) if found else None

        def read_store() -> tuple[Batch | None, Sequence[RawEntry] | None]:
            entries = self._store.page(self.job.ref, after=position, count=count)
            if in_sequence(entries, position) and (entries or position >= self.job.last):
                return named(entries), None
            return None, entries

        def named(entries: Sequence[RawEntry]) -> Batch:
            shown = list(read_entries(entries, position, self.job.first))
            # Nothing is read after the end, nor after a number that is too large: such an entry has no place here.
            is_last = len(entries) < count or _is_last(shown[-1])
            return Batch(shown, _last_number(shown, position), is_last)

        found, incomplete, _ = read_tiers(self.job, position, read_archive, read_store, self._refresh_job)
        return found or named(incomplete)

    def before(self, position: int, count: int) -> Batch:
        """About ``count`` entries before line ``position``, downwards. Raises :class:`StoreError`."""
        if position <= 1:
            return Batch([], position, True)
        if self.job.end and self.job.is_past_end(position - 1):
            position = self.job.end.sequence_num
        if only_in_archive(self.job, position - 1):
            return self._archived_before(position, count)
        top = min(position - 1, self.job.last)
        entries = self._page_before(position, count)
        numbers = [entry_number(each[0]) for each in entries]
        lowest = numbers[-1] if numbers else position
        complete = numbers == list(range(lowest + len(numbers) - 1, lowest - 1, -1))
        if not complete or (numbers[0] if numbers else 0) < top:
            self._refresh_job()
            # Numbers that the archive has as well are read there, where none of them is left out.
            entries = [each for each, number in zip(entries, numbers, strict=True) if not in_archive(self.job, number)]
            if not entries and self.job.archived:
                return self._archived_before(min(position, self.job.archived + 1), count)
        shown = list(read_entries(reversed(entries), 0, self.job.first))
        if entries:
            # The entry above these numbers was not read, so their gap is named here.
            shown += missing_numbers(entry_number(entries[0][0]), top + 1, self.job.first)
        shown.reverse()
        lowest = entry_number(entries[-1][0]) if entries else position
        return Batch(_not_below(shown, lowest), lowest, lowest <= self.job.first or not entries)

    def _archived_before(self, position: int, count: int) -> Batch:
        found = self._archive.entries(self.job.ref, position, count, descending=True)
        lowest = next(
            (_first_number(each) for each in reversed(found) if not isinstance(each, OutOfSequence)), position
        )
        return Batch(found, lowest, lowest <= self.job.first or not found)

    def _page_before(self, position: int, count: int) -> list[RawEntry]:
        entries = list(self._store.page(self.job.ref, before=position, count=count))
        if entries and not entries[-1][0].endswith(b"-0"):
            # Several entries may have one number. The first of them is the line, and this read may have missed it.
            entries += self._store.page(self.job.ref, after=entry_number(entries[-1][0]) - 1, count=1)
        return entries

    def _refresh_job(self) -> Job:
        self.job = self._store.get_job(self.job.ref) or self.job
        return self.job


def in_archive(job: Job, number: int) -> bool:
    """Whether the archive has that number, or had it before retention. The store may have it too."""
    return number <= job.archived


def only_in_archive(job: Job, number: int) -> bool:
    """Whether that number is in the archive and not in the store."""
    return in_archive(job, number) and number < job.first_stored


def _last_number(entries: Sequence[Entry], position: int) -> int:
    """The last number that ``entries``, read upwards after ``position``, cover.

    The number of the end is not among them. The archive has no end, and a reader's position is the same in both.
    """
    for entry in reversed(entries):
        if not isinstance(entry, OutOfSequence):
            is_end = isinstance(entry, End)
            return entry.last if isinstance(entry, Gap) else entry.sequence_num - is_end
    return position


def _is_last(entry: Entry) -> bool:
    return isinstance(entry, End) or (isinstance(entry, OutOfSequence) and entry.last)


def _first_number(entry: Entry) -> int:
    return 0 if isinstance(entry, OutOfSequence) else entry.first if isinstance(entry, Gap) else entry.sequence_num


def _not_below(shown: list[Entry], lowest: int) -> list[Entry]:
    """Drops entries about numbers below ``lowest``, which were not read."""
    return [each for each in shown if isinstance(each, OutOfSequence) or _first_number(each) >= lowest]
