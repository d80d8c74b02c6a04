"""Runs a command on a pseudo-terminal. Many programs use colours, or flush each line, only on a terminal.

The command leads a session of its own, and the pseudo-terminal is that session's terminal. If we have a terminal
ourselves, it is made raw: what is typed, Ctrl-C included, is forwarded to the command's terminal, which echoes it and
turns it into signals.
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
from typing import IO, Any, Final

from chronoverse.runner.capture.foreground import is_foreground

#: Seconds that :meth:`StdinForwarder.stop` waits for its thread, which may be writing to a command that does not read.
STOP_SECONDS: Final = 1.0


class PtyProcess:
    """A command on a pseudo-terminal. ``stdout`` is all its output, and ``stderr`` is None.

    Raises what subprocess.Popen raises: FileNotFoundError, PermissionError, OSError, ValueError.
    """

    stderr: IO[bytes] | None = None

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.interactive = is_foreground(0)
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
        """Waits for the command's end. Returns the exit code, -n for signal n. Call it once."""
        with contextlib.suppress(OSError):
            os.close(self.input_descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def attach_terminal(process: PtyProcess) -> Iterator[Callable[[], bool]]:
    """While entered, what is typed in our terminal goes to the command, and so does the window's size.

    Does nothing if we have no terminal. Yields a function: whether Ctrl-C was typed.
    """
    if not process.interactive:
        yield lambda: False
        return
    saved = termios.tcgetattr(0)
    forwarder = StdinForwarder(process.input_descriptor)
    with _forward_window_size(process.input_descriptor):
        try:
            tty.setraw(0, termios.TCSADRAIN)
            forwarder.start()
            yield lambda: forwarder.interrupted
        finally:
            forwarder.stop()
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


class StdinForwarder:
    """Forwards what is typed to the command. It has a thread, since the command may not read its input for a while."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="chronoverse-stdin", daemon=True)
        #: Whether Ctrl-C was typed.
        self.interrupted = False

    def start(self) -> None:
        os.set_blocking(self._to, False)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. What is typed from now on is for other programs."""
        os.close(self._stop_write)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        os.close(self._stop_read)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._wait_until_ready([0], []):
                # Bytes that are typed or pasted, and forwarded at once.
                data = os.read(0, 4_096)
                if not data:
                    return
                self.interrupted = self.interrupted or b"\x03" in data
                while data and self._wait_until_ready([], [self._to]):
                    with contextlib.suppress(BlockingIOError):
                        data = data[os.write(self._to, data) :]

    def _wait_until_ready(self, readable: list[int], writable: list[int]) -> bool:
        """Waits until one of the descriptors is ready. False if :meth:`stop` was called."""
        ready, _, _ = select.select([self._stop_read, *readable], writable, [])
        return self._stop_read not in ready


def _prepare(master: int, slave: int, interactive: bool) -> None:
    """Sets the modes and the size of the command's terminal."""
    modes: list[Any] = termios.tcgetattr(0 if interactive else slave)
    # Ctrl-Z must not stop the command: only a shell could continue it, and the shell does not know the command.
    modes[6][termios.VSUSP] = os.fpathconf(slave, "PC_VDISABLE")
    if not interactive:
        # Our own terminal, if we have one, is then not raw and adds the carriage returns itself. A file wants none.
        modes[1] &= ~termios.ONLCR
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    termios.tcsetwinsize(master, _size())


def _size() -> tuple[int, int]:
    for descriptor in range(3):
        with contextlib.suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(descriptor)
            if rows and columns:
                return rows, columns
    # Rows and columns if we have no terminal to take them from. Programs assume the same.
    return (24, 80)


@contextlib.contextmanager
def _forward_window_size(master: int) -> Iterator[None]:
    """While entered, the command's terminal has our window's size. The kernel signals each change to the command."""
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

    The first terminal that a session's leader opens becomes its controlling terminal: tty(4), credentials(7).
    posix_spawn opens it without running Python in the new process, as a process with threads must not after a fork.
    """
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 1, terminal, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if interactive:
        actions.append((os.POSIX_SPAWN_DUP2, 1, 0))
    elif os.isatty(0):
        # This is our terminal, but we are in its background. A read from it would take input from the shell.
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    # Python ignores these signals. Popen restores them in the new process too.
    ignored = [signal.SIGPIPE, signal.SIGXFSZ]
    return os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions, setsid=True, setsigdef=ignored)
