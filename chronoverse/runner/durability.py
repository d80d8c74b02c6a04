"""Asks in the background how much of the log is safe, and releases the spool's lines up to there.

Appends never wait for this. The spool keeps a line until it is released, and can send it again if the store loses it.
"""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from chronoverse.errors import ChronoverseError, NotDurable
from chronoverse.joblog.model import Attempt
from chronoverse.runner.log_writer import DurabilityProbe
from chronoverse.runner.spool.spool import Spool

#: Seconds that one wait for acknowledged lines lasts. After each the thread checks whether it was stopped.
POLL_SECONDS: Final = 0.2


class AttemptNumbering(NamedTuple):
    """An attempt, and ``base``: the sequence number of the spool's line with the index 0 in its log."""

    attempt: Attempt
    base: int


class DurabilityTracker:
    """Releases the spool's lines when they are safe. Without a probe they are safe once they are acknowledged."""

    def __init__(
        self, spool: Spool, say: Callable[[str], None], numbering: Callable[[], AttemptNumbering | None]
    ) -> None:
        """``say`` shows the user a message. ``numbering`` gives that of the current attempt, None if there is none."""
        self._spool = spool
        self._say = say
        self._numbering = numbering
        self._probe: DurabilityProbe | None = None
        self._unconfirmed = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, probe: DurabilityProbe | None) -> None:
        """Asks ``probe`` from now on, in a thread of its own."""
        self._probe = probe
        if probe is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chronoverse-durability", daemon=True)
            self._thread.start()

    def lines_acknowledged(self) -> None:
        """Call this when the store has acknowledged lines."""
        if self._probe is None:
            self._spool.release(self._spool.acked)

    def confirm_end(self, numbering: AttemptNumbering) -> int | None:
        """The number below which all is safe, the terminal entry included; None when the time was too short.

        Raises what the probe raises, except :class:`NotDurable`: then what is acknowledged counts as safe.
        """
        if self._probe is not None:
            try:
                return self._probe.confirm(numbering.attempt, may_sync=True)
            except NotDurable as error:
                self._stop_asking(error)
        return numbering.base + self._spool.end + 1

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._probe is not None:
                if self._spool.wait_for_unsafe(POLL_SECONDS):
                    self._stop.wait(self._ask(self._probe))
        except Exception:
            # Whoever has stopped us does not wait for us, and may close the store during a question.
            if not self._stop.is_set():
                raise

    def _ask(self, probe: DurabilityProbe) -> float:
        """Asks once. Returns the seconds until the next question."""
        numbering = self._numbering()
        if numbering is None:
            return POLL_SECONDS
        try:
            next_number = probe.confirm(numbering.attempt)
        except NotDurable as error:
            self._stop_asking(error)
        except ChronoverseError:
            return 1.0  # the publisher notices the store's return earlier
        else:
            self._unconfirmed = self._unconfirmed + 1 if next_number is None else 0
            if self._unconfirmed == 5:  # after ten seconds
                self._say("the store answers but does not confirm that lines are safe; they are kept here too")
            if next_number is not None:
                self._spool.release(min(next_number - numbering.base, self._spool.end))
        return 0.1  # the disk is not asked about every batch

    def _stop_asking(self, error: NotDurable) -> None:
        if self._probe is not None:
            self._probe = None
            self._say(f"{error}; lines count as safe when it has answered")
        self._spool.release(self._spool.acked)
