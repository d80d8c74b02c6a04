"""One reader's walk through a job's log: hello, replay, live, the end.

A viewer is a cursor. It replays with reads of its own from the offset it asked for until it stands inside the
tail's ring, then shares the ring's bytes; when it falls behind the ring it reads for itself again. So memory is
bounded per job, never per viewer, and a slow one loses nothing and costs nobody else anything.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from chronoverse.errors import StoreError
from chronoverse.joblog import sse
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.feed import Feed
from chronoverse.live.replay import Replay
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail

#: Seconds the store may stay away before a viewer is told so and let go.
STORE_PATIENCE_SECONDS: Final = 30.0
#: Seconds a viewer without the tail waits before it tries the store again.
RETRY_READ_SECONDS: Final = 0.5
#: Seconds after which a waiting viewer looks around by itself, should the tail's attendant have died.
PARK_SECONDS: Final = 30.0

_CONNECTED = b'{"status":"connected"}'


@dataclass(frozen=True, slots=True)
class ViewerRequest:
    """What a viewer asks for: the lines strictly after ``after``, of one ``stream`` or of both.

    ``job`` is a fresh look at the job, None when it is still awaited, for ``wait`` seconds. ``retry_ms`` is the
    client's reconnection time. ``expires_at`` (token) and ``closes_at`` (maximum age) are on the monotonic clock.
    """

    ref: JobRef
    job: Job | None
    after: int = 0
    stream: str | None = None
    wait: float = 0
    retry_ms: int = 2000
    heartbeat_seconds: float = 15
    lease_seconds: float = 30
    expires_at: float = float("inf")
    closes_at: float = float("inf")


class Viewer:
    """Bytes for one connection. :meth:`next` never waits; :meth:`chunks` waits between polls.

    Something that writes by itself (``on_wake``) asks by :meth:`try_next` first, which does not even read the store.
    ``clock`` is monotonic, in seconds. Thousands of these wait at a time, so each keeps only what it needs.
    """

    __slots__ = (
        "_awaited_until", "_clock", "_closes_at", "_expires_at", "_feed", "_finished", "_heartbeat", "_lease_seconds",
        "_pending", "_position", "_redactions_seen", "_ref", "_replay", "_replay_cache", "_retry_ms", "_sent_at",
        "_state", "_stream", "_tail", "_wait", "_woken", "closes_early", "cursor", "done", "due", "needs_store_read",
        "on_wake", "reason",
    )  # fmt: skip

    def __init__(
        self, request: ViewerRequest, cache: ReplayCache, tail: Tail, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cursor = request.after
        self.done = False
        #: Why it is done: ``end``, ``error``, ``expired``, ``age``, ``drain``, ``left`` or ``slow``; until then empty.
        self.reason = ""
        #: Whether it was told to end, for its client to resume elsewhere.
        self.closes_early = False
        #: Whether the last :meth:`try_next` ended where only a read of the store can go on.
        self.needs_store_read = False
        #: Called instead of waking :meth:`chunks`.
        self.on_wake: Callable[[], None] | None = None
        self._replay_cache = cache
        self._tail = tail
        self._clock = clock
        self._woken: threading.Event | None = None
        self._replay: Replay | None = None
        self._position: int | None = None
        self._feed: Feed | None = None
        self._ref, self._stream = request.ref, request.stream
        self._retry_ms = request.retry_ms
        self._heartbeat, self._lease_seconds = request.heartbeat_seconds, request.lease_seconds
        self._expires_at, self._closes_at = request.expires_at, request.closes_at
        self._sent_at = clock()
        self._wait = request.wait
        job = request.job
        #: On the clock, until when the job may still come.
        self._awaited_until = None if job else self._sent_at + request.wait
        self._finished = job if job and job.end else None
        self._state = job.to_frame() if job else None
        self._pending = sse.frame("connected", _CONNECTED, retry_ms=request.retry_ms) + (self._state or b"")
        self.due = 0.0
        self._redactions_seen = 0
        self._schedule()
        if self._finished is None:
            self._feed = feed = tail.join(request.ref, job, self)
            self._ref, self._redactions_seen = feed.ref, len(feed.redactions)
            if job and feed.job and (job.status, job.attempt) == (feed.job.status, feed.job.attempt):
                self._state = feed.state

    def chunks(self) -> Iterator[bytes]:
        """What to send, each in one write, until the viewer is done. Leaves the tail when it is closed."""
        self._woken = woken = threading.Event()
        try:
            while not self.done:
                woken.clear()
                chunk = self.next()
                if chunk:
                    yield chunk
                elif chunk is None and not self.done:
                    woken.wait(RETRY_READ_SECONDS if self._feed is None else PARK_SECONDS)
        finally:
            self.close()

    def wake(self) -> None:
        """Has :meth:`chunks` poll again, or whoever else polls."""
        if self.on_wake is not None:
            self.on_wake()
        elif self._woken is not None:
            self._woken.set()

    def close_with_retry(self, retry_ms: int) -> None:
        """Has the stream end now, without an end: its client is to come back after ``retry_ms``, to another process."""
        self.closes_early = True
        self._retry_ms = retry_ms
        # In this order: a poll under way schedules by the former.
        self._closes_at = self.due = float("-inf")
        self.wake()

    def disconnect(self, why: str = "left") -> None:
        """The client has gone: ends :meth:`chunks` without another byte."""
        self.done = True
        self.reason = why
        self.wake()

    def close(self) -> None:
        """Leaves the tail. Can be called twice."""
        if self._feed is not None:
            self._set_position(None)
            self._tail.leave(self._feed, self)
            self._feed = None

    def next(self) -> bytes | None:
        """The next bytes; empty when there may be more at once; None when there is nothing until it is woken."""
        chunk = self.try_next()
        if chunk is None and self.needs_store_read:
            now = self._clock()
            chunk = self._read_older(now)
            if chunk is None:
                return self._idle(now)
            if chunk:
                self._sent(now)
        return chunk

    def take_cached(self) -> bytes:
        """What a viewer that comes back has missed, as far as others have read it just now: to go with its hello."""
        if self._feed is None or self.done or self._pending:
            return b""
        frames, cursor = self._replay_cache.cached(self._ref, self._stream, self.cursor)
        self._tail.stats.count_delivered(cursor - self.cursor, len(frames))
        self.cursor = cursor
        return frames

    def try_next(self) -> bytes | None:
        """As :meth:`next`, without reading the store. Where that is needed, sets ``needs_store_read``, returns None."""
        now, position, feed = self._clock(), self._position, self._feed
        if now < self.due and position is not None and feed is not None and feed.state is self._state:
            # The way of nearly every line to nearly every viewer.
            found = feed.take(position, self._stream)
            if found is not None and found.frames and feed.final is None:
                self.cursor, self._position = found.cursor, found.position
                self._sent_at = now
                return found.frames
        return self._next_step(now)

    # For whoever stands in for the viewer while it is caught up

    @property
    def feed(self) -> Feed | None:
        """What it shares with the other viewers of its job, while it does."""
        return self._feed

    @property
    def ring_position(self) -> int | None:
        """Its position in the ring when nothing sets it apart from the others there, so that one can stand for all."""
        feed = self._feed
        plain = feed is not None and self._state is not None and feed.state is self._state
        return self._position if plain and self._stream is None and not self._pending and not self.done else None

    @property
    def sent_at(self) -> float:
        """When it last sent something, on its clock."""
        return self._sent_at

    @property
    def ends_at(self) -> float:
        """When it must end whatever happens, on its clock."""
        return min(self._expires_at, self._closes_at)

    def advance(self, cursor: int, position: int, sent_at: float) -> None:
        """All up to ``cursor``, which is ``position`` in the ring, was sent in its stead, last at ``sent_at``."""
        self.cursor, self._position = cursor, position
        self._sent(sent_at)

    @property
    def has_more(self) -> bool:
        """Whether the tail holds more than was found last: a take is bounded."""
        return self._feed is not None and self.cursor < self._feed.cursor

    def _next_step(self, now: float) -> bytes | None:
        self.needs_store_read = False
        if self.done:
            return None
        chunk, self._pending = self._pending, b""
        if not chunk:
            chunk = self._close_early(now)
        if not chunk:
            fresh = self._next_from_feed()
            if fresh is None:
                return None if self.needs_store_read else self._idle(now)
            chunk = fresh
        if chunk:
            self._sent(now)
        return chunk

    def _sent(self, now: float) -> None:
        self._sent_at = now
        self._schedule()

    def _schedule(self) -> None:
        self.due = min(self._sent_at + self._heartbeat, self._expires_at, self._closes_at)
        if self._awaited_until is not None and (self._feed is None or self._feed.job is None):
            self.due = min(self.due, max(self._awaited_until, self._sent_at))

    def _close_early(self, now: float) -> bytes:
        """The closing bytes when the stream must end before the log does, else none."""
        if now >= self._expires_at:
            return self._finish("expired", sse.frame("error", sse.TOKEN_EXPIRED.encode()))
        if now >= self._closes_at:
            return self._finish("drain" if self.closes_early else "age", sse.retry(self._retry_ms))
        return b""

    def _finish(self, reason: str, chunk: bytes) -> bytes:
        self.done = True
        self.reason = reason
        return chunk

    def _fail(self, text: str) -> bytes:
        return self._finish("error", sse.frame("error", sse.fold(text)))

    def _idle(self, now: float) -> bytes | None:
        """What to send when there is nothing to send."""
        feed = self._feed
        silent = self._tail.silent_seconds(feed.ref) if feed else 0.0
        seconds, which = max((silent, "store"), self._replay.failing_for(now) if self._replay else (0.0, ""))
        if seconds >= STORE_PATIENCE_SECONDS:
            return self._fail(f"the {which} has been away for {round(seconds)} s")
        if self._awaited_until is not None and feed is not None and feed.job is None and now >= self._awaited_until:
            return self._fail(f"no such job came within {self._wait:g} s")
        if now - self._sent_at >= self._heartbeat and feed is not None and self._tail.healthy(feed.ref):
            self._sent(now)
            return sse.HEARTBEAT
        if now >= self.due and now < self._sent_at + self._heartbeat:
            self._schedule()
        return None

    def _next_from_feed(self) -> bytes | None:
        """What the tail holds for us, or None. Sets ``needs_store_read`` when older lines are needed."""
        feed = self._feed
        if feed is None:
            self.needs_store_read = True
            return None
        if feed.state is not self._state:
            news, self._redactions_seen, self._state = feed.pending_events(self._redactions_seen, self._state)
            return news
        # Asked before taking: when it was closed already, what is found now is all there is.
        final, cursor = feed.final, feed.cursor
        position = feed.seek(self.cursor) if self._position is None else self._position
        found = feed.take(position, self._stream) if position is not None else None
        if position is None or found is None:
            self._set_position(None)
            self.needs_store_read = True
            return None
        self._replay = None
        if found.cursor > self.cursor:
            self.cursor = found.cursor
        # A viewer ahead of the ring (the store went back) finds its place anew each time.
        self._set_position(found.position if found.cursor >= self.cursor else None, position)
        if final is not None and found.cursor >= cursor:
            return self._finish("end" if feed.job and feed.job.end else "error", found.frames + final)
        return found.frames or (b"" if found.cursor < cursor else None)

    def _set_position(self, position: int | None, start: int = 0) -> None:
        """Goes on from ``position`` in the ring, having come in at ``start``; None to take no longer from it."""
        feed = self._feed
        if feed is not None and (position is None) is not (self._position is None):
            if position is None:
                feed.leave_ring()
            else:
                self._tail.stats.count_delivered(*feed.enter_ring(start))
        self._position = position

    def _read_older(self, now: float) -> bytes | None:
        """The next lines by a read of our own."""
        if self._replay is None:
            self._replay = Replay(self._replay_cache, self._ref, self._stream, self._finished, self._lease_seconds)
        try:
            step = self._replay.step(self.cursor, self._feed, now)
        except StoreError as error:
            self._replay.record_failure(now, error)
            self.due = min(self.due, now + RETRY_READ_SECONDS)
            return None
        self._tail.stats.count_replayed(step.cursor - self.cursor, len(step.frames or b""))
        self.cursor = step.cursor
        return self._finish(step.reason, step.frames or b"") if step.reason else step.frames
