"""Live reading in a Cluster. No XREAD takes keys of two slots, so each slot has a reader. ADR 8 has the reasons.

A slot reader is a thread with a blocking reader of its own. It reads once for each request. There is a bound on such
readers. The slots beyond it share one reader for each server, which does not block but polls.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from chronoverse.backoff import RetryPolicy
from chronoverse.errors import KeysMoving, NotALog, StoreError
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.blocking_reader import BlockingReader

#: Slots with a connection of their own, per process. The workers of some service nodes together still stay below the
#: 10,000 clients which a Redis takes by default.
MAX_SLOT_READERS: Final = 512
#: Seconds between the polls of a shared reader. A poll of many jobs takes longer, and then the pause is
#: ``POLL_SHARE`` times as long as the poll, so that polling takes a quarter of the time.
POLL_SECONDS: Final = 0.05
POLL_SHARE: Final = 3
#: How long a reader waits before it tries again after an error.
RETRY: Final = RetryPolicy(first=0.05, longest=0.5)
#: Seconds between two tries to interrupt a reader that must take up a new job.
INTERRUPT_SECONDS: Final = 0.002

Cursors = dict[JobRef, int]
Entries = list[tuple[JobRef, Sequence[RawEntry]]]
Read = Callable[[JobRef, int, int], Sequence[RawEntry]]

log = logging.getLogger(__name__)


class _SlotReader:
    """One thread. It is idle, or it works on ``request`` until it puts itself into the queue ``done``.

    Without a ``reader`` it is shared: it polls the jobs of all slots of a server that have no reader of their own.
    """

    def __init__(
        self, reader: BlockingReader | None, read: Read, done: "queue.SimpleQueue[_SlotReader | None]"
    ) -> None:
        self.request: Cursors | None = None
        #: Whether the request lacks a job that must be read, so that the read must be interrupted.
        self.is_outdated = False
        self.found: Entries = []
        self.error: StoreError | None = None
        #: Failed reads since the last that was answered, and when that was. Idle time does not count.
        self.failures = 0
        self.answered_at = self._done_at = time.monotonic()
        self._reader = reader
        self._read = read
        self._done = done
        self._requests: queue.SimpleQueue[tuple[Cursors, int] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail-slot", daemon=True)
        self._thread.start()

    @property
    def is_shared(self) -> bool:
        return self._reader is None

    def begin(self, cursors: Cursors, count: int) -> None:
        """Starts one read."""
        self.request, self.is_outdated = cursors, False
        self.answered_at += time.monotonic() - self._done_at
        self._requests.put((cursors, count))

    def interrupt(self) -> None:
        """Makes an outdated read return. Repeats that, since the read may not block yet. Raises :class:`StoreError`."""
        while self.is_outdated and self._reader is not None:
            self._reader.interrupt()
            self._thread.join(INTERRUPT_SECONDS)

    def close(self) -> None:
        """Ends the thread after its current read."""
        self.is_outdated = self.request is not None
        self._closed.set()
        self._requests.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the end of the thread."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            if self.failures:
                self._closed.wait(RETRY.delay(self.failures))
            try:
                self._finish(self._read_once(*request), None)
            except StoreError as error:
                self._finish([], error)
            except Exception as error:  # The thread must go on, or its jobs would stay silent.
                self._finish([], StoreError(repr(error)))
        self.is_outdated = False
        if self._reader is not None:
            self._reader.close()

    def _finish(self, found: Entries, error: StoreError | None) -> None:
        self.found, self.error = found, error
        self._done_at = time.monotonic()
        if error is None or isinstance(error, NotALog):
            self.answered_at = self._done_at
        self.failures = self.failures + 1 if error else 0
        self._done.put(self)

    def _read_once(self, cursors: Cursors, count: int) -> Entries:
        if self._reader is not None:
            with contextlib.suppress(KeysMoving):
                return self._reader.read(cursors, count)
            # The slot is being moved, and its keys are on two servers. Read one by one, each is found.
        began = time.monotonic()
        found = [(job, entries) for job, cursor in cursors.items() if (entries := self._read(job, cursor, count))]
        if not found:
            self._closed.wait(max(POLL_SECONDS, POLL_SHARE * (time.monotonic() - began)))
        return found


class SlotReaders:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`, for jobs in any slots. One thread reads; any thread
    may interrupt.

    ``new_reader`` makes a reader for the jobs of one slot. ``slot_of`` and ``server_of`` give a workflow's slot and
    server. ``read`` reads one job without waiting. A slot whose server does not answer does not stop the others from
    being read; :meth:`silent_seconds` tells of it.
    """

    tracks_changes = False

    def __init__(
        self,
        new_reader: Callable[[], BlockingReader],
        slot_of: Callable[[str], int],
        server_of: Callable[[str], Hashable],
        read: Read,
        block_seconds: float,
        max_slot_readers: int = MAX_SLOT_READERS,
    ) -> None:
        self._new_reader = new_reader
        self._slot_of = slot_of
        self._server_of = server_of
        self._read = read
        self._block_seconds = block_seconds
        self._max_slot_readers = max_slot_readers
        #: By slot. The shared readers are here by server.
        self._readers: dict[Hashable, _SlotReader] = {}
        #: Readers that are done. None stands for a call of :meth:`interrupt`.
        self._done: queue.SimpleQueue[_SlotReader | None] = queue.SimpleQueue()
        self._interrupters: list[threading.Thread] = []

    def read(self, cursors: Mapping[JobRef, int], count: int) -> Entries:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream; another :class:`StoreError` when no server
        answers.
        """
        requests = self._requests(cursors)
        until, answered = time.monotonic() + self._block_seconds, False
        while True:
            self._begin(requests, count)
            done, interrupted = self._wait(until if answered else None)
            found = {job: entries for reader in done for job, entries in self._take_found(reader, cursors)}
            _raise_or_log(done, [reader for reader, _ in requests])
            answered = answered or any(reader.error is None for reader in done)
            if found or interrupted or not done:
                return list(found.items())

    def _requests(self, cursors: Mapping[JobRef, int]) -> list[tuple[_SlotReader, Cursors]]:
        """What each reader has to read. Readers that are not needed are closed."""
        slots: dict[int, Cursors] = {}
        for job, cursor in cursors.items():
            slots.setdefault(self._slot_of(job.workflow_id), {})[job] = cursor
        self._close_idle([key for key, reader in self._readers.items() if not reader.is_shared and key not in slots])
        requests: dict[Hashable, Cursors] = {}
        for slot, jobs in slots.items():
            has_own = slot in self._readers or len(self._readers) < self._max_slot_readers
            key = slot if has_own else self._server_of(next(iter(jobs)).workflow_id)
            requests.setdefault(key, {}).update(jobs)
            if key not in self._readers:
                self._readers[key] = _SlotReader(self._new_reader() if has_own else None, self._read, self._done)
        self._close_idle([key for key, reader in self._readers.items() if reader.is_shared and key not in requests])
        return [(self._readers[key], jobs) for key, jobs in requests.items()]

    def _close_idle(self, keys: Sequence[Hashable]) -> None:
        """Closes those of the readers that are not reading."""
        for key in keys:
            if self._readers[key].request is None:
                self._readers.pop(key).close()

    def _begin(self, requests: list[tuple[_SlotReader, Cursors]], count: int) -> None:
        """Starts the idle readers, and interrupts the others whose request lacks a job."""
        for reader, cursors in requests:
            if reader.request is None:
                reader.begin(cursors, count)
            elif not reader.is_outdated and not cursors.keys() <= reader.request.keys():
                reader.is_outdated = True
                self._interrupt(reader)

    def _interrupt(self, reader: _SlotReader) -> None:
        """Interrupts the reader in a thread, since a server that is down takes long to answer."""
        self._interrupters = [thread for thread in self._interrupters if thread.is_alive()]
        thread = threading.Thread(target=_interrupt, args=(reader,), name="tail-interrupt", daemon=True)
        self._interrupters.append(thread)
        thread.start()

    def _wait(self, until: float | None) -> tuple[list[_SlotReader], bool]:
        """Waits for readers that are done, ``until`` then at most. Also returns whether there was an interrupt."""
        done: list[_SlotReader] = []
        interrupted = False
        with contextlib.suppress(queue.Empty):
            reader = self._done.get(timeout=None if until is None else max(until - time.monotonic(), 0))
            while True:
                if reader is None:
                    interrupted = True
                else:
                    done.append(reader)
                reader = self._done.get_nowait()
        return done, interrupted

    @staticmethod
    def _take_found(reader: _SlotReader, cursors: Mapping[JobRef, int]) -> Entries:
        """What it found, of jobs whose cursors are the same as when it began. The others are read again."""
        request, reader.request = reader.request or {}, None
        return [(job, entries) for job, entries in reader.found if request[job] == cursors.get(job)]

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return. The caller then calls it again with all jobs."""
        self._done.put(None)

    def silent_seconds(self, job: JobRef) -> float:
        """Seconds for which the job's server has not answered."""
        workflow_id = job.workflow_id
        reader = self._readers.get(self._slot_of(workflow_id)) or self._readers.get(self._server_of(workflow_id))
        return 0 if reader is None or reader.request is None else time.monotonic() - reader.answered_at

    def close(self) -> None:
        """Closes all connections, within twice the time that a read waits. The next read opens others."""
        readers, self._readers = self._readers, {}
        self._done = queue.SimpleQueue()
        for reader in readers.values():
            reader.close()
            self._interrupt(reader)
        until = time.monotonic() + 2 * self._block_seconds
        for reader in readers.values():
            reader.join(max(until - time.monotonic(), 0))
        for thread in self._interrupters:
            # These threads use a client that its owner may close next.
            thread.join(max(until - time.monotonic(), 0))


def _interrupt(reader: _SlotReader) -> None:
    with contextlib.suppress(StoreError):
        reader.interrupt()


def _raise_or_log(done: list[_SlotReader], requested: list[_SlotReader]) -> None:
    """Raises an error that all readers have, or that cannot be blamed on one job. Logs the first error of a reader."""
    for reader in done:
        if isinstance(reader.error, NotALog):
            raise reader.error
        if reader.error is not None and reader.failures == 1:
            log.warning("the tail cannot read some of its jobs: %s", reader.error)
    errors = [reader.error for reader in requested if reader.error is not None]
    if errors and len(errors) == len(requested):
        raise errors[-1]
