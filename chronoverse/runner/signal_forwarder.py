"""Signals that we receive are the job's: they are passed on to all of its process group."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

#: What people and schedulers end jobs with.
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds after the first signal from which on a further one kills: until then it may be a double press.
GRACE_SECONDS: Final = 2.0
#: Signals that are passed on as they are, however they come; any more than these kill.
MAX_FORWARDED: Final = 2


class SignalForwarder:
    """While entered, passes signals on to the group of the command it was :meth:`attached <attach>` to.

    A handler runs between any two operations of the main thread, so it takes no lock: it sends and it notes.
    Outside the main thread nothing is installed, and :meth:`send` is there for the caller.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._group: int | None = None
        self._first_at = 0.0
        self._saved: dict[signal.Signals, Any] = {}
        #: The signals that came, in order, also when there was no command to pass them to.
        self.received: list[int] = []
        self._passed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                # Ignored signals (nohup, a shell's background job) stay ignored, here and in the job.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._saved[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def attach(self, group: int) -> None:
        """From now on signals go to the process group ``group``; one that came just before goes there too."""
        self._group = group
        if self.received and not self._passed:
            self._pass_on(self.received[0])

    def detach(self) -> None:
        """The command is gone: signals are only noted. Call it before the command is reaped."""
        self._group = None

    def send(self, number: int) -> None:
        """Takes a signal as if it had been received."""
        self.received.append(number)
        if self._group is None:
            return
        late = self._passed and self._monotonic() - self._first_at >= GRACE_SECONDS
        self._pass_on(signal.SIGKILL if late or len(self.received) > MAX_FORWARDED else number)

    def _pass_on(self, number: int) -> None:
        if not self._passed:
            self._passed = True
            self._first_at = self._monotonic()
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.send(number)
