"""What one page of a log may cost. There is one place for these bounds: every page spends from a :class:`PageBudget`.

When the budget is used up the page ends, with a cursor that goes on. A page always makes progress: it has looked at
one line at least, and the first line that it is to show is on it, even if that alone is longer than a page.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import gevent.socket
from flask import request

from chronoverse.web.connection import on_hangup

#: Bytes of JSON of one page. JSON makes six bytes of a control character, so that a thousand lines of 64 KiB could
#: be 400 MB.
PAGE_BYTES: Final = 4 * 2**20
#: Characters of one line on a page, as many as our own runner writes at most. Of a longer foreign line there are only
#: these, and a mark, so that no page has more than 6 MiB of one line. Streams and downloads have all of it.
LINE_CHARACTERS: Final = 2**20
#: Bytes of a page that are not lines: two ids of 128 characters, a cursor of up to 512, and the keys.
ENVELOPE_BYTES: Final = 1024
#: Entries that one page looks at when a filter lets few of them pass.
PAGE_ENTRIES: Final = 200_000
#: Seconds that one page takes, far below any proxy's patience. A request does one thing after the other, so it uses no
#: more CPU time than this either.
PAGE_SECONDS: Final = 1.0
#: Seconds that a page takes when its client has closed its side. A client may do that and still read the answer, which
#: nobody can tell from leaving. An ordinary page is whole by then.
LEFT_SECONDS: Final = 0.25


class PageBudget:
    """What is left for one page. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.bytes_left = PAGE_BYTES - ENVELOPE_BYTES
        self.entries_left = PAGE_ENTRIES
        #: Whether nothing is on the page yet.
        self.empty = True
        self._clock = clock
        self._began = clock()
        self._deadline = self._began + PAGE_SECONDS

    def is_used_up(self) -> bool:
        """Whether the page must end."""
        return self.bytes_left <= 0 or self.entries_left <= 0 or self._clock() > self._deadline

    def take(self, json: bytes) -> bool:
        """Makes room for one line's ``json``; False when there is none. The first line always fits."""
        size = len(json) + len(b",")
        if size > self.bytes_left and not self.empty:
            return False
        self.bytes_left -= size
        self.empty = False
        return True

    def leave(self) -> None:
        """The client has left, or has closed its side: less time will do."""
        self._deadline = self._began + LEFT_SECONDS

    def end(self) -> None:
        """The page ends behind the line that is added now."""
        self.bytes_left = 0


@contextlib.contextmanager
def page_budget(clock: Callable[[], float]) -> Iterator[PageBudget]:
    """The budget of the page that the request asks for. It gets smaller when the client leaves."""
    budget = PageBudget(clock)
    sock = request.environ.get("gunicorn.socket")
    if not isinstance(sock, gevent.socket.socket):
        yield budget
        return
    undo = on_hangup(sock, lambda _: budget.leave())
    try:
        yield budget
    finally:
        undo()
