"""One viewer of a workflow: first its newest jobs, or the changes that the viewer has missed, then each change."""

from collections.abc import Callable, Iterable
from typing import Any

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.joblog import sse
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.events import RESET_FRAME
from chronoverse.live.changes import encode_changes, follow
from chronoverse.live.feed import join
from chronoverse.live.viewer import Viewer


class WorkflowViewer(Viewer):
    """A viewer whose lines are changes. It never ends by itself. See :class:`Viewer`.

    ``jobs`` returns the frames of the newest jobs, in states not older than a given change. ``opening`` precedes them;
    None once they were sent, or if they are not wanted.
    """

    __slots__ = ("_jobs", "_opening")

    def __init__(self, *args: Any, jobs: Callable[[int], bytes], opening: bytes | None, **options: Any) -> None:
        self._jobs, self._opening = jobs, opening
        super().__init__(*args, **options)

    def take_cached(self) -> bytes:
        return b""

    def _next_from_feed(self, subjects: Iterable[str]) -> bytes | None:
        if self._opening is not None:
            self.needs_store_read = True
            return None
        return super()._next_from_feed(subjects)

    def _step(self, now: float) -> tuple[bytes | None, int]:
        """The frames of older changes, or of the jobs."""
        cursor, feed = self.cursor, self.feed
        if self._opening is None:
            entries = self._cache.store.read(self._ref, cursor, 500)
            if entries and follow(entries, cursor):
                events = encode_changes(self._ref.workflow_id, entries)
                return join(events, self.line_filter), events[-1].number
            if feed is None or (not entries and feed.cursor <= cursor):
                return None, cursor
            # The tail may not have come so far.
            self._opening, cursor = RESET_FRAME, entry_number(entries[-1][0]) if entries else feed.cursor
        try:
            frames = self._opening + self._jobs(cursor) + sse.cursor(cursor)
        except ShareExceeded as error:
            # The client must not get a cursor before the jobs.
            raise AtCapacity(str(error)) from error
        self._opening = None
        return frames, cursor
