"""Reads logs in sequence, and prefetches the next entries."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import redis

from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import translate_errors
from chronoverse.store.topology import Topology

#: Seconds for which prefetched entries are used. After that, the log may have changed.
AHEAD_SECONDS: Final = 1.0

_Request = tuple[JobRef, int, int]


@dataclass(slots=True, eq=False)
class SequentialReader:
    """Reads logs of ``server`` for one caller at a time, over its own connection, without a pool's checks.

    After two reads in sequence, requests the third in advance, so that the server works while the caller encodes lines.
    ``key`` returns a log's key. If the connection fails, the reader calls ``read`` instead.
    """

    _topology: Topology
    _server: Hashable
    _key: Callable[[JobRef], str]
    _read: Callable[[JobRef, int, int], Sequence[RawEntry]]
    _clock: Callable[[], float] = time.monotonic
    #: The topology's version when the connection was opened.
    _version: object = None
    _connection: redis.Connection | None = None
    #: The request whose reply is not yet read, and when it was sent.
    _pending: _Request | None = None
    _sent_at: float = 0.0
    _likely: _Request | None = None

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """Like :meth:`Store.read`."""
        request = (job, after, count)
        with translate_errors():
            try:
                entries = self._receive(request)
                continues, self._likely = request == self._likely, None
                if len(entries) == count:
                    self._likely = job, entry_number(entries[-1][0]), count
                    # Does not prefetch very long lines: the caller may use only a few, and then continue after these.
                    if continues and count * max(map(len, entries[-1][1])) < 2**20:
                        self._send(self._likely)
            except redis.TimeoutError:
                raise
            except redis.RedisError:
                self.close()
                return self._read(job, after, count)
            return entries

    def discard(self) -> None:
        """Discards prefetched entries, because a log has changed."""
        self._sent_at = float("-inf")

    def close(self) -> None:
        """Closes the connection. The next read reopens it."""
        self._pending = None
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _receive(self, request: _Request) -> Sequence[RawEntry]:
        # The keys may have moved, and the old server may still answer.
        if self._version != self._topology.version:
            self.close()
            self._version = self._topology.version
        if self._pending is not None:
            entries, pending = self._answer()
            # If the reply has fewer entries than requested, the log may have grown since.
            if pending == request and len(entries) == request[2] and self._clock() - self._sent_at < AHEAD_SECONDS:
                return entries
        self._send(request)
        return self._answer()[0]

    def _send(self, request: _Request) -> None:
        job, after, count = request
        if self._connection is None:
            self._connection = self._topology.new_connection_to(self._server)
        self._connection.send_command("XRANGE", self._key(job), f"{after + 1}-0", "+", "COUNT", count)
        self._pending, self._sent_at = request, self._clock()

    def _answer(self) -> tuple[Sequence[RawEntry], _Request | None]:
        """The reply to the pending request, and the request."""
        assert self._connection is not None
        pending, self._pending = self._pending, None
        return self._connection.read_response(), pending
