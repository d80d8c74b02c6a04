"""One viewer of a workflow: sends the newest jobs, or the changes that the client missed, then each new change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.joblog import sse
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.events import RESET_FRAME
from chronoverse.live.feed import join
from chronoverse.live.viewer import Viewer


@dataclass(slots=True, eq=False, kw_only=True)
class WorkflowViewer(Viewer):
    """A viewer whose lines are a workflow's changes. It never ends by itself. See :class:`Viewer`.

    ``jobs(first, last)`` returns the frames of the newest jobs, and the newest change that they reflect (a number from
    ``first`` to ``last``). ``opening`` is a pair: the bytes to send before these frames, and ``first``. If ``opening``
    is None, the stream starts with changes.
    """

    jobs: Callable[[int, int], tuple[bytes, int]]
    opening: tuple[bytes, int] | None

    def _next_from_feed(self, subjects: Iterable[str]) -> bytes | None:
        self.needs_store_read = self.opening is not None
        # ``super()`` cannot be used in a dataclass with slots.
        return None if self.opening else Viewer._next_from_feed(self, subjects)

    def _step(self, now: float) -> tuple[bytes | None, int]:
        """Returns the frames of older changes, or of the newest jobs, and the last change that they cover."""
        cursor, feed, opening = self.cursor, self.feed, self.opening
        if opening is None:
            entries = self._cache.store.read(self._ref, cursor, 500)
            events, _ = feed.encode(entries, cursor) if entries else ([], None)
            if events:
                return join(events, self.line_filter), events[-1].number
            if not entries and feed.cursor <= cursor:
                return None, cursor
            least = entry_number(entries[0][0]) if entries else feed.cursor
            # The tail may not have read these entries yet.
            opening, cursor = (RESET_FRAME, least), max(least, feed.cursor)
        try:
            frames, cursor = self.jobs(opening[1], cursor)
        except ShareExceeded as error:
            # Viewer answers ShareExceeded with a cursor, which the client must not get before the jobs.
            raise AtCapacity(str(error)) from error
        self.opening = None
        return opening[0] + frames + sse.cursor(cursor), cursor
