"""Live reading of very many jobs on one server, which says which of their logs have changed. ADR 11 has the reasons.

The server remembers the keys that this connection has read. When one of them changes, it sends one message, and no
other until the key is read again. https://redis.io/docs/latest/develop/reference/client-side-caching/
"""

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.values import JobRef
from chronoverse.store import replies
from chronoverse.store.driver import (
    PUSH_CONSUMED,
    Connection,
    ConnectionFailed,
    DriverError,
    ErrorReply,
    is_permanent_refusal,
    read_reply,
    set_changed_keys_handler,
    translate_errors,
    wait_readable,
)
from chronoverse.store.topology import Topology
from chronoverse.store.watchlist import Watchlist

#: Bytes read from the wakeup socket at once. Each interrupt sends one byte, some hundreds of times a second at most.
WAKEUP_BYTES: Final = 4096
#: Seconds for which changes are collected after two reads in a row that brought no entries. A log can be changed all
#: the time without an append (PEXPIRE, XTRIM). 10,000 such changes a second took most of a CPU.
EMPTY_READ_SECONDS: Final = 0.01


class TrackingRefused(Exception):
    """Raised when the server does not say what has changed: it cannot, or its user may not ask for it."""


class TrackingReader:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`, but each read asks only for jobs that have changed.

    :meth:`read` also raises :class:`TrackingRefused`.
    """

    def __init__(self, topology: Topology, key: Callable[[JobRef], str], block_seconds: float) -> None:
        self._topology = topology
        self._key = key
        self._block_seconds = block_seconds
        self._connection: Connection | None = None
        #: A socket pair. The reader waits for the first socket, and :meth:`interrupt` writes to the second.
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._keys: dict[JobRef, bytes] = {}
        self._jobs: dict[bytes, JobRef] = {}
        #: The cursor of each job that had nothing after it when it was last read, and has not changed since.
        self._unchanged: dict[JobRef, int] = {}
        #: The list of the last read, and those of its jobs that may have new entries. The others need not be compared:
        #: with 4,000 jobs to compare them all each time was a sixth of the worker's work.
        self._last_watchlist: Watchlist | None = None
        self._candidates: set[JobRef] = set()

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream. Redis does not say which one.
        """
        with translate_errors():
            try:
                return self._read(cursors, count)
            except DriverError as error:
                # The driver might open the connection again. The server sends no messages on the new one about keys
                # that were read on the old one, so the connection is closed here.
                if not isinstance(error, ErrorReply):
                    self.close()
                self._topology.report_error(next(iter(cursors)).workflow_id, error)
                raise

    def _read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        connection, wakeup = self._opened(next(iter(cursors)).workflow_id)
        until, empty_reads = time.monotonic() + self._block_seconds, 0
        while True:
            _consume_messages(connection)
            if changed := self._changed_jobs(cursors):
                if found := self._ask(connection, changed, count):
                    return found
                empty_reads += 1
            seconds = until - time.monotonic()
            if _was_interrupted(wakeup) or seconds <= 0:
                break
            wait_readable(connection, wakeup, seconds)
            if empty_reads > 1:
                wait_readable(None, wakeup, EMPTY_READ_SECONDS)
        # A dead server sends no messages either, so ask whether it is alive.
        connection.send_command("PING")
        read_reply(connection)
        return []

    def _ask(
        self, connection: Connection, cursors: dict[JobRef, int], count: int
    ) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        keys = [self._key_of(job) for job in cursors]
        ids = [replies.id_after(cursor) for cursor in cursors.values()]
        connection.send_command("XREAD", "COUNT", count, "STREAMS", *keys, *ids)
        # All changes that the server has reported before this reply are in the reply. Reports of later ones are still
        # in the socket.
        found = [(self._jobs[key], entries) for key, entries in replies.stream_entries(read_reply(connection))]
        self._unchanged.update(cursors)
        for job, entries in found:
            if len(entries) < count:
                self._unchanged[job] = entry_number(entries[-1][0])
            else:
                del self._unchanged[job]
        return found

    def _opened(self, workflow_id: str) -> tuple[Connection, socket.socket]:
        """A connection on which the server tells of changes, and a socket that is readable after an interrupt."""
        connection, wakeup = self._connection, self._wakeup
        if connection and wakeup and connection.is_connected and self._topology.is_current(workflow_id, connection):
            return connection, wakeup[0]
        self.close()
        self._connection = connection = self._topology.new_connection(workflow_id)
        if not set_changed_keys_handler(connection, self._on_message):
            raise TrackingRefused("its protocol is RESP2")
        try:
            connection.send_command("CLIENT", "TRACKING", "ON")
            read_reply(connection)
        except DriverError as error:
            if is_permanent_refusal(error):
                raise TrackingRefused(str(error)) from error
            raise
        self._wakeup = wakeup = socket.socketpair()
        for end in wakeup:
            end.setblocking(False)
        return connection, wakeup[0]

    def _on_message(self, message: Any) -> None:
        keys = replies.changed_keys(message)
        if keys is None:
            self._forget_unchanged()
        else:
            for key in keys:
                if (job := self._jobs.get(key)) is not None:
                    self._unchanged.pop(job, None)
                    self._candidates.add(job)

    def _forget_unchanged(self) -> None:
        """From now on any job may have changed."""
        self._unchanged.clear()
        self._last_watchlist = None

    def _changed_jobs(self, cursors: Mapping[JobRef, int]) -> dict[JobRef, int]:
        """The cursors of the jobs that may have entries after them."""
        if len(self._keys) > 2 * len(cursors):
            # Most of these jobs are no longer watched. Messages about them are ignored from now on.
            self._keys = {job: key for job, key in self._keys.items() if job in cursors}
            self._jobs = {key: job for job, key in self._keys.items()}
            self._unchanged = {job: cursor for job, cursor in self._unchanged.items() if job in cursors}
        unchanged, candidates = self._unchanged.get, self._jobs_to_compare(cursors)
        changed = {job: cursors[job] for job in candidates if job in cursors and unchanged(job) != cursors[job]}
        self._candidates = set(changed)
        return changed

    def _jobs_to_compare(self, cursors: Mapping[JobRef, int]) -> Collection[JobRef]:
        """The jobs that may have changed or moved since the last read; all where that is not known."""
        if not isinstance(cursors, Watchlist):
            self._last_watchlist = None
            return cursors.keys()
        moved, last, self._last_watchlist = cursors.take_moved(), self._last_watchlist, cursors
        return self._candidates | moved if last is cursors else cursors.keys()

    def _key_of(self, job: JobRef) -> bytes:
        key = self._keys.get(job)
        if key is None:
            key = self._keys[job] = self._key(job).encode()
            self._jobs[key] = job
        return key

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return, or else the next one that would wait. Does nothing before the first."""
        wakeup = self._wakeup
        if wakeup is not None:
            # An error means that the socket is full, so that the reader wakes anyway, or that it is closed.
            with contextlib.suppress(OSError):
                wakeup[1].send(b"\0")

    def silent_seconds(self, job: JobRef) -> float:
        """Always 0: each read is about all jobs, so its own age says how long the server has been silent."""
        return 0

    def close(self) -> None:
        """Closes the connection. The next read opens another, and asks for every job."""
        connection, self._connection = self._connection, None
        wakeup, self._wakeup = self._wakeup, None
        self._forget_unchanged()
        if connection is not None:
            connection.disconnect()
        for end in wakeup or ():
            end.close()


def _consume_messages(connection: Connection) -> None:
    """Reads all messages that have arrived. There are at most as many as keys that were read."""
    while connection.can_read():
        if connection.read_response(push_request=True) is not PUSH_CONSUMED:
            # It is no longer certain which reply belongs to which command, nor that each message was handled: the
            # driver does not raise errors of the handler.
            raise ConnectionFailed("the store said something else than what has changed")


def _was_interrupted(wakeup: socket.socket) -> bool:
    """Whether there was an interrupt since the last call."""
    try:
        return bool(wakeup.recv(WAKEUP_BYTES))
    except BlockingIOError:
        return False
