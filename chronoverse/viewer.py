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

from chronoverse import sse
from chronoverse.channel import Channel
from chronoverse.errors import StoreError
from chronoverse.joblog import Job, JobRef
from chronoverse.replay import Replay
from chronoverse.tail import Source, Tail

#: Seconds the store may stay away before a viewer is told so and let go.
STORE_PATIENCE_SECONDS: Final = 30.0
#: Seconds a viewer without the tail waits before it tries the store again.
RETRY_READ_SECONDS: Final = 0.5
#: Seconds after which a waiting viewer looks around by itself, should the tail's attendant have died.
PARK_SECONDS: Final = 30.0

_CONNECTED = b'{"status":"connected"}'


@dataclass(frozen=True, slots=True)
class Request:
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
    """Bytes for one connection. :meth:`poll` never waits; :meth:`chunks` waits between polls.

    ``stop`` says that the process is going down. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        request: Request,
        store: Source,
        tail: Tail,
        *,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request
        self.cursor = request.after
        self.done = False
        #: Why it is done: ``end``, ``error``, ``expired``, ``age``, ``stop`` or ``left``; empty while it is not.
        self.reason = ""
        self._tail = tail
        self._stop = stop or threading.Event()
        self._clock = clock
        self._woken = threading.Event()
        self._position: int | None = None
        self._channel: Channel | None = None
        self._sent_at = self._read_at = clock()
        self._wait_until = self._sent_at + request.wait
        job = request.job
        finished = job if job and job.end else None
        self._past = Replay(store, request.ref, request.stream, finished, request.lease_seconds)
        self._state = job.to_frame() if job else None
        self._pending = sse.frame("connected", _CONNECTED, retry_ms=request.retry_ms) + (self._state or b"")
        self.due = 0.0
        self._schedule()
        if finished is None:
            self._channel = tail.join(request.ref, job, self)
            known = self._channel.job
            if job and known and (job.status, job.attempt) == (known.status, known.attempt):
                self._state = self._channel.state

    def chunks(self) -> Iterator[bytes]:
        """What to send, each in one write, until the viewer is done. Leaves the tail when it is closed."""
        try:
            while not self.done:
                self._woken.clear()
                chunk = self.poll()
                if chunk:
                    yield chunk
                elif chunk is None and not self.done:
                    self._woken.wait(RETRY_READ_SECONDS if self._channel is None else PARK_SECONDS)
        finally:
            self.close()

    def wake(self) -> None:
        """Has :meth:`chunks` poll again."""
        self._woken.set()

    def hang_up(self) -> None:
        """The client has gone: ends :meth:`chunks` without another byte."""
        self.done = True
        self.reason = "left"
        self.wake()

    def close(self) -> None:
        """Leaves the tail. Can be called twice."""
        if self._channel is not None:
            self._tail.leave(self._channel, self)
            self._channel = None

    def poll(self) -> bytes | None:
        """The next bytes; empty when there may be more at once; None when there is nothing until it is woken."""
        now = self._clock()
        chunk, self._pending = self._pending, b""
        if not chunk:
            chunk = self._close_early(now)
        if not chunk:
            fresh = self._next(now)
            if fresh is None:
                return self._idle(now)
            chunk = fresh
        if chunk:
            self._sent_at = now
            self._schedule()
        return chunk

    def _schedule(self) -> None:
        request = self.request
        self.due = min(self._sent_at + request.heartbeat_seconds, request.expires_at, request.closes_at)
        if request.job is None and (self._channel is None or self._channel.job is None):
            self.due = min(self.due, max(self._wait_until, self._sent_at))

    def _close_early(self, now: float) -> bytes:
        """The closing bytes when the stream must end before the log does, else none."""
        if self._stop.is_set():
            return self._finish("stop", sse.retry(self.request.retry_ms))
        if now >= self.request.expires_at:
            return self._finish("expired", sse.frame("error", b"token expired"))
        if now >= self.request.closes_at:
            return self._finish("age", sse.retry(self.request.retry_ms))
        return b""

    def _finish(self, reason: str, chunk: bytes) -> bytes:
        self.done = True
        self.reason = reason
        return chunk

    def _fail(self, text: str) -> bytes:
        return self._finish("error", sse.frame("error", sse.fold(text)))

    def _idle(self, now: float) -> bytes | None:
        """What to send when there is nothing to send."""
        silent = now - self._read_at if self._channel is None else self._tail.silent_seconds()
        if silent >= STORE_PATIENCE_SECONDS:
            return self._fail(f"the store has been away for {round(silent)} s")
        if self._channel is not None and self._channel.job is None and now >= self._wait_until:
            return self._fail(f"no such job came within {self.request.wait:g} s")
        if now - self._sent_at >= self.request.heartbeat_seconds and self._channel is not None and self._tail.healthy:
            self._sent_at = now
            self._schedule()
            return sse.HEARTBEAT
        return None

    def _next(self, now: float) -> bytes | None:
        channel = self._channel
        if channel is None:
            return self._replay(now)
        if channel.state is not self._state:
            self._state = channel.state
            return self._state or b""
        # Asked before taking: when it was closed already, what is taken now is all there is.
        final, cursor = channel.final, channel.cursor
        position = channel.seek(self.cursor) if self._position is None else self._position
        taken = channel.take(position, self.request.stream) if position is not None else None
        if taken is None:
            self._position = None
            return self._replay(now)
        if taken.cursor > self.cursor:
            self.cursor = taken.cursor
        # A viewer ahead of the ring (the store went back) finds its place anew each time.
        self._position = taken.position if taken.cursor >= self.cursor else None
        if final is not None and taken.cursor >= cursor:
            return self._finish("end" if channel.job and channel.job.end else "error", taken.frames + final)
        return taken.frames or (b"" if taken.cursor < cursor else None)

    def _replay(self, now: float) -> bytes | None:
        """The next lines by a read of our own."""
        try:
            step = self._past.step(self.cursor, self._channel)
        except StoreError:
            self.due = min(self.due, now + RETRY_READ_SECONDS)
            return None
        self.cursor = step.cursor
        self._read_at = now
        return self._finish(step.reason, step.frames or b"") if step.reason else step.frames
