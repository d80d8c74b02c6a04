"""Waiting for new entries of many jobs at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from chronoverse.entries import RawEntry
from chronoverse.joblog import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, DriverError, connect, translated
from chronoverse.store.replies import after, streams

#: Cursors remembered as they go over the wire: as many as a worker may watch jobs, and some.
CURSORS: Final = 20_000


def bulk(text: bytes) -> bytes:
    """A bulk string of the Redis protocol. https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"$%d\r\n%b\r\n" % (len(text), text)


@lru_cache(CURSORS)
def _after(cursor: int) -> bytes:
    return bulk(after(cursor).encode())


class BlockingReader:
    """One connection that waits for new entries of many jobs at once. One thread reads; any may interrupt.

    ``key`` names a job's log, and ``unblock`` sends CLIENT UNBLOCK for a connection's id over another one.
    """

    def __init__(
        self, url: str, key: Callable[[JobRef], str], unblock: Callable[[int], None], block_seconds: float
    ) -> None:
        self._key = key
        self._unblock = unblock
        self._block_ms = round(block_seconds * 1000)
        # The socket must outwait BLOCK, or an idle log would look like a dead server.
        client = connect(url, retries=0, timeout=block_seconds + COMMAND_TIMEOUT_SECONDS)
        self._connection = client.connection_pool.make_connection()
        self._id: int | None = None
        self._keyed: set[JobRef] = set()
        self._jobs: dict[bytes, JobRef] = {}
        self._names = b""
        self._order: tuple[JobRef, ...] = ()

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        command = self._command(cursors, count)
        with translated():
            if self._id is None:
                self._connection.send_command("CLIENT", "ID")
                self._id = self._connection.read_response()
            try:
                self._connection.send_packed_command([command])
                reply = self._connection.read_response()
            except DriverError:
                self._id = None
                raise
        return [(self._jobs[key], entries) for key, entries in streams(reply)]

    def _command(self, cursors: Mapping[JobRef, int], count: int) -> bytes:
        """XREAD as it goes over the wire. Of thousands of jobs only a few have moved since the last one."""
        if cursors.keys() != self._keyed:
            self._keyed = set(cursors)
            self._jobs = {self._key(job).encode(): job for job in cursors}
            self._names = b"".join(map(bulk, self._jobs))
            self._order = tuple(cursors)
        head = (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % self._block_ms, b"STREAMS")
        size = b"*%d\r\n" % (len(head) + 2 * len(cursors))
        return b"".join([size, *map(bulk, head), self._names, *[_after(cursors[job]) for job in self._order]])

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return empty. Does nothing when none is waiting."""
        if self._id is not None:
            self._unblock(self._id)

    def close(self) -> None:
        """Closes the connection; the next read opens it again."""
        self._id = None
        self._connection.disconnect()
