"""One event stream: replays older lines, then follows the feed's ring, then sends the end.

The cursor is the number of the last line sent. A slow viewer that falls out of the ring replays again.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Final

from chronoverse.errors import ArchiveUnavailable, AtCapacity, ScansUnavailable, ShareExceeded, StoreError
from chronoverse.joblog import sse
from chronoverse.joblog.events import TOKEN_EXPIRED, connected_frame, error_frame
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.feed import BUSY, Feed
from chronoverse.live.replay import Replay
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail, count_store_error

#: Seconds without an answer from the store before a stream ends with an error.
STORE_PATIENCE_SECONDS: Final = 30.0
RETRY_READ_SECONDS: Final = 0.5
#: Seconds between cursor updates while no line passes the filter. An update can come half a second late.
CURSOR_SECONDS: Final = 0.4


# A worker has thousands of viewers.
@dataclass(slots=True, eq=False)
class Viewer:
    """Produces the bytes of one event stream: the lines after line ``after`` that pass ``line_filter`` (None: all).

    ``job`` was just fetched. If it is None, the viewer waits ``wait`` seconds for the job. The token of ``subject``
    expires at ``expires_at``, and the stream reaches its maximum age at ``closes_at``, both on the tail's clock. Only
    :meth:`next` queries the store.
    """

    _cache: ReplayCache
    _tail: Tail
    _ref: JobRef
    job: InitVar[Job | None]
    _: KW_ONLY
    after: InitVar[int] = 0
    line_filter: LineFilter | None = None
    wait: float = 0
    retry_ms: int = 2000
    heartbeat_seconds: float = 15
    expires_at: float = math.inf
    closes_at: float = math.inf
    subject: str = ""
    cursor: int = field(init=False)
    done: bool = False
    #: Why the stream ended: ``end``, ``error``, ``expired``, ``age``, ``drain``, ``left`` or ``slow``; for ``/wait``
    #: also ``matched``. Empty before.
    reason: str = ""
    #: Whether :meth:`try_next` returned None because a store read is needed.
    needs_store_read: bool = False
    #: Called when the viewer may have more to send.
    on_wake: Callable[[], object] | None = None
    #: When the viewer last sent something, and when to wake it, on the tail's clock.
    sent_at: float = field(init=False)
    due: float = 0.0
    #: Whether the cursor has moved past filtered-out lines, and the client has not received the new cursor yet.
    has_skipped: bool = False
    #: The job's feed, shared with its other viewers.
    feed: Feed = field(init=False)
    _has_left: bool = False
    _replay: Replay | None = None
    #: When this viewer's reads began to fail, and what failed first.
    _failing: tuple[float, str] | None = None
    _position: int | None = None
    _version: int = 0
    #: When to stop waiting for a job that does not exist yet, on the tail's clock.
    _awaited_until: float | None = None
    _pending: bytes = b""

    def __post_init__(self, job: Job | None, after: int) -> None:
        self.cursor, self.sent_at = after, self._tail.clock()
        self._awaited_until = None if job else self.sent_at + self.wait
        self._pending = connected_frame(self.retry_ms) + (job.to_frame() if job else b"")
        self.feed = feed = self._tail.join(self._ref, job, self)
        self._ref, self._version = feed.ref, feed.version
        # The feed can have a newer state of the job. If that is the end, its frame follows the last line instead.
        if feed.job and (job is None or (feed.job.age > job.age and not feed.job.status.terminal)):
            self._pending += feed.job_frame or b""

    def chunks(self) -> Iterator[bytes]:
        """Yields chunks until the stream is done, for WSGI servers that give no access to the socket."""
        woken = threading.Event()
        self.on_wake = woken.set
        while not self.done:
            woken.clear()
            chunk = self.next()
            if chunk:
                yield chunk
            elif chunk is None and not self.done:
                woken.wait()

    def wake(self) -> None:
        if self.on_wake is not None:
            self.on_wake()

    def close_with_retry(self, retry_ms: int) -> None:
        """Ends the stream before the log ends. The client reconnects to another process after ``retry_ms``."""
        self.retry_ms = retry_ms
        # Sets ``closes_at`` before ``due``: a concurrent call of ``next`` computes ``due`` from it.
        self.closes_at = self.due = -math.inf
        self.wake()

    @property
    def closes_early(self) -> bool:
        """Whether :meth:`close_with_retry` was called."""
        return self.closes_at == -math.inf

    def close(self) -> None:
        """Leaves the feed. Idempotent."""
        if not self._has_left:
            self._has_left = True
            self._tail.leave(self.feed, self)

    def next(self) -> bytes | None:
        """Returns the next bytes. If empty, call again immediately. None if there is nothing until the next wake."""
        chunk = self.try_next()
        if chunk is None and self.needs_store_read:
            now = self._tail.clock()
            chunk = self._read_older(now)
            if chunk is None:
                return self._idle(now)
            if chunk:
                self._sent(now)
        return chunk

    def take_cached(self) -> bytes:
        if self.done or self._pending:
            return b""
        frames, cursor = self._cache.cached(self._ref, self.line_filter, self.cursor)
        self._tail.count_delivered(self._ref, cursor - self.cursor, len(frames))
        self.cursor = cursor
        return frames

    def try_next(self, subjects: Iterable[str] | None = None) -> bytes | None:
        """Like :meth:`next`, without store queries. If one is needed, sets ``needs_store_read`` and returns None."""
        now = self._tail.clock()
        self.needs_store_read = False
        if self.done:
            return None
        chunk: bytes | None
        chunk, self._pending = self._pending, b""
        chunk = chunk or self._close_early(now) or self._next_from_feed(subjects or (self.subject,))
        if chunk:
            self._sent(now)
        return self._idle(now) if chunk is None and not self.needs_store_read else chunk

    # For the broadcast group, which sends one viewer's bytes to all its caught-up members

    @property
    def ring_position(self) -> int | None:
        """The viewer's position in the ring. None if it must not get the same bytes as its group."""
        is_current = self.feed.job is not None and self.feed.version == self._version
        return self._position if is_current and not self._pending and not self.done else None

    @property
    def is_replaying(self) -> bool:
        return self._position is None

    @property
    def ends_at(self) -> float:
        return min(self.expires_at, self.closes_at)

    def follow(self, leader: "Viewer") -> None:
        self.cursor, self._position, self.has_skipped = leader.cursor, leader._position, leader.has_skipped
        self._sent(leader.sent_at)

    def note_skipped(self) -> None:
        """Notes that the cursor has passed filtered-out lines."""
        self.has_skipped = True
        self._schedule()

    @property
    def has_more(self) -> bool:
        return self.cursor < self.feed.cursor

    def _sent(self, now: float) -> None:
        self.sent_at = now
        self._schedule()

    def _schedule(self) -> None:
        self.due = min(self.sent_at + self.heartbeat_seconds, self.expires_at, self.closes_at)
        if self.has_skipped:
            self.due = min(self.due, self.sent_at + CURSOR_SECONDS)
        if self._awaited_until is not None and self.feed.job is None:
            self.due = min(self.due, self._awaited_until)

    def _retry(self, at: float) -> None:
        # Computes ``due`` again, because it has passed if the previous retry failed.
        self._schedule()
        self.due = min(self.due, at)

    def _close_early(self, now: float) -> bytes:
        """The closing frame, if the stream must end before the log does; else empty."""
        if now >= self.expires_at:
            return self._finish("expired", error_frame(TOKEN_EXPIRED))
        if now >= self.closes_at:
            return self._finish("drain" if self.closes_early else "age", sse.retry(self.retry_ms))
        return b""

    def _finish(self, reason: str, chunk: bytes) -> bytes:
        self.done = True
        self.reason = reason
        return chunk

    def _fail(self, text: str) -> bytes:
        return self._finish("error", error_frame(text))

    def _idle(self, now: float) -> bytes | None:
        feed = self.feed
        if self.has_skipped and now >= self.sent_at + CURSOR_SECONDS:
            self.has_skipped = False
            self._sent(now)
            return sse.cursor(self.cursor)
        silent = self._tail.silent_seconds(feed.ref)
        since, which = min((now - silent, "store"), self._failing or (now, "store"))
        if now - since >= STORE_PATIENCE_SECONDS:
            return self._fail(f"the {which} has been unavailable for {round(now - since)} s")
        if self._awaited_until is not None and feed.job is None and now >= self._awaited_until:
            return self._fail(f"the job did not appear within {self.wait:g} s")
        if now - self.sent_at >= self.heartbeat_seconds and self._tail.healthy(feed.ref):
            self._sent(now)
            return sse.HEARTBEAT
        if now >= self.due and now < self.sent_at + self.heartbeat_seconds:
            self._schedule()
        return None

    def _next_from_feed(self, subjects: Iterable[str]) -> bytes | None:
        feed = self.feed
        if feed.version != self._version:
            notices, self._version = feed.notices_after(self._version)
            return notices
        self._tail.drop_stale_ring(feed)
        # Read before taking the slice: if the feed is closed here, the slice is the last one.
        final, cursor = feed.final, feed.cursor
        position = feed.seek(self.cursor) if self._position is None else self._position
        found = feed.take(position, self.line_filter, subjects) if position is not None else None
        if found is BUSY:
            # The filter budget is used up: try again in 0.1 s.
            self._retry(self._tail.clock() + 0.1)
            return None
        if position is None or found is None:
            self._position = None
            self.needs_store_read = True
            return None
        self._replay = self._failing = None
        self._tail.count_delivered(self._ref, found.position - position, len(found.frames))
        frames = self._with_cursor(found.frames)
        # If the store has lost lines, a viewer can be ahead of the ring, and then looks up its position each time.
        self._position = found.position if found.cursor >= self.cursor else None
        if found.cursor > self.cursor:
            self.cursor = found.cursor
            if not frames:
                self.note_skipped()
        if final is not None and found.cursor >= cursor:
            final = self._with_cursor(final) if not frames else final
            return self._finish("end" if feed.job and feed.job.end else "error", frames + final)
        return frames or (b"" if found.cursor < cursor else None)

    def _with_cursor(self, frames: bytes) -> bytes:
        if not (frames and self.has_skipped):
            return frames
        self.has_skipped = False
        return sse.cursor(self.cursor) + frames

    def _step(self, now: float) -> tuple[bytes | None, int]:
        """See :meth:`Replay.step`."""
        if self._replay is None:
            self._replay = Replay(self._cache, self.feed, self.line_filter, self._tail.lease_seconds, self.subject)
        return self._replay.step(self.cursor, self.ends_at - now)

    def _read_older(self, now: float) -> bytes | None:
        """Reads the next older lines. None if no line follows yet, or if the read failed and will be retried."""
        try:
            found, cursor = self._step(now)
            if self.feed.final is not None and cursor >= self.feed.cursor:
                # The viewer must know of the last redaction before its stream ends.
                self._tail.check_jobs([self.feed])
        except ShareExceeded:
            # Other streams of this token have their turn first. A cursor block keeps the connection alive.
            return sse.cursor(self.cursor)
        except (StoreError, AtCapacity, ScansUnavailable) as error:
            which = "archive" if isinstance(error, ArchiveUnavailable) else "store"
            if isinstance(error, StoreError):
                count_store_error("replay", error)
            else:
                which = "log search"
            self._failing = self._failing or (now, which)
            self._retry(now + RETRY_READ_SECONDS)
            return None
        self._failing = None
        self._tail.count_replayed(self._ref, cursor - self.cursor, len(found or b""))
        frames = self._with_cursor(found or b"")
        self.cursor = cursor
        if self._replay and self._replay.reason:
            return self._finish(self._replay.reason, frames)
        return None if found is None else frames
