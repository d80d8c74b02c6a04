"""Delivers a spool to the store: one thread opens the job, appends its lines, renews its lease and ends it.

A second thread releases safe lines. Temporary errors are retried. A permanent error stops the publisher, and is
reported once.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum, auto
from itertools import chain, count
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from chronoverse.errors import (
    ChronoverseError,
    Closed,
    Deleted,
    EarlierService,
    Fenced,
    ForeignLines,
    Held,
    LabelSet,
    NotALog,
    NotDurable,
    QuotaReached,
    SequenceGap,
    StoreError,
    StoreUnavailable,
    TooFast,
)
from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.model import IDENTIFIER, Attempt, JobRef, Status
from chronoverse.joblog.terminal import counted
from chronoverse.runner.outage import Outage
from chronoverse.runner.spool.spool import Spool

if TYPE_CHECKING:
    from chronoverse.runner.http_log_writer import HttpLogWriter
    from chronoverse.store import Store

#: Seconds before a lost lease is requested again, and the minimum pause when the store asks for one.
_SHORT_PAUSE_SECONDS: Final = 0.05

#: Writes logs. Both classes have methods with the same names and errors, which the store documents.
LogWriter: TypeAlias = "Store | HttpLogWriter"


class JobResult(NamedTuple):
    status: Status
    exit_code: int | None


class _Phase(Enum):
    #: The publisher does not have the lease.
    OPENING = auto()
    OPEN = auto()
    #: The terminal entry was written, but may not be safe yet.
    ENDING = auto()
    #: The job's end is safe in the store.
    ENDED = auto()


@dataclass(eq=False)
class Publisher:
    """Delivers one job's spool to the store that ``connect`` returns.

    If another process left the spool, continues where it stopped, with its token. If the spool is reassigned, the new
    job must have no lines. ``say`` shows the user a message. Drops ``labels`` that the store refuses.
    """

    connect: Callable[[], LogWriter]
    #: The job to publish the lines as.
    job: JobRef
    spool: Spool
    say: Callable[[str], None]
    _: KW_ONLY
    lease_seconds: float = 30
    #: Whether to open the first free job of JOB, JOB.2, …, JOB.20, JOB.<Unix time>. A free job has no lines, no end, no
    #: tombstone and no live runner.
    find_free_id: bool = False
    #: Whether lines wait while another runner holds the job, instead of raising :class:`Held`.
    wait_for_lease: bool = False
    lease_token: str | None = field(default=None, repr=False)
    labels: Labels = ()
    #: Reason for lines missing in the spool's range: ``lost``, or ``missing`` if the spool never had them.
    gap_reason: str = "lost"

    def __post_init__(self) -> None:
        spool, job = self.spool, self.job
        self._stop = threading.Event()
        # Renews the lease three times before it expires: two renewals can fail.
        self._renew_seconds = self.lease_seconds / 3
        self._renew_at = 0.0
        #: When lines can be sent again to a service that was too busy.
        self._send_at = 0.0
        self._outage = Outage(spool, self.say, self._stop, self._renew_seconds / 2)
        #: With ``find_free_id``: the ids to try instead of a taken one, and why the taken one was refused.
        # A script that runs every minute has thousands of jobs, and trying all of their ids would take minutes.
        self._free_ids = (f"{job.job_id}.{number}" for number in chain(range(2, 21), count(int(time.time()))))
        self._taken: ChronoverseError | None = None
        self._token: str = spool.state.get("token") or self.lease_token or os.urandom(16).hex()
        #: The sequence number of the spool's index 0.
        self._base: int = spool.state.get("base", 0)
        #: Our last attempt, or the last attempt of the process that left the spool.
        self._attempt: Attempt | None = None
        self._phase = _Phase.OPENING
        if "attempt" in spool.state:
            self._attempt = Attempt(job, self._token, spool.state["attempt"], self._base)
        #: The last attempt of the processes that left the spool, and the index after that attempt's last line. Lines of
        #: a process that never opened the job can follow.
        self._earlier_attempt = self._attempt
        self._earlier_end = min(spool.state.get("earlier_end", spool.end), spool.end)
        # An earlier process's labels take precedence, because they were set first.
        self.labels = read_labels({**dict(self.labels), **dict(read_labels(spool.state.get("labels")))})
        state = {"workflow": job.workflow_id, "job": job.job_id, "token": self._token}
        earlier_end = self._earlier_end if self._attempt else None
        spool.save_state(**state, labels=dict(self.labels) or None, earlier_end=earlier_end)
        #: One past the last index ever sent. The log cannot have lines of ours beyond it.
        self._sent_end = self._earlier_end if self._attempt else 0
        self._sent_at = 0.0
        #: Unanswered appends, each with the index after its last line, and a function that waits for its answer.
        self._unanswered: deque[tuple[int, Callable[[], int]]] = deque()
        #: Confirms which lines are safe. None if acknowledged lines count as safe.
        self._probe: Store | HttpLogWriter | None = None
        self._result: JobResult | None = None
        #: Labels known only at the end. Empty once the job has them.
        self._last_labels: Labels = ()
        #: The permanent error that stopped publishing, if any.
        self.refusal: ChronoverseError | None = None
        self._lock = threading.Lock()
        #: Whether :meth:`start` has returned: refusals are then shown to the user instead of raised.
        self._in_background = False
        #: Whether the message about a quota was shown.
        self._has_said_quota = False
        self._opened_or_refused = threading.Event()
        self._done = threading.Event()

    def start(self, seconds: float, *, must_open: bool = False) -> None:
        """Starts the thread, and waits up to ``seconds`` for the store to open the job. The thread keeps trying later.

        Raises :class:`Held`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`, :class:`NotALog`, and what
        ``connect`` raises. With ``must_open``, also :class:`StoreError` if the job is not open after ``seconds``.
        """
        self._outage.is_silent = must_open
        threading.Thread(target=self._run, name="chronoverse-publisher", daemon=True).start()
        is_decided = self._opened_or_refused.wait(seconds)
        with self._lock:
            self._in_background = True
            if self.refusal is not None:
                raise self.refusal
        if must_open and not is_decided:
            raise self.last_error or StoreUnavailable(f"there was no answer within {seconds:g} s")

    def end(self, result: JobResult, labels: Labels = ()) -> None:
        """Call this after the last line. The thread delivers the rest of the spool, sets ``labels``, and ends the job.

        Labels that the store refuses are dropped.
        """
        self._last_labels = labels
        self.spool.save_state(ending=list(result))
        self._result = result
        self.spool.close()

    def join(self, seconds: float) -> bool:
        """Waits up to ``seconds`` for the thread to finish. Returns whether it has."""
        return self._done.wait(seconds)

    def stop(self) -> None:
        """Stops the threads, even if lines are undelivered."""
        self._stop.set()

    @property
    def base(self) -> int | None:
        """The sequence number of the spool's index 0. None before the first attempt."""
        return self._base if self._attempt else None

    @property
    def ended(self) -> bool:
        """Whether the job's end is safe in the store."""
        return self._phase is _Phase.ENDED

    @property
    def is_unreached(self) -> bool:
        """Whether the store is failing, and has never opened or refused the job."""
        return self._attempt is None and not isinstance(self.last_error, TooFast | Held | None)

    @property
    def last_error(self) -> ChronoverseError | None:
        """The newest temporary error, even if it is over."""
        return self._outage.last_error

    def _run(self) -> None:
        try:
            store = self.connect()
            self._probe = store.durability_probe()
            if self._probe is not None:
                threading.Thread(target=self._release_safe, name="chronoverse-durability", daemon=True).start()
            while not self._stop.is_set() and not self.ended:
                self._try_step(store)
        except Exception as error:  # the command must continue, whatever fails here, and the user must be told
            if not self._stop.is_set():  # else the store may have been closed during a call
                self._give_up(error if isinstance(error, ChronoverseError) else ChronoverseError(repr(error)))
        finally:
            self._stop.set()
            self.spool.wake()
            self._done.set()
            self._opened_or_refused.set()

    def _try_step(self, store: LogWriter) -> None:
        """Does one step. After a temporary error, sending restarts at the first unacknowledged line."""
        try:
            self._step(store)
            return
        except NotALog:
            raise
        except EarlierService as error:
            self.say(f"{error}; the job continues")
        except TooFast as error:
            self._outage.last_error = error
            seconds = max(error.seconds, _SHORT_PAUSE_SECONDS)
            self._send_at = time.monotonic() + seconds
            # The refused request may have been a renewal of the lease.
            self._stop.wait(min(seconds, self._renew_seconds / 2))
        except StoreError as error:
            self._outage.wait_after(error)
        except Held as error:
            if not self.wait_for_lease:
                raise
            self._outage.wait_after(error)
        except (Fenced, Closed) as error:
            # The lease may just have expired: then opens the job again, as a new attempt. Or a failover has undone our
            # end, while a node still reads the old master: opening the job shows whether the end is ours.
            can_be_ours = type(error) is Closed and self._result is not None and self._phase is not _Phase.OPENING
            if not can_be_ours and not isinstance(error, Fenced):
                raise
            self._phase = _Phase.OPENING
            self._stop.wait(_SHORT_PAUSE_SECONDS)
        except SequenceGap as gap:
            if gap.expected - self._base > max(self._sent_end, self.spool.acked):
                raise ForeignLines("another program appends to this job's log") from gap
            self.spool.acknowledge(gap.expected - self._base)
        self._unanswered.clear()

    def _step(self, store: LogWriter) -> None:
        attempt = self._attempt
        if attempt is None or self._phase is _Phase.OPENING:
            self._open(store)
        elif self._phase is _Phase.ENDING:
            if self._are_safe(attempt, self._base + self.spool.end + 1):
                self._phase = _Phase.ENDED
        elif self._unanswered:
            self._append(store, attempt)
        elif time.monotonic() >= self._renew_at:
            store.renew(attempt)
            self._schedule_renewal()
        elif (pause := min(self._send_at, self._renew_at) - time.monotonic()) > 0:
            self._stop.wait(pause)
        elif self.spool.wait_for_lines(1, self._renew_at - time.monotonic()):
            # Collects lines until 0.05 s after the last send, so a line after a longer silence is sent immediately.
            self.spool.wait_for_lines(store.batch_lines, self._sent_at + 0.05 - time.monotonic())
            self._sent_at = time.monotonic()
            self._append(store, attempt)
        elif self._result is not None:
            self._finish(store, attempt, self._result)

    def _append(self, store: LogWriter, attempt: Attempt) -> None:
        """Sends the next lines, and receives the oldest answer. Full appends are sent ahead of answers.

        Raises :class:`ForeignLines` if another program writes to the log. If neither the store nor the spool has the
        next line, declares it lost in the log.
        """
        while len(self._unanswered) < store.appends_ahead:
            start = self._unanswered[-1][0] if self._unanswered else self.spool.acked
            if self._unanswered and self.spool.end - start < store.batch_lines:
                break
            batch = self.spool.take(start, store.batch_lines)
            if batch is None or (batch.start > start and self._unanswered):
                break
            if batch.start > start:
                self._name_lost(store, attempt, start, batch.start)
                return
            self._sent_end = max(self._sent_end, batch.end)
            self._unanswered.append((batch.end, store.append_ahead(attempt, self._base + start, batch.runs)))
        if not self._unanswered:
            return
        end, receive = self._unanswered.popleft()
        try:
            index = receive() - self._base
        except QuotaReached as quota:
            index = quota.expected - self._base
            if not self._has_said_quota:
                self._has_said_quota = True
                self.say(f"{quota}; the job continues")
        # The store can already have lines beyond this append, from a later append whose answer was lost.
        if not end <= index <= self._sent_end:
            raise ForeignLines("another program appends to this job's log")
        self.spool.acknowledge(index)
        self._on_success()

    def _name_lost(self, store: LogWriter, attempt: Attempt, start: int, end: int) -> None:
        first, last = self._base + start, self._base + end - 1
        # If the lines were never sent, the spool has dropped them, which is reported at the end.
        were_sent, self._sent_end = start < self._sent_end, max(self._sent_end, end)
        store.append_lost(attempt, first, last, self.gap_reason)
        self.spool.acknowledge(end)
        if were_sent:
            self.say(f"lines {first} to {last} are lost from both store and spool: the log reports them")
        self._on_success()

    def _finish(self, store: LogWriter, attempt: Attempt, result: JobResult) -> None:
        """Ends the job, or only the attempt, once its lines are safe: they cannot be resent after the end."""
        only_attempt = result.status is Status.PENDING
        if only_attempt and not self._are_safe(attempt, self._base + self.spool.end):
            return
        if self._last_labels:
            with contextlib.suppress(LabelSet):
                store.open(self.job, self._token, None, self._last_labels)  # we hold the lease: no new attempt
            self._last_labels = ()
        # Includes the exit code in the job's, if only the attempt ends, and further attempts of the same run follow.
        counts = only_attempt and result.exit_code is not None
        store.finish(attempt, *result, self.spool.dropped, self._base + self.spool.acked, counts=counts)
        self._phase = _Phase.ENDED if only_attempt else _Phase.ENDING

    def _open(self, store: LogWriter) -> None:
        last = self._attempt
        must_be_new = last is None and (self.find_free_id or self.spool.is_reassigned)
        try:
            # Uses the same token each time, in case a power loss restored an old lease. A new job starts at line 1.
            attempt = store.open(self.job, self._token, 1 if must_be_new else None, self.labels)
        except LabelSet as refusal:
            self.labels = tuple(label for label in self.labels if refusal.keys and label[0] not in refusal.keys)
            self.say(f"{refusal}; continuing without it")
            return
        except (Closed, Deleted, Held, SequenceGap) as refusal:
            error: ChronoverseError = refusal
            if isinstance(refusal, SequenceGap):
                error = ForeignLines(f"{self.job} has {counted(refusal.expected - 1)} already")
            if self.find_free_id and last is None:
                self._taken, job_id = self._taken or error, next(self._free_ids)
                if not IDENTIFIER.fullmatch(job_id):
                    raise Closed(f"{self._taken}, and {job_id} exceeds the 128 characters of an id") from None
                self.job = self.job._replace(job_id=job_id)
            elif last is None or not isinstance(error, Closed) or not self._has_ended_as_ours(store, last):
                raise error from None
            return
        if last is None:
            self._base = attempt.next - self.spool.acked
        else:
            self._rejoin(last, attempt)
        self._attempt, self._phase = attempt, _Phase.OPEN
        self._outage.is_silent = False
        if self._taken is not None:
            self.say(f"{self._taken}: this run is published as job {self.job.job_id}")
            self._taken = None
        self.spool.save_state(job=self.job.job_id, base=self._base, attempt=attempt.attempt, earlier_end=None)
        self._schedule_renewal()
        self._outage.end()
        if self._opened_or_refused.is_set():
            return
        self._opened_or_refused.set()
        with contextlib.suppress(StoreError):
            for warning in store.job_warnings(self.job):
                self.say(warning)

    def _has_ended_as_ours(self, store: LogWriter, attempt: Attempt) -> bool:
        """Whether the job has ended as we would end it, which means that only the answer was lost."""
        if self._result is None:
            return False
        try:
            store.finish(attempt, *self._result, self.spool.dropped, self._base + self.spool.end)
        except Fenced:
            return False
        self.spool.acknowledge(self.spool.end)
        self._phase = _Phase.ENDING
        return True

    def _rejoin(self, last: Attempt, attempt: Attempt) -> None:
        """Continues the log after the lease was lost. Raises :class:`ForeignLines` if another runner wrote to it."""
        index = attempt.next - self._base
        if index == self.spool.acked:
            return
        if last is self._earlier_attempt and attempt.attempt <= last.attempt + 1 and index > self._earlier_end:
            # The process that left the spool had sent more lines than its file contains, so the store has all of these.
            self.spool.drop_earlier(self._earlier_end)
            self._base = attempt.next - self._earlier_end
            return
        # The store either lost some of our lines, or has a batch whose answer was lost. If there was another attempt in
        # between, the lines can also be from that attempt.
        if attempt.attempt > last.attempt + 1 or index > max(self._sent_end, self.spool.acked):
            raise ForeignLines("another runner wrote to this job after our lease expired")
        self.spool.acknowledge(index)

    def _on_success(self) -> None:
        if self._probe is None:
            self.spool.release(self.spool.acked)
        self._schedule_renewal()
        self._outage.end()

    def _release_safe(self) -> None:
        """The second thread: confirms which lines are safe, and releases them from the spool."""
        unconfirmed = 0
        # Asks what is on the store's disk every 0.1 s at most, instead of after each batch.
        while not self._stop.wait(0.1) and (probe := self._probe) is not None:
            if self._phase is _Phase.OPENING or self._attempt is None:
                continue
            if not self.spool.wait_for_unsafe(self._renew_seconds, self._stop):
                continue
            try:
                next_number = probe.confirm(self._attempt)
            except NotDurable as error:
                self._stop_asking(error)
            except ChronoverseError:
                self._stop.wait(1.0)  # the first thread notices earlier when the store is back
            except Exception:
                # stop() does not wait for this thread, so its caller can close the store during a request.
                if not self._stop.is_set():
                    raise
            else:
                unconfirmed = unconfirmed + 1 if next_number is None else 0
                if unconfirmed == 5:  # after ten seconds
                    self.say("the store does not confirm that lines are safe; keeping a copy here")
                if next_number is not None:
                    self.spool.release(next_number - self._base)

    def _are_safe(self, attempt: Attempt, stop: int) -> bool:
        """Whether all entries below number ``stop`` are safe. If the store has lost entries, they are sent again."""
        if (probe := self._probe) is None:
            return True
        try:
            next_number = probe.confirm(attempt, may_sync=True)
        except NotDurable as error:
            self._stop_asking(error)
            return True
        if next_number is not None and next_number < stop:
            self._phase = _Phase.OPEN
            self.spool.acknowledge(next_number - self._base)
        return next_number is not None and next_number >= stop

    def _stop_asking(self, error: NotDurable) -> None:
        if self._probe is not None:
            self._probe = None
            self.say(f"{error}; lines count as safe once the store acknowledges them")
        self.spool.release(self.spool.acked)

    def _schedule_renewal(self) -> None:
        self._renew_at = time.monotonic() + self._renew_seconds

    def _give_up(self, error: ChronoverseError) -> None:
        # If the job was deleted, its lines must be removed from the spool, too. But if the spool was reassigned, or
        # never had an attempt, its lines are not those of the deleted job.
        deleted = isinstance(error, Deleted) and not self.spool.is_reassigned and self._attempt is not None
        if deleted and self.spool.line_count:
            error = Deleted(f"{error}; its waiting lines are dropped")
        # If this process never opened the job, the spool can also contain this process's lines, or still get some.
        has_own = self._attempt is self._earlier_attempt and (
            self._result is None or self.spool.end > self._earlier_end
        )
        with self._lock:
            in_background = self._in_background
            if deleted and in_background and has_own:
                # A new command's lines follow those of an earlier runner, and only the earlier runner's are dropped.
                self.spool.drop_earlier(self._earlier_end)
                self.spool.save_state(attempt=None, base=None, earlier_end=None)
                deleted = False
            if deleted or self.spool.room.directory is None:
                self.spool.abandon()
            else:
                self.spool.force_spill(True)
            self.refusal = error
        if in_background:
            what = "nothing is published" if self._attempt is None else "publishing stopped"
            self.say(f"{what}: {error}")
