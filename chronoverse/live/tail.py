"""A worker's one live reader: a single connection waits for the next lines of every job being watched there.

Two threads. The *reader* blocks in XREAD over all watched jobs, encodes what comes once, and publishes it into
the jobs' channels. The *attendant* does what a blocked read cannot: has it re-armed when a job joins, looks at
quiet jobs (a blocked XREAD is not woken by a deleted or expired key, and a lost runner says nothing), and wakes
viewers whose heartbeat or deadline is due.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Final

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import NotALog, StoreError, StoreRefused, StoreUnavailable
from chronoverse.history.source import LogReader
from chronoverse.joblog import sse
from chronoverse.joblog.entries import RawEntry, in_sequence
from chronoverse.joblog.values import Job, JobRef, OutOfSequence, Status
from chronoverse.live import poll_policy as pacing
from chronoverse.live.delivery_stats import DeliveryStats, store_failed
from chronoverse.live.feed import Feed, Waiter, encode_raw, final_frames
from chronoverse.live.reconciler import JobStateReconciler, beyond_archived
from chronoverse.store.adaptive_batch import AdaptiveBatch
from chronoverse.store.watchlist import Watchlist

#: Seconds one XREAD waits. It bounds how long a stop takes, and is the beat by which the tail knows it is alive.
BLOCK_SECONDS: Final = 1.0
#: Seconds without a successful read after which the tail counts as unhealthy and heartbeats stop.
HEALTHY_SECONDS: Final = 4 * BLOCK_SECONDS
#: Seconds without a round after which a thread may be dead. Rounds take about BLOCK_SECONDS.
SILENT_SECONDS: Final = 3.0
#: Seconds between the attendant's rounds, and so the grain of heartbeats and deadlines.
TICK_SECONDS: Final = 0.5
#: Seconds between two tries of making a blocked read take up a new job.
REARM_SECONDS: Final = 0.002
#: How long the reader waits after a failed read, and the other thread after a failed round.
RETRY: Final = RetryPolicy(first=0.05, longest=1.0)
HOUSEKEEPING_RETRY: Final = RetryPolicy(first=1.0, longest=1.0)
#: Bytes of frames made of one read of a job, and the rest of the line with which they are reached: what lies behind is
#: read again. Only lines that are suddenly much longer than those before come to so many; a ring holds no more.
PUBLISH_BYTES: Final = 8 * 2**20

log = logging.getLogger(__name__)


class Tail:
    """The live reading of one process. Threads start with the first watched job, so it may be built before a fork.

    ``redacted`` hears of jobs of which something was redacted. ``clock`` is monotonic, in seconds; ``sleep`` lets
    others go first.
    """

    def __init__(
        self,
        store: LogReader,
        *,
        lease_seconds: float = 30,
        redacted: Callable[[JobRef], object] = bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._observer = JobStateReconciler(store, lease_seconds, lambda: self._ring_bytes(), redacted)
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._yield_to_loop = partial(sleep, 0)
        self._reader = store.live_reader(BLOCK_SECONDS)
        self._channels: dict[JobRef, Feed] = {}
        #: What the reader thread reads next, and the jobs of which that may not be right any more.
        self._cursors = Watchlist()
        self._moved: deque[JobRef] = deque()
        self._lock = threading.Lock()
        self._joined = threading.Event()
        self._attend = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        #: Who looks at the jobs of each server, where there are many.
        self._looking: dict[Hashable, threading.Thread] = {}
        self._count = AdaptiveBatch()
        self.stats = DeliveryStats()
        self._beats: dict[str, float] = {}
        self._read_at = clock()
        self._failing = False

    # For viewers

    def join(self, ref: JobRef, job: Job | None, viewer: Waiter) -> Feed:
        """The job's channel, from now on kept up to date and waking ``viewer``. ``job`` is a fresh look at it."""
        with self._lock:
            if not self._channels:
                self._read_at = self._clock()
            channel = self._channels.get(ref)
            if channel is None:
                channel = self._channels[ref] = Feed(ref, job, self._yield_to_loop)
                self._moved.append(ref)
            channel.viewers.add(viewer)
        if job is not None and (channel.job is None or job.age > channel.job.age):
            channel.reconcile(job)
        self._joined.set()
        if not channel.subscribed:
            self._attend.set()
        return channel

    def leave(self, channel: Feed, viewer: Waiter) -> None:
        """Undoes :meth:`join`. A job nobody watches is not read."""
        with self._lock:
            channel.viewers.discard(viewer)
            if not channel.viewers and self._channels.get(channel.ref) is channel:
                del self._channels[channel.ref]
                self._moved.append(channel.ref)

    def known(self, ref: JobRef) -> Job | None:
        """The job as the tail has it, its last line the newest, the rest some seconds old at most; None if it has not.

        Saves a crowd that comes back to one job a look each.
        """
        channel = self._channels.get(ref)
        if channel is None or channel.job is None or channel.final is not None:
            return None
        if self._failing or not self.healthy(ref):
            return None
        return channel.latest()

    def silent_seconds(self, ref: JobRef | None = None) -> float:
        """For how long the store has not answered the tail; or the server of ``ref``, where there are many."""
        return max(self._clock() - self._read_at, self._reader.silent_seconds(ref) if ref else 0)

    def healthy(self, ref: JobRef) -> bool:
        """Whether the reading of that job works, so that a heartbeat tells the truth."""
        return self.silent_seconds(ref) < HEALTHY_SECONDS

    @property
    def watched(self) -> int:
        """Jobs being watched."""
        return len(self._channels)

    def tell(self) -> None:
        """Brings the metrics up to date with what this tail does; so does each of the attendant's rounds."""
        self.stats.tell(tuple(self._channels.values()), self.silent_seconds())

    # One step of each thread

    def read_once(self) -> bool:
        """One read of all watched jobs and all that follows from it; False when there is none to read.

        Raises :class:`StoreError`.
        """
        if not (cursors := self._cursors_now()):
            self._read_at = self._clock()
            return False
        try:
            batches = self._reader.read(cursors, self._count.lines)
        except NotALog:
            self.look_at([channel for channel in tuple(self._channels.values()) if channel.ref in cursors])
            return True
        self._read_at = self._clock()
        for ref, entries in batches:
            self._moved.append(ref)
            found = self._channels.get(ref)
            # Unless nobody watches it any more, or the attendant has moved it on since the read began.
            if found is not None and found.cursor == cursors[ref]:
                self._safely(found, partial(self._publish, found, entries, cursors[ref]))
        return True

    def _cursors_now(self) -> Watchlist:
        """Where each job is to be read on. Kept, for of thousands only a few have moved since the last read."""
        while self._moved:
            ref = self._moved.popleft()
            if (channel := self._channels.get(ref)) is not None:
                channel.subscribed = True
            if channel is None or channel.final is not None:
                self._cursors.pop(ref, None)
            else:
                self._cursors.set_cursor(ref, channel.cursor)
        return self._cursors

    def look_at(self, channels: Sequence[Feed]) -> None:
        """Looks at the state of the channels' jobs, and closes those that have nothing more to come."""
        now = self._clock()
        for channel in channels:
            channel.looked_at, channel.look_at = now, now + pacing.look_seconds(self.watched)
        for channel, found in zip(channels, self._store.get_jobs([channel.ref for channel in channels]), strict=True):
            if not isinstance(found, StoreUnavailable | StoreRefused):  # else the servers of other jobs have answered
                self._safely(channel, partial(self._looked, channel, found))
                self._moved.append(channel.ref)

    def _looked(self, channel: Feed, found: Job | StoreError | None) -> None:
        """What a look at the channel's job means. Raises :class:`StoreError`."""
        if isinstance(found, StoreError):
            raise found
        if found is not None:
            self._observer.reconcile(channel, found)
        elif channel.job is not None:
            channel.close(sse.frame("error", b"the log is gone from the store: it expired or was deleted"))

    def _safely(self, channel: Feed, work: Callable[[], object]) -> None:
        """Does ``work`` for one job. What goes wrong in it closes the job's channel, and stops no other job.

        Raises :class:`StoreUnavailable` and :class:`StoreRefused`: a store that is away is no fault of the job.
        """
        try:
            work()
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:
            ours = isinstance(error, StoreError)
            # One that has closed already is looked at for as long as it has viewers, and fails each time.
            if channel.final is None:
                log.warning("the log of %s cannot be read: %s", channel.ref, error, exc_info=not ours)
            channel.close(sse.frame("error", sse.fold(str(error)) if ours else b"this log cannot be read"))

    def _publish(self, channel: Feed, entries: Sequence[RawEntry], before: int) -> None:
        ordinary = in_sequence(entries, before)
        if channel.job is None or not ordinary or channel.job.status is Status.PENDING:
            self.look_at([channel])
        if not ordinary:
            entries, before = beyond_archived(channel, entries, before)
        first = channel.job.first if channel.job and not ordinary else 1
        items, closing = encode_raw(entries, before, first, PUBLISH_BYTES)
        if items:
            size, sharing = sum([len(item.frame) for item in items]), channel.sharing
            if channel.publish(items, before, self._ring_bytes()):
                self.stats.delivered(len(items), size, sharing)
                self.stats.delayed(entries[0])
            self._count.learn(len(items), size)
            channel.look_at = self._next_look(channel)
        if isinstance(closing, OutOfSequence):
            channel.close(closing.to_frame())
        elif closing is not None:
            self.look_at([channel])
            # Somebody may have written on behind the end, so that the look did not find it: it is the end all the same.
            if channel.cursor + 1 == closing.sequence_num:
                job = channel.job or Job(channel.ref, closing.status)
                channel.close(final_frames(job, closing, self._lease_seconds))

    def _next_look(self, channel: Feed) -> float:
        """When to look at a job of which lines have come."""
        look, busy = pacing.look_seconds(self.watched), pacing.busy_look_seconds(self.watched)
        return min(self._clock() + look, channel.looked_at + busy)

    def _ring_bytes(self) -> int:
        return pacing.ring_bytes(self.watched)

    def housekeep_once(self) -> None:
        """One round of looking at quiet jobs and waking those whose time has come. Raises :class:`StoreError`."""
        now = self._clock()
        channels = tuple(self._channels.values())
        for channel in channels:
            for viewer in tuple(channel.viewers):
                if viewer.due <= now:
                    viewer.wake()
        due = [channel for channel in channels if channel.look_at <= now]
        if not due:
            return
        if self._store.single_server:
            self.look_at(due)
            return
        servers: dict[Hashable, list[Feed]] = {}
        for channel in due:
            servers.setdefault(self._store.server_of(channel.ref), []).append(channel)
        for server, theirs in servers.items():
            self._look_apart(server, theirs)

    def _look_apart(self, server: Hashable, channels: Sequence[Feed]) -> None:
        """Looks at jobs of one of many servers, in a thread of its own: one that stands still must not hold up others.

        Does nothing while the last looks there are under way.
        """
        before = self._looking.get(server)
        if before is None or not before.is_alive():
            thread = threading.Thread(target=self._look_safely, args=(channels,), name="tail-look", daemon=True)
            self._looking[server] = thread
            thread.start()

    def _look_safely(self, channels: Sequence[Feed]) -> None:
        try:
            self.look_at(channels)
        except StoreError as error:
            store_failed("tail", error)
            log.warning("the tail cannot look at some of its jobs: %s", error)

    # The threads

    def start(self) -> None:
        """Starts the threads, or those of them that died. Each calls this for the other; cheap when both live."""
        if len(self._beats) < 2 or self._clock() - min(self._beats.values()) > SILENT_SECONDS:
            self._start_dead()

    def _start_dead(self) -> None:
        with self._lock:
            if self._stopped.is_set() or (self._threads and all(thread.is_alive() for thread in self._threads)):
                return
            alive = {thread.name for thread in self._threads if thread.is_alive()}
            loops = {"tail-reader": self._read_loop, "tail-attendant": self._housekeeping_loop}
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for name in loops.keys() - alive:
                thread = threading.Thread(target=loops[name], name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def stop(self) -> None:
        """Ends both threads, within :data:`BLOCK_SECONDS`, and closes the connection."""
        self._stopped.set()
        self._joined.set()
        self._attend.set()
        for thread in self._threads:
            thread.join(2 * BLOCK_SECONDS)
        self._reader.close()

    def _read_loop(self) -> None:
        backoff = Backoff(RETRY)
        while not self._stopped.is_set():
            self._joined.clear()
            self._watchdog("reader", "attendant")
            try:
                if not self.read_once():
                    self._joined.wait(BLOCK_SECONDS)
                backoff.record_success()
                self._failing = False
            except StoreError as error:
                self._failing = True
                store_failed("tail", error)
                log.warning("the tail cannot read: %s", error)
                backoff.record_failure()
                self._stopped.wait(backoff.delay())
            self._pause()

    def _watchdog(self, own: str, other: str) -> None:
        """Starts the other thread again if it has been silent. Asking each time whether it lives would let every
        woken viewer go first under gevent: it doubled the median delay of 1,000 viewers."""
        now = self._beats[own] = self._clock()
        if now - self._beats.get(other, now) > SILENT_SECONDS:
            self._beats[other] = now
            self._start_dead()

    def _pause(self) -> None:
        if seconds := pacing.pause_seconds(self.watched, tracked=self._reader.tracks_changes):
            self._stopped.wait(seconds)

    def _housekeeping_loop(self) -> None:
        while not self._stopped.is_set():
            self._attend.wait(TICK_SECONDS)
            self._attend.clear()
            self._watchdog("attendant", "reader")
            self.tell()
            try:
                self._rearm()
                self.housekeep_once()
            except StoreError as error:
                store_failed("tail", error)
                log.warning("the tail cannot look at its jobs: %s", error)
                self._stopped.wait(HOUSEKEEPING_RETRY.delay(1))

    def _rearm(self) -> None:
        """Has the blocked read give way until it covers every channel. One attempt may come just before it blocks."""
        deadline = self._clock() + BLOCK_SECONDS
        while not all(channel.subscribed for channel in tuple(self._channels.values())) and self._clock() < deadline:
            self._reader.interrupt()
            self._stopped.wait(REARM_SECONDS)
