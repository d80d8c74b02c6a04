"""Live reading of very many jobs on one server, which says which of them have changed. ADR 11 has the reasons.

The server remembers the keys that this connection has read, and tells once when one of them changes, until it is read
again. https://redis.io/docs/latest/develop/reference/client-side-caching/
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
    DriverError,
    ErrorReply,
    Unreachable,
    hear_changes,
    refused_for_good,
    reply,
    translated,
    wait_readable,
)
from chronoverse.store.topology import Topology
from chronoverse.store.watchlist import Watchlist

#: Interrupts taken for one. There are some hundreds a second at most, each of a byte.
WAKEUP_BYTES: Final = 4096
#: Seconds for which changes are gathered when reading what had changed was in vain twice: somebody may change a log
#: all the time without appending (PEXPIRE, XTRIM). 10,000 such changes a second took most of a CPU.
VAIN_SECONDS: Final = 0.01


class Untracked(Exception):
    """Raised when the server does not tell of changes: its user may not ask for that, or it does not know how."""


class TrackingReader:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`, but each read asks only for jobs that have changed.

    :meth:`read` also raises :class:`Untracked`.
    """

    def __init__(self, place: Topology, key: Callable[[JobRef], str], block_seconds: float) -> None:
        self._place = place
        self._key = key
        self._block_seconds = block_seconds
        self._connection: Connection | None = None
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._names: dict[JobRef, bytes] = {}
        self._jobs: dict[bytes, JobRef] = {}
        #: Where each job stood when there was nothing behind that, and the server has not told of a change since.
        self._quiet: dict[JobRef, int] = {}
        #: The list that was gone through before, and of its jobs those that may not be quiet: with 4,000 jobs to go
        #: through all of them each time was a sixth of the worker's work.
        self._gone_through: Watchlist | None = None
        self._suspects: set[JobRef] = set()

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        with translated():
            try:
                return self._read(cursors, count)
            except DriverError as error:
                # Not left to the driver, which may keep it or open another: that is told nothing of what was read here.
                if not isinstance(error, ErrorReply):
                    self.close()
                self._place.report_error(next(iter(cursors)).workflow_id, error)
                raise

    def _read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        connection, bell = self._opened(next(iter(cursors)).workflow_id)
        until, vain = time.monotonic() + self._block_seconds, 0
        while True:
            _hear(connection)
            if wanted := self._wanted(cursors):
                if found := self._ask(connection, wanted, count):
                    return found
                vain += 1
            seconds = until - time.monotonic()
            if _drained(bell) or seconds <= 0:
                break
            wait_readable(connection, bell, seconds)
            if vain > 1:
                wait_readable(None, bell, VAIN_SECONDS)
        # A server that is away is silent too.
        connection.send_command("PING")
        reply(connection)
        return []

    def _ask(
        self, connection: Connection, wanted: dict[JobRef, int], count: int
    ) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        names = [self._name(job) for job in wanted]
        ids = [replies.after(cursor) for cursor in wanted.values()]
        connection.send_command("XREAD", "COUNT", count, "STREAMS", *names, *ids)
        # What it told of before it answered is in the answer; what it tells from now on is still in the socket.
        found = [(self._jobs[key], entries) for key, entries in replies.streams(reply(connection))]
        self._quiet.update(wanted)
        for job, entries in found:
            if len(entries) < count:
                self._quiet[job] = entry_number(entries[-1][0])
            else:
                del self._quiet[job]
        return found

    def _opened(self, workflow_id: str) -> tuple[Connection, socket.socket]:
        """A connection whose server tells of changes, and what is readable when somebody interrupts."""
        connection, bell = self._connection, self._wakeup
        if connection and bell and connection.is_connected and self._place.is_current(workflow_id, connection):
            return connection, bell[0]
        self.close()
        self._connection = connection = self._place.connection(workflow_id)
        if not hear_changes(connection, self._changed):
            raise Untracked("its protocol is RESP2")
        try:
            connection.send_command("CLIENT", "TRACKING", "ON")
            reply(connection)
        except DriverError as error:
            if refused_for_good(error):
                raise Untracked(str(error)) from error
            raise
        self._wakeup = bell = socket.socketpair()
        for end in bell:
            end.setblocking(False)
        return connection, bell[0]

    def _changed(self, message: Any) -> None:
        keys = replies.changed(message)
        if keys is None:
            self._forget()
        else:
            for key in keys:
                if (job := self._jobs.get(key)) is not None:
                    self._quiet.pop(job, None)
                    self._suspects.add(job)

    def _forget(self) -> None:
        """Any job may have changed."""
        self._quiet.clear()
        self._gone_through = None

    def _wanted(self, cursors: Mapping[JobRef, int]) -> dict[JobRef, int]:
        """The jobs that may have something behind their cursors."""
        if len(self._names) > 2 * len(cursors):
            # As many have been left as are watched: of those the server may tell what it likes.
            self._names = {job: name for job, name in self._names.items() if job in cursors}
            self._jobs = {name: job for job, name in self._names.items()}
            self._quiet = {job: cursor for job, cursor in self._quiet.items() if job in cursors}
        quiet, suspects = self._quiet.get, self._suspected(cursors)
        wanted = {job: cursors[job] for job in suspects if job in cursors and quiet(job) != cursors[job]}
        self._suspects = set(wanted)
        return wanted

    def _suspected(self, cursors: Mapping[JobRef, int]) -> Collection[JobRef]:
        """Jobs that may not be quiet where they stand now, and others: all, where it is not known which have moved."""
        if not isinstance(cursors, Watchlist):
            self._gone_through = None
            return cursors.keys()
        moved, before, self._gone_through = cursors.moved(), self._gone_through, cursors
        return self._suspects | moved if before is cursors else cursors.keys()

    def _name(self, job: JobRef) -> bytes:
        name = self._names.get(job)
        if name is None:
            name = self._names[job] = self._key(job).encode()
            self._jobs[name] = job
        return name

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return, or else the next one that would wait. Does nothing before the first."""
        bell = self._wakeup
        if bell is not None:
            # Full, it has been rung; closed, nobody waits.
            with contextlib.suppress(OSError):
                bell[1].send(b"\0")

    def silent_seconds(self, job: JobRef) -> float:
        """Nothing beyond the last read's own age: a read is about all jobs."""
        return 0

    def close(self) -> None:
        """Closes the connection; the next read opens another, and asks for every job."""
        connection, self._connection = self._connection, None
        bell, self._wakeup = self._wakeup, None
        self._forget()
        if connection is not None:
            connection.disconnect()
        for end in bell or ():
            end.close()


def _hear(connection: Connection) -> None:
    """Takes in all that the server has told by now: at most as much as there are keys that were read."""
    while connection.can_read():
        if connection.read_response(push_request=True) is not PUSH_CONSUMED:
            # Then it is not sure any more which answer belongs to what. Nor what was told: the driver keeps errors in
            # hearing to itself.
            raise Unreachable("the store said something else than what has changed")


def _drained(bell: socket.socket) -> bool:
    """Whether somebody has interrupted since this was last asked."""
    try:
        return bool(bell.recv(WAKEUP_BYTES))
    except BlockingIOError:
        return False
