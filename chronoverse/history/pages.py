"""Reads one page of a stored log, in either order.

:func:`read_batches` reads the log in batches. :func:`read_page` takes the lines that are asked for out of the batches,
and encodes them, until the page is full or its budget is used up.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

import orjson

from chronoverse.archive.reader import ArchiveReader, FrameFilter
from chronoverse.errors import ArchiveUnavailable, JobNotFound, SearchTooExpensive
from chronoverse.history.page_budget import MAX_LINE_CHARACTERS, PageBudget
from chronoverse.history.tiered_log import StoredLog, TieredLog, in_archive, only_in_archive
from chronoverse.joblog.entries import Batch, Entry
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, Line, TimeRange

#: Entries of the first read, when it is not known how long the lines are; and of any read, at most.
FIRST_BATCH: Final = 8
MAX_BATCH: Final = 250
#: Bytes that one read may have if all its lines are as long as a runner may write them: some 20 ms of a processor.
READ_BYTES: Final = 16 * 2**20
#: Characters that a read aims at. Each page that is being made, and each download, holds up to twice as many.
BATCH_CHARACTERS: Final = 256 * 2**10


class Search(NamedTuple):
    """What is searched for. ``frame_filter`` finds it in the archive. Frames outside of ``time_range`` are skipped."""

    frame_filter: FrameFilter
    time_range: TimeRange = TimeRange()


class Page(NamedTuple):
    """A page: the JSON of its lines in the order asked for. ``position`` is the last number that was read.

    ``match_count`` lines were asked for, and the others are their context. A scan server does not say it.
    """

    lines: list[bytes]
    position: int
    has_more: bool
    match_count: int = 0


#: Returns the JSON of a line, and of other lines that belong to it, by their numbers. Returns None when the budget has
#: no room for them.
LineEncoder = Callable[[Line, PageBudget], dict[int, bytes] | None]


class BatchReader(Protocol):
    """:func:`read_batches` for one store and archive."""

    def __call__(
        self,
        job: Job,
        position: int,
        *,
        descending: bool = False,
        limit: int | None = None,
        search: Search | None = None,
    ) -> Iterator[Batch]: ...


def read_batches(
    store: StoredLog,
    archive: ArchiveReader,
    job: Job,
    position: int,
    *,
    max_line_bytes: int,
    descending: bool = False,
    limit: int | None = None,
    search: Search | None = None,
) -> Iterator[Batch]:
    """The log strictly after ``position`` in the order asked for.

    ``limit`` is how many entries are needed, if that is known. ``max_line_bytes`` is how long a runner's lines may be.
    With ``search``, lines that do not match may be left out.

    Raises as the store and the archive do. Raises :class:`JobNotFound` when the log is deleted before all is read.
    """
    log = TieredLog(store, archive, job)
    max_count = max(1, min(MAX_BATCH, READ_BYTES // max_line_bytes))
    count = min(FIRST_BATCH, max_count)
    while True:
        next_number = position - 1 if descending else position + 1
        # The archive is searched ten times as fast as the store, so it is preferred where both have the lines.
        is_archived = in_archive(log.job, next_number) and not (descending and next_number < log.job.first)
        if search and is_archived:
            frame_filter, time_range = search
            try:
                for found in archive.search(
                    log.job.ref, frame_filter, position, descending=descending, time_range=time_range
                ):
                    position = found.position
                    yield found
                if descending:
                    return
            except ArchiveUnavailable:
                # The store may have what follows, too. If it does not, the request fails.
                if only_in_archive(log.job, position - 1 if descending else position + 1):
                    raise
            search = None
        if limit is not None:
            count = max(1, min(count, limit))
        read = log.before(position, count) if descending else log.after(position, count)
        mean_length = sum(len(line.message) for line in read.lines) / max(len(read.entries), 1)
        batch = _first_lines(read)
        # A download clears the batch's entries to free their memory. Nothing here may hold on to them.
        del read
        position = batch.position
        # The log seems to end too early. It does when it was deleted.
        if batch.is_last and _has_more(job, position, descending) and store.get_job(job.ref) is None:
            raise JobNotFound("no such job")
        if limit is not None:
            limit -= len(batch.entries)
        yield batch
        if batch.is_last:
            return
        count = round(min(max_count, max(1, BATCH_CHARACTERS / (mean_length + 1))))


def _first_lines(read: Batch) -> Batch:
    """The lines of ``read``, or the first of them, with some ``2 * BATCH_CHARACTERS`` characters in all.

    The others are read again later. Otherwise they would stay in memory while a slow client reads these.
    """
    found: list[Entry] = []
    characters, position = 2 * BATCH_CHARACTERS, read.position
    for line in read.lines:
        if characters < 0:
            return Batch(found, position, is_last=False)
        found.append(line)
        characters, position = characters - len(line.message), line.sequence_num
    return Batch(found, read.position, read.is_last)


def read_whole_log(store: StoredLog, archive: ArchiveReader, job: Job, *, max_line_bytes: int) -> Iterator[Page]:
    """All lines of the log, upwards. Archived lines are not decoded, up to the first that is missing.

    Raises as :func:`read_batches` does.
    """
    position = job.first - 1
    while only_in_archive(job, position + 1) and (lines := archive.json_lines(job.ref, position, MAX_BATCH)):
        position += len(lines)
        yield Page(lines, position, True)
    for batch in read_batches(store, archive, job, position, max_line_bytes=max_line_bytes):
        page = Page([line.encode() for line in batch.lines], batch.position, not batch.is_last)
        batch.entries.clear()
        yield page


def line_json(line: Line, **more: object) -> bytes:
    """A line's JSON on a page, followed by the keys of ``more``.

    A message of more than :data:`MAX_LINE_CHARACTERS` is cut off, and the line is marked.
    """
    if len(line.message) > MAX_LINE_CHARACTERS:
        line, more = line._replace(message=line.message[:MAX_LINE_CHARACTERS]), {"truncated": True, **more}
    return orjson.dumps({**line.to_json(), **more}) if more else line.encode()


def encode_line(line: Line, budget: PageBudget) -> dict[int, bytes] | None:
    """Encodes a line by itself. See :data:`LineEncoder`."""
    json = line_json(line)
    return {line.sequence_num: json} if budget.take(json) else None


def read_page(
    read: BatchReader,
    job: Job,
    position: int,
    limit: int,
    budget: PageBudget,
    *,
    descending: bool,
    search: Search | None = None,
    predicate: Callable[[Line], bool] | None = None,
    matcher: Matcher | None = None,
    encode: LineEncoder = encode_line,
) -> Page:
    """Up to ``limit`` lines strictly after ``position`` in the order asked for, and what ``encode`` adds to them.

    The lines are those that match and for which ``predicate`` is true. They are fewer when the ``budget`` is used up.
    Raises as ``read`` and :func:`matches` do.
    """
    found: dict[int, bytes] = {}
    count, has_progress = 0, False

    def page(has_more: bool) -> Page:
        return Page([found[number] for number in sorted(found, reverse=descending)], position, has_more, count)

    try:
        for batch in read(job, position, descending=descending, search=search):
            for line in batch.lines:
                if has_progress and budget.is_used_up():
                    return page(True)
                has_progress = True
                budget.entries_left -= 1
                is_wanted = predicate is None or predicate(line)
                if is_wanted and (matcher is None or batch.is_match or matches(matcher, line)):
                    encoded = encode(line, budget)
                    if encoded is None:
                        return page(True)
                    found.update(encoded)
                    count += 1
                position = line.sequence_num
                if count == limit:
                    return page(_has_more(job, position, descending))
            position = batch.position
            if batch.is_last:
                return page(False)
            has_progress = True
            if budget.is_used_up():
                break
    except SearchTooExpensive:
        # Lines that were found before make a page of their own. The next page then raises this error.
        if not found:
            raise
        return page(True)
    return page(_has_more(job, position, descending))


def matches(matcher: Matcher, line: Line) -> bool:
    """Whether ``line`` matches. Raises :class:`SearchTooExpensive`."""
    number, size = line.sequence_num, len(line.message)
    if not matcher.is_feasible(size):
        raise SearchTooExpensive(
            f"line {number} has {size} characters, too many for this expression:"
            " use a simpler one or plain text, or start behind this line"
        )
    return matcher.matches(line.message)


def _has_more(job: Job, position: int, descending: bool) -> bool:
    return position > job.first if descending else position < job.last
