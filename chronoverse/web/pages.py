"""Walking a stored log for one request: upwards or downwards, in batches that hold up nobody else for long."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import gevent
import orjson
from flask import Response, request

from chronoverse.archive.reading import Archive
from chronoverse.archive.search import search as archive_search
from chronoverse.errors import ArchiveUnavailable, InvalidCursor
from chronoverse.history import History
from chronoverse.joblog import MAX_NUMBER, Job, Line
from chronoverse.matcher import Matcher
from chronoverse.period import Period
from chronoverse.web.cursors import decode_cursor
from chronoverse.web.fairness import let_others
from chronoverse.web.services import Services, principal

#: Entries one request looks through when a filter lets few of them pass, and the seconds it takes for that;
#: the cursor goes on from there. Far below any proxy's patience, and a client that leaves costs no more.
SCAN_ENTRIES: Final = 200_000
SCAN_SECONDS: Final = 1.0
#: Characters on one page: a thousand lines of 64 KiB would be sixty-four million.
PAGE_CHARACTERS: Final = 16 * 2**20
#: Entries of one read, at first and at most. A thousand take about 3 ms from the socket to the last line matched,
#: and for that long the worker does nothing else.
FIRST_BATCH: Final = 200
MAX_BATCH: Final = 1000
#: The most of a search, for which nobody is to wait so long.
SEARCH_BATCH: Final = 250
#: Seconds after which a request that goes through many lines lets others have a turn, which takes 20 µs. Live lines
#: wait for about two of these.
TURN_SECONDS: Final = 0.001
#: The same for a search, which goes on only when nobody else has anything to do: a live line waits for one of these.
SLICE_SECONDS: Final = 0.00025
#: Characters that a read aims at: long lines come fewer at a time.
BATCH_CHARACTERS: Final = 2**20


class Turns:
    """Gives everybody else a turn now and then; to be asked for each line that something is done with.

    ``others`` lets them run, when this has gone on for ``seconds`` by ``clock``.
    """

    def __init__(
        self, clock: Callable[[], float], others: Callable[[], object] = let_others, seconds: float = TURN_SECONDS
    ) -> None:
        self._clock = clock
        self._others = others
        self._seconds = seconds
        self._until = clock() + seconds

    @classmethod
    def of_search(cls, services: Services) -> "Turns":
        """Those of a search."""
        return cls(services.monotonic, services.stand_back, SLICE_SECONDS)

    def give(self) -> None:
        """Lets the others run when this has gone on for long enough."""
        if self._clock() > self._until:
            self._others()
            self._until = self._clock() + self._seconds


class Batch(NamedTuple):
    """Lines in the order asked for, the number of the last entry looked at, and whether there are none behind it.

    ``found``: each of them is known to match what is searched for.
    """

    lines: list[Line]
    place: int
    last: bool
    found: bool = False


class Search(NamedTuple):
    """What is looked for, for the archive to rule out what need not be read."""

    matcher: Matcher
    period: Period


class Page(NamedTuple):
    """A page's lines, the place to go on from, and whether to."""

    lines: list[Line]
    place: int
    more: bool


def batches(
    services: Services,
    job: Job,
    place: int,
    *,
    descending: bool = False,
    exactly: int = 0,
    search: Search | None = None,
) -> Iterator[Batch]:
    """The log strictly after ``place`` in the order asked for; between two batches everybody else has a turn.

    ``exactly`` is the size of every batch where it is known how many are wanted. With ``search`` only lines that match
    need be there.

    Raises: as the store and the archive do; :class:`JobNotFound` when the log went away before all of it was read.
    """
    archive = services.archive
    history = History(services.store, archive, job)
    count = exactly or FIRST_BATCH
    # A download goes on when its request's context is gone.
    subject = principal().subject
    others, most = (services.stand_back, SEARCH_BATCH) if search else (let_others, MAX_BATCH)
    while True:
        if search and isinstance(archive, Archive) and _is_archived(history.job, place, descending):
            try:
                for batch in _search(services, archive, history.job, place, descending, search):
                    place = batch.place
                    yield batch
                if descending:
                    return
            except ArchiveUnavailable:
                if place - descending < history.job.hot - (not descending):
                    raise
            search = None
        with contextlib.nullcontext() if exactly else services.scans.turn(subject):
            read = history.before(place, count) if descending else history.after(place, count)
        lines = [entry for entry in read.entries if isinstance(entry, Line)]
        place = read.place
        if read.last and _more(job, place, descending):
            # Entries may be missing there; all of them are when somebody has deleted the log.
            services.job(job.ref)
        yield Batch(lines, place, read.last)
        if read.last:
            return
        others()
        if not exactly:
            mean = sum(len(line.message) for line in lines) / max(read.read, 1)
            count = round(min(most, max(1, BATCH_CHARACTERS / (mean + 1))))


def _is_archived(job: Job, place: int, descending: bool) -> bool:
    """Whether the archive has what follows, whatever the store has of it: it is searched ten times as fast."""
    return job.first < place <= job.archived + 1 if descending else place < job.archived


def _search(
    services: Services, archive: Archive, job: Job, place: int, descending: bool, search: Search
) -> Iterator[Batch]:
    """What the archive has of it, a frame at a time."""
    turns = Turns.of_search(services)
    since, until = search.period
    how = partial(archive_search, descending=descending, since=since, until=until, work=_elsewhere, pause=turns.give)
    frames = how(archive, job.ref, search.matcher, place)
    while True:
        with services.searches.turn(principal().subject):
            frame = next(frames, None)
        if frame is None:
            return
        yield Batch(frame.lines, frame.place, False, found=True)
        turns.give()


def _elsewhere(work: Callable[[], list[Line]]) -> list[Line]:
    lines: list[Line] = gevent.get_hub().threadpool.apply(work)
    return lines


def page(
    services: Services,
    job: Job,
    place: int,
    limit: int,
    *,
    descending: bool,
    wanted: Callable[[Line], bool] | None = None,
    search: Search | None = None,
) -> Page:
    """Up to ``limit`` lines, strictly after ``place`` in the order asked for.

    Those that match ``search`` and are ``wanted``; all, without either.
    """
    found: list[Line] = []
    scanned = characters = 0
    turns = Turns.of_search(services) if search else Turns(services.monotonic)
    deadline = services.monotonic() + SCAN_SECONDS
    exactly = 0 if wanted or search else limit
    for batch in batches(services, job, place, descending=descending, exactly=exactly, search=search):
        for line in batch.lines:
            turns.give()
            there = wanted is None or wanted(line)
            if there and (search is None or batch.found or matches(search.matcher, line.message)):
                found.append(line)
                characters += len(line.message)
                if len(found) == limit or characters >= PAGE_CHARACTERS:
                    return Page(found, line.sequence_num, _more(job, line.sequence_num, descending))
        scanned += len(batch.lines)
        place = batch.place
        if batch.last:
            return Page(found, place, False)
        if scanned >= SCAN_ENTRIES or services.monotonic() > deadline:
            break
    return Page(found, place, _more(job, place, descending))


def matches(matcher: Matcher, text: str) -> bool:
    """Whether it is in ``text``; what may take long is done by a thread of gevent's pool."""
    if matcher.is_heavy(len(text)):
        return bool(gevent.get_hub().threadpool.apply(matcher.matches, (text,)))
    return matcher.matches(text)


def around(
    services: Services, job: Job, lines: Sequence[Line], before: int, after: int, stream: str | None
) -> dict[int, Line]:
    """The lines next to ``lines``, by number: so many numbers before and after each, of one ``stream`` or both."""
    found: dict[int, Line] = {}
    history = History(services.store, services.archive, job)
    place = 0
    for line in sorted(lines):
        place, stop = max(place, line.sequence_num - before - 1), line.sequence_num + after
        while place < stop:
            read = history.after(place, stop - place)
            near = [each for each in read.entries if isinstance(each, Line) and each.sequence_num <= stop]
            found.update((each.sequence_num, each) for each in near if stream in (None, each.stream))
            place = min(stop, read.place)
            if read.last:
                break
        services.stand_back()
    return found


def start(query: dict[str, Any], listing: tuple[Any, ...], job: Job, *, descending: bool) -> int:
    """The place a page starts after: what the cursor or the offset says, or the log's beginning in that order.

    Raises: :class:`InvalidCursor`.
    """
    if "cursor" not in query:
        offset: int = query.get("offset", job.last + 1 if descending else 0)
        return offset
    (place,) = decode_cursor(query["cursor"], listing, [int])
    if not 0 <= place <= MAX_NUMBER:
        raise InvalidCursor("cursor: this is not one of ours")
    number: int = place
    return number


def page_response(body: dict[str, Any], cursor: str | None, place: int | None = None, **query: Any) -> Response:
    """A page with the ``Link`` (RFC 8288) to the next one; ``place`` is how far into a log it has come."""
    response = Response(orjson.dumps(body), content_type="application/json")
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if place is not None:
        response.headers["Last-Event-ID"] = str(place)
    if cursor:
        wanted = {name: value for name, value in query.items() if value is not None}
        response.headers["Link"] = f'<{request.path}?{urlencode({**wanted, "cursor": cursor})}>; rel="next"'
    return response


def _more(job: Job, place: int, descending: bool) -> bool:
    return place > job.first if descending else place < job.last
