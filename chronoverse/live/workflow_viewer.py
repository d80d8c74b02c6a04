"""One viewer of a workflow: first its newest jobs, or the changes that the viewer has missed, then each change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.joblog import sse
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.events import RESET_FRAME
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.changes import encode_changes, follow
from chronoverse.live.feed import Feed, join
from chronoverse.live.replay import Replay
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer


@dataclass(slots=True, kw_only=True)
class ChangesReplay(Replay):
    """Reads older changes, and the jobs, for one viewer. It never ends the stream."""

    jobs: Callable[[int], bytes]
    #: What comes before these frames. None when they were sent, or are not wanted.
    opening: bytes | None

    def step(self, cursor: int, feed: Feed | None, now: float, ends_at: float) -> tuple[bytes | None, int]:
        """The frames after change ``cursor``, None when there are none yet, and the last number that they cover."""
        if self.opening is None:
            entries = self.cache.store.read(self.ref, cursor, 500)
            if entries and follow(entries, cursor):
                events = encode_changes(self.ref.workflow_id, entries)
                return join(events, self.line_filter), events[-1].number
            if feed is None or (not entries and feed.cursor <= cursor):
                return None, cursor
            # The tail may not have come so far.
            self.opening, cursor = RESET_FRAME, entry_number(entries[-1][0]) if entries else feed.cursor
        try:
            frames = self.opening + self.jobs(cursor) + sse.cursor(cursor)
        except ShareExceeded as error:
            # The client must not get a cursor before the jobs.
            raise AtCapacity(str(error)) from error
        self.opening = None
        return frames, cursor


class WorkflowViewer(Viewer):
    """A viewer whose lines are changes. See :class:`Viewer`; ``jobs`` and ``opening`` are of :class:`ChangesReplay`."""

    __slots__ = ("_changes",)

    def __init__(
        self,
        cache: ReplayCache,
        tail: Tail,
        ref: JobRef,
        state: Job,
        *,
        jobs: Callable[[int], bytes],
        opening: bytes | None,
        **options: Any,
    ) -> None:
        replay = (cache, ref, options.get("line_filter"), None, tail.lease_seconds, options.get("subject", ""))
        self._changes = ChangesReplay(*replay, jobs=jobs, opening=opening)
        super().__init__(cache, tail, ref, state, **options)

    def take_cached(self) -> bytes:
        return b""

    def _next_from_feed(self, subjects: Iterable[str]) -> bytes | None:
        if self._changes.opening is not None:
            self.needs_store_read = True
            return None
        return super()._next_from_feed(subjects)

    def _new_replay(self) -> Replay:
        return self._changes
