"""Live reading where jobs are in different slots of a Cluster: no XREAD takes keys of two. ADR 8 has the reasons.

Each slot that is watched is a *lane*: a thread with a blocking reader of its own, which reads once each time it is
told to. Slots beyond the bound share one lane for each server, which does not block but asks again and again.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from chronoverse.errors import KeysMoving, NotALog, StoreError
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.blocking_reader import BlockingReader

#: Slots that wait on a connection of their own, per process. Together with the workers of some service nodes that is
#: still below the 10,000 clients which a Redis takes by default.
MAX_READERS: Final = 512
#: Seconds between rounds of a lane that may not block; of many jobs more, so that a round's own time is a quarter.
POLL_SECONDS: Final = 0.05
POLL_SHARE: Final = 3
#: Seconds before a lane reads again after an error; doubles from the first to the second, with jitter.
BACKOFF_SECONDS: Final = (0.05, 0.5)
#: Seconds between two tries of making a blocked lane take up a new job.
REARM_SECONDS: Final = 0.002

Cursors = dict[JobRef, int]
Entries = list[tuple[JobRef, Sequence[RawEntry]]]
Read = Callable[[JobRef, int, int], Sequence[RawEntry]]

log = logging.getLogger(__name__)


class _NodeReader:
    """One thread. It has either nothing to do, or an ``order``, until it has put itself into ``done``."""

    def __init__(
        self, reader: BlockingReader | None, read: Read, done: "queue.SimpleQueue[_NodeReader | None]"
    ) -> None:
        self.order: Cursors | None = None
        #: Whether the order lacks a job that is to be read.
        self.behind = False
        self.found: Entries = []
        self.error: StoreError | None = None
        #: Reads in vain since the last that was answered, and when that was; time without an order does not count.
        self.vain = 0
        self.answered_at = self._done_at = time.monotonic()
        self._reader = reader
        self._read = read
        self._done = done
        self._orders: queue.SimpleQueue[tuple[Cursors, int] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail-lane", daemon=True)
        self._thread.start()

    @property
    def shared(self) -> bool:
        """Whether it is for all slots of a server that have none of their own."""
        return self._reader is None

    def begin(self, cursors: Cursors, count: int) -> None:
        """Has it read, once."""
        self.order, self.behind = cursors, False
        self.answered_at += time.monotonic() - self._done_at
        self._orders.put((cursors, count))

    def interrupt(self) -> None:
        """Makes the read return, which may only be about to block. Raises :class:`StoreError`."""
        while self.behind and self._reader is not None:
            self._reader.interrupt()
            self._thread.join(REARM_SECONDS)

    def close(self) -> None:
        """Ends the thread, once it has read what it reads."""
        self.behind = self.order is not None
        self._closed.set()
        self._orders.put(None)

    def join(self, seconds: float) -> None:
        """Waits for that."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            if self.vain:
                delay = min(BACKOFF_SECONDS[0] * 2.0 ** min(self.vain - 1, 16), BACKOFF_SECONDS[1])
                self._closed.wait(random.uniform(delay / 2, delay))
            try:
                self._answered(self._take(*order), None)
            except StoreError as error:
                self._answered([], error)
            except Exception as error:  # or its jobs would be silent for ever
                self._answered([], StoreError(repr(error)))
        self.behind = False
        if self._reader is not None:
            self._reader.close()

    def _answered(self, found: Entries, error: StoreError | None) -> None:
        self.found, self.error = found, error
        self._done_at = time.monotonic()
        if error is None or isinstance(error, NotALog):
            self.answered_at = self._done_at
        self.vain = self.vain + 1 if error else 0
        self._done.put(self)

    def _take(self, cursors: Cursors, count: int) -> Entries:
        if self._reader is not None:
            with contextlib.suppress(KeysMoving):
                return self._reader.read(cursors, count)
            # Some of the keys are here and some there, and one by one each is found.
        began = time.monotonic()
        found = [(job, entries) for job, cursor in cursors.items() if (entries := self._read(job, cursor, count))]
        if not found:
            self._closed.wait(max(POLL_SECONDS, POLL_SHARE * (time.monotonic() - began)))
        return found


class NodeReaders:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`, for jobs in any slots. One thread reads; any may
    interrupt.

    ``make`` gives a reader for the jobs of one slot, ``slot`` and ``server`` are a workflow's, and ``read`` reads one
    job without waiting. A slot whose server is away does not keep the others from being read: :meth:`silent_seconds`
    tells of it.
    """

    tracks = False

    def __init__(
        self,
        make: Callable[[], BlockingReader],
        slot: Callable[[str], int],
        server: Callable[[str], Hashable],
        read: Read,
        block_seconds: float,
        most: int = MAX_READERS,
    ) -> None:
        self._make = make
        self._slot = slot
        self._server = server
        self._read = read
        self._block_seconds = block_seconds
        self._most = most
        #: By slot, and those that are shared by server.
        self._lanes: dict[Hashable, _NodeReader] = {}
        self._done: queue.SimpleQueue[_NodeReader | None] = queue.SimpleQueue()
        self._rearming: list[threading.Thread] = []

    def read(self, cursors: Mapping[JobRef, int], count: int) -> Entries:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream; another :class:`StoreError` when no server
        answers.
        """
        wanted = self._by_lane(cursors)
        until, heard = time.monotonic() + self._block_seconds, False
        while True:
            self._begin(wanted, count)
            done, interrupted = self._next(until if heard else None)
            found = {job: entries for lane in done for job, entries in self._answer(lane, cursors)}
            _complain(done, [lane for lane, _ in wanted])
            heard = heard or any(lane.error is None for lane in done)
            if found or interrupted or not done:
                return list(found.items())

    def _by_lane(self, cursors: Mapping[JobRef, int]) -> list[tuple[_NodeReader, Cursors]]:
        """What each lane has to read. Lanes that nobody needs are let go."""
        slots: dict[int, Cursors] = {}
        for job, cursor in cursors.items():
            slots.setdefault(self._slot(job.workflow_id), {})[job] = cursor
        self._let_go([key for key, lane in self._lanes.items() if not lane.shared and key not in slots])
        wanted: dict[Hashable, Cursors] = {}
        for slot, jobs in slots.items():
            own = slot in self._lanes or len(self._lanes) < self._most
            key = slot if own else self._server(next(iter(jobs)).workflow_id)
            wanted.setdefault(key, {}).update(jobs)
            if key not in self._lanes:
                self._lanes[key] = _NodeReader(self._make() if own else None, self._read, self._done)
        self._let_go([key for key, lane in self._lanes.items() if lane.shared and key not in wanted])
        return [(self._lanes[key], jobs) for key, jobs in wanted.items()]

    def _let_go(self, keys: Sequence[Hashable]) -> None:
        """Ends lanes, but for those that are still reading."""
        for key in keys:
            if self._lanes[key].order is None:
                self._lanes.pop(key).close()

    def _begin(self, wanted: list[tuple[_NodeReader, Cursors]], count: int) -> None:
        """Gives each idle lane its order, and has the others come back that lack a job."""
        for lane, cursors in wanted:
            if lane.order is None:
                lane.begin(cursors, count)
            elif not lane.behind and not cursors.keys() <= lane.order.keys():
                lane.behind = True
                self._rearm(lane)

    def _rearm(self, lane: _NodeReader) -> None:
        """In a thread of its own, since a server that is away takes its time."""
        self._rearming = [each for each in self._rearming if each.is_alive()]
        thread = threading.Thread(target=_interrupt, args=(lane,), name="tail-rearming", daemon=True)
        self._rearming.append(thread)
        thread.start()

    def _next(self, until: float | None) -> tuple[list[_NodeReader], bool]:
        """Waits for lanes that are done, or ``until`` then; and whether somebody interrupted."""
        done: list[_NodeReader] = []
        interrupted = False
        with contextlib.suppress(queue.Empty):
            lane = self._done.get(timeout=None if until is None else max(until - time.monotonic(), 0))
            while True:
                if lane is None:
                    interrupted = True
                else:
                    done.append(lane)
                lane = self._done.get_nowait()
        return done, interrupted

    @staticmethod
    def _answer(lane: _NodeReader, cursors: Mapping[JobRef, int]) -> Entries:
        """What it found, of jobs that still stand where they stood when it began; the rest is read again."""
        order, lane.order = lane.order or {}, None
        return [(job, entries) for job, entries in lane.found if order[job] == cursors.get(job)]

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return, to be called again with all jobs."""
        self._done.put(None)

    def silent_seconds(self, job: JobRef) -> float:
        """For how long the job's server has not answered."""
        workflow_id = job.workflow_id
        lane = self._lanes.get(self._slot(workflow_id)) or self._lanes.get(self._server(workflow_id))
        return 0 if lane is None or lane.order is None else time.monotonic() - lane.answered_at

    def close(self) -> None:
        """Closes all connections, within twice the time that a read waits; the next read opens others."""
        lanes, self._lanes = self._lanes, {}
        self._done = queue.SimpleQueue()
        for lane in lanes.values():
            lane.close()
            self._rearm(lane)
        until = time.monotonic() + 2 * self._block_seconds
        for lane in lanes.values():
            lane.join(max(until - time.monotonic(), 0))
        for thread in self._rearming:
            # Or it would ask with a client that whoever owns it closes next.
            thread.join(max(until - time.monotonic(), 0))


def _interrupt(lane: _NodeReader) -> None:
    with contextlib.suppress(StoreError):
        lane.interrupt()


def _complain(done: list[_NodeReader], wanted: list[_NodeReader]) -> None:
    """Raises an error that is everybody's, or nobody's in particular; else says it once."""
    for lane in done:
        if isinstance(lane.error, NotALog):
            raise lane.error
        if lane.error is not None and lane.vain == 1:
            log.warning("the tail cannot read some of its jobs: %s", lane.error)
    errors = [lane.error for lane in wanted if lane.error is not None]
    if errors and len(errors) == len(wanted):
        raise errors[-1]
