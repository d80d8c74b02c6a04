"""Runs one command: starts it in a process group of its own, captures its output, and returns its exit code."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from chronoverse.joblog.values import MAX_LINE_BYTES, iso_timestamp
from chronoverse.runner.capture.foreground import foreground_process_group
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.capture.pipes import Capture, Child
from chronoverse.runner.capture.pseudoterminal import PtyProcess, attach_terminal
from chronoverse.runner.signal_forwarder import SignalForwarder
from chronoverse.runner.tee import Tee
from chronoverse.settings import job_environ

#: A shell's exit code for a command that it does not find, and for one that it may not run. POSIX, XCU 2.8.2.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
#: A shell's exit code for a command that signal n ended is 128 + n. POSIX, XCU 2.8.2.
BY_SIGNAL: Final = 128


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
            return self._report_not_started("command not found", NOT_FOUND)
        except (OSError, ValueError) as error:
            return self._report_not_started(str(error), NOT_EXECUTABLE)
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
