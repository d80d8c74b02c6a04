"""Forwards the signals that we receive to the command's process group."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

#: The signals with which people and schedulers end jobs.
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds after the first signal. A second signal within them may be a double press, and is forwarded as it is. A later
#: one kills the command.
GRACE_SECONDS: Final = 2.0
#: Signals that are forwarded as they are, at most. Any further one kills the command.
MAX_FORWARDED: Final = 2


class SignalForwarder:
    """A context manager. Inside it, signals go to the process group that was given to :meth:`attach`.

    A signal handler can run between any two operations of the main thread, so it takes no lock. Outside the main
    thread no handler is installed, and the caller may use :meth:`send`.
    """

    def __init__(self) -> None:
        self._group: int | None = None
        self._first_at = 0.0
        self._saved: dict[signal.Signals, Any] = {}
        #: The signals that came, in order, including those that came while there was no command.
        self.received: list[int] = []
        self._has_forwarded = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                # Ignored signals (under nohup, or in a shell's background job) stay ignored, here and in the command.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._saved[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def attach(self, group: int) -> None:
        """Forwards signals to the process group ``group`` from now on. A signal that came before is forwarded now."""
        self._group = group
        if self.received and not self._has_forwarded:
            self._forward(self.received[0])

    def detach(self) -> None:
        """Only records signals from now on. Call it before the command is reaped: its group id may then be reused."""
        self._group = None

    def send(self, number: int) -> None:
        """Handles a signal as if we had received it."""
        self.received.append(number)
        if self._group is None:
            return
        is_late = self._has_forwarded and time.monotonic() - self._first_at >= GRACE_SECONDS
        self._forward(signal.SIGKILL if is_late or len(self.received) > MAX_FORWARDED else number)

    def _forward(self, number: int) -> None:
        if not self._has_forwarded:
            self._has_forwarded = True
            self._first_at = time.monotonic()
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.send(number)
