"""Asks in the background how far the log is safe, and lets the spool forget that much. Appends never wait for it."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, runtime_checkable

from chronoverse.backoff import RetryPolicy
from chronoverse.errors import ChronoverseError, NotDurable
from chronoverse.joblog.values import Attempt
from chronoverse.runner.spool.spool import Spool

#: Seconds between looks whether somebody stopped us.
POLL_SECONDS: Final = 0.2
#: Seconds between questions: the disk is not asked for every batch.
PROBE_INTERVAL_SECONDS: Final = 0.1
#: How long to wait before a question that failed is asked again. The publisher notices the store's return sooner.
RETRY: Final = RetryPolicy(first=1.0, longest=1.0, jitter=0)
#: Questions in vain (of two seconds each) after which somebody is told.
MAX_UNCONFIRMED: Final = 5


class DurabilityProbe(Protocol):
    """Who knows what is safe. :class:`chronoverse.store.durability.StoreDurabilityProbe` is one."""

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None: ...


class AttemptNumbering(NamedTuple):
    """The attempt, and the number of the line with index 0."""

    attempt: Attempt
    base: int


class DurabilityTracker:
    """Releases the spool's lines as they become safe: at once without an ``oracle``, or when it cannot tell."""

    def __init__(
        self, spool: Spool, say: Callable[[str], None], numbering: Callable[[], AttemptNumbering | None]
    ) -> None:
        self._spool = spool
        self._say = say
        self._hold = numbering
        self._oracle: DurabilityProbe | None = None
        self._in_vain = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, probe: DurabilityProbe | None) -> None:
        """Starts asking ``oracle``."""
        self._oracle = probe
        if probe is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chronoverse-safety", daemon=True)
            self._thread.start()

    def lines_acknowledged(self) -> None:
        """Lines were acknowledged."""
        if self._oracle is None:
            self._spool.release(self._spool.acked)

    def confirm_end(self, numbering: AttemptNumbering) -> int | None:
        """The number below which all is safe, the terminal entry too; None when that could not be said in time.

        Raises what the oracle raises, but not :class:`NotDurable`: then what is acknowledged must do.
        """
        if self._oracle is not None:
            try:
                return self._oracle.confirm(numbering.attempt, may_sync=True)
            except NotDurable as error:
                self._give_up(error)
        return numbering.base + self._spool.end + 1

    def stop(self) -> None:
        """Asks no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set() and self._oracle is not None:
            if self._spool.wait_for_unsafe(POLL_SECONDS):
                self._stop.wait(self._ask(self._oracle))

    def _ask(self, oracle: DurabilityProbe) -> float:
        hold = self._hold()
        if hold is None:
            return POLL_SECONDS
        try:
            following = oracle.confirm(hold.attempt)
        except NotDurable as error:
            self._give_up(error)
        except ChronoverseError:
            return RETRY.delay(1)
        else:
            self._in_vain = self._in_vain + 1 if following is None else 0
            if self._in_vain == MAX_UNCONFIRMED:
                self._say("the store answers but does not confirm that lines are safe; they are kept here too")
            if following is not None:
                self._spool.release(min(following - hold.base, self._spool.end))
        return PROBE_INTERVAL_SECONDS

    def _give_up(self, error: NotDurable) -> None:
        if self._oracle is not None:
            self._oracle = None
            self._say(f"{error}; lines count as safe when it has answered")
        self._spool.release(self._spool.acked)


@runtime_checkable
class SupportsDurabilityProbe(Protocol):
    """A store that can tell what is safe."""

    def durability_probe(self) -> DurabilityProbe | None: ...
