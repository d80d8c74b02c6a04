"""What one page of a log may cost. There is one place for these bounds: every page spends from a :class:`PageBudget`.

When the budget is used up the page ends, with a cursor that goes on. A page always makes progress: it has looked at
one line at least, and the first line that it is to show is on it, even if that alone is longer than a page.
"""

from collections.abc import Callable
from typing import Final, Self

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.http.shares import Shares

#: Bytes of JSON of one page. JSON makes six bytes of a control character, so that a thousand lines of 64 KiB could
#: be 400 MB.
PAGE_BYTES: Final = 4 * 2**20
#: Bytes of all pages that a worker is making, with a share for each token's subject. When a share is used up its pages
#: end early.
ALL_PAGES_BYTES: Final = 64 * 2**20
#: Characters of one line on a page, as many as our own runner writes at most. Of a longer foreign line there are only
#: these, and a mark, so that no page has more than 6 MiB of one line. Streams and downloads have all of it.
MAX_LINE_CHARACTERS: Final = 2**20
#: Bytes of a page that are not lines: two ids of 128 characters, a cursor of up to 512, and the keys.
ENVELOPE_BYTES: Final = 1024
#: Entries that one page looks at when a filter lets few of them pass.
MAX_ENTRIES: Final = 200_000
#: Seconds that one page takes, far below any proxy's patience. A request does one thing after the other, so it uses no
#: more CPU time than this either.
PAGE_SECONDS: Final = 1.0
#: Seconds that a page takes when its client has closed its side. A client may do that and still read the answer, which
#: nobody can tell from leaving. An ordinary page is whole by then.
CLIENT_GONE_SECONDS: Final = 0.25


class PageBudget:
    """What is left for one page of ``subject``, which has a share of all ``pages``. ``clock`` is monotonic, in seconds.

    A context manager: it gives back its part of the share when it is left.
    """

    def __init__(self, clock: Callable[[], float], pages: Shares, subject: str) -> None:
        self.bytes_left = PAGE_BYTES - ENVELOPE_BYTES
        self.entries_left = MAX_ENTRIES
        #: Whether nothing is on the page yet.
        self.empty = True
        self._clock = clock
        self._pages = pages
        self._subject = subject
        self._held = 0
        self._began = clock()
        self._deadline = self._began + PAGE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pages.give_back(self._subject, self._held)

    def is_used_up(self) -> bool:
        """Whether the page must end."""
        return self.bytes_left <= 0 or self.entries_left <= 0 or self._clock() > self._deadline

    def take(self, json: bytes) -> bool:
        """Makes room for one line's ``json``; False when there is none.

        The first line fits, or raises :class:`AtCapacity` or :class:`ShareExceeded`.
        """
        size = len(json) + len(b",")
        if size > self.bytes_left and not self.empty:
            return False
        try:
            self._pages.take(self._subject, size)
        except (AtCapacity, ShareExceeded):
            if self.empty:
                raise
            return False
        self._held += size
        self.bytes_left -= size
        self.empty = False
        return True

    def shorten(self) -> None:
        """The client has left, or has closed its side: less time will do."""
        self._deadline = self._began + CLIENT_GONE_SECONDS

    def use_up(self) -> None:
        """The page ends behind the line that is added now."""
        self.bytes_left = 0
