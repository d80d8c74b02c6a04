"""Reading a log from piece to piece, one answer ahead of whoever wants it."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import Connection, DriverError, TimedOut, Unreachable, translated
from chronoverse.store.replies import after, streams

#: Bytes that the next answer may come to, by the last entry of this one. Whoever reads long lines may not take all of
#: them, and then asks for others.
PREFETCH_BYTES: Final = 2**20
#: Seconds an answer may lie unread. After that it is asked for again: the log may have changed.
PREFETCH_SECONDS: Final = 1.0


#: A job, a line, and how many entries that follow it.
_Wanted = tuple[JobRef, int, int]


class PrefetchReader:
    """One ``connection`` for the reads of a whole process, one at a time. ``key`` names a job's log.

    As soon as a read goes on where the last one ended, the next is asked for before it is wanted: the server works
    on it while the last is encoded and sent, which gave a replay half as many lines a second again.
    """

    def __init__(
        self, connection: Connection, key: Callable[[JobRef], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: _Wanted | None = None
        self._asked_at = 0.0
        self._read_to: tuple[JobRef, int] | None = None

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries that follow line ``after``, all there are now if there are fewer."""
        wanted = (job, after, count)
        with self._lock, translated():
            entries = self._ahead(wanted) or self._now(wanted)
            goes_on, self._read_to = self._read_to == (job, after), None
            if len(entries) == count:
                reached = entry_number(entries[-1][0])
                self._read_to = job, reached
                if goes_on and count * max(map(len, entries[-1][1])) < PREFETCH_BYTES:
                    self._ask_ahead((job, reached, count))
            return entries

    def forget(self) -> None:
        """What was asked for ahead is not to be used: the log has changed."""
        self._asked_at = float("-inf")

    def close(self) -> None:
        """Closes the connection; the next read opens it again."""
        self._asked = None
        self._connection.disconnect()

    def _ahead(self, wanted: _Wanted) -> Sequence[RawEntry]:
        """What was asked for ahead; nothing when it is not what is wanted, is old, or may not be all there is."""
        asked = self._asked
        if asked is None:
            return ()
        try:
            entries = self._receive()
        except TimedOut:
            raise
        except DriverError:
            # Of another job, or soon met again.
            return ()
        fresh = self._clock() - self._asked_at < PREFETCH_SECONDS
        return entries if asked == wanted and fresh and len(entries) == wanted[2] else ()

    def _ask_ahead(self, wanted: _Wanted) -> None:
        try:
            self._ask(wanted)
        except DriverError:
            self.close()

    def _now(self, wanted: _Wanted) -> Sequence[RawEntry]:
        try:
            self._ask(wanted)
            return self._receive()
        except Unreachable:
            # A connection that the server has closed since costs exactly one.
            self._ask(wanted)
            return self._receive()

    def _ask(self, wanted: _Wanted) -> None:
        job, number, count = wanted
        self._connection.send_command("XREAD", "COUNT", count, "STREAMS", self._key(job), after(number))
        self._asked, self._asked_at = wanted, self._clock()

    def _receive(self) -> Sequence[RawEntry]:
        try:
            reply = self._connection.read_response()
        except BaseException:
            # Also when the caller is ended in its wait: the answer must not become the next one's.
            self.close()
            raise
        self._asked = None
        for _, entries in streams(reply):
            return entries
        return ()
