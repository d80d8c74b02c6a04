"""Lends our terminal to the command. The command's own process group may read from it only in the foreground.

This is what a shell does for its jobs. https://www.gnu.org/software/libc/manual/html_node/Implementing-a-Shell.html
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

#: The signals that stop a process which uses the terminal from the background.
_BACKGROUND_ACCESS: Final = (signal.SIGTTIN, signal.SIGTTOU)


@contextlib.contextmanager
def foreground_process_group(group: int) -> Iterator[bool]:
    """While entered, the process group ``group`` is the foreground group of our terminal. Then our own is again.

    Yields True if that was done: Ctrl-C then goes to the command and not to us, and Ctrl-Z stops both. Yields False if
    nothing was done: our stdin is not a terminal, we are not in its foreground, or this is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not is_foreground(0):
        yield False
        return
    foreground = _Foreground(group)
    saved = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, foreground.on_child_stopped),
        # This would stop us when we write to the terminal from the background, or take it back.
        signal.SIGTTOU: signal.signal(signal.SIGTTOU, signal.SIG_IGN),
    }
    try:
        foreground.give()
        yield True
    finally:
        foreground.take_back()
        for number, handler in saved.items():
            signal.signal(number, handler)


class _Foreground:
    """Switches the terminal's foreground group between the command's and ours. The terminal is our stdin."""

    def __init__(self, group: int) -> None:
        self._group = group

    def give(self) -> None:
        _set_foreground(self._group)
        # The command may have been stopped because it read from the terminal before this.
        self._resume()

    def take_back(self) -> None:
        _set_foreground(os.getpgrp())

    def on_child_stopped(self, number: int, frame: FrameType | None) -> Any:
        """The handler of SIGCHLD. If the command was stopped, we stop too, and both continue together."""
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, self._group, os.WSTOPPED | os.WNOHANG)
            if stopped is None:
                return
            if stopped.si_status not in _BACKGROUND_ACCESS:
                self.take_back()
                # The kernel ignores this if no shell could wake us (an orphaned process group).
                os.killpg(os.getpgrp(), signal.SIGTSTP)
            if is_foreground(0):
                self.give()
            elif stopped.si_status not in _BACKGROUND_ACCESS:
                self._resume()

    def _resume(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGCONT)


def is_foreground(terminal: int) -> bool:
    """Whether it is a terminal that our process group is in the foreground of. Only then we may use it unstopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _set_foreground(group: int) -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, group)
