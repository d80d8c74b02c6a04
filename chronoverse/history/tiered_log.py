"""One log over all tiers: a walk through stored entries, upwards or downwards, wherever each of them lies.

The archive has the numbers up to ``Job.archived``, the store those from ``Job.hot`` on, and where both have some the
store is asked, which is nearer. What the look at the job said may be over by the time of the read: numbers that the
store ought to have and does not are looked for again, and in the archive, before anybody calls them missing.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from chronoverse.errors import ArchiveUnavailable
from chronoverse.history.source import Archive
from chronoverse.joblog.entries import Entry, RawEntry, entry_number, in_sequence, read_entries
from chronoverse.joblog.values import Gap, Job, JobRef, OutOfSequence


class StoredLog(Protocol):
    """What this needs of the store; see :class:`chronoverse.store.Store`."""

    def get_job(self, job: JobRef) -> Job | None: ...
    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]: ...


class EntryPage(NamedTuple):
    """Entries in the order asked for, the number to go on from, how many were read, and whether that was all."""

    entries: list[Entry]
    place: int
    read: int
    last: bool


class MissingArchive:
    """In the archive's place where there is none: what was archived from elsewhere cannot be had."""

    def frames(self, job: JobRef, after: int, most_lines: int) -> tuple[bytes, int] | None:
        """Raises: :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def entries(self, job: JobRef, after: int, count: int) -> Sequence[Entry]:
        """Raises: :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def entries_before(self, job: JobRef, before: int, count: int) -> Sequence[Entry]:
        """Raises: :class:`ArchiveUnavailable`."""
        raise self._unavailable()

    def forget(self, job: JobRef) -> None:
        """Nothing was kept."""

    def _unavailable(self) -> ArchiveUnavailable:
        return ArchiveUnavailable("this part of the log is in an archive, and CHRONOVERSE_ARCHIVE_URL names none")


class TieredLog:
    """The walk through one job's log for one request. ``job`` is a look at it, taken anew when that gets too old."""

    def __init__(self, store: StoredLog, archive: Archive, job: Job) -> None:
        self.job = job
        self._store: Final = store
        self._archive: Final = archive

    def after(self, place: int, count: int) -> EntryPage:
        """About ``count`` entries behind line ``place``. Raises: :class:`StoreError`."""
        ref = self.job.ref
        if archive_has(self.job, place):
            found = self._archive.entries(ref, place, count)
            if found:
                return EntryPage(list(found), _reached(found, place), len(found), False)
        entries = self._store.page(ref, after=place, count=count)
        if not in_sequence(entries, place) or (not entries and place < self.job.last):
            self._look()
            found = self._archive.entries(ref, place, count) if place < self.job.archived else ()
            if found:
                return EntryPage(list(found), _reached(found, place), len(found), False)
        shown = list(read_entries(entries, place, self.job.first))
        return EntryPage(shown, entry_number(entries[-1][0]) if entries else place, len(entries), len(entries) < count)

    def before(self, place: int, count: int) -> EntryPage:
        """About ``count`` entries before line ``place``, downwards. Raises: :class:`StoreError`."""
        if place <= 1:
            return EntryPage([], place, 0, True)
        if self.job.archived >= place - 1 and not self.job.hot <= place - 1:
            return self._archived_before(place, count)
        entries = self._page_before(place, count)
        numbers = [entry_number(each[0]) for each in entries]
        lowest = numbers[-1] if numbers else place
        whole = numbers == list(range(lowest + len(numbers) - 1, lowest - 1, -1))
        if not whole or (numbers[0] if numbers else 0) < min(place - 1, self.job.last):
            self._look()
            # What the archive has too, it has without holes.
            entries = [each for each, number in zip(entries, numbers, strict=True) if number > self.job.archived]
            if not entries and self.job.archived:
                return self._archived_before(min(place, self.job.archived + 1), count)
        shown = list(read_entries(reversed(entries), 0, self.job.first))[::-1]
        lowest = entry_number(entries[-1][0]) if entries else place
        return EntryPage(_from(shown, lowest), lowest, len(entries), lowest <= self.job.first or not entries)

    def _archived_before(self, place: int, count: int) -> EntryPage:
        found = list(self._archive.entries_before(self.job.ref, place, count))
        lowest = next((_first(each) for each in reversed(found) if not isinstance(each, OutOfSequence)), place)
        return EntryPage(found, lowest, len(found), lowest <= self.job.first or not found)

    def _page_before(self, place: int, count: int) -> list[RawEntry]:
        entries = list(self._store.page(self.job.ref, before=place, count=count))
        if entries and not entries[-1][0].endswith(b"-0"):
            # Of several entries with one number the first is the line, and this read may have begun behind it.
            entries += self._store.page(self.job.ref, after=entry_number(entries[-1][0]) - 1, count=1)
        return entries

    def _look(self) -> None:
        self.job = self._store.get_job(self.job.ref) or self.job


def archive_has(job: Job, after: int) -> bool:
    """Whether what follows line ``after`` is in the archive, and not in the store."""
    return after < job.archived and after + 1 < job.hot


def _reached(entries: Sequence[Entry], place: int) -> int:
    """The last number that ``entries``, which come upwards behind ``place``, tell of."""
    for entry in reversed(entries):
        if not isinstance(entry, OutOfSequence):
            return entry.last if isinstance(entry, Gap) else entry.sequence_num
    return place


def _first(entry: Entry) -> int:
    return 0 if isinstance(entry, OutOfSequence) else entry.first if isinstance(entry, Gap) else entry.sequence_num


def _from(shown: list[Entry], lowest: int) -> list[Entry]:
    """Without what is said of the numbers below ``lowest``: those were not read."""
    return [each for each in shown if isinstance(each, OutOfSequence) or _first(each) >= lowest]
