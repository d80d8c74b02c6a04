"""Lends our terminal to the command. The command's own process group may read from it only in the foreground.

This is what a shell does for its jobs. https://www.gnu.org/software/libc/manual/html_node/Implementing-a-Shell.html
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def foreground_process_group(group: int) -> Iterator[Callable[[], bool]]:
    """While entered, the process group ``group`` is the foreground group of our terminal. Then our own is again.

    Ctrl-C then goes to the command and not to us, and Ctrl-Z stops both. Nothing is done if our stdin is not a
    terminal, we are not in its foreground, or this is not the main thread. Yields a function: whether it was done.
    """
    if threading.current_thread() is not threading.main_thread() or not is_foreground(0):
        yield lambda: False
        return

    def resume() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGCONT)

    def on_child_stopped(number: int, frame: FrameType | None) -> None:
        """If the command was stopped, we stop too, and both continue together."""
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, group, os.WSTOPPED | os.WNOHANG)
            if stopped is None:
                return
            was_in_background = stopped.si_status in (signal.SIGTTIN, signal.SIGTTOU)
            if not was_in_background:
                _set_foreground(os.getpgrp())
                # The kernel ignores this if no shell could wake us (an orphaned process group).
                os.killpg(os.getpgrp(), signal.SIGTSTP)
            if is_foreground(0):
                _set_foreground(group)
                resume()
            elif not was_in_background:
                resume()

    saved = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, on_child_stopped),
        # This would stop us when we write to the terminal from the background, or take it back.
        signal.SIGTTOU: signal.signal(signal.SIGTTOU, signal.SIG_IGN),
    }
    try:
        _set_foreground(group)
        # The command may have been stopped because it read from the terminal before this.
        resume()
        yield lambda: True
    finally:
        _set_foreground(os.getpgrp())
        for number, handler in saved.items():
            signal.signal(number, handler)


def is_foreground(terminal: int) -> bool:
    """Whether it is a terminal that our process group is in the foreground of. Only then we may use it unstopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _set_foreground(group: int) -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, group)
