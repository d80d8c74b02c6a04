"""Reads the changes of watched workflows, queues events for their watches, and delivers each at least once.

All state is in the store. An event is queued before its change is acknowledged, and stays queued until it is delivered,
so a process can crash at any time, and any number of processes can share the work.
"""

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, tee
from typing import Any, Final

from chronoverse import metrics
from chronoverse.backoff import RetryPolicy
from chronoverse.cli.notify.messages import message
from chronoverse.cli.notify.sending import NotDelivered, post, signed_headers
from chronoverse.errors import ChronoverseError, StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.entries import RawEntry, written_seconds
from chronoverse.joblog.model import Job, JobRef, Status, seconds_of
from chronoverse.joblog.watches import RETRY_SECONDS, Event, Watch
from chronoverse.store import Store
from chronoverse.store.changes import read_change
from chronoverse.store.watches import CLAIM_SECONDS, KeptWatch

log: Final = logging.getLogger(__name__)

#: Seconds between reads of the changes, and seconds between reads of the watches and running jobs.
STEP_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 5.0
#: Retry delays of a failing watch.
RETRY: Final = RetryPolicy(first=1.0, longest=3_600.0)
#: Maximum age of an end that is read late, and of a failed message. The store remembers reported ends a day longer.
CATCH_UP_SECONDS: Final = 6 * 86_400.0
#: Maximum concurrent deliveries to working receivers, to failing receivers, and to new receivers (each), and maximum
#: workflows whose ends are queued concurrently.
THREADS: Final = 64


@dataclass(eq=False)
class Notifier:
    """Notifies, in one process. ``summarize`` summarizes a failed job; ``hosts`` is CHRONOVERSE_WEBHOOK_HOSTS.

    ``clock`` returns Unix time in seconds.
    """

    store: Store
    summarize: Callable[[JobRef], Mapping[str, Any]]
    hosts: Mapping[str, bool]
    base_url: str
    context: ssl.SSLContext
    stop: threading.Event
    clock: Callable[[], float] = time.time
    step_seconds: float = STEP_SECONDS
    #: Maximum running jobs that are read at a time, of all workflows together. 2,000 take the store half a second.
    jobs_per_look: int = 2_000
    #: Ids of workflows and watches.
    _refs: list[JobRef] = field(default_factory=list)
    #: The deliveries in progress.
    _busy: dict[JobRef, tuple[KeptWatch, Event]] = field(default_factory=dict)
    _look_at: float = 0.0
    #: The last line of each job whose silence the last look checked, and when it was written.
    _spoke: dict[JobRef, tuple[int, float]] = field(default_factory=dict)
    #: Workflows whose ends are being queued; the last dropped change of each workflow.
    _queueing: set[str] = field(default_factory=set)
    _caught_up: dict[str, int] = field(default_factory=dict)
    _pools: list[ThreadPoolExecutor] = field(default_factory=lambda: [ThreadPoolExecutor(THREADS) for _ in range(4)])

    def run(self) -> None:
        log.info("notifier started", extra={"fields": {"hosts": ", ".join(self.hosts) or "none"}})
        pause, reported = 0.0, ""
        while not self.stop.wait(pause):
            pause = self.step_seconds
            try:
                self.step()
                reported = ""
            except StoreError as error:
                if str(error) != reported:
                    log.warning("the notifier waits: %s", error)
                reported, pause = str(error), LOOK_SECONDS
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def step(self) -> None:
        if time.monotonic() >= self._look_at:
            self._look()
            self._look_at = time.monotonic() + LOOK_SECONDS
        workflows = {ref.workflow_id for ref in self._refs} - self._queueing
        for workflow_id, entries, last in self.store.watches.changes(workflows, self._caught_up):
            if entries or last:
                # A full server, or a listing of ten thousand jobs, must not delay other workflows.
                self._queueing.add(workflow_id)
                self._pools[3].submit(self._queue_ends, workflow_id, entries, last)
        idle = [ref for ref in self._refs if ref not in self._busy]
        for ref, (kept, event) in self.store.watches.claim(idle).items():
            self._busy[ref] = kept, event
            # A failing receiver can block its thread for a whole delivery, and so can a new receiver, of which there
            # can be thousands. They have their own threads, so that they do not delay others.
            pool = 1 if kept.failures else 0 if kept.delivered_ms else 2
            self._pools[pool].submit(self._deliver, ref)
        now, busy = self.clock(), list(self._busy.values())
        ages = [now - event.queued_ms / 1000 for kept, event in busy if not kept.failures]
        metrics.NOTIFY_LAG.set(max(ages, default=0))
        metrics.NOTIFY_LAST_STEP.set(now)

    def _look(self) -> None:
        """Reads the watches and running jobs: reading reveals if a job is LOST, or was ended by a foreign runner."""
        found, now, workflows = list[KeptWatch](), self.clock(), self.store.watches.workflows()
        most, spoke = max(1, self.jobs_per_look // max(1, len(workflows))), dict[JobRef, tuple[int, float]]()
        for workflow_id in workflows:
            with _logging_errors(workflow_id):
                watches = self.store.watches.read(workflow_id)
                found += watches
                for job in self.store.get_jobs(self.store.watches.running(workflow_id, most)):
                    if isinstance(job, Job) and job.status is Status.RUNNING:
                        self._queue_silence(watches, job, now, spoke)
        self._spoke = spoke
        self._refs = [JobRef(each.watch.workflow_id, each.watch.id) for each in found]
        metrics.NOTIFY_WAITING.set(sum(each.waiting for each in found))
        metrics.NOTIFY_FAILING.set(sum(each.to_json(now)["state"] == "failing" for each in found))

    def _queue_ends(self, workflow_id: str, entries: Sequence[RawEntry], last: int) -> None:
        """Queues the job ends in ``entries``, or those in the listing if changes up to ``last`` were dropped unread."""
        with _logging_errors(workflow_id):
            # Reads the watches first: a watch that existed when the job ended must report the end.
            watches, late = self.store.watches.read(workflow_id), 0
            for each in self.store.newest_jobs(workflow_id, count=50) if last else ():
                if each.job and each.job.status.terminal:
                    late += self._queue_end(watches, each.job, late=True)
            if late:
                metrics.NOTIFY_LATE.inc(late)
                log.warning("%s: %d messages are late: the changes were not read in time", workflow_id, late)
            for entry in entries:
                try:
                    _, job, deleted = read_change(workflow_id, entry)
                except StoreError:
                    continue  # The entry is untrusted, and invalid.
                # A deleted job's end may have been among the dropped changes. A job that is already archived was
                # imported, so its end is old.
                if job.status.terminal and (deleted or job.archive_sha256 is None):
                    self._queue_end(watches, job, late=deleted, deleted=deleted)
            if entries:
                self.store.watches.done(workflow_id, entries)
            else:
                self._caught_up[workflow_id] = last
        self._queueing.discard(workflow_id)

    def _queue_end(self, watches: Iterable[KeptWatch], job: Job, *, late: bool = False, deleted: bool = False) -> int:
        """Queues the end of a job for its watches. Returns how many of ``watches`` queued it.

        Skips a ``late`` end that is older than the watch or :data:`CATCH_UP_SECONDS`. A watch for changes skips a
        ``deleted`` job, because the job to compare it with may also be deleted.
        """
        queued, now = 0, self.clock()
        ended_at = seconds_of(job.finished_at) if late else None
        older = self._older(job)
        for watch in (kept.watch for kept in watches if kept.watch.tells(job)):
            if (ended_at or now) < max(now - CATCH_UP_SECONDS, watch.made_ms / 1000):
                continue
            if watch.on != "change":
                queued += self._queue(watch, job, f"ended.{job.status}")
            elif not deleted:
                # The older jobs are read only once for all watches.
                older, compared = tee(older)
                if before := _before(watch, job, compared):
                    queued += self._queue(watch, job, f"changed.{job.status}", before=before.ref.job_id)
        return queued

    def _queue(self, watch: Watch, job: Job, name: str, **more: Any) -> bool:
        event = Event(name, job.ref.job_id, job.attempt, job.status, round(1000 * self.clock()), **more)
        return self.store.watches.add(watch, event, job.created_at or "")

    def _older(self, job: Job) -> Iterator[Job]:
        """Up to 500 jobs before ``job``, newest first, read on demand."""
        listed = self.store.newest_jobs(job.ref.workflow_id, job.position, 50)
        return (each.job for each in islice(listed, 500) if each.job and each.ref != job.ref)

    def _queue_silence(
        self, watches: Iterable[KeptWatch], job: Job, now: float, spoke: dict[JobRef, tuple[int, float]]
    ) -> None:
        """Queues an event for each watch whose ``seconds`` of silence are over. Adds the last line to ``spoke``."""
        telling = [kept.watch for kept in watches if kept.watch.tells(job)]
        if not telling:
            return
        if (before := self._spoke.get(job.ref)) is None:
            last = self.store.page(job.ref, before=job.last + 1, count=1)
            # A line can be older than the job's start if the runner's clock is slow, or if it was delivered late.
            said = max(next(map(written_seconds, last), None) or 0.0, seconds_of(job.started_at) or 0.0)
            before = job.last, min(said or now, now)
        # A line that arrived since the last look is new, even if the runner's clock is wrong.
        spoke[job.ref] = job.last, before[1] if before[0] == job.last else now
        for watch in telling:
            if now - spoke[job.ref][1] >= (watch.seconds or 0):
                self._queue(watch, job, f"silent.{job.last}", last=job.last)

    def _deliver(self, ref: JobRef) -> None:
        """Delivers a watch's events until one fails, or until a third of the claim's time is over."""
        ends_at = time.monotonic() + CLAIM_SECONDS / 3
        # An error is logged; the event will be claimed again.
        with _logging_errors(ref):
            claimed: tuple[KeptWatch, Event] | None = self._busy[ref]
            while claimed is not None:
                self._busy[ref] = claimed
                self._send(*claimed)
                is_over = self.stop.is_set() or time.monotonic() >= ends_at
                claimed = None if is_over else self.store.watches.claim([ref]).get(ref)
        del self._busy[ref]

    def _send(self, kept: KeptWatch, event: Event) -> None:
        watch, now, pause, outcome = kept.watch, self.clock(), None, "delivered"
        age, failing = now - event.queued_ms / 1000, now - kept.failing_since_ms / 1000
        if kept.failures and (min(age, failing) >= RETRY_SECONDS or age >= CATCH_UP_SECONDS):
            outcome = "dropped"
        else:
            try:
                post(watch.url, *self._signed(watch, event, int(now)), self.hosts, self.context)
                kept = KeptWatch(watch, delivered_ms=round(1000 * self.clock()))
            except NotDelivered as error:
                since, outcome = kept.failing_since_ms if kept.failures else round(1000 * now), "failed"
                kept = KeptWatch(watch, kept.failures + 1, since, str(error), kept.delivered_ms)
                # Events that are already waiting go first, because the receiver may refuse only this event.
                pause = min(max(RETRY.delay(kept.failures), error.retry_after), RETRY.longest)
                log.warning("watch %s of %s: %s; trying again in %d s", watch.id, watch.workflow_id, error, pause)
        metrics.NOTIFY_DELIVERIES.labels(outcome).inc()
        self.store.watches.settle(kept, event, pause, dropped=outcome == "dropped")

    def _signed(self, watch: Watch, event: Event, seconds: int) -> tuple[dict[str, str], bytes]:
        """The headers and body of a message. Converts an error of the job to :class:`NotDelivered` for this event."""
        try:
            body = self._message(watch, event)
            return signed_headers(watch.secret, event.webhook_id(watch), seconds, body), body
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:
            raise NotDelivered(f"no message about job {event.job_id}: {error}") from error

    def _message(self, watch: Watch, event: Event) -> bytes:
        ref = JobRef(watch.workflow_id, event.job_id)
        job = self.store.get_job(ref) if event.job_id else None
        if event.status and (job is None or job.attempt != event.attempt):
            # The job was deleted, or a new attempt has begun. A test has no status.
            job = Job(ref, Status(event.status), attempt=event.attempt)
        before = event.before and self.store.get_job(JobRef(watch.workflow_id, event.before))
        summary: Mapping[str, Any] = {}
        if job is not None and job.created_at and not event.last and job.status in (Status.FAILED, Status.LOST):
            with contextlib.suppress(ChronoverseError):
                summary = self.summarize(ref)
        return message(watch, event, job, before or None, summary, self.base_url)


def _before(watch: Watch, job: Job, older: Iterable[Job]) -> Job | None:
    """The newest ``older`` job that is comparable with ``job``. None unless exactly one of the two is COMPLETED."""
    found = next((each for each in older if watch.compares(job, each)), None)
    return found if found and Status.COMPLETED in {job.status, found.status} != {Status.COMPLETED} else None


@contextlib.contextmanager
def _logging_errors(what: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.log(logging.WARNING if isinstance(error, ChronoverseError) else logging.ERROR, "%s: %r", what, error)
