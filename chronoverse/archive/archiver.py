"""Moves logs that are large or have ended into the archive. Several archivers can run at once.

An archiver works in small steps. Chunks of oversized running logs come first. Otherwise garbage, expired jobs, chunks
of ended logs, and old lines of running logs take turns. Between steps, a *round* reads all keys to find work.
"""

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from cachetools import FIFOCache

from chronoverse import metrics
from chronoverse.archive.chunk_writer import complete, inconsistency, write_chunk
from chronoverse.archive.codec import COMPRESSION_LEVEL
from chronoverse.archive.derived import DerivedBuilder
from chronoverse.archive.job_objects import JobObjects, archive_lock
from chronoverse.archive.manifest import read_manifest
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.retention import RetentionPolicy, delete_job
from chronoverse.archive.store_history import PROBE, StoreHistory
from chronoverse.archive.workflow_settings import save_settings
from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import (
    AppendRefused,
    ArchiveBusy,
    ArchiveDamaged,
    ArchiveUnavailable,
    ChronoverseError,
    KeysMoving,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from chronoverse.joblog.chunk import CHUNK_BYTES, FRAME_BYTES, Chunk
from chronoverse.joblog.entries import written_seconds
from chronoverse.joblog.model import Job, JobRef, ListingPosition, seconds_of
from chronoverse.store import Store
from chronoverse.store.catalog import ArchiveState, CatalogPage

#: A running log that reaches this fraction of ``hot_bytes`` is shrunk to half that size. Logs grow by 35 MB/s.
HIGH_MARK: Final = 1 / 4
#: A runner is throttled if its log exceeds this fraction of ``hot_bytes``. New lines then wait in the runner's spool.
THROTTLE_MARK: Final = 5 / 8
#: Seconds between measurements of running logs. A log grows by at most 4 MB during this time.
MEASURE_SECONDS: Final = 0.1
#: The fraction of ``running_seconds`` after which a running job's lines are due. The rest is for rounds and other jobs.
_RUNNING_SHARE: Final = 0.8
_MAX_SNOOZE_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 60.0
#: Seconds before a busy job is checked again: another archiver has it, or it changed or was deleted.
BUSY_SECONDS: Final = 1.0
_WORKFLOWS_AT_ONCE: Final = 10

log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Repeated:
    """Periodic work in small steps. Pauses for ``seconds`` after each round. Takes at most a twentieth of the time."""

    begin: Callable[[], Iterator[None]]
    seconds: float
    monotonic: Callable[[], float]
    due_at: float = 0.0
    steps: Iterator[None] | None = None
    took: float = 0.0

    def step(self) -> bool:
        """Does the next step, if due. Returns whether more steps may be due. Raises the step's error."""
        began = self.monotonic()
        if self.steps is None:
            if began < self.due_at:
                return False
            self.steps, self.took = self.begin(), 0.0
        for _ in self.steps:
            self.took += self.monotonic() - began
            return True
        self.steps = None
        self.due_at = began + max(self.seconds, 20 * self.took)
        return False

    def restart(self) -> None:
        self.steps, self.due_at = None, 0.0


class _Waiting(NamedTuple):
    """When a running log's next lines are due. ``archived``: the last archived number when this was computed."""

    archived: int
    due_at: float


class _Queue:
    """An archiver's jobs. Each is running, ended, snoozed or unknown, and can also have garbage."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        #: Running jobs, with the bytes of their logs in the store; 0 if unknown.
        self.running: Final[dict[JobRef, int]] = {}
        self.throttled: Final[set[JobRef]] = set()
        #: When running jobs' lines are due; the jobs with due lines. Dicts of None, also below, are ordered sets.
        self.waiting: Final[dict[JobRef, _Waiting]] = {}
        self.due: Final[dict[JobRef, None]] = {}
        #: Ended jobs to archive, and expired jobs to delete.
        self.ended: Final[dict[JobRef, None]] = {}
        self.over: Final[dict[JobRef, None]] = {}
        #: The Unix time since which ended jobs, and running jobs with due lines, have been waiting to be archived.
        self.late_since: Final[dict[JobRef, float]] = {}
        #: Archived jobs that lack a set of shapes or a timeline in the current format.
        self.without_derived: Final[dict[JobRef, None]] = {}
        #: Jobs that can have garbage, in the order of collection.
        self.with_garbage: Final[dict[JobRef, None]] = {}
        # Takes about 400 bytes per job. Jobs beyond the limit are checked more often.
        self._garbage_checked_at: Final[FIFOCache[JobRef, float]] = FIFOCache(200_000)
        self._snoozed_until: Final[FIFOCache[JobRef, float]] = FIFOCache(200_000)
        self.reported: Final[FIFOCache[JobRef, None]] = FIFOCache(10_000)
        self._turns: Final = deque([self.with_garbage, self.over, self.ended, self.due])
        self._monotonic = monotonic

    def can_skip(self, ref: JobRef) -> bool:
        is_known = ref in self.ended or ref in self.over or ref in self.without_derived
        return is_known or self._snoozed_until.get(ref, 0) > self._monotonic()

    def next_kind(self) -> "dict[JobRef, None] | None":
        """The jobs of the next kind of work. Kinds take turns, except for oversized running logs, which come first."""
        # Jobs that an earlier version archived come last, because there can be many.
        ended = self.ended or self.without_derived
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            kind = ended if self._turns[0] is self.ended else self._turns[0]
            if kind:
                return kind
        return None

    def snooze(self, ref: JobRef, seconds: float) -> None:
        self._drop(ref)
        self._snoozed_until[ref] = self._monotonic() + max(0.0, seconds)

    def snoozed_workflows(self) -> set[str]:
        return {ref.workflow_id for ref in self._snoozed_until}

    def wake(self, workflow_ids: Collection[str]) -> None:
        for ref in [ref for ref in self._snoozed_until if ref.workflow_id in workflow_ids]:
            del self._snoozed_until[ref]

    def note_garbage(self, ref: JobRef, seconds: float) -> None:
        """Notes that the job can have garbage, unless it was checked within ``seconds``."""
        checked_at = self._garbage_checked_at.get(ref)
        if checked_at is None or checked_at + seconds <= self._monotonic():
            self.with_garbage[ref] = None

    def garbage_checked(self, ref: JobRef, *, failed: bool = False) -> None:
        """Notes that the job's garbage was just collected. If the collection ``failed``, allows an immediate retry."""
        self.with_garbage.pop(ref, None)
        self._garbage_checked_at.pop(ref, None)
        if not failed:
            self._garbage_checked_at[ref] = self._monotonic()

    def forget(self, ref: JobRef) -> None:
        self._drop(ref)
        self.late_since.pop(ref, None)

    def _drop(self, ref: JobRef) -> None:
        known: dict[JobRef, Any]
        for known in (self.running, self.waiting, self.due, self.over, self.ended, self.without_derived):
            known.pop(ref, None)
        self._snoozed_until.pop(ref, None)
        self.throttled.discard(ref)

    def report_once(self, ref: JobRef, problem: str, *, unexpected: bool = False) -> None:
        """Logs a job's problem, unless one was logged before. Includes the traceback if ``unexpected``."""
        if ref not in self.reported:
            log.error("not archived: %s", problem, exc_info=unexpected, extra={"fields": {"job": str(ref)}})
        self.reported[ref] = None


@dataclass(eq=False)
class Archiver:
    """Moves lines from ``store`` into ``objects`` by ``policy``. ``clock`` is Unix time, in seconds."""

    store: Store
    objects: ObjectStore
    policy: RetentionPolicy
    _: KW_ONLY
    stop: threading.Event
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _measure_at: float = 0.0
    _retentions: dict[str, int | None] = field(default_factory=dict)
    _round_found: set[JobRef] = field(default_factory=set)
    _derived: DerivedBuilder | None = None
    _has_lost_data: bool = False

    def __post_init__(self) -> None:
        self._queue = _Queue(self.monotonic)
        self._history = StoreHistory(self.store, self.objects, self.clock)
        self._rounds = _Repeated(self._read_round, 0.25, self.monotonic)
        self._retention_checks = _Repeated(self._check_retentions, 15.0, self.monotonic)
        self._repairs = _Repeated(self._read_workflows, 60.0, self.monotonic)

    def run(self) -> None:
        """Runs until ``stop`` is set. While the store or the archive is unavailable, waits and retries."""
        backoff, reported = Backoff(RetryPolicy(first=1.0, longest=15.0, jitter=0)), ""
        for kind in (StoreUnavailable, StoreRefused, ArchiveUnavailable):
            # Prometheus ignores a counter's first value, so that must be 0.
            metrics.ARCHIVE_ERRORS.labels(kind.__name__)
        while not self.stop.is_set():
            metrics.ARCHIVER_LAST_STEP.set(self.clock())
            try:
                idle = not self.step()
                backoff.record_success()
                reported = ""
            except StoreError as error:
                metrics.ARCHIVE_ERRORS.labels(type(error).__name__).inc()
                backoff.record_failure()
                if str(error) != reported:
                    reported = str(error)
                    log.warning("the archiver waits: %s", error)
                idle = False
                self._rounds.restart()
                self.stop.wait(backoff.delay())
            if idle:
                self.stop.wait(MEASURE_SECONDS)

    def run_once(self, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Does all due work. Returns how many jobs had problems.

        Calls ``progress`` with the number of lines archived so far, and the total number of due lines.
        """
        self._compare_history()
        for page in self.store.catalog.jobs():
            self._classify(page)
        self._measure_running()
        ended = self.store.get_jobs([*self._queue.ended]) if self._queue.ended else ()
        total = sum(max(0, job.last - job.archived) for job in ended if isinstance(job, Job))
        done = 0
        progress(done, total)
        while not self.stop.is_set() and (moved := self.move_chunk()) is not None:
            done += moved
            progress(min(done, total), total)
        return len(self._queue.reported)

    def step(self) -> bool:
        now = self.monotonic()
        if now >= self._measure_at:
            self._measure_running()
            # Requests at most 2,000 sizes per second. Each takes the server 3 µs.
            self._measure_at = now + max(MEASURE_SECONDS, len(self._queue.running) / 2_000)
        self._retention_checks.step()
        moved = self.move_chunk() is not None
        # Repairs begin after the first round: before it, workflows are known only from the list, which may be down.
        if self._rounds.due_at:
            with contextlib.suppress(StoreError):
                self._repairs.step()
        return self._rounds.step() or moved

    def move_chunk(self) -> int | None:
        """Moves a chunk of the most urgent log, or collects garbage. Returns the number of lines, or None if idle."""
        queue = self._queue
        largest = max(queue.running.items(), key=lambda item: item[1], default=None)
        moved = 0
        if largest is not None and largest[1] >= self.policy.hot_bytes * HIGH_MARK:
            with self._isolated(largest[0]):
                moved = self._shrink(*largest)
        elif (kind := queue.next_kind()) is not None:
            ref = next(iter(kind))
            with self._isolated(ref):
                if kind is queue.with_garbage:
                    # Noted before the work, so that other jobs have their turn first after an error.
                    queue.garbage_checked(ref)
                    try:
                        self._collect_garbage(ref)
                    except ArchiveBusy:
                        queue.garbage_checked(ref, failed=True)
                elif kind is queue.over:
                    self._delete(ref)
                elif kind is queue.due:
                    moved = self._archive_running(ref)
                else:
                    moved = self._archive_ended(ref)
        else:
            return None
        return moved

    def _measure_running(self) -> None:
        if self._queue.running:
            self._queue.running.update(self.store.catalog.sizes(list(self._queue.running)))
        now = self.clock()
        metrics.HOT_BYTES_LARGEST.set(max(self._queue.running.values(), default=0))
        metrics.ARCHIVE_WAITING.set(len(self._queue.late_since))
        metrics.ARCHIVE_LAG.set(max(0.0, now - min(self._queue.late_since.values(), default=now)))

    def _shrink(self, ref: JobRef, size: int) -> int:
        low = self.policy.hot_bytes * HIGH_MARK / 2
        # Throttling does not need the lock, which an archiver that died may still hold.
        self._throttle(ref, size)
        try:
            with self._locked(ref) as job_objects:
                state = self.store.catalog.archive_state(ref)
                text_bytes = min(CHUNK_BYTES, max(FRAME_BYTES, round(size - low)))
                # If the log grows too fast for the store, uses level 3: moving a line takes 2.8 µs, instead of 4 µs.
                level = 3 if size > self.policy.hot_bytes * 3 / 8 else COMPRESSION_LEVEL
                chunk = write_chunk(
                    job_objects,
                    state,
                    state.last,
                    text_bytes=text_bytes,
                    trim=state.last,
                    level=level,
                    on_page=partial(self._watch_size, ref),
                )
        except ArchiveBusy:
            # The archiver with the lock may have died, so this one tries again soon.
            self._queue.snooze(ref, 0.25)
            return 0
        if chunk is None:
            # The log consists of few large lines, and its last entry must stay in the store.
            self._queue.snooze(ref, BUSY_SECONDS)
            return 0
        self._queue.running[ref] = size = self.store.catalog.sizes([ref]).get(ref, 0)
        self._throttle(ref, size)
        return self._count_chunk(ref, chunk)

    def _archive_running(self, ref: JobRef) -> int:
        """Archives lines that are old enough. Trims lines that earlier steps archived from the store."""
        with self._locked(ref) as job_objects:
            now, state = self.monotonic(), self.store.catalog.archive_state(ref)
            chunk = write_chunk(job_objects, state, state.last + 1, trim=state.archived, merge=True)
            if chunk is None and (last := self.store.chunks.chunk(ref, state.archived)):
                self.store.chunks.commit_chunk(ref, job_objects.token, last, trim=state.archived)
        if chunk is None or chunk.last >= state.last:
            self._queue.due.pop(ref, None)
            self._queue.late_since.pop(ref, None)
            self._queue.waiting[ref] = _Waiting(state.last, now + _RUNNING_SHARE * self.policy.running_seconds)
        return 0 if chunk is None else self._count_chunk(ref, chunk)

    def _watch_size(self, ref: JobRef) -> None:
        """Measures the log again while its chunk is moved, because moving can take long on a busy machine."""
        now = self.monotonic()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_SECONDS
            self._throttle(ref, self.store.catalog.sizes([ref]).get(ref, 0))

    def _throttle(self, ref: JobRef, size: int) -> None:
        """Throttles the runner of an oversized log, until the log is smaller or the archive lock expires."""
        if size > THROTTLE_MARK * self.policy.hot_bytes:
            self.store.chunks.throttle_runner(ref, self.policy.lock_seconds)
            self._queue.throttled.add(ref)
        elif ref in self._queue.throttled:
            self.store.chunks.throttle_runner(ref, 0)
            self._queue.throttled.discard(ref)

    def _archive_ended(self, ref: JobRef) -> int:
        """Moves the next chunk of an ended log, or reads a chunk for its shapes, or completes the job's archive."""
        job = self.store.get_job(ref)
        if job is None or job.end is None:
            self._queue.forget(ref)
            return 0
        with self._locked(ref) as job_objects:
            state = self.store.catalog.archive_state(ref)
            # Includes the terminal entry's number, because the numbers just before it can be missing.
            chunk = None if state.complete else write_chunk(job_objects, state, job.end.sequence_num + 1)
            if chunk is None:
                derived = DerivedBuilder(ref) if state.has_derived else self._read_derived(job)
                if derived is not None:
                    self._complete(job_objects, job, state, derived)
        return 0 if chunk is None else self._count_chunk(ref, chunk)

    def _read_derived(self, job: Job) -> DerivedBuilder | None:
        """Reads the next chunk for the job's shapes and timeline. Returns them once no chunk is left."""
        # Removes the builder in case of an error, after which it is unknown which lines the builder has.
        derived, self._derived = self._derived, None
        if derived is None or derived.job != job.ref:
            derived = DerivedBuilder(job.ref)
        if derived.left:
            chunk = derived.left.pop(0)
            try:
                derived.add_chunk(chunk, self.objects.get(chunk.name))
            except ArchiveDamaged as error:
                if chunk not in self.store.chunks.chunks(job.ref):
                    return None
                log.warning("no set of shapes and no timeline: %s", error, extra={"fields": {"job": str(job.ref)}})
                return derived
        if not derived.left:
            # Reads the records before the first chunk and after the last: a redaction can replace some meanwhile.
            chunks = self.store.chunks.chunks(job.ref)
            missing = derived.missing(chunks)
            if missing is None:
                derived, missing = DerivedBuilder(job.ref), chunks
            if not missing or inconsistency(job, chunks):
                return derived
            derived.left = [*missing]
        self._derived = derived
        return None

    def _complete(self, job_objects: JobObjects, job: Job, state: ArchiveState, derived: DerivedBuilder) -> None:
        left = max(0.0, self._seconds_left(job.ref, state))
        now, hot = self.clock(), min(self.policy.hot_seconds, left)
        ended_at = state.ended_at or now
        if self._has_lost_data and job_objects.has_unknown_lines(job.last):
            # The manifest would say that the log ends before them.
            self._queue.report_once(job.ref, "the store has lost lines that the archive has: import them")
            self._queue.snooze(job.ref, RETRY_SECONDS)
            return
        problem = None if state.has_derived else complete(job_objects, job, hot, now, ended_at, derived)
        if problem:
            self._queue.report_once(job.ref, problem)
            self._queue.snooze(job.ref, _MAX_SNOOZE_SECONDS)
            return
        self._queue.late_since.pop(job.ref, None)
        if not state.complete:
            metrics.JOBS_ARCHIVED.labels("archived").inc()
            log.info("archived", extra={"fields": {"job": str(job.ref), "lines": job.last}})
        self._queue.snooze(job.ref, min(_MAX_SNOOZE_SECONDS, self.policy.orphan_seconds, left))

    def _seconds_left(self, ref: JobRef, state: ArchiveState) -> float:
        self._retentions.setdefault(ref.workflow_id, state.retention_seconds)
        return state.retention(self.policy.retention_seconds) - (state.ended_seconds or 0.0)

    def _check_retentions(self) -> Iterator[None]:
        before, self._retentions = self._retentions, {}
        changed: set[str] = set()
        for workflow_id in self._queue.snoozed_workflows():
            self._retentions[workflow_id] = before.get(workflow_id)
            # If a node of a Cluster is down, the workflows of other nodes must still be checked.
            with contextlib.suppress(StoreError):
                own = self._retentions[workflow_id] = self.store.catalog.settings_of(workflow_id).retention_seconds
                if before.get(workflow_id, own) != own:
                    changed.add(workflow_id)
        if changed:
            self._queue.wake(changed)
            self._rounds.due_at = 0.0
        yield

    def _read_round(self) -> Iterator[None]:
        self._compare_history()
        self._round_found = set()
        for page in self.store.catalog.jobs():
            self._classify(page._replace(jobs=[ref for ref in page.jobs if ref not in self._round_found]))
            self._round_found.update(page.jobs)
            yield
        for gone in [ref for ref in (*self._queue.running, *self._queue.late_since) if ref not in self._round_found]:
            with self._isolated(gone):
                # An archiver that lost its lock may have written objects after the deletion, so this deletes again.
                if gone in self._queue.late_since and self.store.is_deleted(gone):
                    delete_job(self.store, self.objects, gone, lock_seconds=self.policy.lock_seconds)
                self._queue.forget(gone)

    def _compare_history(self) -> None:
        """Compares store and archive. If the archive cannot be compared, only deletions stop, not archiving."""
        with contextlib.suppress(ArchiveUnavailable, ArchiveDamaged):
            self._has_lost_data = self._history.went_back()

    def _read_workflows(self) -> Iterator[None]:
        jobs = defaultdict[str, list[JobRef]](list)
        for ref in self._round_found:
            jobs[ref.workflow_id].append(ref)
        workflow_ids, unlisted = sorted(jobs), list[JobRef]()
        for start in range(0, len(workflow_ids), _WORKFLOWS_AT_ONCE):
            part = workflow_ids[start : start + _WORKFLOWS_AT_ONCE]
            # If a node of a Cluster is down, the workflows of other nodes must still be repaired.
            with contextlib.suppress(StoreError):
                for workflow_id, found in zip(part, self.store.workflows.read(part), strict=True):
                    # Another program may have removed jobs from the list; or jobs were deleted since the round.
                    if not isinstance(found, StoreError) and (found.jobs if found else 0) < len(jobs[workflow_id]):
                        unlisted += jobs[workflow_id]
            yield
        for start in range(0, len(unlisted), 100):
            with contextlib.suppress(StoreError):
                self.store.relist(unlisted[start : start + 100])
            yield
        before: ListingPosition | None = None
        while page := self.store.workflows.page(before, _WORKFLOWS_AT_ONCE):
            with contextlib.suppress(StoreError):
                self.store.workflows.read([workflow_id for _, workflow_id in page])
            before = page[-1]
            yield

    def _classify(self, page: CatalogPage) -> None:
        with contextlib.suppress(ArchiveUnavailable, ArchiveDamaged):
            # The queue treats a workflow as a job without an id.
            due = [each for each in page.settings if not self._queue.can_skip(JobRef(each, ""))]
            save_settings(self.store, self.objects, self._history, due, lambda of: self._isolated(JobRef(of, "")))
        for ref in page.garbage:
            self._queue.note_garbage(ref, min(RETRY_SECONDS, self.policy.orphan_seconds))
        refs = [ref for ref in dict.fromkeys(page.jobs) if not self._queue.can_skip(ref)]
        for ref, job in zip(refs, self.store.get_jobs(refs) if refs else (), strict=True):
            if isinstance(job, StoreUnavailable | StoreRefused):
                self._queue.snooze(ref, BUSY_SECONDS)
            else:
                with self._isolated(ref):
                    if isinstance(job, StoreError):
                        raise job
                    if job is not None and job.end is None:
                        self._handle_running(ref, job)
                    else:
                        self._handle_ended(ref, job)

    def _handle_running(self, ref: JobRef, job: Job) -> None:
        if self._queue.running.setdefault(ref, 0) == 0:
            # This call also restores a lost job hash.
            self.store.catalog.archive_state(ref)
        self._note_waiting(ref, job)
        if job.archived:
            # Looks for objects that are neither recorded nor garbage, which can only be found by their age.
            self._queue.note_garbage(ref, self.policy.orphan_seconds)

    def _note_waiting(self, ref: JobRef, job: Job) -> None:
        """Notes when a running job's lines are due, counted from the oldest unarchived line's time, or from now."""
        now, seconds = self.monotonic(), _RUNNING_SHARE * self.policy.running_seconds
        known = self._queue.waiting.get(ref)
        if job.last <= job.archived and job.first_stored >= job.last:
            self._queue.waiting[ref] = _Waiting(job.archived, now + seconds)
            return
        if known is None or known.archived != job.archived:
            written_at = next(map(written_seconds, self.store.read(ref, job.archived, 1)), None)
            waited = 0.0 if written_at is None else max(0.0, self.clock() - written_at)
            known = self._queue.waiting[ref] = _Waiting(job.archived, now + max(0.0, seconds - waited))
        if known.due_at <= now and ref not in self._queue.due:
            self._queue.due[ref] = None
            self._queue.late_since.setdefault(ref, self.clock())

    def _handle_ended(self, ref: JobRef, job: Job | None) -> None:
        self._queue.running.pop(ref, None)
        self._queue.waiting.pop(ref, None)
        self._queue.due.pop(ref, None)
        now, state = self.clock(), self.store.catalog.archive_state(ref)
        left = self._seconds_left(ref, state)
        if state.deleting or (job is not None and left <= 0):
            self._queue.forget(ref)
            self._queue.over[ref] = None
        elif job is None:
            # A foreign runner can still write to a deleted job. Reading the job's state deletes these lines.
            self._queue.snooze(ref, BUSY_SECONDS)
        elif not state.archived and job.first > job.last:
            self._queue.snooze(ref, RETRY_SECONDS)
        elif not state.complete:
            self._queue.ended[ref] = None
            self._queue.late_since[ref] = now - (state.ended_seconds or 0.0)
        else:
            self._queue.late_since.pop(ref, None)
            sweep_at = self._sweep_at(state)
            if not state.swept and sweep_at <= now:
                self._queue.note_garbage(ref, 0)
            elif not state.swept:
                left = min(left, sweep_at - now)
            self._queue.snooze(ref, min(_MAX_SNOOZE_SECONDS, left))
            if not state.has_derived:
                self._queue.without_derived[ref] = None

    def _delete(self, ref: JobRef) -> None:
        state = self.store.catalog.archive_state(ref)
        is_over = state.deleting or (self._seconds_left(ref, state) <= 0 and self._is_over(ref, state))
        if not is_over or self._history.went_back():
            self._queue.snooze(ref, RETRY_SECONDS)
            return
        delete_job(self.store, self.objects, ref, lock_seconds=self.policy.lock_seconds)
        metrics.JOBS_ARCHIVED.labels("deleted").inc()
        log.info("deleted", extra={"fields": {"job": str(ref), "ended_seconds": state.ended_seconds}})
        self._queue.forget(ref)

    def _is_over(self, ref: JobRef, state: ArchiveState) -> bool:
        now = (state.ended_at or 0.0) + (state.ended_seconds or 0.0)
        manifest = read_manifest(self.objects, ref)
        return manifest is None or not manifest.keeps(state.retention(self.policy.retention_seconds), now)

    def _sweep_at(self, state: ArchiveState) -> float:
        return (seconds_of(state.archived_at) or 0.0) + self.policy.orphan_seconds

    def _collect_garbage(self, ref: JobRef) -> None:
        if self.store.catalog.archive_state(ref).deleting:  # the deletion was interrupted
            self._delete(ref)
            return
        if self._history.went_back():
            return
        orphan_seconds = self.policy.orphan_seconds
        with self._locked(ref) as job_objects:
            garbage = job_objects.collect_garbage(self.clock(), min_age=orphan_seconds, orphan_seconds=orphan_seconds)
        if garbage.deleted:
            log.info("swept", extra={"fields": {"job": str(ref), "objects": garbage.deleted}})
        state = self.store.catalog.archive_state(ref)
        if not garbage.remaining and state.complete and not state.swept and self._sweep_at(state) <= self.clock():
            self.store.chunks.mark_swept(ref)

    @contextlib.contextmanager
    def _locked(self, ref: JobRef) -> Iterator[JobObjects]:
        seconds = self.policy.lock_seconds
        with archive_lock(self.store, ref, seconds) as token:
            yield JobObjects(self.store, self.objects, ref, token, lock_seconds=seconds)

    @contextlib.contextmanager
    def _isolated(self, ref: JobRef) -> Iterator[None]:
        """Snoozes the job if the ``with`` block fails. Raises only errors that affect all jobs."""
        try:
            yield
        except (ArchiveBusy, KeysMoving, AppendRefused):
            self._queue.snooze(ref, BUSY_SECONDS)
        except Exception as error:
            is_refused = isinstance(error, ArchiveUnavailable) and self._is_writable()
            if isinstance(error, (StoreUnavailable, StoreRefused)) and not is_refused:
                self._queue.snooze(ref, BUSY_SECONDS)
                raise
            metrics.ARCHIVE_ERRORS.labels(type(error).__name__).inc()
            self._queue.report_once(ref, str(error) or repr(error), unexpected=not isinstance(error, ChronoverseError))
            # The throttling of a running log ends when the lock expires.
            self._queue.snooze(ref, self.policy.lock_seconds if is_refused else RETRY_SECONDS)

    def _is_writable(self) -> bool:
        """Whether the archive is available. If it is, an error concerns only the objects of one job."""
        try:
            self.objects.put(PROBE, b"")
            self.objects.delete(PROBE)
        except ArchiveUnavailable:
            return False
        return True

    def _count_chunk(self, ref: JobRef, chunk: Chunk) -> int:
        metrics.CHUNKS_ARCHIVED.inc()
        metrics.LINES_ARCHIVED.inc(chunk.last - chunk.first + 1)
        metrics.BYTES_ARCHIVED.labels("text").inc(chunk.text_size)
        metrics.BYTES_ARCHIVED.labels("packed").inc(chunk.size)
        fields = {"job": str(ref), "first": chunk.first, "last": chunk.last, "bytes": chunk.size}
        log.debug("chunk committed", extra={"fields": fields})
        return chunk.last - chunk.first + 1
