"""Temporary errors that keep a runner's lines from the store, and the messages about them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.errors import ChronoverseError, Held
from chronoverse.runner.spool.spool import Spool

#: Delays after failures: shorter than the grace period before a store declares a job LOST.
RETRY: Final = RetryPolicy(first=0.1, longest=0.75)


@dataclass(eq=False)
class Outage:
    """Counts errors since the last success. Waits up to ``most_seconds`` after each, or until ``stop`` is set."""

    spool: Spool
    say: Callable[[str], None]
    stop: threading.Event
    most_seconds: float
    #: Whether to hide the message that lines wait: there are none, as the command only starts once the job is open.
    is_silent: bool = False
    last_error: ChronoverseError | None = None
    #: Whether the user was warned during this outage that the spool's file cannot be written.
    _has_warned_of_file: bool = False

    def __post_init__(self) -> None:
        self._backoff = Backoff(RETRY)

    def wait_after(self, error: ChronoverseError) -> None:
        self.last_error = error
        if not self._backoff.failures:
            if not self.is_silent and not self.stop.is_set():
                self.say(f"{str(error).removesuffix('; try again')}; lines wait here, the job continues")
            self.spool.force_spill(True)
            self._has_warned_of_file = False
        if self.spool.file_error is not None and not self._has_warned_of_file:
            self._has_warned_of_file = True
            where = f"the spool's file in {self.spool.room.directory}"
            self.say(f"{where} cannot be written ({self.spool.file_error}): the newest lines stay in memory")
        self._backoff.record_failure()
        self.stop.wait(min(self._backoff.delay(), self.most_seconds))

    def end(self) -> None:
        if self._backoff.failures:
            self._backoff.record_success()
            self.spool.force_spill(False)
            was_held = isinstance(self.last_error, Held)
            self.say("the other runner no longer holds the job" if was_held else "the store is back")
