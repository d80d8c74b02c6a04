"""Reads new entries of all jobs that a process watches, with a :class:`NodeReader` per server. See ADR 17.

After a key is read, the server reports its next change, once:
https://redis.io/docs/latest/develop/reference/client-side-caching/ Without such reports, all logs are polled.
"""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import redis
from redis.exceptions import AskError, MovedError, NoPermissionError

from chronoverse.backoff import RetryPolicy
from chronoverse.errors import NotALog, StoreError
from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.model import JobRef
from chronoverse.store import replies
from chronoverse.store.driver import (
    has_buffered,
    read_reply,
    set_changed_keys_handler,
    take_message,
    to_store_error,
    translate_errors,
    wait_readable,
)
from chronoverse.store.topology import Topology

READ_LOGS: Final = 500
#: If a change is reported within half of this time after a read, the next read waits for the rest of the time, to
#: include later changes. Any other change is read immediately.
GATHER_SECONDS: Final = 0.004
#: Minimum seconds between two reads of a log whose changes the server does not report.
POLL_SECONDS: Final = 0.05

#: A job, the line after which it was read, and the result: its next entries, or an error.
Found = tuple[JobRef, int, Sequence[RawEntry] | StoreError]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class WatchedLog:
    """A watched log, read by ``node``. ``cursor`` is the last line read."""

    job: JobRef
    key: bytes
    cursor: int
    node: "NodeReader" = field(init=False)


class NodeReader:
    """One connection to ``server``, and the logs read over it.

    One thread reads; any thread can add and remove logs. Each log is queued, unless it was read after the last change
    that the server reported; replies and reports arrive in order. A new connection queues all logs.
    """

    def __init__(self, server: Hashable, live: "LiveReader") -> None:
        self.server: Final = server
        self.logs: Final[dict[bytes, WatchedLog]] = {}
        #: In a Cluster: why the last read failed. None if it succeeded.
        self.error: StoreError | None = None
        self._live: Final = live
        self._topology: Final = live.topology
        self._queue: deque[WatchedLog] = deque()
        self._connection: redis.Connection | None = None
        #: Whether the server reports changes on this connection, and whether its refusal was logged.
        self._tracks = self._has_warned = False
        #: Logs that the server refused to read, for example while their slot is moved.
        self._refused: list[WatchedLog] = []
        #: When the refused logs (all logs, if the server reports no changes) are queued next; seconds spent reading.
        self._poll_at = float("inf")
        self._poll_took = 0.0
        self._read_at = float("-inf")
        #: The topology's version at the last check for moved logs, and the time of this check.
        self._version = live.topology.version
        self._compared_at = float("-inf")
        #: The time since which this reader has waited for the server's reply. None if it is not waiting.
        self._asked_at: float | None = None
        #: :meth:`queue` writes to the second socket, to wake the reader, which waits for data on the first.
        self._wakeup = socket.socketpair()
        self._is_waiting = False
        for end in self._wakeup:
            end.setblocking(False)

    @property
    def silent_seconds(self) -> float:
        """Seconds for which this reader has waited for the server's reply."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def add(self, watched: WatchedLog) -> None:
        watched.node = self
        self.logs[watched.key] = watched
        self.queue(watched)

    def remove(self, watched: WatchedLog) -> None:
        self.logs.pop(watched.key, None)

    def queue(self, watched: WatchedLog) -> None:
        self._queue.append(watched)
        if self._is_waiting:
            # Errors are harmless: the socket is full, which wakes the reader anyway, or it is closed.
            with contextlib.suppress(OSError):
                self._wakeup[1].send(b"\0")

    def read(self, count: int) -> list[Found]:
        """Waits until logs have entries after their cursors. Returns up to ``count`` entries of each, and moves the
        cursors.

        Empty after a timeout. A log that cannot be read has an error instead of entries. Raises :class:`StoreError` if
        the server does not answer.
        """
        with translate_errors():
            try:
                return self._read(count, time.monotonic() + self._live.block_seconds)
            except redis.RedisError as error:
                # If the driver reopened the connection, it would get no reports about keys that were read before.
                if not isinstance(error, redis.ResponseError):
                    self._disconnect()
                for each in islice(self.logs.values(), 1):
                    self._topology.report_error(each.job.workflow_id, error)
                raise

    def close(self) -> None:
        """Closes the connection and the wakeup sockets, permanently."""
        self._disconnect()
        for end in self._wakeup:
            end.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _read(self, count: int, until: float) -> list[Found]:
        while self.logs and (connection := self._opened()):
            self._take_messages(connection, until)
            watched = self._next_logs()
            if watched and (found := self._ask(connection, watched, count)):
                return found
            if time.monotonic() >= until:
                # Silence can also mean a dead server.
                self._request(connection, [("PING",)])
                return []
        self._asked_at = None
        while self._queue and self.logs.get(self._queue[0].key) is not self._queue[0]:
            self._queue.popleft()
        self._wait(None, until - time.monotonic())
        if not self.logs:
            self._disconnect()
        return []

    def _opened(self) -> redis.Connection | None:
        """The open connection, or None if all logs have moved to other servers. Raises the driver's errors."""
        self._topology.refresh()
        version, now = self._topology.version, time.monotonic()
        is_due = now >= self._compared_at + self._live.poll_seconds
        if self._connection is None or (version != self._version and is_due):
            if version != self._version and self._topology.is_single:
                self._disconnect()  # Another server is the master now.
            self._version, self._compared_at = version, now
            server_of = self._topology.server_of
            logs = tuple(self.logs.values())
            self._live.reassign([each for each in logs if server_of(each.job.workflow_id) != self.server])
        if self._connection is None and self.logs:
            self._asked_at = self._asked_at or now
            connection = self._topology.new_connection_to(self.server)
            connection.connect()
            self._tracks = self._start_tracking(connection)
            self._connection = connection
            self._poll_at = time.monotonic()
            self._queue.extend(tuple(self.logs.values()))
        return self._connection if self.logs else None

    def _start_tracking(self, connection: redis.Connection) -> bool:
        refusal = "its protocol is RESP2"
        if set_changed_keys_handler(connection, self._on_message):
            (answer,) = self._request(connection, [("CLIENT", "TRACKING", "ON")])
            if not isinstance(answer, redis.ResponseError):
                return True
            # The server lacks the command, or forbids it to this user. Retried if a long script is running.
            is_permanent = isinstance(answer, NoPermissionError) or type(answer) is redis.ResponseError
            if not is_permanent or str(answer).startswith("BUSY "):
                raise answer
            refusal = str(answer)
        if not self._has_warned:
            log.warning("the store does not report changes; polling all watched logs: %s", refusal)
            self._has_warned = True
        return False

    def _on_message(self, message: Any) -> None:
        # The message names the changed keys. None means that the database was flushed.
        keys = tuple(self.logs) if message[1] is None else message[1]
        self._queue.extend(filter(None, map(self.logs.get, keys)))

    def _take_messages(self, connection: redis.Connection, until: float) -> None:
        """Waits up to ``until`` for a log to read, and handles all messages that have arrived.

        If a change comes soon after a read, waits for more: see :data:`GATHER_SECONDS`.
        """
        now = time.monotonic()
        if self._poll_at == float("inf") and (self._refused or not (self._tracks or self._queue)):
            # Waits three times as long as the last poll took, so that polling takes at most a quarter of the time.
            self._poll_at = now + max(self._live.poll_seconds, 0.0 if self._tracks else 3 * self._poll_took)
        if not self._queue:
            if not has_buffered(connection):
                self._wait(connection, min(until, self._poll_at) - now)
            since = time.monotonic() - self._read_at
            if since < GATHER_SECONDS / 2:
                time.sleep(GATHER_SECONDS - since)
        while take_message(connection) and has_buffered(connection):
            pass

    def _next_logs(self) -> list[WatchedLog]:
        now = time.monotonic()
        if now >= self._poll_at:
            self._queue.extend(self._refused if self._tracks else tuple(self.logs.values()))
            self._refused, self._poll_took, self._poll_at = [], 0.0, float("inf")
        found: dict[bytes, WatchedLog] = {}
        while self._queue and len(found) < READ_LOGS:
            watched = self._queue.popleft()
            if self.logs.get(watched.key) is watched:
                found[watched.key] = watched
        return list(found.values())

    def _ask(self, connection: redis.Connection, watched: Sequence[WatchedLog], count: int) -> list[Found]:
        """The entries after the cursors. If nothing was found, raises the error of a refused log, if any."""
        asked = [(each, each.cursor) for each in watched]
        self._read_at = began = time.monotonic()
        answers = self._request(
            connection,
            [("XREAD", "COUNT", count, "STREAMS", each.key, replies.id_after(cursor)) for each, cursor in asked],
        )
        self._poll_took += time.monotonic() - began
        found: list[Found] = []
        refusal: redis.ResponseError | None = None
        for (each, cursor), answer in zip(asked, answers, strict=True):
            entries: Sequence[RawEntry] = ()
            if not isinstance(answer, redis.ResponseError):
                entries = next((entries for _, entries in replies.stream_entries(answer)), ())
            elif isinstance(error := to_store_error(answer), NotALog):
                found.append((each.job, cursor, error))
            else:
                self._refused.append(each)
                if isinstance(answer, MovedError):
                    self._topology.report_error(each.job.workflow_id, answer)
                elif isinstance(answer, AskError):
                    # The slot is being moved, and the key is already on the other server.
                    with contextlib.suppress(StoreError):
                        entries = self._live.read_log(each.job, cursor, count)
                else:
                    refusal = answer
            if entries:
                found.append((each.job, cursor, entries))
                if each.cursor == cursor:
                    each.cursor = entry_number(entries[-1][0])
                if len(entries) >= count:
                    self._queue.append(each)
        if refusal is not None and not found:
            raise refusal
        return found

    def _request(self, connection: redis.Connection, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._asked_at = self._asked_at or time.monotonic()
        connection.send_packed_command(connection.pack_commands(commands))
        answers = [read_reply(connection) for _ in commands]
        self._asked_at = None
        return answers

    def _wait(self, connection: redis.Connection | None, seconds: float) -> None:
        self._is_waiting = True
        is_woken = not self._queue and wait_readable(connection, self._wakeup[0], max(seconds, 0.0))
        self._is_waiting = False
        if is_woken:
            self._wakeup[0].recv(4096)


@dataclass(slots=True, eq=False)
class LiveReader:
    """Waits for new entries of many jobs. One thread reads; any thread can watch and unwatch jobs.

    In a Cluster each node has a thread. A read blocks for up to ``block_seconds``. Logs whose changes are not reported
    are polled every ``poll_seconds``.
    """

    topology: Topology
    _key: Callable[[JobRef], str]
    read_log: Callable[[JobRef, int, int], Sequence[RawEntry]]
    block_seconds: float
    poll_seconds: float = POLL_SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _logs: dict[JobRef, WatchedLog] = field(default_factory=dict)
    _nodes: dict[Hashable, NodeReader] = field(default_factory=dict)
    #: Results of the nodes' threads. A thread waits until the previous result was taken.
    _results: queue.Queue[list[Found]] = field(default_factory=lambda: queue.Queue(1))
    #: The ``count`` of the last :meth:`read`: how many entries of each job a node's thread requests.
    _count: int = 100
    _threads: list[threading.Thread] = field(default_factory=list)
    _closed: threading.Event = field(default_factory=threading.Event)

    def watch(self, job: JobRef, cursor: int, *, again: bool = False) -> None:
        """Starts reading a job after line ``cursor``, or moves the cursor of a watched job.

        ``again`` reads the job immediately, because it may have entries that the server did not report.
        """
        with self._lock:
            watched = self._logs.get(job)
            if watched is None:
                watched = self._logs[job] = WatchedLog(job, self._key(job).encode(), cursor)
                self._node_of(job.workflow_id).add(watched)
            elif again or watched.cursor != cursor:
                watched.cursor = cursor
                watched.node.queue(watched)

    def unwatch(self, job: JobRef) -> None:
        with self._lock:
            watched = self._logs.pop(job, None)
            if watched is not None:
                watched.node.remove(watched)

    def read(self, count: int) -> list[Found]:
        """Waits until any job has entries after its cursor. Returns up to ``count`` of each, and moves the cursors.

        Empty after a timeout. A job that cannot be read has an error, such as :class:`NotALog`, instead of entries.
        Raises :class:`StoreError` if no server answers.
        """
        if self.topology.is_single:
            with self._lock:
                node = self._node_of("")
            return node.read(count)
        self._count = count
        found: list[Found] = []
        with contextlib.suppress(queue.Empty):
            found += self._results.get(timeout=self.block_seconds)
            while True:
                found += self._results.get_nowait()
        nodes = tuple(self._nodes.values())
        errors = [error for node in nodes if (error := node.error)]
        if errors and not found and len(errors) == len(nodes):
            raise errors[0]
        return found

    def silent_seconds(self, job: JobRef) -> float:
        """Seconds for which the reader has waited for the job's server to reply."""
        watched = self._logs.get(job)
        return 0.0 if watched is None else watched.node.silent_seconds

    def close(self) -> None:
        """Stops reading, within twice ``block_seconds``, and closes the connections."""
        self._closed.set()
        until = time.monotonic() + 2 * self.block_seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if self.topology.is_single:
            for node in self._nodes.values():
                node.close()

    def _node_of(self, workflow_id: str) -> NodeReader:
        server = self.topology.server_of(workflow_id)
        node = self._nodes.get(server)
        if node is None:
            node = self._nodes[server] = NodeReader(server, self)
            if not self.topology.is_single:
                thread = threading.Thread(target=self._run, args=(node,), name="tail-node", daemon=True)
                self._threads = [*(each for each in self._threads if each.is_alive()), thread]
                thread.start()
        return node

    def reassign(self, logs: Sequence[WatchedLog]) -> None:
        with self._lock:
            for watched in logs:
                if self._logs.get(watched.job) is watched:
                    watched.node.remove(watched)
                    self._node_of(watched.job.workflow_id).add(watched)

    def _run(self, node: NodeReader) -> None:
        failures = 0
        while not self._closed.is_set() and not self._ends(node):
            try:
                found = node.read(self._count)
            except Exception as error:  # The thread must continue, or its jobs would stay silent.
                failures += 1
                if failures == 1:
                    log.warning("the tail reader cannot read some jobs: %s", error)
                node.error = error if isinstance(error, StoreError) else StoreError(repr(error))
                self._closed.wait(RetryPolicy(first=0.05, longest=0.5).delay(failures))
                continue
            failures, node.error = 0, None
            while found and not self._closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._results.put(found, timeout=self.block_seconds)
                    break
        node.close()

    def _ends(self, node: NodeReader) -> bool:
        with self._lock:
            if not node.logs:
                del self._nodes[node.server]
            return not node.logs
