"""Reads a log in sequence, and asks for the next entries before the caller wants them."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis

from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import translate_errors
from chronoverse.store.replies import id_after, stream_entries

#: Bytes that a prefetched answer may have, estimated by the longest field of the last entry before it. A caller may use
#: fewer long lines than it was given, and then ask for others than those that were prefetched.
PREFETCH_BYTES: Final = 2**20
#: Seconds for which a prefetched answer is used. After that the log may have changed, and is asked again.
PREFETCH_SECONDS: Final = 1.0

#: What was asked for: a job, a line number, and how many entries after that line.
_Request = tuple[JobRef, int, int]


class PrefetchReader:
    """One ``connection`` for the sequential reads of a whole process, one at a time. ``key`` gives a log's key.

    When a read begins where the last one ended, the next read is sent ahead. The server works on it while the caller
    encodes and sends the entries. A replay is 1.3 to 1.5 times as fast for this.
    """

    def __init__(
        self, connection: redis.Connection, key: Callable[[JobRef], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: _Request | None = None
        self._asked_at = 0.0
        self._read_to: tuple[JobRef, int] | None = None

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """As :meth:`Store.read`."""
        request = (job, after, count)
        with self._lock, translate_errors():
            entries = self._take_prefetched(request) or self._ask(request)
            continues, self._read_to = self._read_to == (job, after), None
            if len(entries) == count:
                last = entry_number(entries[-1][0])
                self._read_to = job, last
                if continues and count * max(map(len, entries[-1][1])) < PREFETCH_BYTES:
                    try:
                        self._send((job, last, count))
                    except redis.RedisError:
                        self.close()
            return entries

    def discard(self) -> None:
        """Makes the next read ask again, since the log has changed."""
        self._asked_at = float("-inf")

    def close(self) -> None:
        """Closes the connection. The next read opens it again."""
        self._pending = None
        self._connection.disconnect()

    def _take_prefetched(self, request: _Request) -> Sequence[RawEntry]:
        """The prefetched entries. Empty when they are not what is requested, are old, or may not be all there are."""
        pending = self._pending
        if pending is None:
            return ()
        try:
            entries = self._receive()
        except redis.TimeoutError:
            raise
        except redis.RedisError:
            # The error concerns another job, or the caller's own read will get it again.
            return ()
        is_fresh = self._clock() - self._asked_at < PREFETCH_SECONDS
        return entries if pending == request and is_fresh and len(entries) == request[2] else ()

    def _ask(self, request: _Request) -> Sequence[RawEntry]:
        # The server may have closed the connection since the last read. The second time opens another.
        with contextlib.suppress(redis.ConnectionError):
            self._send(request)
            return self._receive()
        self._send(request)
        return self._receive()

    def _send(self, request: _Request) -> None:
        job, number, count = request
        self._connection.send_command("XREAD", "COUNT", count, "STREAMS", self._key(job), id_after(number))
        self._pending, self._asked_at = request, self._clock()

    def _receive(self) -> Sequence[RawEntry]:
        try:
            reply = self._connection.read_response()
        except BaseException:
            # This also happens when the caller's greenlet is killed. The next read must not get this reply.
            self.close()
            raise
        self._pending = None
        for _, entries in stream_entries(reply):
            return entries
        return ()


class AdaptiveBatch:
    """How many lines to ask for, adapted to the size of the last answer: 1 MiB is wanted. Starts small."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        """Adapts to an answer of ``lines`` lines that had ``size`` bytes."""
        fitting = 2**20 * lines // max(size, 1)
        # At least 4 and at most 2,048 lines are asked for.
        self.lines = max(4, min(2048, fitting, self.lines * 4))
