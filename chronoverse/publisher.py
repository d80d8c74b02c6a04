"""From the spool to the store: one thread that opens the job, appends its lines, keeps its lease and ends it.

Nothing that happens here reaches the job. What can pass (the store is away, full, or has lost its last
seconds) is retried; what cannot (another runner has the job) ends the publishing, and is said once.
"""

import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from chronoverse.errors import (
    ChronoverseError,
    Closed,
    Fenced,
    NotALog,
    SequenceGap,
    StoreError,
)
from chronoverse.joblog import JobRef, Line, Status
from chronoverse.spool import BATCH_LINES, Spool
from chronoverse.store import Attempt

#: Seconds for which lines are gathered into one append. A line that comes after a longer silence leaves at once.
BATCH_SECONDS: Final = 0.05
#: Seconds of the first pause after a failure; each further one doubles it.
BACKOFF_SECONDS: Final = 0.05
#: Seconds of the longest pause: how late, at worst, we notice that the store is back.
BACKOFF_LIMIT_SECONDS: Final = 2.0
#: Renewals in a lease's time: two may fail before it is lost.
RENEWALS: Final = 3


_FOREIGN: Final = Closed("somebody else writes to this job's log")


class Ledger(Protocol):
    """What a runner needs of a store. :class:`chronoverse.store.Store` is one."""

    def open(self, job: JobRef, token: str) -> Attempt: ...

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int: ...

    def renew(self, attempt: Attempt) -> None: ...

    def finish(self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, following: int) -> None: ...


class Ending(NamedTuple):
    """How the job ended."""

    status: Status
    exit_code: int | None


def jittered(failures: int) -> float:
    """Seconds to pause after so many failures in a row: exponential, bounded, never the same for all."""
    ceiling: float = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures, 16))
    return random.uniform(ceiling / 2, ceiling)


class Publisher:
    """Delivers one job's spool. All of the store's answers are met in its own thread."""

    def __init__(
        self,
        store: Ledger,
        job: JobRef,
        spool: Spool,
        say: Callable[[str], None],
        *,
        lease_seconds: float = 30,
        backoff: Callable[[int], float] = jittered,
    ) -> None:
        self._store = store
        self._job = job
        self._spool = spool
        self._say = say
        self._renewal = lease_seconds / RENEWALS
        self._backoff = backoff
        self._token = secrets.token_hex(16)
        self._attempt: Attempt | None = None
        self._last: Attempt | None = None
        self._base = 0
        self._renew_at = 0.0
        self._sent_at = 0.0
        self._failures = 0
        self._ending: Ending | None = None
        self._refusal: ChronoverseError | None = None
        self._lock = threading.Lock()
        self._background = False
        self._ended = False
        self._answered = threading.Event()
        self._stop = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chronoverse-publisher", daemon=True)

    def start(self, seconds: float) -> None:
        """Begins, and waits up to ``seconds`` for the store to let us in; after that it goes on trying.

        Raises: :class:`Held`, :class:`Closed`, :class:`Tainted`, :class:`NotALog`.
        """
        self._thread.start()
        self._answered.wait(seconds)
        with self._lock:
            self._background = True
            if self._refusal is not None:
                raise self._refusal

    def end(self, ending: Ending, timestamp: str) -> None:
        """No line comes any more. What waits is delivered in the background, then the job is ended."""
        self._ending = ending
        self._spool.close(timestamp)

    def join(self, seconds: float) -> bool:
        """Waits up to ``seconds``. Whether the thread has done all that it could."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Gives up what has not been delivered."""
        self._stop.set()

    @property
    def undelivered(self) -> int:
        """Lines that are not in the store, as far as we know."""
        return self._spool.end - self._spool.acked

    @property
    def ended(self) -> bool:
        """Whether the store knows the job's end."""
        return self._ended

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._over.is_set():
                self._attend()
        except Exception as error:  # the job goes on whatever is wrong here, and somebody must be told
            self._give_up(error if isinstance(error, ChronoverseError) else ChronoverseError(repr(error)))
        finally:
            self._over.set()
            self._answered.set()

    def _attend(self) -> None:
        """One step, and what the store says to it."""
        try:
            self._step()
        except NotALog:
            raise
        except StoreError as error:
            self._pause(error)
        except Fenced:
            # The lease may just have expired, with nobody in our place: ask again, as a new attempt.
            self._last, self._attempt = self._attempt, None
            self._token = secrets.token_hex(16)
            self._stop.wait(self._backoff(0))
        except SequenceGap as gap:
            if gap.expected - self._base > self._spool.acked:
                raise _FOREIGN from gap
            self._move(gap.expected - self._base)

    def _step(self) -> None:
        if self._attempt is None:
            self._open()
        elif time.monotonic() >= self._renew_at:
            self._store.renew(self._attempt)
            self._renewed()
        elif self._gather():
            self._append(self._attempt)
        elif self._ending is not None:
            self._finish(self._attempt, self._ending)

    def _open(self) -> None:
        attempt = self._store.open(self._job, self._token)
        if self._last is None:
            self._base = attempt.next
        else:
            self._rejoin(self._last, attempt)
        self._attempt = attempt
        self._renewed()
        self._recover()
        self._answered.set()

    def _rejoin(self, last: Attempt, attempt: Attempt) -> None:
        """Goes on after the lease was lost, if the log still ends with our own lines."""
        index = attempt.next - self._base
        if index == self._spool.acked:
            return
        # Another number means that the store lost some of our lines, or took a batch whose answer never came:
        # unless there was another attempt between, whose lines these may be.
        ours = attempt.attempt <= last.attempt + 1 and index <= min(self._spool.acked + BATCH_LINES, self._spool.end)
        if not ours:
            raise Closed("another runner has written to this job since our lease was lost")
        self._move(index)

    def _gather(self) -> bool:
        """Waits for lines, then until a batch is full or due. Whether there are any to send."""
        if not self._spool.wait(1, self._renew_at - time.monotonic()):
            return False
        self._spool.wait(BATCH_LINES, self._sent_at + BATCH_SECONDS - time.monotonic())
        return True

    def _append(self, attempt: Attempt) -> None:
        self._sent_at = time.monotonic()
        lines = self._spool.take(self._base)
        following = self._store.append(attempt, lines)
        if following != lines[-1].sequence_num + 1:
            raise _FOREIGN
        self._spool.acknowledge(following - self._base)
        self._renewed()
        self._recover()

    def _finish(self, attempt: Attempt, ending: Ending) -> None:
        following = self._base + self._spool.acked
        self._store.finish(attempt, ending.status, ending.exit_code, self._spool.dropped, following)
        self._ended = True
        self._over.set()

    def _move(self, index: int) -> None:
        """The store's next line is that with ``index``."""
        if index > self._spool.acked:
            self._spool.acknowledge(index)
        elif not self._spool.rewind(index):
            raise Closed(f"the store has lost lines from {index + self._base} on, which are no longer kept here")

    def _renewed(self) -> None:
        self._renew_at = time.monotonic() + self._renewal

    def _pause(self, error: ChronoverseError) -> None:
        if self._failures == 0:
            self._say(f"{error}; lines wait here, the job goes on")
        self._failures += 1
        self._stop.wait(min(self._backoff(self._failures), self._renewal / 2))

    def _recover(self) -> None:
        if self._failures:
            self._failures = 0
            self._say("the store is back")

    def _give_up(self, error: ChronoverseError) -> None:
        self._spool.abandon()
        with self._lock:
            self._refusal = error
            background = self._background
        if background:
            self._say(f"publishing stopped: {error}")
