"""What one page of a log may cost. Every page spends from a :class:`PageBudget`.

When the budget is used up, the page ends with a cursor for the next one. A page has looked at one line at least. The
first line that it is to show is always on it, even if that line alone is longer than a page.
"""

import time
from collections.abc import Callable
from typing import Final

#: Bytes of JSON of one page.
PAGE_BYTES: Final = 4 * 2**20
#: Characters of one line on a page: as many as our own runner writes at most, up to 6 MiB of JSON. A longer line is cut
#: off and marked. Streams and downloads have all of it.
MAX_LINE_CHARACTERS: Final = 2**20
#: Bytes of a page that are not lines: two ids of 128 characters, a cursor of up to 512, and the keys.
ENVELOPE_BYTES: Final = 1024
#: Entries that one page reads at most when a filter lets few of them pass.
MAX_ENTRIES: Final = 200_000
#: Seconds that one page takes, far below any proxy's timeout, and CPU time of its one thread.
PAGE_SECONDS: Final = 1.0
#: Seconds that a page takes when its client has closed its side of the connection: it may have left, or still read. An
#: ordinary page is complete by then.
CLIENT_GONE_SECONDS: Final = 0.25


class PageBudget:
    """What is left for one page of ``page_bytes`` and ``seconds``.

    ``client_is_gone`` says whether the client has closed its side of the connection. ``clock`` is monotonic, in
    seconds.
    """

    def __init__(
        self,
        *,
        page_bytes: int = PAGE_BYTES - ENVELOPE_BYTES,
        seconds: float = PAGE_SECONDS,
        client_is_gone: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes_left = page_bytes
        self.entries_left = MAX_ENTRIES
        #: Whether nothing is on the page yet.
        self.empty = True
        self._client_is_gone = client_is_gone
        self._clock = clock
        began = clock()
        self._deadline = began + seconds
        self._deadline_without_client = began + CLIENT_GONE_SECONDS

    def is_used_up(self) -> bool:
        """Whether the page must end."""
        return self.bytes_left <= 0 or self.entries_left <= 0 or self.is_out_of_time()

    def is_out_of_time(self) -> bool:
        """Whether the page's time is over."""
        now = self._clock()
        return now > self._deadline or (now > self._deadline_without_client and self._client_is_gone())

    def take(self, json: bytes) -> bool:
        """Takes room for one line's ``json``. Returns False when there is none.

        There is always room for the first line of a page.
        """
        size = len(json) + len(b",")
        if size > self.bytes_left and not self.empty:
            return False
        self.bytes_left -= size
        self.empty = False
        return True

    def use_up(self) -> None:
        """Ends the page after the line that is being added."""
        self.bytes_left = 0
