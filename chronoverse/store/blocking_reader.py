"""Waits for new entries of many jobs with one blocking XREAD."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, Connection, DriverError, Moved, translate_errors
from chronoverse.store.replies import id_after, stream_entries
from chronoverse.store.topology import Topology

#: Encoded cursors that are cached: somewhat more than the jobs that a worker may watch.
CURSORS: Final = 20_000


def bulk_string(text: bytes) -> bytes:
    """A bulk string of the Redis protocol. https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"$%d\r\n%b\r\n" % (len(text), text)


@lru_cache(CURSORS)
def _encoded_cursor(cursor: int) -> bytes:
    return bulk_string(id_after(cursor).encode())


class BlockingReader:
    """One connection that waits for new entries of many jobs at once. One thread reads; any thread may interrupt.

    All the jobs of a read must be on one server, and in a Cluster in one slot. ``key`` gives the key of a job's log.
    """

    def __init__(self, topology: Topology, key: Callable[[JobRef], str], block_seconds: float) -> None:
        self._topology = topology
        self._key = key
        self._block_ms = round(block_seconds * 1000)
        # The socket must wait longer than BLOCK, or a server whose logs are idle would look dead.
        self._timeout = block_seconds + COMMAND_TIMEOUT_SECONDS
        self._connection: Connection | None = None
        #: The connection's CLIENT ID, by which it can be unblocked.
        self._client_id: int | None = None
        #: The jobs of the last read in their order, by key, and their keys as they are sent.
        self._jobs: tuple[JobRef, ...] = ()
        self._jobs_by_key: dict[bytes, JobRef] = {}
        self._encoded_keys = b""

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream. Redis does not say which one.
        """
        command = self._command(cursors, count)
        workflow_id = self._jobs[0].workflow_id
        with translate_errors():
            try:
                reply = self._ask(workflow_id, command)
            except Moved:
                reply = self._ask(workflow_id, command)
        return [(self._jobs_by_key[key], entries) for key, entries in stream_entries(reply)]

    def _ask(self, workflow_id: str, command: bytes) -> Any:
        connection = self._connection
        if connection is None or not self._topology.is_current(workflow_id, connection):
            self.close()
            connection = self._connection = self._topology.new_connection(workflow_id, timeout=self._timeout)
        try:
            if self._client_id is None:
                connection.send_command("CLIENT", "ID")
                self._client_id = connection.read_response()
            connection.send_packed_command([command])
            return connection.read_response()
        except DriverError as error:
            self._client_id = None
            self._topology.report_error(workflow_id, error)
            raise

    def _command(self, cursors: Mapping[JobRef, int], count: int) -> bytes:
        """The XREAD command as it is sent. It is encoded here, since most of its parts are the same as in the last."""
        jobs = tuple(cursors)
        if jobs != self._jobs:
            self._jobs = jobs
            self._jobs_by_key = {self._key(job).encode(): job for job in jobs}
            self._encoded_keys = b"".join(map(bulk_string, self._jobs_by_key))
        head = (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % self._block_ms, b"STREAMS")
        size = b"*%d\r\n" % (len(head) + 2 * len(cursors))
        return b"".join([size, *map(bulk_string, head), self._encoded_keys, *map(_encoded_cursor, cursors.values())])

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return empty. Does nothing when none is waiting."""
        connection, client_id = self._connection, self._client_id
        if connection is not None and client_id is not None:
            with translate_errors():
                self._topology.client_for(connection).execute_command("CLIENT", "UNBLOCK", client_id)

    def silent_seconds(self, job: JobRef) -> float:
        """Always 0: each read asks for all jobs, so its own age says how long the server has been silent."""
        return 0

    def close(self) -> None:
        """Closes the connection. The next read opens another."""
        connection, self._connection = self._connection, None
        self._client_id = None
        if connection is not None:
            connection.disconnect()
