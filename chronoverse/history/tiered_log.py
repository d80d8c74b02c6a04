"""Reads a job's entries from store and archive as one log, ascending or descending.

Lines present in both are read from the store. An archiver can move lines during a read: if numbers are missing, this
module fetches the job again and reads the archive before it reports a gap.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from chronoverse.archive.reader import ArchiveReader, FrameFilter
from chronoverse.errors import ArchiveUnavailable, JobNotFound, StoreUnavailable
from chronoverse.joblog.entries import Batch, Entry, RawEntry, entry_number, in_sequence, missing_numbers, read_entries
from chronoverse.joblog.events import LOG_IS_GONE
from chronoverse.joblog.model import End, Gap, Job, JobRef, OutOfSequence, TimeRange
from chronoverse.store.adaptive_batch import next_lines

MAX_BATCH: Final = 250
#: Maximum bytes of a read if all lines have the maximum length: about 20 ms of CPU.
READ_BYTES: Final = 16 * 2**20
#: Target characters of a read. Each page in progress, and each download, holds up to twice as many.
BATCH_CHARACTERS: Final = 256 * 2**10

_Result = TypeVar("_Result")


class Search(NamedTuple):
    frame_filter: FrameFilter
    time_range: TimeRange = TimeRange()


#: A :class:`LogReader`.
BatchReader = Callable[..., Iterator[Batch]]


class StoredLog(Protocol):
    def get_job(self, job: JobRef) -> Job | None: ...
    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]: ...


def read_tiers(
    known: Job | None,
    after: int,
    read_archive: Callable[[], _Result | None],
    read_store: Callable[[], tuple[_Result | None, Sequence[RawEntry] | None]],
    get_job: Callable[[], Job | None],
) -> tuple[_Result | None, Sequence[RawEntry], Job | None]:
    """Reads what follows line ``after`` from the archive or the store.

    ``known`` is the job as fetched some time ago. ``read_archive`` returns None if the archive has nothing there;
    ``read_store`` returns None and raw entries if numbers are missing. Returns three values: the result of one of them;
    raw entries with real gaps, if the result is None; and the job, if it was fetched again. Raises :class:`JobNotFound`
    if the job is gone, because an import can restore archived lines.
    """
    if known and only_in_archive(known, after + 1) and (found := read_archive()) is not None:
        return found, (), None
    job: Job | None = None
    for _ in range(4):
        found, incomplete = read_store()
        if incomplete is None:
            return found, (), job
        before, job = job, get_job()
        if job is None:
            raise JobNotFound(LOG_IS_GONE)
        if in_archive(job, after + 1) and (found := read_archive()) is not None:
            return found, (), job
        # The entries were read before the job was fetched, so they can be from a replaced log or server.
        is_same = before and (before.archived, before.created_at) == (job.archived, job.created_at)
        if is_same and (not incomplete or job.includes(entry_number(incomplete[-1][0]))):
            return None, incomplete, job
    raise StoreUnavailable("the store's servers have different states of this log: retry")


@dataclass(slots=True)
class TieredLog:
    """Reads one job's log for one request. ``job`` was just fetched; it is fetched again if outdated."""

    store: StoredLog
    archive: ArchiveReader
    job: Job

    def after(self, position: int, count: int) -> Batch:
        """About ``count`` entries after line ``position``, ascending. Raises :class:`StoreError`."""
        if self.job.is_past_end(position):
            return Batch([], position, True)

        def read_archive() -> Batch | None:
            found = self.archive.entries(self.job.ref, position, count)
            return Batch(found, _last_number(found, position), False) if found else None

        def read_store() -> tuple[Batch | None, Sequence[RawEntry] | None]:
            entries = self.store.page(self.job.ref, after=position, count=count)
            if in_sequence(entries, position) and (entries or position >= self.job.last):
                return batch_of(entries), None
            return None, entries

        def batch_of(entries: Sequence[RawEntry]) -> Batch:
            shown = list(read_entries(entries, position, self.job.first))
            # Nothing can follow the terminal entry, or an entry whose number is too large.
            newest = shown[-1] if shown else None
            is_end = isinstance(newest, End) or (isinstance(newest, OutOfSequence) and newest.last)
            is_last = len(entries) < count or is_end
            return Batch(shown, _last_number(shown, position), is_last)

        found, incomplete, _ = read_tiers(self.job, position, read_archive, read_store, self._refresh_job)
        return found or batch_of(incomplete)

    def before(self, position: int, count: int) -> Batch:
        """About ``count`` entries before line ``position``, descending. Raises :class:`StoreError`."""
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
            # Drops what the archive also has: a later read of the archive returns these lines without gaps.
            entries = [each for each, number in zip(entries, numbers, strict=True) if not in_archive(self.job, number)]
            if not entries and self.job.archived:
                return self._archived_before(min(position, self.job.archived + 1), count)
        shown = list(read_entries(reversed(entries), 0, self.job.first))
        if entries:
            # No other read reports the numbers missing between this read's newest entry and ``position``.
            shown += missing_numbers(entry_number(entries[0][0]), top + 1, self.job.first)
        shown.reverse()
        lowest = entry_number(entries[-1][0]) if entries else position
        # Drops gaps below this read's oldest entry: the next read has these lines.
        shown = [each for each in shown if isinstance(each, OutOfSequence) or _first_number(each) >= lowest]
        return Batch(shown, lowest, lowest <= self.job.first or not entries)

    def _archived_before(self, position: int, count: int) -> Batch:
        found = self.archive.entries(self.job.ref, position, count, descending=True)
        lowest = _first_number(found[-1]) if found else position
        return Batch(found, lowest, lowest <= self.job.first or not found)

    def _page_before(self, position: int, count: int) -> list[RawEntry]:
        entries = list(self.store.page(self.job.ref, before=position, count=count))
        if entries and not entries[-1][0].endswith(b"-0"):
            # If several entries share a number, the first of them is the line, which this page may lack.
            entries += self.store.page(self.job.ref, after=entry_number(entries[-1][0]) - 1, count=1)
        return entries

    def _refresh_job(self) -> Job | None:
        job = self.store.get_job(self.job.ref)
        self.job = job or self.job
        return job


@dataclass(frozen=True, slots=True)
class LogReader:
    """Reads logs in batches of limited size. ``max_line_bytes`` is the maximum length of a runner's line."""

    store: StoredLog
    archive: ArchiveReader
    max_line_bytes: int

    def __call__(
        self,
        job: Job,
        position: int,
        *,
        descending: bool = False,
        limit: int | None = None,
        search: Search | None = None,
    ) -> Iterator[Batch]:
        """The log strictly after ``position`` in the requested order. With ``search``, can omit lines that do not
        match.

        Raises the errors of the store and the archive, and :class:`JobNotFound` if the log is deleted meanwhile.
        """
        log = TieredLog(self.store, self.archive, job)
        max_count = max(1, min(MAX_BATCH, READ_BYTES // self.max_line_bytes))
        # Starts with few lines, because their length is not yet known.
        count = min(8, max_count)
        while True:
            next_number = position - 1 if descending else position + 1
            # If store and archive have the lines, searches the archive, which is ten times as fast.
            is_archived = in_archive(log.job, next_number) and not (descending and next_number < log.job.first)
            if search and is_archived:
                frame_filter, time_range = search
                try:
                    for found in self.archive.search(
                        log.job.ref, frame_filter, position, descending=descending, time_range=time_range
                    ):
                        position = found.position
                        yield found
                        if log.job.end and not descending and position >= log.job.last:
                            return
                    if descending:
                        return
                except ArchiveUnavailable:
                    # The store may still have the next lines. Otherwise the request fails.
                    if only_in_archive(log.job, position - 1 if descending else position + 1):
                        raise
                search = None
            if limit is not None:
                count = max(1, min(count, limit))
            read = log.before(position, count) if descending else log.after(position, count)
            came = max(len(read.entries), 1)
            size = sum(len(line.message) for line in read.lines) + came
            batch = _first_lines(read)
            # A download clears the batch's entries to free memory, so this generator keeps no reference to them.
            del read
            position = batch.position
            # If the log ends earlier than expected, it may have been deleted.
            if batch.is_last and has_lines_after(job, position, descending) and self.store.get_job(job.ref) is None:
                raise JobNotFound("no such job")
            if limit is not None:
                limit -= len(batch.entries)
            yield batch
            if batch.is_last:
                return
            count = next_lines(max_count, came, size, BATCH_CHARACTERS, 1, max_count)


def _first_lines(read: Batch) -> Batch:
    """About ``2 * BATCH_CHARACTERS`` characters of ``read``. Drops the rest, which would wait for a slow client."""
    found: list[Entry] = []
    characters, position = 2 * BATCH_CHARACTERS, read.position
    for line in read.lines:
        if characters < 0:
            return Batch(found, position, is_last=False)
        found.append(line)
        characters, position = characters - len(line.message), line.sequence_num
    return Batch(found, read.position, read.is_last)


def has_lines_after(job: Job, position: int, descending: bool) -> bool:
    """Whether ``job``, as fetched, has lines strictly after ``position`` in the requested order."""
    return position > job.first if descending else position < job.last


def in_archive(job: Job, number: int) -> bool:
    """Whether the archive has this number, or had it before retention. The store can also have it."""
    return number <= job.archived


def only_in_archive(job: Job, number: int) -> bool:
    """Whether the archive has this number, and the store does not."""
    return in_archive(job, number) and number < job.first_stored


def _last_number(entries: Sequence[Entry], position: int) -> int:
    for entry in reversed(entries):
        if not isinstance(entry, OutOfSequence):
            is_end = isinstance(entry, End)
            return entry.last if isinstance(entry, Gap) else entry.sequence_num - is_end
    return position


def _first_number(entry: Entry) -> int:
    return 0 if isinstance(entry, OutOfSequence) else entry.first if isinstance(entry, Gap) else entry.sequence_num
