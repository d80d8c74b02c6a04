"""Live reading of all jobs that a process watches: a :class:`NodeReader` for each server that has some of them."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from chronoverse.backoff import RetryPolicy
from chronoverse.errors import StoreError
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.store.node_reader import POLL_SECONDS, Found, NodeReader, WatchedLog
from chronoverse.store.topology import Topology

log = logging.getLogger(__name__)


class LiveReader:
    """Waits for new entries of many jobs. One thread reads; any thread may watch and unwatch jobs.

    With one server, or behind Sentinels, :meth:`read` reads by itself. In a Cluster each node has a thread, so that the
    jobs of the others need not wait for it. ``key`` gives the key of a job's log, and ``read`` reads one log at once,
    wherever it is. A read waits for up to ``block_seconds``.
    """

    def __init__(
        self,
        topology: Topology,
        key: Callable[[JobRef], str],
        read: Callable[[JobRef, int, int], Sequence[RawEntry]],
        block_seconds: float,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._topology = topology
        self._key = key
        self._read_one = read
        self._block_seconds = block_seconds
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._logs: dict[JobRef, WatchedLog] = {}
        self._nodes: dict[Hashable, NodeReader] = {}
        #: What the nodes' threads have found. Each waits until its last result was taken.
        self._results: queue.Queue[list[Found]] = queue.Queue(1)
        #: Entries of one job that a node's thread asks for: what the caller of :meth:`read` last asked for.
        self._count = 100
        #: The last error of each node that does not answer.
        self._errors: dict[Hashable, StoreError] = {}
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()

    def watch(self, job: JobRef, cursor: int, *, again: bool = False) -> None:
        """Watches a job: from now on the entries after line ``cursor`` are read. The job may be watched already.

        With ``again`` the job is read once more in any case: there may be entries that the server did not report.
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
        """Stops watching a job."""
        with self._lock:
            watched = self._logs.pop(job, None)
            if watched is not None:
                watched.node.remove(watched)

    def read(self, count: int) -> list[Found]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        The next read continues after them. For a job that cannot be read, the list has an error, such as
        :class:`NotALog`, instead of entries. Raises :class:`StoreError` when no server answers.
        """
        if self._topology.is_single:
            with self._lock:
                node = self._node_of("")
            return node.read(count)
        self._count = count
        found: list[Found] = []
        with contextlib.suppress(queue.Empty):
            found += self._results.get(timeout=self._block_seconds)
            while True:
                found += self._results.get_nowait()
        nodes, errors = tuple(self._nodes), dict(self._errors)
        if nodes and not found and all(server in errors for server in nodes):
            raise errors[nodes[0]]
        return found

    def silent_seconds(self, job: JobRef) -> float:
        """For how many seconds the reader has waited for an answer of the job's server."""
        watched = self._logs.get(job)
        return 0.0 if watched is None else watched.node.silent_seconds

    def close(self) -> None:
        """Ends reading, within twice the time that a read waits, and closes the connections."""
        self._closed.set()
        until = time.monotonic() + 2 * self._block_seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if self._topology.is_single:
            for node in self._nodes.values():
                node.close()

    def _node_of(self, workflow_id: str) -> NodeReader:
        server = self._topology.server_of(workflow_id)
        node = self._nodes.get(server)
        if node is None:
            node = self._nodes[server] = NodeReader(
                server, self._topology, self._read_one, self._reassign, self._block_seconds, self._poll_seconds
            )
            if not self._topology.is_single:
                thread = threading.Thread(target=self._run, args=(node,), name="tail-node", daemon=True)
                self._threads = [*(each for each in self._threads if each.is_alive()), thread]
                thread.start()
        return node

    def _reassign(self, logs: Sequence[WatchedLog]) -> None:
        """Gives logs to the nodes that have them now."""
        with self._lock:
            for watched in logs:
                if self._logs.get(watched.job) is watched:
                    watched.node.remove(watched)
                    self._node_of(watched.job.workflow_id).add(watched)

    # The thread of a node

    def _run(self, node: NodeReader) -> None:
        """Reads until the node has no logs any more."""
        failures = 0
        while not self._closed.is_set() and not self._ends(node):
            try:
                found = node.read(self._count)
            except Exception as error:  # The thread must go on, or its jobs would stay silent.
                failures += 1
                if failures == 1:
                    log.warning("the tail cannot read some of its jobs: %s", error)
                self._errors[node.server] = error if isinstance(error, StoreError) else StoreError(repr(error))
                self._closed.wait(RetryPolicy(first=0.05, longest=0.5).delay(failures))
                continue
            failures = 0
            self._errors.pop(node.server, None)
            while found and not self._closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._results.put(found, timeout=self._block_seconds)
                    break
        self._errors.pop(node.server, None)
        node.close()

    def _ends(self, node: NodeReader) -> bool:
        with self._lock:
            if not node.logs:
                del self._nodes[node.server]
            return not node.logs
