"""Reads one page of a stored log for a request, in either order.

:func:`read_batches` reads the log in batches, so that no other request waits for long. :func:`read_page` takes the
lines that a request asks for out of the batches, and encodes them, until the page is full or its budget is used up.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import gevent.socket
import orjson
from flask import request

from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.search import search as archive_search
from chronoverse.errors import ArchiveUnavailable, AtCapacity, SearchTooExpensive
from chronoverse.history.tiered_log import TieredLog, in_archive, only_in_archive
from chronoverse.joblog.entries import Entry, RawEntry
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.time_range import TimeRange
from chronoverse.joblog.values import Job, JobRef, Line
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.event_loop import run_in_thread, yield_to_loop
from chronoverse.web.http.page_budget import MAX_LINE_CHARACTERS, PAGE_BYTES, PageBudget
from chronoverse.web.streaming.connection import on_hangup

#: Bytes of JSON that a line is expected to have before it is read. A page of one line counts as a short answer, for
#: which no room is needed.
LONG_LINE_BYTES: Final = 64 * 2**10
#: Entries of the first read, when it is not known how long the lines are; and of any read, at most.
FIRST_BATCH: Final = 8
MAX_BATCH: Final = 250
#: Bytes that one read may have if all its lines were as long as a runner may write them. When that is more than 64 KiB
#: a line, fewer than :data:`MAX_BATCH` are read. 16 MiB keep the worker busy for some 20 ms.
READ_BYTES: Final = 16 * 2**20
#: Characters that a read aims at, so that fewer long lines are read at once. Each page that is being made, and each
#: download, holds up to twice as many.
BATCH_CHARACTERS: Final = 256 * 2**10


class ReadBatch(NamedTuple):
    """Lines in the order asked for.

    ``position`` is the last number that was read, also if it is not a line. ``is_last`` says that nothing follows it.
    ``is_match`` says that every line is known to match the search.
    """

    lines: list[Line]
    position: int
    is_last: bool
    is_match: bool = False


class Search(NamedTuple):
    """What a request searches for. The archive uses it to skip frames that cannot match."""

    matcher: Matcher
    time_range: TimeRange


class LinesPage(NamedTuple):
    """A page: its lines as JSON, by number. ``position`` is the last number that was read."""

    lines: dict[int, bytes]
    position: int
    has_more: bool

    def to_json(self, *, descending: bool) -> list[orjson.Fragment]:
        """The lines in the order asked for. orjson copies these fragments without encoding them again."""
        return [orjson.Fragment(self.lines[number]) for number in sorted(self.lines, reverse=descending)]


#: Makes the JSON of a line, and of other lines that belong to it, by number. Returns None when the budget has no room
#: for them.
LineEncoder = Callable[[Line, PageBudget], dict[int, bytes] | None]


@contextlib.contextmanager
def open_page(deps: Dependencies, ref: JobRef, limit: int) -> Iterator[PageBudget]:
    """Holds the page lock, and gives the budget of a page of up to ``limit`` lines of ``ref``.

    The budget shrinks when the client closes its side. Raises as :meth:`Dependencies.page_lock` does. Also raises
    :class:`ShareExceeded` when the token's subject has so many unread answers that this one might have no room.
    """
    sock, subject = request.environ.get("gunicorn.socket"), principal().subject
    # AtCapacity means that this subject has no unread answers. It may go on: its page may be short enough to need no
    # room.
    with contextlib.suppress(AtCapacity):
        deps.answer_shares.check(subject, min(PAGE_BYTES, (limit - 1) * LONG_LINE_BYTES))
    with (
        deps.page_lock(ref, subject),
        PageBudget(deps.monotonic, deps.page_shares, subject) as budget,
        contextlib.ExitStack() as undo,
    ):
        if isinstance(sock, gevent.socket.socket):
            undo.callback(on_hangup(sock, lambda _: budget.shorten()))
        yield budget


class _LockedStore:
    """The store for :class:`TieredLog`. Each read of lines waits for the scan lock of ``subject``."""

    def __init__(self, deps: Dependencies, subject: str) -> None:
        self._deps = deps
        self._subject = subject

    def get_job(self, job: JobRef) -> Job | None:
        return self._deps.store.get_job(job)

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        with self._deps.scan_lock(job, self._subject):
            return self._deps.store.page(job, after=after, before=before, count=count)


def read_batches(
    deps: Dependencies,
    job: Job,
    position: int,
    *,
    descending: bool = False,
    limit: int | None = None,
    search: Search | None = None,
    let_others_run: Callable[[], object] = yield_to_loop,
) -> Iterator[ReadBatch]:
    """The log strictly after ``position`` in the order asked for. Calls ``let_others_run`` between two batches.

    ``limit`` is how many entries are needed, if that is known. Such a short read holds the scan lock only while it
    reads from the store, so that a slow archive delays nobody. With ``search``, lines that do not match may be left
    out.

    Raises as the store and the archive do. Raises :class:`JobNotFound` when the log is deleted before all is read.
    """
    archive = deps.archive
    # The subject is looked up now, because a download goes on after its request's context is gone.
    subject = principal().subject
    log = TieredLog(deps.store if limit is None else _LockedStore(deps, subject), archive, job)
    max_count = max(1, min(MAX_BATCH, READ_BYTES // deps.settings.max_line_bytes))
    count = min(FIRST_BATCH, max_count)
    while True:
        next_number = position - 1 if descending else position + 1
        # The archive is searched ten times as fast as the store, so it is preferred where both have the lines.
        is_archived = in_archive(log.job, next_number) and not (descending and next_number < log.job.first)
        if search and isinstance(archive, ArchiveReader) and is_archived:
            try:
                for batch in _search_archive(deps, archive, log.job, position, descending, search):
                    position = batch.position
                    yield batch
                if descending:
                    return
            except ArchiveUnavailable:
                # The store may have what follows, too. If it does not, the request fails.
                if only_in_archive(log.job, position - 1 if descending else position + 1):
                    raise
            search = None
        if limit is not None:
            count = max(1, min(count, limit))
        with deps.scan_lock(job.ref, subject) if limit is None else contextlib.nullcontext():
            read = log.before(position, count) if descending else log.after(position, count)
        position, is_last = read.position, read.last
        mean_length = sum(len(entry.message) for entry in read.entries if isinstance(entry, Line)) / max(read.read, 1)
        lines, is_complete = _limit_characters(read.entries, BATCH_CHARACTERS)
        if not is_complete:
            # The other lines are read again later. Otherwise they would stay in memory while a slow client reads these.
            position, is_last = lines[-1].sequence_num, False
        # The caller of a download clears the batch's lines to free their memory. This must not keep them.
        del read
        if is_last and _has_more(job, position, descending):
            # Entries are missing at the end. All are missing when the log was deleted.
            deps.require_job(job.ref)
        if limit is not None:
            limit -= len(lines)
        yield ReadBatch(lines, position, is_last)
        if is_last:
            return
        let_others_run()
        count = round(min(max_count, max(1, BATCH_CHARACTERS / (mean_length + 1))))


def _limit_characters(entries: Iterable[Entry], characters: int) -> tuple[list[Line], bool]:
    """The first lines with about twice as many ``characters``, and whether these are all."""
    found: list[Line] = []
    for entry in entries:
        if isinstance(entry, Line):
            if characters < 0:
                return found, False
            found.append(entry)
            characters -= len(entry.message) // 2
    return found, True


def _search_archive(
    deps: Dependencies, archive: ArchiveReader, job: Job, position: int, descending: bool, search: Search
) -> Iterator[ReadBatch]:
    """The lines of the archive that match, one frame at a time."""
    time_slice = deps.search_slice()
    since, until = search.time_range
    frames = archive_search(
        archive,
        job.ref,
        search.matcher,
        position,
        descending=descending,
        since=since,
        until=until,
        run_heavy=deps.run_heavy,
        pause=time_slice.check,
    )
    while True:
        with deps.search_lock(job.ref, principal().subject):
            frame = next(frames, None)
        if frame is None:
            return
        yield ReadBatch(frame.lines, frame.cursor, False, is_match=True)
        time_slice.check()


def line_json(line: Line, **more: object) -> bytes:
    """A line's JSON on a page, followed by the keys of ``more``.

    A message of more than :data:`MAX_LINE_CHARACTERS` is cut off, and the line is marked.
    """
    if len(line.message) > MAX_LINE_CHARACTERS:
        line, more = line._replace(message=line.message[:MAX_LINE_CHARACTERS]), {"truncated": True, **more}
    return orjson.dumps({**line.to_json(), **more})


def encode_line(line: Line, budget: PageBudget) -> dict[int, bytes] | None:
    """Encodes a line by itself. See :data:`LineEncoder`."""
    json = line_json(line)
    return {line.sequence_num: json} if budget.take(json) else None


def read_page(
    deps: Dependencies,
    job: Job,
    position: int,
    limit: int,
    budget: PageBudget,
    *,
    descending: bool,
    predicate: Callable[[Line], bool] | None = None,
    search: Search | None = None,
    encode: LineEncoder = encode_line,
) -> LinesPage:
    """Up to ``limit`` lines strictly after ``position`` in the order asked for, and what ``encode`` adds to them.

    These are the lines that match ``search`` and for which ``predicate`` is true. They are fewer when the ``budget`` is
    used up.

    Raises as :func:`read_batches`, :func:`matches` and :meth:`PageBudget.take` do.
    """
    lines: dict[int, bytes] = {}
    count, has_progress = 0, False
    # A filtered page may go through many lines to find a few, so it lets all other requests go first.
    is_filtered = bool(predicate or search)
    time_slice = deps.search_slice() if is_filtered else deps.time_slice()
    try:
        for batch in read_batches(
            deps,
            job,
            position,
            descending=descending,
            limit=None if is_filtered else limit,
            search=search,
            let_others_run=deps.wait_for_idle_slot if is_filtered else yield_to_loop,
        ):
            for line in batch.lines:
                time_slice.check()
                if has_progress and budget.is_used_up():
                    return LinesPage(lines, position, True)
                has_progress = True
                budget.entries_left -= 1
                is_wanted = predicate is None or predicate(line)
                if is_wanted and (search is None or batch.is_match or matches(search.matcher, line, deps.run_heavy)):
                    encoded = encode(line, budget)
                    if encoded is None:
                        return LinesPage(lines, position, True)
                    lines.update(encoded)
                    count += 1
                position = line.sequence_num
                if count == limit:
                    return LinesPage(lines, position, _has_more(job, position, descending))
            position = batch.position
            if batch.is_last:
                return LinesPage(lines, position, False)
            has_progress = True
            if budget.is_used_up():
                break
    except SearchTooExpensive:
        # Lines that were found before make a page of their own. The next page then raises this error.
        if not lines:
            raise
        return LinesPage(lines, position, True)
    return LinesPage(lines, position, _has_more(job, position, descending))


def matches(matcher: Matcher, line: Line, run_heavy: Callable[[Callable[[], bool]], bool] = run_in_thread) -> bool:
    """Whether ``line`` matches. ``run_heavy`` runs what may take long outside of the event loop.

    Raises :class:`SearchTooExpensive`, and what ``run_heavy`` raises.
    """
    number, size = line.sequence_num, len(line.message)
    if not matcher.is_feasible(size):
        raise SearchTooExpensive(
            f"line {number} has {size} characters, too many for this expression:"
            " use a simpler one or plain text, or start behind this line"
        )
    if matcher.is_heavy(size):
        return run_heavy(partial(matcher.matches, line.message))
    return matcher.matches(line.message)


def _has_more(job: Job, position: int, descending: bool) -> bool:
    return position > job.first if descending else position < job.last
