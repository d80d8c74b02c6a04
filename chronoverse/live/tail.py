"""A worker's one live reader: a single connection waits for the next lines of every job being watched there.

Two threads. The *reader* blocks in XREAD over all watched jobs, encodes what comes once, and publishes it into
the jobs' feeds. The *attendant* does what a blocked read cannot: has it re-armed when a job joins, looks at
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
from chronoverse.history.protocols import LogReader
from chronoverse.joblog import sse
from chronoverse.joblog.ending import LOG_IS_GONE, closing_frames
from chronoverse.joblog.entries import RawEntry, in_sequence
from chronoverse.joblog.values import Job, JobRef, OutOfSequence, Status
from chronoverse.live import poll_policy as pacing
from chronoverse.live.delivery_stats import DeliveryStats, count_store_error
from chronoverse.live.feed import Feed, Waiter, encode_raw
from chronoverse.live.reconciler import JobStateReconciler, skip_archived
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
        self._reconciler = JobStateReconciler(store, lease_seconds, lambda: self._ring_bytes(), redacted)
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._yield_to_loop = partial(sleep, 0)
        self._reader = store.live_reader(BLOCK_SECONDS)
        self._feeds: dict[JobRef, Feed] = {}
        #: What the reader thread reads next, and the jobs of which that may not be right any more.
        self._cursors = Watchlist()
        self._changed: deque[JobRef] = deque()
        self._lock = threading.Lock()
        self._joined = threading.Event()
        self._housekeeping_due = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        #: Who looks at the jobs of each server, where there are many.
        self._checkers: dict[Hashable, threading.Thread] = {}
        self._batch = AdaptiveBatch()
        self.stats = DeliveryStats()
        self._rounds: dict[str, float] = {}
        self._read_at = clock()
        self._failing = False

    # For viewers

    def join(self, ref: JobRef, job: Job | None, viewer: Waiter) -> Feed:
        """The job's feed, from now on kept up to date and waking ``viewer``. ``job`` is a fresh look at it."""
        with self._lock:
            if not self._feeds:
                self._read_at = self._clock()
            feed = self._feeds.get(ref)
            if feed is None:
                feed = self._feeds[ref] = Feed(ref, job, self._yield_to_loop)
                self._changed.append(ref)
            feed.viewers.add(viewer)
        if job is not None and (feed.job is None or job.age > feed.job.age):
            feed.reconcile(job)
        self._joined.set()
        if not feed.subscribed:
            self._housekeeping_due.set()
        return feed

    def leave(self, feed: Feed, viewer: Waiter) -> None:
        """Undoes :meth:`join`. A job nobody watches is not read."""
        with self._lock:
            feed.viewers.discard(viewer)
            if not feed.viewers and self._feeds.get(feed.ref) is feed:
                del self._feeds[feed.ref]
                self._changed.append(feed.ref)

    def known_job(self, ref: JobRef) -> Job | None:
        """The job as the tail has it, its last line the newest, the rest some seconds old at most; None if it has not.

        Saves a crowd that comes back to one job a look each.
        """
        feed = self._feeds.get(ref)
        if feed is None or feed.job is None or feed.final is not None:
            return None
        if self._failing or not self.healthy(ref):
            return None
        return feed.latest()

    def silent_seconds(self, ref: JobRef | None = None) -> float:
        """For how long the store has not answered the tail; or the server of ``ref``, where there are many."""
        return max(self._clock() - self._read_at, self._reader.silent_seconds(ref) if ref else 0)

    def healthy(self, ref: JobRef) -> bool:
        """Whether the reading of that job works, so that a heartbeat tells the truth."""
        return self.silent_seconds(ref) < HEALTHY_SECONDS

    @property
    def watched(self) -> int:
        """Jobs being watched."""
        return len(self._feeds)

    def report_metrics(self) -> None:
        """Brings the metrics up to date with what this tail does; so does each of the attendant's rounds."""
        self.stats.report(tuple(self._feeds.values()), self.silent_seconds())

    # One step of each thread

    def read_once(self) -> bool:
        """One read of all watched jobs and all that follows from it; False when there is none to read.

        Raises :class:`StoreError`.
        """
        if not (cursors := self._current_cursors()):
            self._read_at = self._clock()
            return False
        try:
            batches = self._reader.read(cursors, self._batch.lines)
        except NotALog:
            self.check_jobs([feed for feed in tuple(self._feeds.values()) if feed.ref in cursors])
            return True
        self._read_at = self._clock()
        for ref, entries in batches:
            self._changed.append(ref)
            found = self._feeds.get(ref)
            # Unless nobody watches it any more, or the attendant has moved it on since the read began.
            if found is not None and found.cursor == cursors[ref]:
                self._guarded(found, partial(self._publish, found, entries, cursors[ref]))
        return True

    def _current_cursors(self) -> Watchlist:
        """Where each job is to be read on. Kept, for of thousands only a few have moved since the last read."""
        while self._changed:
            ref = self._changed.popleft()
            if (feed := self._feeds.get(ref)) is not None:
                feed.subscribed = True
            if feed is None or feed.final is not None:
                self._cursors.pop(ref, None)
            else:
                self._cursors.set_cursor(ref, feed.cursor)
        return self._cursors

    def check_jobs(self, feeds: Sequence[Feed]) -> None:
        """Looks at the state of the feeds' jobs, and closes those that have nothing more to come."""
        now = self._clock()
        for feed in feeds:
            feed.checked_at, feed.check_at = now, now + pacing.check_seconds(self.watched)
        for feed, found in zip(feeds, self._store.get_jobs([feed.ref for feed in feeds]), strict=True):
            if not isinstance(found, StoreUnavailable | StoreRefused):  # else the servers of other jobs have answered
                self._guarded(feed, partial(self._apply_check, feed, found))
                self._changed.append(feed.ref)

    def _apply_check(self, feed: Feed, found: Job | StoreError | None) -> None:
        """What a look at the feed's job means. Raises :class:`StoreError`."""
        if isinstance(found, StoreError):
            raise found
        if found is not None:
            self._reconciler.reconcile(feed, found)
        elif feed.job is not None:
            feed.close(sse.frame("error", LOG_IS_GONE.encode()))

    def _guarded(self, feed: Feed, work: Callable[[], object]) -> None:
        """Does ``work`` for one job. What goes wrong in it closes the job's feed, and stops no other job.

        Raises :class:`StoreUnavailable` and :class:`StoreRefused`: a store that is away is no fault of the job.
        """
        try:
            work()
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:
            ours = isinstance(error, StoreError)
            # One that has closed already is looked at for as long as it has viewers, and fails each time.
            if feed.final is None:
                log.warning("the log of %s cannot be read: %s", feed.ref, error, exc_info=not ours)
            feed.close(sse.frame("error", sse.fold(str(error)) if ours else b"this log cannot be read"))

    def _publish(self, feed: Feed, entries: Sequence[RawEntry], before: int) -> None:
        ordinary = in_sequence(entries, before)
        if feed.job is None or not ordinary or feed.job.status is Status.PENDING:
            self.check_jobs([feed])
        if not ordinary:
            entries, before = skip_archived(feed, entries, before)
        first = feed.job.first if feed.job and not ordinary else 1
        events, closing = encode_raw(entries, before, first, PUBLISH_BYTES)
        if events:
            size, sharing = sum([len(event.frame) for event in events]), feed.ring_readers
            if feed.publish(events, before, self._ring_bytes()):
                self.stats.count_delivered(len(events), size, sharing)
                self.stats.observe_delay(entries[0])
            self._batch.learn(len(events), size)
            feed.check_at = self._next_check(feed)
        if isinstance(closing, OutOfSequence):
            feed.close(closing.to_frame())
        elif closing is not None:
            self.check_jobs([feed])
            # Somebody may have written on behind the end, so that the look did not find it: it is the end all the same.
            if feed.cursor + 1 == closing.sequence_num:
                job = feed.job or Job(feed.ref, closing.status)
                feed.close(closing_frames(job, closing, self._lease_seconds))

    def _next_check(self, feed: Feed) -> float:
        """When to look at a job of which lines have come."""
        look, busy = pacing.check_seconds(self.watched), pacing.busy_check_seconds(self.watched)
        return min(self._clock() + look, feed.checked_at + busy)

    def _ring_bytes(self) -> int:
        return pacing.ring_bytes(self.watched)

    def housekeep_once(self) -> None:
        """One round of looking at quiet jobs and waking those whose time has come. Raises :class:`StoreError`."""
        now = self._clock()
        feeds = tuple(self._feeds.values())
        for feed in feeds:
            for viewer in tuple(feed.viewers):
                if viewer.due <= now:
                    viewer.wake()
        due = [feed for feed in feeds if feed.check_at <= now]
        if not due:
            return
        if self._store.single_server:
            self.check_jobs(due)
            return
        servers: dict[Hashable, list[Feed]] = {}
        for feed in due:
            servers.setdefault(self._store.server_of(feed.ref), []).append(feed)
        for server, theirs in servers.items():
            self._check_in_thread(server, theirs)

    def _check_in_thread(self, server: Hashable, feeds: Sequence[Feed]) -> None:
        """Looks at jobs of one of many servers, in a thread of its own: one that stands still must not hold up others.

        Does nothing while the last looks there are under way.
        """
        before = self._checkers.get(server)
        if before is None or not before.is_alive():
            thread = threading.Thread(target=self._check_logging_errors, args=(feeds,), name="tail-look", daemon=True)
            self._checkers[server] = thread
            thread.start()

    def _check_logging_errors(self, feeds: Sequence[Feed]) -> None:
        try:
            self.check_jobs(feeds)
        except StoreError as error:
            count_store_error("tail", error)
            log.warning("the tail cannot look at some of its jobs: %s", error)

    # The threads

    def start(self) -> None:
        """Starts the threads, or those of them that died. Each calls this for the other; cheap when both live."""
        if len(self._rounds) < 2 or self._clock() - min(self._rounds.values()) > SILENT_SECONDS:
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
        self._housekeeping_due.set()
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
                count_store_error("tail", error)
                log.warning("the tail cannot read: %s", error)
                backoff.record_failure()
                self._stopped.wait(backoff.delay())
            self._pause()

    def _watchdog(self, own: str, other: str) -> None:
        """Starts the other thread again if it has been silent. Asking each time whether it lives would let every
        woken viewer go first under gevent: it doubled the median delay of 1,000 viewers."""
        now = self._rounds[own] = self._clock()
        if now - self._rounds.get(other, now) > SILENT_SECONDS:
            self._rounds[other] = now
            self._start_dead()

    def _pause(self) -> None:
        if seconds := pacing.pause_seconds(self.watched, tracked=self._reader.tracks_changes):
            self._stopped.wait(seconds)

    def _housekeeping_loop(self) -> None:
        while not self._stopped.is_set():
            self._housekeeping_due.wait(TICK_SECONDS)
            self._housekeeping_due.clear()
            self._watchdog("attendant", "reader")
            self.report_metrics()
            try:
                self._rearm()
                self.housekeep_once()
            except StoreError as error:
                count_store_error("tail", error)
                log.warning("the tail cannot look at its jobs: %s", error)
                self._stopped.wait(HOUSEKEEPING_RETRY.delay(1))

    def _rearm(self) -> None:
        """Has the blocked read give way until it covers every feed. One attempt may come just before it blocks."""
        deadline = self._clock() + BLOCK_SECONDS
        while not all(feed.subscribed for feed in tuple(self._feeds.values())) and self._clock() < deadline:
            self._reader.interrupt()
            self._stopped.wait(REARM_SECONDS)
