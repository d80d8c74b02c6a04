"""Reads the new lines of all watched jobs, once for all viewers of a worker.

The tail has two threads. The *reader* waits in XREAD for new entries of all watched jobs, encodes each once, and
publishes it into the job's feed. The *housekeeper* does what a blocked read cannot do. It interrupts the read when a
job joins. It checks quiet jobs, because a deleted or expired key does not wake a blocked XREAD, and a lost runner
writes nothing. And it wakes viewers whose heartbeat or deadline is due.
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

#: Seconds that one XREAD waits. It bounds how long a stop takes, and how often the tail knows that it is alive.
BLOCK_SECONDS: Final = 1.0
#: Seconds without a successful read after which the tail is unhealthy. Then viewers get no heartbeats.
HEALTHY_SECONDS: Final = 4 * BLOCK_SECONDS
#: Seconds without a round after which a thread may be dead. Rounds take about BLOCK_SECONDS.
SILENT_SECONDS: Final = 3.0
#: Seconds between two rounds of the housekeeper. Heartbeats and deadlines may be late by so much.
TICK_SECONDS: Final = 0.5
#: Seconds between two attempts to interrupt a blocked read, so that it includes a new job.
REARM_SECONDS: Final = 0.002
#: How long the reader waits after a failed read, and the housekeeper after a failed round.
RETRY: Final = RetryPolicy(first=0.05, longest=1.0)
HOUSEKEEPING_RETRY: Final = RetryPolicy(first=1.0, longest=1.0)
#: Bytes of frames that are made of one read of a job, plus the rest of the last line; later entries are read again.
#: Only lines that suddenly are much longer than those before have so many bytes. A ring holds no more.
PUBLISH_BYTES: Final = 8 * 2**20

log = logging.getLogger(__name__)


class Tail:
    """Live reading for one process. The threads start with the first watched job, so a tail may be made before a fork.

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
        #: The cursor of each job for the next read, and the jobs whose cursor may have changed since.
        self._cursors = Watchlist()
        self._changed: deque[JobRef] = deque()
        self._lock = threading.Lock()
        self._joined = threading.Event()
        self._housekeeping_due = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        #: The thread that checks the jobs of each server, when the store has several servers.
        self._checkers: dict[Hashable, threading.Thread] = {}
        self._batch = AdaptiveBatch()
        self.stats = DeliveryStats()
        self._rounds: dict[str, float] = {}
        self._read_at = clock()
        self._failing = False

    # For viewers

    def join(self, ref: JobRef, job: Job | None, viewer: Waiter) -> Feed:
        """The job's feed, which from now on is kept up to date and wakes ``viewer``. ``job`` was just fetched."""
        with self._lock:
            if not self._feeds:
                self._read_at = self._clock()
            feed = self._feeds.get(ref)
            if feed is None:
                feed = self._feeds[ref] = Feed(ref, job, self._yield_to_loop)
                self._changed.append(ref)
            feed.viewer_count += 1
            feed.waiters.add(viewer)
        if job is not None and (feed.job is None or job.age > feed.job.age):
            feed.reconcile(job)
        self._joined.set()
        if not feed.subscribed:
            self._housekeeping_due.set()
        return feed

    def leave(self, feed: Feed, viewer: Waiter) -> None:
        """Undoes one :meth:`join`. A job without viewers is not read any more."""
        with self._lock:
            feed.viewer_count -= 1
            feed.waiters.discard(viewer)
            if not feed.viewer_count and self._feeds.get(feed.ref) is feed:
                del self._feeds[feed.ref]
                self._changed.append(feed.ref)

    def known_job(self, ref: JobRef) -> Job | None:
        """The job as the tail knows it: its last line is the newest, the rest is some seconds old at most. None if
        unknown.

        Saves a crowd that comes back to one job a look each.
        """
        feed = self._feeds.get(ref)
        if feed is None or feed.job is None or feed.final is not None:
            return None
        if self._failing or not self.healthy(ref):
            return None
        return feed.latest()

    def silent_seconds(self, ref: JobRef | None = None) -> float:
        """For how many seconds the store, or the server that has ``ref``, has not answered the tail."""
        return max(self._clock() - self._read_at, self._reader.silent_seconds(ref) if ref else 0)

    def healthy(self, ref: JobRef) -> bool:
        """Whether reading of that job works. Only then viewers get heartbeats."""
        return self.silent_seconds(ref) < HEALTHY_SECONDS

    @property
    def watched(self) -> int:
        """How many jobs are watched."""
        return len(self._feeds)

    def report_metrics(self) -> None:
        """Updates the metrics. Each round of the housekeeper does so too."""
        self.stats.report(tuple(self._feeds.values()), self.silent_seconds())

    # One step of each thread

    def read_once(self) -> bool:
        """Reads all watched jobs once, and publishes what came. Returns False when no job is watched.

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
            # Not if nobody watches the job any more, or the housekeeper has moved the cursor since the read began.
            if found is not None and found.cursor == cursors[ref]:
                self._guarded(found, partial(self._publish, found, entries, cursors[ref]))
        return True

    def _current_cursors(self) -> Watchlist:
        """The cursor of each job. Cached, because of thousands of jobs only a few have changed since the last read."""
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
        """Fetches the jobs of ``feeds``, updates the feeds, and closes those whose logs have ended."""
        now = self._clock()
        for feed in feeds:
            feed.checked_at, feed.check_at = now, now + pacing.check_seconds(self.watched)
        for feed, found in zip(feeds, self._store.get_jobs([feed.ref for feed in feeds]), strict=True):
            if not isinstance(found, StoreUnavailable | StoreRefused):  # else the servers of other jobs have answered
                self._guarded(feed, partial(self._apply_check, feed, found))
                self._changed.append(feed.ref)

    def _apply_check(self, feed: Feed, found: Job | StoreError | None) -> None:
        """Updates ``feed`` with the job that was fetched. Raises: :class:`StoreError`."""
        if isinstance(found, StoreError):
            raise found
        if found is not None:
            self._reconciler.reconcile(feed, found)
        elif feed.job is not None:
            feed.close(sse.frame("error", LOG_IS_GONE.encode()))

    def _guarded(self, feed: Feed, work: Callable[[], object]) -> None:
        """Does ``work`` for one job. If it fails, the job's feed is closed; other jobs go on.

        Raises :class:`StoreUnavailable` and :class:`StoreRefused`: a store that is away is no fault of the job.
        """
        try:
            work()
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:
            ours = isinstance(error, StoreError)
            # A closed feed is checked for as long as it has viewers, and fails each time: it is logged once.
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
            # Somebody may have written after the end, so that the check did not find it. It is the end all the same.
            if feed.cursor + 1 == closing.sequence_num:
                job = feed.job or Job(feed.ref, closing.status)
                feed.close(closing_frames(job, closing, self._lease_seconds))

    def _next_check(self, feed: Feed) -> float:
        """When to check a job whose lines have just come."""
        look, busy = pacing.check_seconds(self.watched), pacing.busy_check_seconds(self.watched)
        return min(self._clock() + look, feed.checked_at + busy)

    def _ring_bytes(self) -> int:
        return pacing.ring_bytes(self.watched)

    def housekeep_once(self) -> None:
        """One round: wakes viewers that are due, and checks jobs that are due. Raises: :class:`StoreError`."""
        now = self._clock()
        feeds = tuple(self._feeds.values())
        for feed in feeds:
            for waiter in tuple(feed.waiters):
                if waiter.due <= now:
                    waiter.wake()
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
        """Checks the jobs of one server in a thread of its own, so that a server that hangs does not delay the others.

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
        """Starts the threads, or those that have died. Cheap when both are alive."""
        if len(self._rounds) < 2 or self._clock() - min(self._rounds.values()) > SILENT_SECONDS:
            self._start_dead()

    def _start_dead(self) -> None:
        with self._lock:
            if self._stopped.is_set() or (self._threads and all(thread.is_alive() for thread in self._threads)):
                return
            alive = {thread.name for thread in self._threads if thread.is_alive()}
            loops = {"tail-reader": self._read_loop, "tail-housekeeper": self._housekeeping_loop}
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
            self._watchdog("reader", "housekeeper")
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
        """Starts the other thread again if it has been silent for too long.

        Asking in each round whether the thread is alive would let every woken viewer run first under gevent. That
        doubled the median delay of 1,000 viewers.
        """
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
            self._watchdog("housekeeper", "reader")
            self.report_metrics()
            try:
                self._rearm()
                self.housekeep_once()
            except StoreError as error:
                count_store_error("tail", error)
                log.warning("the tail cannot look at its jobs: %s", error)
                self._stopped.wait(HOUSEKEEPING_RETRY.delay(1))

    def _rearm(self) -> None:
        """Interrupts the blocked read until it includes every feed. One interrupt is not enough: it may come
        too early.
        """
        deadline = self._clock() + BLOCK_SECONDS
        while not all(feed.subscribed for feed in tuple(self._feeds.values())) and self._clock() < deadline:
            self._reader.interrupt()
            self._stopped.wait(REARM_SECONDS)
