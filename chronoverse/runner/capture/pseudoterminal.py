"""A pseudo-terminal for a command that colours, or buffers, by whether it has a terminal.

The command leads a session of its own, whose terminal this is. Where we have a terminal ourselves it is made raw:
what is typed, Ctrl-C included, goes to the command's terminal, which echoes it and makes signals of it.
"""

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, Final

#: Rows and columns where there is no terminal to take them from: what programs assume themselves.
DEFAULT_SIZE: Final = (24, 80)
#: Bytes of what was typed that are passed on at once.
TYPED_BYTES: Final = 4_096
#: Seconds that a key's writing to a command that does not read is given, when we are to stop.
STOP_SECONDS: Final = 1.0
_INTERRUPT: Final = b"\x03"


class PtyProcess:
    """A command on a pseudo-terminal: ``stdout`` is all that it prints, and there is no ``stderr``.

    Raises what subprocess.Popen does: FileNotFoundError, PermissionError, OSError, ValueError.
    """

    stderr: IO[bytes] | None = None

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.interactive = _is_ours(0)
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
        """The exit code; -n for signal n. To be called once."""
        with contextlib.suppress(OSError):
            os.close(self.input_descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def attach_terminal(session: PtyProcess) -> Iterator["StdinForwarder | None"]:
    """Lends our terminal to the session: keys and window size are passed on. None if we have none to lend."""
    if not session.interactive:
        yield None
        return
    saved = termios.tcgetattr(0)
    keyboard = StdinForwarder(session.input_descriptor)
    with _resizing(session.input_descriptor):
        try:
            tty.setraw(0, termios.TCSADRAIN)
            keyboard.start()
            yield keyboard
        finally:
            keyboard.stop()
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


class StdinForwarder:
    """Passes on what is typed, in a thread: a command that does not read must not keep its output from being read."""

    def __init__(self, to: int, source: int = 0) -> None:
        self._to = to
        self._source = source
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name="chronoverse-keyboard", daemon=True)
        #: Whether a Ctrl-C was among it.
        self.interrupted = False

    def start(self) -> None:
        os.set_blocking(self._to, False)
        self._thread.start()

    def stop(self) -> None:
        """What is typed from now on is not ours to read."""
        os.close(self._stopped)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        os.close(self._stop)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._may_go_on([self._source], []):
                data = os.read(self._source, TYPED_BYTES)
                if not data:
                    return
                self.interrupted = self.interrupted or _INTERRUPT in data
                while data and self._may_go_on([], [self._to]):
                    with contextlib.suppress(BlockingIOError):
                        data = data[os.write(self._to, data) :]

    def _may_go_on(self, readable: list[int], writable: list[int]) -> bool:
        ready, _, _ = select.select([self._stop, *readable], writable, [])
        return self._stop not in ready


def _prepare(master: int, slave: int, interactive: bool) -> None:
    """The modes and the size of the command's terminal."""
    modes: list[Any] = termios.tcgetattr(0 if interactive else slave)
    # Nobody could continue it: the shell that would have to does not know the command.
    modes[6][termios.VSUSP] = os.fpathconf(slave, "PC_VDISABLE")
    if not interactive:
        # Then our own terminal, if any, is not raw and makes its line ends itself; and a file wants none.
        modes[1] &= ~termios.ONLCR
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    termios.tcsetwinsize(master, _size())


def _size() -> tuple[int, int]:
    for descriptor in range(3):
        with contextlib.suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(descriptor)
            if rows and columns:
                return rows, columns
    return DEFAULT_SIZE


@contextlib.contextmanager
def _resizing(master: int) -> Iterator[None]:
    """While entered, our window's size is the command's too. Its kernel tells it when that changes."""
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
    """Starts ``argv``. The first terminal that a session's leader opens is its controlling one. tty(4), credentials(7)

    posix_spawn does that in the new process without running Python there, which a process with threads must not.
    """
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 1, terminal, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if interactive:
        actions.append((os.POSIX_SPAWN_DUP2, 1, 0))
    elif os.isatty(0):
        # Ours, while we are in its background: reading from it would steal from the shell.
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    # What Python ignores and Popen, too, gives back.
    ignored = [signal.SIGPIPE, signal.SIGXFSZ]
    return os.posix_spawnp(argv[0], list(argv), environ, file_actions=actions, setsid=True, setsigdef=ignored)


def _is_ours(terminal: int) -> bool:
    """Whether it is a terminal whose foreground we are in, and may use without being stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
