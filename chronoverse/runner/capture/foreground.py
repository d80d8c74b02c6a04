"""The terminal, lent to the command: a process group of its own may read from it only while it is in the foreground.

What a shell does for its jobs, for one command. https://www.gnu.org/software/libc/manual/html_node/Implementing-a-Shell.html
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

#: What stops a process that uses the terminal from the background.
_NOT_YOUR_TERMINAL: Final = (signal.SIGTTIN, signal.SIGTTOU)


@contextlib.contextmanager
def foreground_process_group(group: int, terminal: int = 0) -> Iterator[bool]:
    """Puts the process group ``group`` into the foreground, and us back at the end.

    True when it was: then the terminal's Ctrl-C goes to the command and not to us, and Ctrl-Z stops us both.
    False, and nothing done, when ``terminal`` is none or not ours, or outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not _is_ours(terminal):
        yield False
        return
    loan = _Loan(group, terminal)
    saved = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, loan.look),
        # Who writes to a terminal from the background, or takes it back, may be stopped by this.
        signal.SIGTTOU: signal.signal(signal.SIGTTOU, signal.SIG_IGN),
    }
    try:
        loan.give()
        yield True
    finally:
        loan.take_back()
        for number, handler in saved.items():
            signal.signal(number, handler)


class _Loan:
    def __init__(self, group: int, terminal: int) -> None:
        self._group = group
        self._terminal = terminal

    def give(self) -> None:
        _set_foreground(self._terminal, self._group)
        # It may have been stopped for reading before it was allowed to.
        self._resume()

    def take_back(self) -> None:
        _set_foreground(self._terminal, os.getpgrp())

    def look(self, number: int, frame: FrameType | None) -> Any:
        """SIGCHLD's handler: when the command was stopped, stop with it, and go on together."""
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, self._group, os.WSTOPPED | os.WNOHANG)
            if stopped is None:
                return
            if stopped.si_status not in _NOT_YOUR_TERMINAL:
                self.take_back()
                # Without a shell that could wake us (an orphaned group) the kernel ignores this.
                os.killpg(os.getpgrp(), signal.SIGTSTP)
            if _is_ours(self._terminal):
                self.give()
            elif stopped.si_status not in _NOT_YOUR_TERMINAL:
                self._resume()

    def _resume(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGCONT)


def _is_ours(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _set_foreground(terminal: int, group: int) -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(terminal, group)
