"""Waiting for new entries of many jobs at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, Connection, DriverError, Moved, translated
from chronoverse.store.replies import after, streams
from chronoverse.store.topology import Topology

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

    All the jobs of a read must be together at ``place``. ``key`` names a job's log.
    """

    def __init__(self, place: Topology, key: Callable[[JobRef], str], block_seconds: float) -> None:
        self._place = place
        self._key = key
        self._block_ms = round(block_seconds * 1000)
        # The socket must outwait BLOCK, or an idle log would look like a dead server.
        self._timeout = block_seconds + COMMAND_TIMEOUT_SECONDS
        self._connection: Connection | None = None
        self._id: int | None = None
        self._jobs: dict[bytes, JobRef] = {}
        self._names = b""
        self._order: tuple[JobRef, ...] = ()

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        command = self._command(cursors, count)
        workflow_id = self._order[0].workflow_id
        with translated():
            try:
                reply = self._ask(workflow_id, command)
            except Moved:
                reply = self._ask(workflow_id, command)
        return [(self._jobs[key], entries) for key, entries in streams(reply)]

    def _ask(self, workflow_id: str, command: bytes) -> Any:
        connection = self._connection
        if connection is None or not self._place.is_current(workflow_id, connection):
            self.close()
            connection = self._connection = self._place.connection(workflow_id, timeout=self._timeout)
        try:
            if self._id is None:
                connection.send_command("CLIENT", "ID")
                self._id = connection.read_response()
            connection.send_packed_command([command])
            return connection.read_response()
        except DriverError as error:
            self._id = None
            self._place.report_error(workflow_id, error)
            raise

    def _command(self, cursors: Mapping[JobRef, int], count: int) -> bytes:
        """XREAD as it goes over the wire. Of thousands of jobs only a few have moved since the last one."""
        order = tuple(cursors)
        if order != self._order:
            self._order = order
            self._jobs = {self._key(job).encode(): job for job in order}
            self._names = b"".join(map(bulk, self._jobs))
        head = (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % self._block_ms, b"STREAMS")
        size = b"*%d\r\n" % (len(head) + 2 * len(cursors))
        return b"".join([size, *map(bulk, head), self._names, *map(_after, cursors.values())])

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return empty. Does nothing when none is waiting."""
        connection, waiting = self._connection, self._id
        if connection is not None and waiting is not None:
            with translated():
                self._place.client_for(connection).execute_command("CLIENT", "UNBLOCK", waiting)

    def silent_seconds(self, job: JobRef) -> float:
        """Nothing beyond the last read's own age: a read is about all jobs."""
        return 0

    def close(self) -> None:
        """Closes the connection; the next read opens another."""
        connection, self._connection = self._connection, None
        self._id = None
        if connection is not None:
            connection.disconnect()
