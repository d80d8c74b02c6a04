"""The command's terminal: either ours, as under a shell, or a pseudo-terminal in a new session.

See https://www.gnu.org/software/libc/manual/html_node/Implementing-a-Shell.html. With a pseudo-terminal, ours is set to
raw mode, and all input, including Ctrl-C, is forwarded to the command.
"""

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any


@contextlib.contextmanager
def foreground_process_group(group: int) -> Iterator[Callable[[], bool]]:
    """Makes ``group`` the foreground process group of our terminal within the ``with`` block.

    Ctrl-C then goes to the command instead of us, and Ctrl-Z stops both. Does nothing if our stdin is not a terminal,
    if we are in its background, or outside the main thread. Yields a function that returns whether it did anything.
    """
    if threading.current_thread() is not threading.main_thread() or not _is_foreground():
        yield lambda: False
        return

    def resume() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGCONT)

    def on_child_stopped(number: int, frame: FrameType | None) -> None:
        """If the command was stopped, also stops us. Later, both continue together."""
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, group, os.WSTOPPED | os.WNOHANG)
            if stopped is None:
                return
            was_in_background = stopped.si_status in (signal.SIGTTIN, signal.SIGTTOU)
            if not was_in_background:
                _set_foreground(os.getpgrp())
                # The kernel ignores this if no shell could wake us (orphaned process group).
                os.killpg(os.getpgrp(), signal.SIGTSTP)
            if _is_foreground():
                _set_foreground(group)
                resume()
            elif not was_in_background:
                resume()

    saved = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, on_child_stopped),
        # Otherwise writing to the terminal from the background, or taking it back, would stop us.
        signal.SIGTTOU: signal.signal(signal.SIGTTOU, signal.SIG_IGN),
    }
    try:
        _set_foreground(group)
        # The command may have been stopped because it read from the terminal too early.
        resume()
        yield lambda: True
    finally:
        _set_foreground(os.getpgrp())
        for number, handler in saved.items():
            signal.signal(number, handler)


def _is_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _set_foreground(group: int) -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, group)


class PtyProcess:
    """A command on a pseudo-terminal. ``stdout`` carries all its output. Raises what subprocess.Popen raises."""

    stderr: IO[bytes] | None = None

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.interactive = _is_foreground()
        master, slave = os.openpty()
        try:
            _prepare(master, slave, self.interactive)
            self.pid = _spawn(argv, environ, os.ttyname(slave), self.interactive)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self.stdout: IO[bytes] | None = os.fdopen(master, "rb", buffering=0)
        self.input_descriptor = os.dup(master)

    def wait(self) -> int:
        with contextlib.suppress(OSError):
            os.close(self.input_descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def attach_terminal(process: PtyProcess) -> Iterator[Callable[[], bool]]:
    """Forwards typed input and the window's size to the command.

    Yields a function that returns whether Ctrl-C was typed.
    """
    if not process.interactive:
        yield lambda: False
        return
    saved = termios.tcgetattr(0)
    os.set_blocking(process.input_descriptor, False)
    stop_read, stop_write = os.pipe()
    interrupted = threading.Event()
    # In a thread, because the command may not read its input for a while.
    thread = threading.Thread(
        target=_forward_stdin,
        args=(process.input_descriptor, stop_read, interrupted),
        name="chronoverse-stdin",
        daemon=True,
    )
    with _forward_window_size(process.input_descriptor):
        try:
            tty.setraw(0, termios.TCSADRAIN)
            thread.start()
            yield interrupted.is_set
        finally:
            # Stops forwarding, since later input is for other programs. The thread may hang: the command may not read.
            os.close(stop_write)
            if thread.ident is not None:
                thread.join(1.0)
            os.close(stop_read)
            # Fails if the terminal was closed, in which case we also got a SIGHUP.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _forward_stdin(to: int, stop: int, interrupted: threading.Event) -> None:
    """Forwards typed input to the command until ``stop`` is readable. Sets ``interrupted`` when Ctrl-C is typed."""

    def wait_until_ready(readable: list[int], writable: list[int]) -> bool:
        ready, _, _ = select.select([stop, *readable], writable, [])
        return stop not in ready

    with contextlib.suppress(OSError):
        while wait_until_ready([0], []):
            # At most 4 KiB of typed or pasted input at once.
            data = os.read(0, 4_096)
            if not data:
                return
            if b"\x03" in data:
                interrupted.set()
            while data and wait_until_ready([], [to]):
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(to, data) :]


def _prepare(master: int, slave: int, interactive: bool) -> None:
    modes: list[Any] = termios.tcgetattr(0 if interactive else slave)
    # Ctrl-Z must not stop the command: no shell knows it and could continue it.
    modes[6][termios.VSUSP] = os.fpathconf(slave, "PC_VDISABLE")
    if not interactive:
        # Output goes to our terminal, which is not raw and adds carriage returns, or to a file, which needs none.
        modes[1] &= ~termios.ONLCR
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    termios.tcsetwinsize(master, _size())


def _size() -> tuple[int, int]:
    for descriptor in range(3):
        with contextlib.suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(descriptor)
            if rows and columns:
                return rows, columns
    # The usual default without a terminal.
    return (24, 80)


@contextlib.contextmanager
def _forward_window_size(master: int) -> Iterator[None]:
    """Keeps the command's terminal at our window's size within the ``with`` block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def resize(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetwinsize(master, _size())

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize(signal.SIGWINCH, None)
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _spawn(argv: Sequence[str], environ: Mapping[str, str], terminal: str, interactive: bool) -> int:
    """Starts ``argv`` on ``terminal``, and returns its process id.

    The first terminal that a session leader opens becomes its controlling terminal: tty(4), credentials(7). posix_spawn
    opens it without running Python in the new process, which would be unsafe after the fork of a threaded process.
    """
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 1, terminal, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 1, 2)]
    if interactive:
        actions.append((os.POSIX_SPAWN_DUP2, 1, 0))
    elif os.isatty(0):
        # If we are in the background of our terminal, reading from it would take the shell's input.
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    # Python ignores these signals. Restores them for the new process, as Popen does.
    ignored = [signal.SIGPIPE, signal.SIGXFSZ]
    return os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions, setsid=True, setsigdef=ignored)
