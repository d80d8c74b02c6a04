"""Reads one page of a log, in either order, within a :class:`PageBudget`.

When the budget is used up, the page ends with a cursor for the next page. A page always contains its first line.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Final, NamedTuple

import orjson

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import SearchTooExpensive
from chronoverse.history.tiered_log import MAX_BATCH, BatchReader, has_lines_after, only_in_archive
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, Line

PAGE_BYTES: Final = 4 * 2**20
#: Maximum characters of a line on a page, up to 6 MiB of JSON. Longer lines are truncated and marked.
MAX_LINE_CHARACTERS: Final = 2**20
#: Bytes reserved on a page besides lines: two ids of 128 characters, a cursor of up to 512 characters, and keys.
ENVELOPE_BYTES: Final = 1024
#: Maximum entries read per page, if a filter passes few of them.
MAX_ENTRIES: Final = 200_000
#: Maximum seconds per page, far below any proxy's timeout. Also limits the CPU time of the page's thread.
PAGE_SECONDS: Final = 1.0
#: Maximum seconds per page once the client has closed its sending side: it has left, or only reads.
CLIENT_GONE_SECONDS: Final = 0.25


@dataclass(eq=False)
class PageBudget:
    """A page's budget: ``page_bytes`` and ``seconds``. Ends early if ``client_is_gone``."""

    _: KW_ONLY
    page_bytes: InitVar[int] = PAGE_BYTES - ENVELOPE_BYTES
    seconds: float = PAGE_SECONDS
    client_is_gone: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    bytes_left: int = field(init=False)
    entries_left: int = MAX_ENTRIES
    empty: bool = True

    def __post_init__(self, page_bytes: int) -> None:
        self.bytes_left = page_bytes
        self.restart_time()

    def restart_time(self) -> None:
        self._began = self.clock()

    def is_used_up(self) -> bool:
        return self.bytes_left <= 0 or self.entries_left <= 0 or self.is_out_of_time()

    def is_out_of_time(self) -> bool:
        seconds = self.clock() - self._began
        return seconds > self.seconds or (seconds > CLIENT_GONE_SECONDS and self.client_is_gone())

    def take(self, json: bytes) -> bool:
        """Reserves room for one line. Returns False if there is no room. A page's first line always fits."""
        size = len(json) + len(b",")
        if size > self.bytes_left and not self.empty:
            return False
        self.bytes_left -= size
        self.empty = False
        return True


class Page(NamedTuple):
    """The JSON of lines, in the requested order, up to line ``position``. ``match_count`` excludes context lines."""

    lines: list[bytes]
    position: int
    has_more: bool
    match_count: int = 0
    compared_with: Sequence[str] = ()


def read_all_lines(
    read: BatchReader, archive: ArchiveReader, job: Job, position: int, *, descending: bool = False
) -> Iterator[Page]:
    """All lines strictly after ``position`` in the requested order. Raises what ``read`` and ``archive`` raise."""
    step = -1 if descending else 1
    while position + step >= job.first and only_in_archive(job, position + step):
        lines = archive.json_lines(job.ref, position, MAX_BATCH, descending=descending)
        if not lines:
            break
        position += step * len(lines)
        yield Page(lines, position, True)
    for batch in read(job, position, descending=descending):
        page = Page([line.encode() for line in batch.lines], batch.position, not batch.is_last)
        batch.entries.clear()
        yield page


def first_page(
    pages: Iterator[Page], job: Job, position: int, limit: int, budget: PageBudget, *, descending: bool
) -> Page:
    """A page of the first ``limit`` lines of ``pages``, or fewer if the ``budget`` is used up."""
    found: list[bytes] = []
    for page in pages:
        for json in page.lines:
            if len(json) > MAX_LINE_CHARACTERS:
                json = line_json(Line.decode(json))
            is_over = len(found) == limit or (found and budget.is_used_up())
            if is_over or not budget.take(json):
                position = Line.decode(found[-1]).sequence_num
                return Page(found, position, has_lines_after(job, position, descending))
            found.append(json)
        position = page.position
        if not page.has_more or len(found) == limit or budget.is_used_up():
            return Page(found, position, page.has_more and has_lines_after(job, position, descending))
    return Page(found, position, False)


def line_json(line: Line, **more: object) -> bytes:
    """A line's JSON on a page, with the fields ``more`` added. Truncates and marks a message that is too long."""
    if len(line.message) > MAX_LINE_CHARACTERS:
        line, more = line._replace(message=line.message[:MAX_LINE_CHARACTERS]), {"truncated": True, **more}
    return b"%b,%b" % (line.encode()[:-1], orjson.dumps(more)[1:]) if more else line.encode()


def matches(matcher: Matcher, line: Line) -> bool:
    """Whether ``line`` matches. Raises :class:`SearchTooExpensive` if it is too long for the expression."""
    number, size = line.sequence_num, len(line.message)
    if not matcher.is_feasible(size):
        raise SearchTooExpensive(
            f"line {number} has {size} characters, too many for this expression:"
            " use a simpler one or plain text, or start after this line"
        )
    return matcher.matches(line.message)
