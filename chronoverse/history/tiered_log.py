"""One log over both tiers: reads a job's entries upwards or downwards, from the archive or from the store.

The archive has the numbers up to ``Job.archived``, the store has those from ``Job.first_stored`` on. Where both have a
number, the store is asked, because it is nearer. An archiver may move lines between the moment in which a job was
fetched and the moment in which its lines are read. So when the store does not have what it should have, the job is
fetched again, and the archive is asked, before anybody calls the numbers missing.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from chronoverse.errors import ArchiveUnavailable
from chronoverse.history.protocols import Archive
from chronoverse.joblog.ending import is_past_end
from chronoverse.joblog.entries import Entry, RawEntry, entry_number, in_sequence, missing_numbers, read_entries
from chronoverse.joblog.values import End, Gap, Job, JobRef, OutOfSequence

_Result = TypeVar("_Result")


class StoredLog(Protocol):
    """What this module needs of the store; see :class:`chronoverse.store.Store`."""

    def get_job(self, job: JobRef) -> Job | None: ...
    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]: ...


class Entries(NamedTuple):
    """Entries in the order asked for.

    The next read goes on from the number ``position``. ``read`` is how many entries were read. ``last`` says that no
    entries are left.
    """

    entries: list[Entry]
    position: int
    read: int
    last: bool


class MissingArchive:
    """Stands for the archive when none is configured. Lines that were archived elsewhere cannot be read."""

    def frames(self, job: JobRef, after: int, max_lines: int) -> tuple[bytes, int] | None:
        """Raises :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def entries(self, job: JobRef, after: int, count: int) -> Sequence[Entry]:
        """Raises :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def entries_before(self, job: JobRef, before: int, count: int) -> Sequence[Entry]:
        """Raises :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def forget(self, job: JobRef) -> None:
        """Does nothing: nothing is cached."""

    def _unavailable(self) -> ArchiveUnavailable:
        return ArchiveUnavailable("this part of the log is in an archive, and CHRONOVERSE_ARCHIVE_URL names none")


def read_tiers(
    known: Job | None,
    after: int,
    read_archive: Callable[[], _Result | None],
    read_store: Callable[[], tuple[_Result | None, Sequence[RawEntry] | None]],
    get_job: Callable[[], Job | None],
) -> tuple[_Result | None, Sequence[RawEntry], Job | None]:
    """Reads what follows line ``after`` from the right tier. Streams, pages and downloads all choose by this function.

    ``known`` is the job as it was fetched some time ago. ``read_archive`` returns None when the archive has nothing
    there. ``read_store`` returns a result, or, when numbers are left out, None and the raw entries. ``get_job``
    fetches the job again.

    Returns three things: the result, or None; without a result, the incomplete entries of the store, whose missing
    numbers the caller reports as gaps; and the job, if it was fetched.
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

    def __init__(self, store: StoredLog, archive: Archive, job: Job) -> None:
        self.job = job
        self._store: Final = store
        self._archive: Final = archive

    def after(self, position: int, count: int) -> Entries:
        """About ``count`` entries after line ``position``, upwards. Raises :class:`StoreError`."""
        if is_past_end(self.job, position):
            return Entries([], position, 0, True)

        def read_archive() -> Entries | None:
            found = self._archive.entries(self.job.ref, position, count)
            return Entries(list(found), _last_number(found, position), len(found), False) if found else None

        def read_store() -> tuple[Entries | None, Sequence[RawEntry] | None]:
            entries = self._store.page(self.job.ref, after=position, count=count)
            if in_sequence(entries, position) and (entries or position >= self.job.last):
                return named(entries), None
            return None, entries

        def named(entries: Sequence[RawEntry]) -> Entries:
            shown = list(read_entries(entries, position, self.job.first))
            # Nothing is read after the end, nor after a number that is too large: such an entry has no place here.
            is_last = len(entries) < count or _is_last(shown[-1])
            return Entries(shown, _last_number(shown, position), len(entries), is_last)

        found, incomplete, _ = read_tiers(self.job, position, read_archive, read_store, self._refresh_job)
        return found or named(incomplete)

    def before(self, position: int, count: int) -> Entries:
        """About ``count`` entries before line ``position``, downwards. Raises :class:`StoreError`."""
        if position <= 1:
            return Entries([], position, 0, True)
        if self.job.end and is_past_end(self.job, position - 1):
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
        return Entries(_not_below(shown, lowest), lowest, len(entries), lowest <= self.job.first or not entries)

    def _archived_before(self, position: int, count: int) -> Entries:
        found = list(self._archive.entries_before(self.job.ref, position, count))
        lowest = next(
            (_first_number(each) for each in reversed(found) if not isinstance(each, OutOfSequence)), position
        )
        return Entries(found, lowest, len(found), lowest <= self.job.first or not found)

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
