"""From the spool to the store: one thread that opens the job, appends its lines, keeps its lease and ends it.

Nothing that happens here reaches the job. What can pass (the store is away, full, or has lost its last
seconds) is retried; what cannot (another runner has the job) ends the publishing, and is said once.
"""

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import (
    ChronoverseError,
    Closed,
    Deleted,
    Fenced,
    ForeignLines,
    Held,
    NotALog,
    SequenceGap,
    StoreError,
    TooFast,
)
from chronoverse.joblog.values import Attempt, JobRef
from chronoverse.runner.append_pipeline import AppendPipeline
from chronoverse.runner.durability import AttemptNumbering, DurabilityTracker, SupportsDurabilityProbe
from chronoverse.runner.log_writer import JobResult, LogWriter, SupportsEvictionWarnings
from chronoverse.runner.spool.spool import BATCH_LINES, Spool

#: Seconds for which lines are gathered into one append. A line that comes after a longer silence leaves at once.
BATCH_SECONDS: Final = 0.05
#: How long to wait after a failure. The longest delay is how late, at worst, we notice that the store is back. It is
#: below the grace that a store gives before it declares a job LOST.
RETRY: Final = RetryPolicy(first=0.1, longest=0.75)
#: How long to wait before the lease is asked for again after it was lost, and at least when the store asks us to wait.
SHORT_RETRY: Final = RetryPolicy(first=0.05, longest=0.05)
#: Our own earlier tokens that are remembered.
TOKENS: Final = 8
#: Renewals in a lease's time: two may fail before it is lost.
RENEWALS: Final = 3


class Publisher:
    """Delivers one job's spool to the store that ``connect`` gives. All of its answers are met in one thread.

    A spool that another process left behind is taken up where that one was, under its token. ``first`` is the number
    that the spool's first line must get in a log that it has no part in yet; None for any.
    """

    def __init__(
        self,
        connect: Callable[[], LogWriter],
        job: JobRef,
        spool: Spool,
        say: Callable[[str], None],
        *,
        lease_seconds: float = 30,
        first: int | None = None,
    ) -> None:
        self._connect = connect
        self._job = job
        self._spool = spool
        self._say = say
        self._renewal = lease_seconds / RENEWALS
        self._first = first
        self._backoff = Backoff(RETRY)
        self._store: LogWriter | None = None
        self._sender: AppendPipeline | None = None
        self._attempt: Attempt | None = None
        #: Numbers that neither the store nor the spool has; the log is to name them before anything else is sent.
        self._lost: tuple[int, int] | None = None
        self._earlier: deque[str] = deque(maxlen=TOKENS)
        self._resume(spool)
        self._renew_at = 0.0
        self._sent_at = 0.0
        self._ending: JobResult | None = None
        self._refusal: ChronoverseError | None = None
        self._lock = threading.Lock()
        self._background = False
        self._finished = False
        self._ended = False
        self._warned = False
        self._safety = DurabilityTracker(spool, say, self._hold)
        self._answered = threading.Event()
        self._stop = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chronoverse-publisher", daemon=True)

    def _resume(self, spool: Spool) -> None:
        state = spool.state
        self._token: str = state.get("token") or secrets.token_hex(16)
        self._base: int = state.get("base", 0)
        self._last = Attempt(self._job, self._token, state["attempt"], self._base) if "attempt" in state else None
        spool.set_state(workflow=self._job.workflow_id, job=self._job.job_id, token=self._token)

    def start(self, seconds: float) -> None:
        """Begins, and waits up to ``seconds`` for the store to let us in; after that it goes on trying.

        Raises: :class:`Held`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`, :class:`NotALog`, and what
        ``connect`` raises.
        """
        self._thread.start()
        self._answered.wait(seconds)
        with self._lock:
            self._background = True
            if self._refusal is not None:
                raise self._refusal

    def end(self, result: JobResult, timestamp: str) -> None:
        """No line comes any more. What waits is delivered in the background, then the job is ended."""
        self._spool.save_state(ending=list(result))
        self._ending = result
        self._spool.close(timestamp)

    def join(self, seconds: float) -> bool:
        """Waits up to ``seconds``. Whether the thread has done all that it could."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Gives up what has not been delivered."""
        self._stop.set()
        self._safety.stop()

    def close(self, *, delivered: bool) -> Path | None:
        """After :meth:`stop`: leaves what is not safe in a file, if there is anything and a place for it.

        When all is ``delivered`` the file goes.
        """
        if delivered:
            self._spool.abandon()
            return None
        return self._spool.preserve()

    @property
    def undelivered(self) -> int:
        """Lines that are not in the store, as far as we know."""
        return self._spool.end - self._spool.acked

    @property
    def dropped(self) -> int:
        """Lines that found no room here."""
        return self._spool.dropped

    @property
    def numbering(self) -> AttemptNumbering | None:
        """The last attempt that was ours; None when there was none."""
        attempt = self._attempt or self._last
        return AttemptNumbering(attempt, self._base) if attempt else None

    @property
    def ended(self) -> bool:
        """Whether the store knows the job's end, safely."""
        return self._ended

    @property
    def refusal(self) -> ChronoverseError | None:
        """Why publishing stopped for good, if it did."""
        return self._refusal

    def _run(self) -> None:
        try:
            self._store = self._connect()
            self._sender = AppendPipeline(self._store, self._spool, self._spool.end if self._last else 0)
            while not self._stop.is_set() and not self._over.is_set():
                self._attend(self._store, self._sender)
        except Exception as error:  # the job goes on whatever is wrong here, and somebody must be told
            self._give_up(error if isinstance(error, ChronoverseError) else ChronoverseError(repr(error)))
        finally:
            self._safety.stop()
            self._over.set()
            self._answered.set()

    def _attend(self, store: LogWriter, sender: AppendPipeline) -> None:
        """One step, and what the store says to it."""
        try:
            self._step(store, sender)
        except NotALog:
            raise
        except TooFast as asked:
            sender.reset()
            self._stop.wait(min(max(asked.seconds, SHORT_RETRY.delay(1)), self._renewal / 2))
        except StoreError as error:
            sender.reset()
            self._pause(error)
        except Fenced:
            # The lease may just have expired, with nobody in our place: ask again, as a new attempt.
            sender.reset()
            self._last, self._attempt, self._finished = self._attempt, None, False
            self._earlier.appendleft(self._token)
            self._token = secrets.token_hex(16)
            self._stop.wait(SHORT_RETRY.delay(1))
        except SequenceGap as gap:
            sender.reset()
            if gap.expected - self._base > self._spool.acked:
                raise ForeignLines("somebody else writes to this job's log") from gap
            self._move(gap.expected - self._base)

    def _step(self, store: LogWriter, sender: AppendPipeline) -> None:
        if self._attempt is None:
            self._open(store, sender)
        elif self._finished:
            self._settle(AttemptNumbering(self._attempt, self._base))
        elif self._lost is not None:
            first, last = self._lost
            store.append_lost(self._attempt, first, last)
            self._lost = None
            self._say(f"the store has lost lines {first} to {last}, which are no longer kept here: the log names them")
            self._answered_well()
        elif sender.has_pending:
            sender.send(self._attempt, self._base)
            sender.receive(self._base)
            self._answered_well()
        elif time.monotonic() >= self._renew_at:
            store.renew(self._attempt)
            self._renewed()
        elif self._gather():
            self._sent_at = time.monotonic()
            sender.send(self._attempt, self._base)
            if not sender.has_pending:  # the newest lines are just being dropped
                self._stop.wait(BATCH_SECONDS)
        elif self._ending is not None:
            following = self._base + self._spool.acked
            store.finish(self._attempt, *self._ending, self._spool.dropped, following)
            self._finished = True

    def _open(self, store: LogWriter, sender: AppendPipeline) -> None:
        try:
            attempt = self._ask_in(store)
        except Closed:
            if not self._is_ours(store):
                raise
            return
        if self._last is None:
            self._base = attempt.next - self._spool.first
        else:
            self._rejoin(self._last, attempt, sender)
        self._attempt = attempt
        self._spool.save_state(token=self._token, base=self._base, attempt=attempt.attempt)
        if isinstance(store, SupportsDurabilityProbe):
            self._safety.start(store.durability_probe())
        self._renewed()
        self._recover()
        self._answered.set()
        self._warn(store)

    def _warn(self, store: LogWriter) -> None:
        """Says once where the store may throw away what it has taken. The lines do not wait for that."""
        if isinstance(store, SupportsEvictionWarnings) and not self._warned:
            self._warned = True
            with contextlib.suppress(StoreError):
                for warning in store.eviction_warnings(self._job):
                    self._say(warning)

    def _ask_in(self, store: LogWriter) -> Attempt:
        """An attempt. The lease in our way may be an earlier one of our own, which a power loss has brought back."""
        first = self._first if self._last is None else None
        for token in (self._token, *self._earlier):
            try:
                attempt = store.open(self._job, token, first)
            except Held:
                continue
            except SequenceGap as gap:
                raise ForeignLines(f"{self._job} has {gap.expected - 1} lines already") from gap
            self._token = token
            return attempt
        raise Held("another live runner holds this job")

    def _is_ours(self, store: LogWriter) -> bool:
        """Whether the job ended as we would have ended it: then somebody did, and only we did not hear of it."""
        if self._last is None or self._ending is None:
            return False
        try:
            store.finish(self._last, *self._ending, self._spool.dropped, self._base + self._spool.end)
        except Fenced:
            return False
        self._spool.acknowledge(self._spool.end)
        self._attempt, self._finished = self._last, True
        return True

    def _rejoin(self, last: Attempt, attempt: Attempt, sender: AppendPipeline) -> None:
        """Goes on after the lease was lost, if the log still ends with our own lines."""
        index = attempt.next - self._base
        if index == self._spool.acked:
            return
        # Another number means that the store lost some of our lines, or took a batch whose answer never came:
        # unless there was another attempt between, whose lines these may be.
        if attempt.attempt > last.attempt + 1 or index > max(sender.sent, self._spool.acked):
            raise ForeignLines("another runner has written to this job since our lease was lost")
        self._move(index)

    def _gather(self) -> bool:
        """Waits for lines, then until a batch is full or due. Whether there are any to send."""
        if not self._spool.wait_for_lines(1, self._renew_at - time.monotonic()):
            return False
        self._spool.wait_for_lines(BATCH_LINES, self._sent_at + BATCH_SECONDS - time.monotonic())
        return True

    def _answered_well(self) -> None:
        self._safety.lines_acknowledged()
        self._renewed()
        self._recover()

    def _settle(self, hold: AttemptNumbering) -> None:
        """The job has ended; now that must be safe."""
        following = self._safety.confirm_end(hold)
        if following is None:
            return
        if following <= hold.base + self._spool.end:
            # The store lost its last seconds, or just the end.
            self._finished = False
            self._move(following - hold.base)
            return
        self._ended = True
        self._over.set()

    def _move(self, index: int) -> None:
        """The store's next line is that with ``index``."""
        self._lost = None
        if index > self._spool.acked:
            self._spool.acknowledge(index)
        elif not self._spool.rewind(index):
            first = self._spool.first
            self._spool.rewind(first)
            self._lost = (self._base + index, self._base + first - 1)

    def _hold(self) -> AttemptNumbering | None:
        return self.numbering if self._attempt else None

    def _renewed(self) -> None:
        self._renew_at = time.monotonic() + self._renewal

    def _pause(self, error: ChronoverseError) -> None:
        if not self._backoff.failures:
            self._say(f"{error}; lines wait here, the job goes on")
            self._spool.force_spill(True)
        self._backoff.record_failure()
        self._stop.wait(min(self._backoff.delay(), self._renewal / 2))

    def _recover(self) -> None:
        if self._backoff.failures:
            self._backoff.record_success()
            self._spool.force_spill(False)
            self._say("the store is back")

    def _give_up(self, error: ChronoverseError) -> None:
        # The lines of a deleted job are meant to be gone, also those that wait here. Lines that were only to be
        # published under its id are another job's.
        deleted = isinstance(error, Deleted) and self._first is None
        if deleted and self._spool.end > self._spool.first:
            error = Deleted(f"{error}; its lines that waited here are dropped")
        if deleted or not self._spool.has_directory:
            self._spool.abandon()
        with self._lock:
            self._refusal = error
            background = self._background
        if background:
            self._say(f"publishing stopped: {error}")
