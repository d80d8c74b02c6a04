"""Runs one command in a process group of its own: captures its output, copies it to ours, forwards signals to it, and
returns its exit code.
"""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Final, Protocol, Self, cast

from chronoverse.client.terminal import plain_text
from chronoverse.joblog.model import MAX_LINE_BYTES, iso_timestamp
from chronoverse.runner.capture.foreground import foreground_process_group
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.capture.pipes import Capture, Child
from chronoverse.runner.capture.pseudoterminal import PtyProcess, attach_terminal
from chronoverse.settings import job_environ

#: Seconds after the first signal. A second signal within them may be a double press, and is forwarded as it is. A later
#: one kills the command.
GRACE_SECONDS: Final = 2.0
#: A shell's exit code for a command that signal n ended is 128 + n. POSIX, XCU 2.8.2.
BY_SIGNAL: Final = 128


def open_standard(descriptor: int) -> BinaryIO:
    """Our own stdout (1) or stderr (2), without Python's buffer."""
    return cast("BinaryIO", open(descriptor, "wb", buffering=0, closefd=False))


class Tee:
    """Writes bytes to ``stream`` at once. When its reader is gone, writing stops for good, and publishing goes on."""

    def __init__(self, stream: BinaryIO, is_terminal: bool = False) -> None:
        self._stream: BinaryIO | None = stream
        self._is_terminal = is_terminal
        self._has_status = False

    def __call__(self, data: bytes) -> None:
        """Writes ``data``. It waits for a slow reader, as the command itself would without us."""
        if self._stream is None:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._write(self._stream, rest) :]
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def say(self, text: str) -> None:
        """Writes a message of our own. Its prefix distinguishes it from the command's output.

        Control characters are removed, since a message may quote what the service has answered.
        """
        self.clear_status()
        self(b"chronoverse: %b\n" % plain_text(text).encode("utf-8", "replace"))

    def show_status(self, text: str) -> None:
        """Shows how far something has come. On a terminal the next message takes its place; elsewhere it comes once."""
        if self._is_terminal:
            self(b"\r\x1b[Kchronoverse: %b" % plain_text(text).encode("utf-8", "replace"))
        elif not self._has_status:
            self.say(text)
        self._has_status = True

    def clear_status(self) -> None:
        """Removes the status from the terminal, if one is shown."""
        if self._has_status and self._is_terminal:
            self(b"\r\x1b[K")
        self._has_status = False

    @staticmethod
    def _write(stream: BinaryIO, data: memoryview) -> int:
        # Any process that shares our terminal may have made it non-blocking. A write may then take nothing.
        try:
            written: int | None = stream.write(data)
        except BlockingIOError as error:
            written = error.characters_written
        if not written:
            select.select([], [stream], [])
        return written or 0


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
            # People and schedulers end jobs with these.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
        # The third signal kills the command, however soon it comes.
        is_late = self._has_forwarded and time.monotonic() - self._first_at >= GRACE_SECONDS
        self._forward(signal.SIGKILL if is_late or len(self.received) > 2 else number)

    def _forward(self, number: int) -> None:
        if not self._has_forwarded:
            self._has_forwarded = True
            self._first_at = time.monotonic()
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.send(number)


class StartedProcess(Child, Protocol):
    """A running command: a ``subprocess.Popen``, or a :class:`PtyProcess`."""

    def wait(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Command:
    """Runs ``argv``. Its output goes to ``tees`` unchanged and to ``publish`` masked; ``signals`` are forwarded to it.

    With ``pty`` it gets a pseudo-terminal instead of two pipes, and all its output is stdout. Its environment is ours
    without our settings: see :func:`job_environ`.
    """

    argv: Sequence[str]
    tees: Mapping[str, Tee]
    publish: Callable[[LineBatch], None]
    signals: SignalForwarder
    max_line_bytes: int = MAX_LINE_BYTES
    masks: Masks | None = None
    pty: bool = False

    def run(self) -> int:
        """Returns the exit code: the command's own, 128 + n for signal n, 127 or 126 if it could not be started."""
        if self.signals.received:
            return BY_SIGNAL + self.signals.received[0]
        try:
            child = self._start()
        except FileNotFoundError:
            return self._report_not_started("command not found", 127)  # these codes, too, are a shell's
        except (OSError, ValueError) as error:
            return self._report_not_started(str(error), 126)
        code = self._wait_for(child)
        return BY_SIGNAL - code if code < 0 else code

    def _start(self) -> StartedProcess:
        if self.pty:
            return PtyProcess(self.argv, job_environ())
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv, env=job_environ(), stdout=pipe, stderr=pipe, bufsize=0, process_group=0)

    def _wait_for(self, child: StartedProcess) -> int:
        """Captures the output to its end and reaps the command. The exit code is -n for signal n."""
        self.signals.attach(child.pid)
        with _lend_terminal(child) as was_interrupted:
            try:
                Capture(child, self.tees, self.publish, max_line_bytes=self.max_line_bytes, masks=self.masks).run()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
            finally:
                self.signals.detach()
                code = child.wait()
        if code == -signal.SIGINT and was_interrupted():
            # The terminal sent the Ctrl-C to the command's process group only.
            self.signals.received.append(signal.SIGINT)
        return code

    def _report_not_started(self, reason: str, code: int) -> int:
        """Shows and publishes why there is no command, and returns ``code``."""
        text = f"{self.argv[0]}: {reason}"
        self.tees["stderr"].say(text)
        message = f"chronoverse: {text}".encode("utf-8", "replace")
        if self.masks:
            message = self.masks.mask(message)
        self.publish(LineBatch("stderr", iso_timestamp(time.time()), message, 1))
        return code


@contextlib.contextmanager
def _lend_terminal(child: StartedProcess) -> Iterator[Callable[[], bool]]:
    """Gives our terminal to the command while entered. Yields a function: whether Ctrl-C may have been typed there."""
    if isinstance(child, PtyProcess):
        with attach_terminal(child) as forwarder:
            yield lambda: forwarder is not None and forwarder.interrupted
    else:
        with foreground_process_group(child.pid) as is_foreground:
            yield lambda: is_foreground
