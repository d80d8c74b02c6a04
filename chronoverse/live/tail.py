"""Reads the new lines of all watched jobs, once for all viewers of a worker.

There are two threads, which survive any error. The *reader* publishes new entries into feeds. The *housekeeper* checks
quiet jobs, and wakes viewers that are due.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Final

from chronoverse import metrics
from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.history.tiered_log import in_archive
from chronoverse.joblog.entries import RawEntry, entry_number, in_sequence, missing_numbers
from chronoverse.joblog.events import LOG_IS_GONE, error_frame
from chronoverse.joblog.model import End, Job, JobRef, OutOfSequence, Status, seconds_of
from chronoverse.live.changes import ChangesFeed
from chronoverse.live.feed import Feed, FilterBudget, Known, Waiter, encode
from chronoverse.store import Store
from chronoverse.store.adaptive_batch import AdaptiveBatch

#: Seconds for which one read blocks. Stopping, or noticing that a store does not answer, can take this long.
BLOCK_SECONDS: Final = 1.0
#: Seconds between two rounds of the housekeeper. Heartbeats and deadlines can be late by this much.
TICK_SECONDS: Final = 0.5
#: Maximum jobs checked per round. Each check takes the worker 0.05 ms.
ROUND_JOBS: Final = 250
#: Seconds between two checks of a job: the delay in noticing a lost runner, a deleted log or a redaction.
CHECK_SECONDS: Final = 1.0
#: Seconds for which a ring is shown after a check, however many jobs there are: lines may be redacted after it.
RING_SECONDS: Final = CHECK_SECONDS + 2 * TICK_SECONDS
#: Bytes of frames and contents in all rings of a worker, and the minimum and maximum in one ring.
RINGS_BYTES: Final = 256 * 2**20
RING_BYTES: Final = (64 * 2**10, 8 * 2**20)

log = logging.getLogger(__name__)


def check_seconds(jobs: int) -> float:
    # With more jobs than a second's rounds can check, each is checked less often.
    return max(CHECK_SECONDS, jobs * TICK_SECONDS / ROUND_JOBS)


def ring_bytes(jobs: int, bounds: tuple[int, int] = RING_BYTES) -> int:
    least, most = bounds
    return max(least, min(most, RINGS_BYTES // max(jobs, 1)))


@dataclass(eq=False)
class Tail:
    """Reads new lines for one process. :meth:`start` starts the threads.

    ``redacted`` is called with each job that has a new redaction. ``ring_bytes``: minimum and maximum bytes of a ring.
    ``clock`` is monotonic, in seconds. ``sleep`` yields to other greenlets.
    """

    store: Store
    _: KW_ONLY
    lease_seconds: float = 30
    redacted: Callable[[JobRef], object] = lambda _: None
    ring_bytes: tuple[int, int] = RING_BYTES
    block_seconds: float = BLOCK_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._yield_to_loop = partial(self.sleep, 0)
        self._reader = self.store.live_reader(self.block_seconds)
        self._feeds: dict[JobRef, Feed] = {}
        #: Closed feeds that other feeds have replaced, but that still have viewers.
        self._replaced: list[Feed] = []
        self._filter_budget = FilterBudget(yield_to_loop=self._yield_to_loop)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._checkers: dict[Hashable, threading.Thread] = {}
        self._batch = AdaptiveBatch()
        #: Deliveries not yet in the metrics, which are updated in bulk because an update takes some microseconds.
        self._delivered, self._delivered_bytes, self._replays = [0, 0], 0, 0
        self._read_at = self.clock()
        #: Counts the reads that failed since the last success.
        self._backoff = Backoff(RetryPolicy(first=0.05, longest=1.0))

    def join(self, ref: JobRef, job: Job | None, viewer: Waiter) -> Feed:
        """Returns the job's feed, and keeps it current. Changes wake ``viewer``. ``job`` was just fetched."""
        with self._lock:
            if not self._feeds:
                self._read_at = self.clock()
            feed = self._feeds.get(ref)
            is_same = feed and feed.job and job and job.end and (feed.cursor, feed.job.end) == (job.last, job.end)
            # This feed was closed by an error, or its log was replaced. Its viewers leave once they have read it.
            if feed is None or (feed.final is not None and not is_same):
                if feed is not None:
                    self._replaced.append(feed)
                kind = Feed if ref.job_id else ChangesFeed
                feed = self._feeds[ref] = kind(ref, job, self._yield_to_loop, self._filter_budget)
                feed.fresh_until = self.clock() + RING_SECONDS
                if job and job.end:
                    feed.close(job.closing_frames(job.end, self.lease_seconds))
                else:
                    self._reader.watch(ref, feed.cursor)
            feed.viewer_count += 1
            feed.waiters.add(viewer)
        if job is not None and (feed.job is None or job.age > feed.job.age):
            if feed.job is None or feed.job.redactions == job.redactions:
                feed.reconcile(job)
            else:
                # The check finds out which lines were redacted.
                feed.check_at = 0.0
        return feed

    def leave(self, feed: Feed, viewer: Waiter) -> None:
        with self._lock:
            feed.viewer_count -= 1
            feed.waiters.discard(viewer)
            if feed.viewer_count:
                return
            if self._feeds.get(feed.ref) is feed:
                del self._feeds[feed.ref]
                self._reader.unwatch(feed.ref)
            else:
                self._replaced.remove(feed)

    def drop_stale_ring(self, feed: Feed) -> None:
        """Empties the feed's ring if the last check is too long ago: the store hangs, or there are thousands of jobs.

        Keeps the ring if the log was lost or replaced, because its viewers could not read these lines elsewhere.
        """
        now = self.clock()
        if now <= feed.fresh_until or self._feeds.get(feed.ref) is not feed:
            return
        if feed.final is None or (feed.job and feed.job.end):
            feed.drop_ring()
            feed.fresh_until = now + RING_SECONDS

    def known_job(self, ref: JobRef) -> Job | None:
        """The job, possibly some seconds old, if its feed is current. Saves a read when many viewers reconnect."""
        feed = self._feeds.get(ref)
        is_current = not self._backoff.failures and self.healthy(ref)
        if not is_current or feed is None or feed.job is None or feed.final is not None:
            return None
        return feed.job if feed.job.last == feed.cursor else replace(feed.job, last=feed.cursor)

    def silent_seconds(self, ref: JobRef | None = None) -> float:
        """Seconds since the store, or the server that has ``ref``, last answered the tail."""
        return max(self.clock() - self._read_at, self._reader.silent_seconds(ref) if ref else 0.0)

    def healthy(self, ref: JobRef) -> bool:
        """Whether the job's server has answered within the last few seconds. If not, viewers get no heartbeats."""
        return self.silent_seconds(ref) < 4 * self.block_seconds

    @property
    def watched(self) -> int:
        return len(self._feeds)

    def count_delivered(self, ref: JobRef, lines: int, size: int, viewers: int = 1) -> None:
        """Counts ``lines`` lines or changes (``size`` bytes of frames), sent to each of ``viewers`` viewers."""
        self._delivered[bool(ref.job_id)] += lines * viewers
        self._delivered_bytes += size * viewers

    def count_replayed(self, ref: JobRef, lines: int, size: int) -> None:
        """Counts a replay's read of ``lines`` lines."""
        self._replays += 1
        # Negative if a viewer of changes moves back, because the store has lost changes.
        self.count_delivered(ref, max(lines, 0), size)

    def report_metrics(self) -> None:
        """Updates the metrics. The housekeeper calls this in each round."""
        feeds = [feed for feed in tuple(self._feeds.values()) if feed.final is None]
        metrics.VIEWERS_BEHIND.set(sum([waiter.is_replaying for feed in feeds for waiter in tuple(feed.waiters)]))
        metrics.JOBS_WATCHED.set(len(feeds))
        metrics.TAIL_SILENCE.set(self.silent_seconds() if feeds else 0.0)
        (changes, lines), size, replays = self._delivered, self._delivered_bytes, self._replays
        self._delivered, self._delivered_bytes, self._replays = [0, 0], 0, 0
        metrics.LINES_DELIVERED.inc(lines)
        metrics.CHANGES_DELIVERED.inc(changes)
        metrics.BYTES_DELIVERED.inc(size)
        metrics.REPLAY_READS.inc(replays)

    def read_once(self) -> None:
        """Reads all watched jobs once, and publishes their new entries. Raises :class:`StoreError`."""
        found = self._reader.read(self._batch.lines)
        self._read_at = self.clock()
        try:
            self._publish_all(found)
        finally:
            for ref, _, _ in found:
                self._update_watch(ref)

    def _publish_all(self, found: Sequence[tuple[JobRef, int, Sequence[RawEntry] | StoreError]]) -> None:
        arrivals: list[tuple[Feed, Job | None, int, Sequence[RawEntry]]] = []
        for ref, after, entries in found:
            feed = self._feeds.get(ref)
            # Skips jobs that are no longer watched, or whose cursor the housekeeper moved during the read.
            if feed is None or feed.cursor != after or feed.final is not None:
                continue
            with _closing_on_error(feed):
                if isinstance(entries, StoreError):
                    raise entries
                arrivals.append((feed, feed.job, after, entries))
        unchecked = self._check(
            [feed for feed, _, after, entries in arrivals if _needs_check(feed, after, entries)], arriving=True
        )
        ended: list[tuple[Feed, End]] = []
        for feed, job, after, entries in arrivals:
            # If the job was replaced, the entries can be from its old log or server, and are read again.
            is_replaced = job and feed.job and job.created_at != feed.job.created_at
            if feed not in unchecked and not is_replaced and not _lacks(feed, entries, after):
                with _closing_on_error(feed):
                    self._publish(feed, entries, after, ended)
        self._check([feed for feed, _ in ended])
        for feed, end in ended:
            # The log has ended, even if the check did not see the end, because an entry was added after it.
            job = (feed.job or Job(feed.ref, end.status)).ended(end)
            feed.reconcile(job)
            feed.close(job.closing_frames(end, self.lease_seconds))

    def _update_watch(self, ref: JobRef) -> None:
        with self._lock:
            feed = self._feeds.get(ref)
            if feed is not None and feed.final is None:
                # A report can be lost, for example when a Cluster moves a slot. The job's next check finds the lines.
                is_late = feed.job is not None and feed.job.last > feed.cursor
                self._reader.watch(ref, feed.cursor, again=is_late)
            else:
                self._reader.unwatch(ref)

    def check_jobs(self, feeds: Sequence[Feed]) -> None:
        """Fetches the jobs of ``feeds``, updates the feeds, and closes those that ended. Raises :class:`StoreError`."""
        jobs = [feed for feed in feeds if feed.ref.job_id]
        # In parts, because 250 jobs at once would delay all lines by 8 ms. 25 jobs delay them by 2 ms.
        parts = [jobs[start : start + 25] for start in range(0, len(jobs), 25)]
        # Workflows' changes are a part of their own, as several round trips would make answers about jobs outdated.
        for part in (*parts, [feed for feed in feeds if not feed.ref.job_id]):
            self._check(part)
            for feed in part:
                self._update_watch(feed.ref)

    def _check(self, feeds: Sequence[Feed], *, arriving: bool = False) -> list[Feed]:
        """One pass of :meth:`check_jobs`. Returns the feeds to check again. ``arriving``: new entries follow."""
        if not feeds:
            return []
        now, asked = self.clock(), [feed.known for feed in feeds]
        for feed in feeds:
            feed.check_at = now + check_seconds(self.watched)
        silent: list[Feed] = []
        answers = self.store.get_jobs([feed.ref for feed in feeds])
        for feed, known, found in zip(feeds, asked, answers, strict=True):
            if isinstance(found, StoreUnavailable | StoreRefused):
                silent.append(feed)
                continue
            with _closing_on_error(feed):
                if feed.known != known:
                    feed.check_at = 0.0
                elif isinstance(found, StoreError):
                    raise found
                elif found is not None:
                    self._reconcile(feed, known, found, arriving)
                elif feed.job is not None:
                    # The job was deleted. This closes even a closed feed, as not all viewers may have the end.
                    feed.job, feed.final = None, error_frame(LOG_IS_GONE)
                    feed.wake_all()
                if feed.check_at:
                    feed.fresh_until = now + RING_SECONDS
        return silent + [feed for feed in feeds if not feed.check_at]

    def _reconcile(self, feed: Feed, known: Known, job: Job, arriving: bool) -> None:
        """Updates ``feed`` from ``job``, and closes it once it has all lines of an ended job. Raises
        :class:`StoreError`.

        Closed feeds are updated too, because their viewers may still have lines to read.
        """
        cursor, before = known
        closed = feed.final is not None
        if closed and (before is None or job.end is None):
            # The old log was deleted, and this is a new job with the same id.
            return
        ranges = redacted_since(self.store, before, job) if before else ()
        gone = not (closed or arriving) and lines_are_gone(self.store, job, cursor)
        if not feed.reconcile(job, known):
            feed.check_at = 0.0
            return
        if ranges:
            self.redacted(feed.ref)
            feed.redact(ranges)
        if closed:
            return
        was_ahead, feed.is_ahead = feed.is_ahead, job.last < cursor
        if was_ahead and not feed.is_ahead and feed.differs(self.store.read(job.ref, cursor - 1, 1), cursor):
            feed.close(error_frame(f"the store lost lines up to {cursor} of this log, and now has different ones"))
            return
        if gone:
            feed.skip(min(job.archived, job.last))
            cursor = feed.cursor
            if gaps := list(missing_numbers(cursor, job.last + 1, job.first)):
                feed.publish(encode(gaps, cursor)[0], cursor, ring_bytes(self.watched, self.ring_bytes))
        final = job.end_of_log(feed.cursor, self.lease_seconds)
        if final is not None:
            feed.close(final)

    def _publish(self, feed: Feed, entries: Sequence[RawEntry], before: int, ended: list[tuple[Feed, End]]) -> None:
        if not in_sequence(entries, before):
            entries, before = _skip_archived(feed, entries, before)
        events, closing = feed.encode(entries, before)
        if events:
            # Dropped before publishing, to keep the new lines: otherwise each viewer would read them from the store.
            self.drop_stale_ring(feed)
            if not feed.publish(events, before, ring_bytes(self.watched, self.ring_bytes)):
                return
            _observe_delay(entries[0])
            self._batch.learn(len(events), sum([len(event.frame) for event in events]))
        if isinstance(closing, OutOfSequence):
            feed.close(closing.to_frame())
        elif closing is not None:
            ended.append((feed, closing))

    def housekeep_once(self) -> None:
        """One round: updates the metrics, wakes viewers that are due, checks jobs that are due. Raises
        :class:`StoreError`.
        """
        self.report_metrics()
        now = self.clock()
        feeds = tuple(self._feeds.values())
        for feed in (*feeds, *self._replaced):
            for waiter in tuple(feed.waiters):
                if waiter.due <= now:
                    waiter.wake()
                    self._filter_budget.give_way()
        due = sorted([feed for feed in feeds if feed.check_at <= now], key=attrgetter("check_at"))[:ROUND_JOBS]
        if not due:
            return
        if self.store.single_server:
            self.check_jobs(due)
            return
        servers: dict[Hashable, list[Feed]] = {}
        for feed in due:
            servers.setdefault(self.store.server_of(feed.ref), []).append(feed)
        for server, theirs in servers.items():
            # One thread checks the jobs of one server, so that a hanging server does not delay the others.
            before = self._checkers.get(server)
            if before is None or not before.is_alive():
                check = partial(_logging_errors, "the tail reader cannot check some jobs", self.check_jobs, theirs)
                self._checkers[server] = threading.Thread(target=check, name="tail-checker", daemon=True)
                self._checkers[server].start()

    def start(self) -> None:
        with self._lock:
            if self._threads or self._stopped.is_set():
                return
            loops = {"tail-reader": self._read_loop, "tail-housekeeper": self._housekeeping_loop}
            self._threads = [threading.Thread(target=loop, name=name, daemon=True) for name, loop in loops.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops both threads, within ``block_seconds``, and closes the connection."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * self.block_seconds)
        self._reader.close()

    def _read_loop(self) -> None:
        while not self._stopped.is_set():
            if _logging_errors("the tail reader cannot read", self.read_once):
                self._backoff.record_success()
            else:
                self._backoff.record_failure()
                self._stopped.wait(self._backoff.delay())

    def _housekeeping_loop(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            if not _logging_errors("the tail reader cannot check its jobs", self.housekeep_once):
                self._stopped.wait(1.0)


def count_store_error(during: str, error: StoreError) -> None:
    """Counts a failed store call. ``during`` is ``tail``, ``replay`` or ``request``."""
    kinds = {StoreUnavailable: "unavailable", StoreRefused: "refused"}
    metrics.STORE_ERRORS.labels(during, kinds.get(type(error), "unexpected")).inc()


def redacted_since(store: Store, before: Job, now: Job) -> Sequence[tuple[int, int]]:
    """The ranges of lines redacted between two states; the whole log if unknown. Raises :class:`StoreError`."""
    count, ranges = now.redactions - before.redactions, list[tuple[int, int]]()
    while count > len(ranges):
        ranges = [*store.redactions(now.ref, count)]
        if len(ranges) < count:
            return [(1, max(now.last, 1))]
        # If the log was redacted again meanwhile, these are not the redactions up to ``now``.
        newest = store.get_job(now.ref)
        count = max(count, newest.redactions - before.redactions if newest else 0)
    return ranges


def lines_are_gone(store: Store, job: Job, cursor: int) -> bool:
    """Whether the log lacks lines after ``cursor`` that it should have according to ``job``, which was just fetched.

    Fetches the job again to be sure: during a failover, the first reply can come from the old master, with lines not
    yet on the new one. The replies then differ, and the result is False. Raises :class:`StoreError`.
    """
    return job.last > cursor and not store.read(job.ref, cursor, 1) and store.get_job(job.ref) == job


def _lacks(feed: Feed, entries: Sequence[RawEntry], after: int) -> bool:
    """Whether lines between ``after`` and ``entries`` are missing, and the newer ``feed.job`` lacks the entries too."""
    job = feed.job
    return job is not None and not in_sequence(entries, after) and not job.includes(entry_number(entries[-1][0]))


def _skip_archived(feed: Feed, entries: Sequence[RawEntry], before: int) -> tuple[Sequence[RawEntry], int]:
    """Skips lines that were archived before the tail read them. Viewers read them from the archive.

    ``entries`` follow line ``before``, with a gap. Returns the remaining entries, and the line number before them.
    """
    if feed.job is None or not in_archive(feed.job, before + 1) or feed.cursor != before:
        return entries, before
    feed.skip(min(feed.job.archived, entry_number(entries[-1][0])))
    return [entry for entry in entries if entry_number(entry[0]) > feed.cursor], feed.cursor


def _observe_delay(entry: RawEntry) -> None:
    fields = dict(zip(entry[1][::2], entry[1][1::2], strict=False))
    written = seconds_of(fields.get(b"timestamp", b"").decode("ascii", "replace"))
    # Older lines are not observed: their runner was disconnected, and appended them late.
    if written is not None and time.time() - written < 3_600:
        # The runner's clock can be ahead of ours.
        metrics.DELIVERY_DELAY.observe(max(time.time() - written, 0.0))


def _needs_check(feed: Feed, after: int, entries: Sequence[RawEntry]) -> bool:
    """Whether to fetch the job first: if it is new, numbers are missing, the store lost lines, or a check is due."""
    is_new = feed.job is None or feed.job.status is Status.PENDING
    return is_new or feed.is_ahead or not feed.check_at or not in_sequence(entries, after)


@contextmanager
def _closing_on_error(feed: Feed) -> Iterator[None]:
    """Closes ``feed`` if the block fails. Re-raises StoreUnavailable and StoreRefused, which do not concern the job."""
    try:
        yield
    except (StoreUnavailable, StoreRefused):
        raise
    except Exception as error:
        ours = isinstance(error, StoreError)
        # Logged only once: a closed feed is checked while it has viewers, and fails each time.
        if feed.final is None:
            log.warning("the log of %s cannot be read: %s", feed.ref, error, exc_info=not ours)
        feed.close(error_frame(str(error) if ours else "the log cannot be read"))


def _logging_errors(what: str, work: Callable[..., object], *args: object) -> bool:
    try:
        work(*args)
    except Exception as error:
        if isinstance(error, StoreError):
            count_store_error("tail", error)
        log.warning("%s: %s", what, error, exc_info=not isinstance(error, StoreError))
        return False
    return True
