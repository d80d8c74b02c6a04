"""What one page of a log may cost. Every page spends from a :class:`PageBudget`.

When the budget is used up the page ends, with a cursor for the next one. A page always makes progress: it has looked at
one line at least, and the first line that it is to show is on it, even if that line alone is longer than a page.
"""

from collections.abc import Callable
from typing import Final, Self

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.http.shares import Shares

#: Bytes of JSON of one page. JSON makes six bytes of a control character, so a thousand lines of 64 KiB could be 400
#: MB.
PAGE_BYTES: Final = 4 * 2**20
#: Bytes of all pages that a worker is making. Each token's subject has a share. When it is used up, its pages end
#: early.
ALL_PAGES_BYTES: Final = 64 * 2**20
#: Characters of one line on a page: as many as our own runner writes at most. A longer line of a foreign runner is cut
#: off and marked, so that no page has more than 6 MiB of one line. Streams and downloads have all of it.
MAX_LINE_CHARACTERS: Final = 2**20
#: Bytes of a page that are not lines: two ids of 128 characters, a cursor of up to 512, and the keys.
ENVELOPE_BYTES: Final = 1024
#: Entries that one page reads at most when a filter lets few of them pass.
MAX_ENTRIES: Final = 200_000
#: Seconds that one page takes. That is far below any proxy's timeout. A request does one thing after the other, so it
#: uses no more CPU time than this either.
PAGE_SECONDS: Final = 1.0
#: Seconds that a page takes when its client has closed its side of the connection. The client may have left, or it may
#: still read the answer: nobody can tell. An ordinary page is complete by then.
CLIENT_GONE_SECONDS: Final = 0.25


class PageBudget:
    """What is left for one page of ``subject``. Its bytes also count in ``shares``.

    This is a context manager. At its end it gives back the bytes that it has taken from ``shares``. ``clock`` is
    monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float], shares: Shares, subject: str) -> None:
        self.bytes_left = PAGE_BYTES - ENVELOPE_BYTES
        self.entries_left = MAX_ENTRIES
        #: Whether nothing is on the page yet.
        self.empty = True
        self._clock = clock
        self._shares = shares
        self._subject = subject
        self._held = 0
        self._began = clock()
        self._deadline = self._began + PAGE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shares.give_back(self._subject, self._held)

    def is_used_up(self) -> bool:
        """Whether the page must end."""
        return self.bytes_left <= 0 or self.entries_left <= 0 or self._clock() > self._deadline

    def take(self, json: bytes) -> bool:
        """Takes room for one line's ``json``. Returns False when there is none.

        The first line of a page always has room in it. It raises :class:`AtCapacity` or :class:`ShareExceeded` when
        there is no memory for it.
        """
        size = len(json) + len(b",")
        if size > self.bytes_left and not self.empty:
            return False
        try:
            self._shares.take(self._subject, size)
        except (AtCapacity, ShareExceeded):
            if self.empty:
                raise
            return False
        self._held += size
        self.bytes_left -= size
        self.empty = False
        return True

    def shorten(self) -> None:
        """Shortens the page to :data:`CLIENT_GONE_SECONDS`, because the client has closed its side."""
        self._deadline = self._began + CLIENT_GONE_SECONDS

    def use_up(self) -> None:
        """Ends the page after the line that is being added."""
        self.bytes_left = 0
