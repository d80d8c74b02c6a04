"""The archiver: finds logs that are large or have ended, and moves them into the archive. Any number may run.

It takes the smallest step that helps, and looks again: running logs that are too large come first, for the store pays
for them; then, in turns, objects that are to be deleted and a chunk of a log that has ended; then jobs whose time is
over.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from chronoverse import metrics
from chronoverse.archive.chunk_writer import ChunkWriter
from chronoverse.archive.codec import COMPRESSION_LEVEL, FAST_COMPRESSION_LEVEL
from chronoverse.archive.job_objects import JobObjects, StepHook, archive_lock, ignore_step
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.queue import ArchiveQueue
from chronoverse.archive.retention import RetentionPolicy, delete_job
from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import (
    AppendRefused,
    ArchiveBusy,
    ChronoverseError,
    KeysMoving,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from chronoverse.joblog.chunk import CHUNK_BYTES, FRAME_BYTES, Chunk
from chronoverse.joblog.values import Job, JobRef, seconds_of
from chronoverse.store import Store
from chronoverse.store.catalog import ArchiveState, CatalogPage

#: Parts of HOT_BYTES at which a running log begins to move, and at which it stops. A log that is written flat out grows
#: by 35 MB a second, it may take half a second to be found and half a second to move a chunk of 12 MB, and an archiver
#: that shares its core with others falls behind for a while: the rest of HOT_BYTES is for that.
HIGH_MARK: Final = 1 / 4
LOW_MARK: Final = 1 / 8
#: The part beyond which it is packed in haste.
FAST_MARK: Final = 3 / 8
#: The part beyond which its runner is asked to go slowly. What the job prints meanwhile waits in the runner's spool.
THROTTLE_MARK: Final = 5 / 8
#: Seconds between looks at the sizes of running logs: one grows by 4 MB in it at most.
MEASURE_SECONDS: Final = 0.1
#: Sizes asked for in a second, beyond which looks are rarer. Each takes some 3 µs of the server's time.
SIZES_PER_SECOND: Final = 2_000
#: Seconds between two rounds through all keys, at least; and how much of the time rounds may take.
SCAN_SECONDS: Final = 0.25
SCAN_SHARE: Final = 0.05
#: Seconds until a job for which there was nothing to do is looked at again, at most, and one with which something was
#: wrong.
MAX_SNOOZE_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 60.0
#: Seconds until somebody else's job is looked at again, and one of which nothing is to be seen, such as a deleted one.
BUSY_SECONDS: Final = 1.0
#: Seconds until a running log that is too large is looked at again, where somebody else is moving it or died doing so.
LARGE_BUSY_SECONDS: Final = 0.25
#: How long to wait when the store or the archive is away.
AWAY_RETRY: Final = RetryPolicy(first=1.0, longest=15.0, jitter=0)

log: Final = logging.getLogger(__name__)


class Archiver:
    """Moves what is due from ``store`` into ``objects`` until ``stop`` is set. ``at`` hears of each step that was made.

    ``clock`` is Unix time in seconds, ``monotonic`` another that is never set.
    """

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        policy: RetentionPolicy,
        *,
        stop: threading.Event,
        on_step: StepHook = ignore_step,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._objects = objects
        self._policy = policy
        self._stop = stop
        self._on_step = on_step
        self._clock = clock
        self._monotonic = monotonic
        self._queue = ArchiveQueue(monotonic)
        self._measure_at = self._scan_at = 0.0
        self._scan: Iterator[CatalogPage] | None = None
        self._scan_seconds = 0.0
        self._scan_found: set[JobRef] = set()
        #: Whether the last step was to delete objects.
        self._cleaned_up_last = False

    def run(self) -> None:
        """Goes on until it is told to stop, however often the store or the archive is away."""
        backoff = Backoff(AWAY_RETRY)
        while not self._stop.is_set():
            try:
                idle = not self.step()
                backoff.record_success()
            except StoreError as error:
                count_error(error)
                backoff.record_failure()
                seconds = backoff.delay()
                log.warning("the archiver waits: %s", error, extra={"fields": {"seconds": seconds}})
                idle = False
                self._scan = None
                self._stop.wait(seconds)
            if idle:
                self._stop.wait(MEASURE_SECONDS)

    def run_once(self, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Does all that is due now, and returns how many jobs there is still something wrong with.

        ``progress`` hears how many lines were sealed of how many. Raises: as the store and the objects do.
        """
        for page in self._store.catalog.jobs():
            self._classify(page)
        self._measure_running()
        total = sum(self._lines_left(ref) for ref in self._queue.ended)
        done = 0
        progress(done, total)
        while not self._stop.is_set() and (moved := self.move_chunk()) is not None:
            done += moved
            progress(min(done, total), total)
        return self._queue.reported

    def step(self) -> bool:
        """The next step. False when there is nothing to do just now. Raises: as the store and the objects do."""
        now = self._monotonic()
        if now >= self._measure_at:
            self._measure_running()
            self._measure_at = now + max(MEASURE_SECONDS, len(self._queue.running) / SIZES_PER_SECOND)
        moved = self.move_chunk() is not None
        return self._scan_page() or moved

    def move_chunk(self) -> int | None:
        """Moves one chunk of the log that needs it most, and returns its lines; None when none needs it."""
        high = self._policy.hot_bytes * HIGH_MARK
        if (largest := self._queue.largest()) and largest[1] >= high:
            return self._isolate(largest[0], lambda: self._shrink(*largest))
        untidy, ended = next(iter(self._queue.with_garbage), None), next(iter(self._queue.ended), None)
        # They take turns: there may be very many of either.
        self._cleaned_up_last = untidy is not None and (ended is None or not self._cleaned_up_last)
        if untidy is not None and self._cleaned_up_last:
            return self._isolate(untidy, lambda: self._clean_up(untidy))
        return None if ended is None else self._isolate(ended, lambda: self._archive_ended(ended))

    # Running logs

    def _measure_running(self) -> None:
        if self._queue.running:
            self._queue.running.update(self._store.catalog.sizes(list(self._queue.running)))
        self._queue.update_metrics(self._clock())

    def _shrink(self, ref: JobRef, size: int) -> int:
        """One chunk of a running log, down to the low mark."""
        low = self._policy.hot_bytes * LOW_MARK
        # Also when another archiver has the lease: that one may be dead.
        self._throttle(ref, size)
        try:
            with self._chunk_writer(ref) as sealing:
                survey = self._store.catalog.archive_state(ref)
                text_bytes = min(CHUNK_BYTES, max(FRAME_BYTES, round(size - low)))
                level = FAST_COMPRESSION_LEVEL if size > FAST_MARK * self._policy.hot_bytes else COMPRESSION_LEVEL
                mind = partial(self._watch_size, ref)
                chunk = sealing.write_chunk(
                    survey, survey.last, text_bytes=text_bytes, trim=True, level=level, on_page=mind
                )
        except ArchiveBusy:
            self._queue.snooze(ref, LARGE_BUSY_SECONDS)
            return 0
        if chunk is None:
            # A few large lines, of which the last one must stay.
            self._queue.snooze(ref, BUSY_SECONDS)
            return 0
        self._queue.running[ref] = size = self._store.catalog.sizes([ref]).get(ref, 0)
        self._throttle(ref, size)
        return self._count_chunk(ref, chunk)

    def _watch_size(self, ref: JobRef) -> None:
        """Looks at the log's size while a chunk is moved, which takes as long as others let it."""
        now = self._monotonic()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_SECONDS
            self._throttle(ref, self._store.catalog.sizes([ref]).get(ref, 0))

    def _throttle(self, ref: JobRef, size: int) -> None:
        """Has the runner of a log that is too large go slowly, until the log is smaller.

        It goes slowly for as long as an archiver's lease lasts: should this process die now, nobody else can move
        anything before that.
        """
        if size > THROTTLE_MARK * self._policy.hot_bytes:
            self._store.chunks.throttle_runner(ref, self._policy.lock_seconds)
            self._queue.throttled.add(ref)
        elif ref in self._queue.throttled:
            self._store.chunks.throttle_runner(ref, 0)
            self._queue.throttled.discard(ref)

    # Logs that have ended

    def _archive_ended(self, ref: JobRef) -> int:
        """The next chunk of a log that has ended, or behind the last one the rest."""
        (job,) = self._store.get_jobs([ref])
        if isinstance(job, StoreError):
            raise job
        if job is None or job.end is None:
            del self._queue.ended[ref]
            return 0
        with self._chunk_writer(ref) as sealing:
            survey = self._store.catalog.archive_state(ref)
            chunk = None
            if not survey.complete:
                chunk = sealing.write_chunk(survey, job.end.sequence_num, trim=False)
            if chunk is None:
                self._complete(sealing, job, survey)
        return 0 if chunk is None else self._count_chunk(ref, chunk)

    def _complete(self, sealing: ChunkWriter, job: Job, survey: ArchiveState) -> None:
        left = max(0.0, self._seconds_left(survey))
        log_seconds = min(self._policy.hot_seconds, left)
        wrong = None if survey.complete else sealing.complete(job, log_seconds, self._clock())
        if wrong:
            self._queue.report_once(job.ref, wrong)
            self._queue.snooze(job.ref, MAX_SNOOZE_SECONDS)
            return
        self._queue.record_progress(job.ref)
        metrics.JOBS_ARCHIVED.labels("archived").inc()
        log.info("archived", extra={"fields": {"job": str(job.ref), "lines": job.last}})
        self._queue.snooze(job.ref, min(MAX_SNOOZE_SECONDS, self._policy.orphan_seconds, left))

    def _seconds_left(self, survey: ArchiveState) -> float:
        """For how long an ended job is still to be kept, by the store's clock."""
        own = survey.retention_seconds
        return (self._policy.retention_seconds if own is None else own) - (survey.ended_seconds or 0.0)

    def _lines_left(self, ref: JobRef) -> int:
        (job,) = self._store.get_jobs([ref])
        return max(0, job.last - job.archived) if isinstance(job, Job) else 0

    # Finding them

    def _scan_page(self) -> bool:
        """The next page of the round that is under way, if it is time for one."""
        began = self._monotonic()
        if self._scan is None:
            if began < self._scan_at:
                return False
            self._scan, self._scan_seconds, self._scan_found = self._store.catalog.jobs(), 0.0, set()
        page = next(self._scan, None)
        if page is not None:
            self._classify(
                CatalogPage([ref for ref in dict.fromkeys(page.jobs) if ref not in self._scan_found], page.garbage)
            )
            self._scan_found.update(page.jobs)
            self._scan_seconds += self._monotonic() - began
            return True
        self._scan = None
        # What was moved between the pages does not count.
        self._scan_at = began + max(SCAN_SECONDS, self._scan_seconds / SCAN_SHARE)
        for gone in [ref for ref in self._queue.running if ref not in self._scan_found]:
            self._queue.forget(gone)
        return False

    def _classify(self, page: CatalogPage) -> None:
        """Puts each job where it belongs."""
        for ref in page.garbage:
            self._queue.note_garbage(ref, min(RETRY_SECONDS, self._policy.orphan_seconds))
        refs = [ref for ref in dict.fromkeys(page.jobs) if not self._queue.is_snoozed(ref)]
        for ref, job in zip(refs, self._store.get_jobs(refs) if refs else (), strict=True):
            if isinstance(job, StoreUnavailable | StoreRefused):
                self._queue.snooze(ref, BUSY_SECONDS)
            else:
                self._isolate(ref, partial(self._classify_job, ref, job))

    def _classify_job(self, ref: JobRef, job: Job | StoreError | None) -> int:
        """Puts one job where it belongs, after a look at it."""
        if isinstance(job, StoreError):
            raise job
        if job is not None and job.end is None:
            if self._queue.running.setdefault(ref, 0) == 0:
                # Which mends a hash that was lost.
                self._store.catalog.archive_state(ref)
            if job.archived:
                # Objects that are written down nowhere can be told from others by their age alone.
                self._queue.note_garbage(ref, self._policy.orphan_seconds)
            return 0
        self._queue.running.pop(ref, None)
        return self._handle_ended(ref, job)

    def _handle_ended(self, ref: JobRef, job: Job | None) -> int:
        """What is due of a job that has ended, or of which nothing is to be seen."""
        now, survey = self._clock(), self._store.catalog.archive_state(ref)
        left = self._seconds_left(survey)
        if survey.deleting or (job is not None and left <= 0):
            delete_job(self._store, self._objects, ref, lock_seconds=self._policy.lock_seconds, on_step=self._on_step)
            metrics.JOBS_ARCHIVED.labels("deleted").inc()
            log.info("deleted", extra={"fields": {"job": str(ref), "ended_seconds": survey.ended_seconds}})
            self._queue.forget(ref)
        elif job is None:
            # Where the id is a deleted job's, a foreign runner may still write, and each look takes that away.
            self._queue.snooze(ref, BUSY_SECONDS)
        elif not (job.last or survey.archived):
            self._queue.snooze(ref, RETRY_SECONDS)
        elif not survey.complete:
            self._queue.ended[ref] = now - (survey.ended_seconds or 0.0)
        elif not survey.swept and self._sweep_at(survey) <= now:
            self._isolate(ref, lambda: self._sweep(ref))
            self._queue.snooze(ref, min(MAX_SNOOZE_SECONDS, left))
        else:
            due = left if survey.swept else min(left, self._sweep_at(survey) - now)
            self._queue.snooze(ref, min(MAX_SNOOZE_SECONDS, due))
        return 0

    def _sweep_at(self, survey: ArchiveState) -> float:
        """When all that was put for a complete job, and never recorded, is surely an orphan."""
        return (seconds_of(survey.archived_at) or 0.0) + self._policy.orphan_seconds

    def _sweep(self, ref: JobRef) -> int:
        """Deletes what is no part of a complete job. The job is looked at again unless that was all."""
        if self._collect_garbage(ref):
            self._store.chunks.mark_swept(ref)
        return 0

    def _clean_up(self, ref: JobRef) -> int:
        """Deletes what is no part of a job, which may be running."""
        # Also when it goes wrong others have their turn first.
        self._queue.garbage_checked(ref)
        try:
            self._collect_garbage(ref)
        except ArchiveBusy:
            self._queue.garbage_checked(ref, looked=False)
        return 0

    def _collect_garbage(self, ref: JobRef) -> bool:
        """Whether no object is left to be deleted. Raises: as the store and the objects do."""
        seconds, orphan_seconds = self._policy.lock_seconds, self._policy.orphan_seconds
        with archive_lock(self._store, ref, seconds) as token:
            objects = JobObjects(self._store, self._objects, ref, token, lock_seconds=seconds, on_step=self._on_step)
            found = objects.collect_garbage(self._clock(), min_age=orphan_seconds, orphan_seconds=orphan_seconds)
        if found.deleted:
            log.info("swept", extra={"fields": {"job": str(ref), "objects": found.deleted}})
        return not found.remaining

    # What goes wrong

    @contextlib.contextmanager
    def _chunk_writer(self, ref: JobRef) -> Iterator[ChunkWriter]:
        with archive_lock(self._store, ref, self._policy.lock_seconds) as token:
            yield ChunkWriter(self._store, self._objects, ref, token, self._on_step)

    def _isolate(self, ref: JobRef, work: Callable[[], int]) -> int:
        """Does ``work``, one step on one job, and returns what it gives.

        Whatever goes wrong in it is this job's alone: the job is put aside for a while, others go on, and the result
        is 0. What cannot be right the next time either is logged once. Raises :class:`StoreUnavailable` and
        :class:`StoreRefused`, since all jobs have to wait for a store or an archive that is away.
        """
        try:
            return work()
        except (ArchiveBusy, KeysMoving):
            self._queue.snooze(ref, BUSY_SECONDS)
        except AppendRefused:
            # It has changed meanwhile. A job of which this is so each time must not have all of the archiver's time.
            self._queue.back_off(ref, BUSY_SECONDS, RETRY_SECONDS)
        except (StoreUnavailable, StoreRefused):
            self._queue.snooze(ref, BUSY_SECONDS)
            raise
        except Exception as error:
            count_error(error)
            self._queue.report_once(ref, str(error) or repr(error), unexpected=not isinstance(error, ChronoverseError))
            self._queue.snooze(ref, RETRY_SECONDS)
        return 0

    def _count_chunk(self, ref: JobRef, chunk: Chunk) -> int:
        self._queue.record_progress(ref)
        metrics.CHUNKS_SEALED.inc()
        metrics.LINES_SEALED.inc(chunk.last - chunk.first + 1)
        metrics.BYTES_SEALED.labels("text").inc(chunk.text_size)
        metrics.BYTES_SEALED.labels("packed").inc(chunk.size)
        fields = {"job": str(ref), "first": chunk.first, "last": chunk.last, "bytes": chunk.size}
        log.debug("chunk committed", extra={"fields": fields})
        return chunk.last - chunk.first + 1


def count_error(error: Exception) -> None:
    """Counts a step that failed."""
    metrics.ARCHIVE_ERRORS.labels(type(error).__name__).inc()
