"""Runs a command in its own process group: captures and copies its output, and forwards signals to it."""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Final, Self, cast

from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import iso_timestamp
from chronoverse.joblog.secret_forms import StreamMask
from chronoverse.joblog.terminal import plain_text
from chronoverse.runner.capture.pipes import Capture, Child
from chronoverse.runner.capture.terminals import PtyProcess, attach_terminal, foreground_process_group
from chronoverse.settings import job_environ

#: A second signal within these seconds after the first can be a double press. A later one kills the command.
GRACE_SECONDS: Final = 2.0


def open_standard(descriptor: int) -> BinaryIO:
    return cast("BinaryIO", open(descriptor, "wb", buffering=0, closefd=False))


class Tee:
    """Writes bytes to ``stream`` immediately. If the stream's reader is gone, stops writing; publishing continues."""

    def __init__(self, stream: BinaryIO, is_terminal: bool = False) -> None:
        self._stream: BinaryIO | None = stream
        self._is_terminal = is_terminal
        self._has_status = False

    def __call__(self, data: bytes) -> None:
        """Writes ``data``. Blocks on a slow reader, as the command itself would."""
        if self._stream is None:
            return
        try:
            rest = memoryview(data)
            while rest:
                # If another process has made our terminal non-blocking, a write can write nothing.
                try:
                    written = self._stream.write(rest)
                except BlockingIOError as error:
                    written = error.characters_written
                if not written:
                    select.select([], [self._stream], [])
                rest = rest[written or 0 :]
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def say(self, text: str) -> None:
        """Writes our message, without control characters, because it can quote a response of the service."""
        self.clear_status()
        self(b"chronoverse: %b\n" % plain_text(text).encode("utf-8", "replace"))

    def show_status(self, text: str) -> None:
        if self._is_terminal:
            self(b"\r\x1b[Kchronoverse: %b" % plain_text(text).encode("utf-8", "replace"))
        elif not self._has_status:
            self.say(text)
        self._has_status = True

    def clear_status(self) -> None:
        if self._has_status and self._is_terminal:
            self(b"\r\x1b[K")
        self._has_status = False


class SignalForwarder:
    """A context manager that forwards signals to the process group given to :meth:`attach`, or only to its leader.

    A handler can interrupt the main thread anywhere, so it takes no lock. Other threads only call :meth:`send`.
    """

    def __init__(self) -> None:
        self._group: int | None = None
        self._first_at: float | None = None
        self._saved: dict[signal.Signals, Any] = {}
        self.received: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # People and schedulers end jobs with the first four signals.
            handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), self.send)
            handlers |= dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2), self._notify)
            for number, handler in handlers.items():
                # Ignored signals (under nohup, or in a shell's background job) stay ignored, here and in the command.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._saved[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def attach(self, group: int) -> None:
        self._group = group
        if self.received and self._first_at is None:
            self._forward(self.received[0])

    def detach(self) -> None:
        """From now on, only records signals. Call it before reaping the command, because its group id can be reused."""
        self._group = None

    def send(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal. The third signal kills the command, however soon it comes."""
        self.received.append(number)
        is_late = self._first_at is not None and time.monotonic() - self._first_at >= GRACE_SECONDS
        self._forward(signal.SIGKILL if is_late or len(self.received) > 2 else number)

    def _notify(self, number: int, frame: FrameType | None = None) -> None:
        """Forwards SIGUSR1 or SIGUSR2 to the command alone, because the signal could kill its children."""
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._group, number)

    def _forward(self, number: int) -> None:
        if self._group is None:
            return
        self._first_at = self._first_at or time.monotonic()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)
            # Wakes a stopped process, such as one that read from the terminal in the background, to get the signal.
            os.killpg(self._group, signal.SIGCONT)


def run_command(
    argv: Sequence[str], capture: Capture, say: Callable[[str], None], signals: SignalForwarder, *, pty: bool = False
) -> int:
    """Runs ``argv``. ``capture`` reads its output, ``signals`` are forwarded, and ``say`` reports a failed start.

    The command does not get our settings. Returns its exit code, 128 + n for signal n, or 127 (not found) or 126 if it
    could not be started.
    """
    if signals.received:
        return 128 + signals.received[0]
    child: Child
    try:
        if pty:
            child = PtyProcess(argv, job_environ())
        else:
            pipe = subprocess.PIPE
            child = subprocess.Popen(argv, env=job_environ(), stdout=pipe, stderr=pipe, bufsize=0, process_group=0)
    except (OSError, ValueError) as error:
        is_missing = isinstance(error, FileNotFoundError) or not argv[0]
        reason = "command not found" if is_missing else getattr(error, "strerror", None) or error
        text = f"{argv[0]}: {reason}"
        say(text)
        message, masks = f"chronoverse: {text}".encode("utf-8", "replace"), capture.masks
        message = StreamMask(masks.forms)(masks.mask(message)) if masks else message
        capture.publish(LineBatch("stderr", iso_timestamp(time.time()), message, 1))
        return 127 if is_missing else 126  # these codes, too, are a shell's
    signals.attach(child.pid)
    lent = attach_terminal(child) if isinstance(child, PtyProcess) else foreground_process_group(child.pid)
    with lent as may_be_interrupted:
        try:
            capture.run(child)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            signals.detach()
            code = child.wait()
    if code == -signal.SIGINT and may_be_interrupted():
        # Records Ctrl-C, which the terminal sent only to the command's process group.
        signals.received.append(signal.SIGINT)
    # Like a shell: POSIX, XCU 2.8.2.
    return 128 - code if code < 0 else code
