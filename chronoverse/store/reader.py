"""Waiting for new entries of many jobs at once."""

from collections.abc import Callable, Mapping, Sequence

from chronoverse.entries import RawEntry
from chronoverse.joblog import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, DriverError, connect, translated
from chronoverse.store.replies import after, streams


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

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        jobs = {self._key(job): job for job in cursors}
        command = ("XREAD", "COUNT", count, "BLOCK", self._block_ms, "STREAMS", *jobs, *map(after, cursors.values()))
        with translated():
            if self._id is None:
                self._connection.send_command("CLIENT", "ID")
                self._id = self._connection.read_response()
            try:
                self._connection.send_command(*command)
                reply = self._connection.read_response()
            except DriverError:
                self._id = None
                raise
        return [(jobs[key.decode()], entries) for key, entries in streams(reply)]

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return empty. Does nothing when none is waiting."""
        if self._id is not None:
            self._unblock(self._id)

    def close(self) -> None:
        """Closes the connection; the next read opens it again."""
        self._id = None
        self._connection.disconnect()
