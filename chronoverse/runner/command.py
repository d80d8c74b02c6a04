"""One command, from its start to its exit code: started in a group of its own, heard out, and reaped."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

#: What a shell exits with when it finds no command of that name, and when it may not run it. POSIX, XCU 2.8.2.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
#: A command ended by signal n exits a shell with this and n. POSIX, XCU 2.8.2.
BY_SIGNAL: Final = 128


class StartedProcess(Child, Protocol):
    """A command that runs: a Popen, or a :class:`Session` on a pseudo-terminal."""

    def wait(self) -> int: ...


class Command:
    """``argv``, its output shown by ``echoes`` and given, masked, to ``publish``, its signals passed on by ``relay``.

    With ``pty`` it has a pseudo-terminal for its two pipes, and all that it prints is stdout. The command does not
    get our own settings: see :func:`job_environ`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        tees: Mapping[str, Tee],
        publish: Callable[[LineBatch], None],
        signals: SignalForwarder,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        masks: Masks | None = None,
        pty: bool = False,
        popen: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._argv = list(argv)
        self._echoes = tees
        self._publish = publish
        self._relay = signals
        self._max_line_bytes = max_line_bytes
        self._masks = masks
        self._pty = pty
        self._popen = popen
        self._clock = clock

    def run(self) -> int:
        """The command's exit code, 128 + n for signal n; or the code that says why there was no command."""
        if self._relay.received:
            return BY_SIGNAL + self._relay.received[0]
        try:
            child = self._start()
        except FileNotFoundError:
            return self._not_run("command not found", NOT_FOUND)
        except (OSError, ValueError) as error:
            return self._not_run(str(error), NOT_EXECUTABLE)
        code = self._attend(child)
        return BY_SIGNAL - code if code < 0 else code

    def _start(self) -> StartedProcess:
        if self._pty:
            return PtyProcess(self._argv, job_environ())
        pipe = subprocess.PIPE
        return self._popen(self._argv, env=job_environ(), stdout=pipe, stderr=pipe, bufsize=0, process_group=0)

    def _attend(self, child: StartedProcess) -> int:
        self._relay.attach(child.pid)
        with _terminal(child) as interrupted:
            try:
                self._capture(child)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
            finally:
                self._relay.detach()
                code = child.wait()
        if code == -signal.SIGINT and interrupted():
            # The terminal's Ctrl-C went straight to the command.
            self._relay.received.append(signal.SIGINT)
        return code

    def _capture(self, child: StartedProcess) -> None:
        size, masks, clock = self._max_line_bytes, self._masks, self._clock
        Capture(child, self._echoes, self._publish, max_line_bytes=size, masks=masks, clock=clock).run()

    def _not_run(self, reason: str, code: int) -> int:
        text = f"{self._argv[0]}: {reason}"
        self._echoes["stderr"].say(text)
        message = f"chronoverse: {text}".encode("utf-8", "replace")
        if self._masks:
            message = self._masks.mask(message)
        self._publish(LineBatch("stderr", iso_timestamp(self._clock()), message, 1))
        return code


@contextlib.contextmanager
def _terminal(child: StartedProcess) -> Iterator[Callable[[], bool]]:
    """Our terminal is the command's; yields whether somebody may have typed Ctrl-C there."""
    if isinstance(child, PtyProcess):
        with attach_terminal(child) as keyboard:
            yield lambda: keyboard is not None and keyboard.interrupted
    else:
        with foreground_process_group(child.pid) as lent:
            yield lambda: lent
