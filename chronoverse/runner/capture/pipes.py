"""Reads a command's pipes in one loop, so that the lines of both share one order and one clock."""

import contextlib
import errno
import fcntl
import math
import os
import selectors
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import IO, Final, NamedTuple, TypeAlias

from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import MAX_LINE_BYTES, iso_timestamp
from chronoverse.runner.capture.line_assembler import LineAssembler
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.capture.terminals import PtyProcess

#: Once the command has ended, a pipe that a grandchild keeps open is closed after this many seconds without output.
ORPHAN_QUIET_SECONDS: Final = 2.0


Child: TypeAlias = subprocess.Popen[bytes] | PtyProcess


class _Pipe(NamedTuple):
    """One stream: the pipe, the copy of its output, and its line assembler."""

    stream: str
    source: IO[bytes]
    tee: Callable[[bytes], None]
    assembler: LineAssembler


@dataclass(eq=False)
class Capture:
    """Reads a command's two pipes, or its pseudo-terminal, until they are closed and the command has ended.

    For each read, passes the masked lines to ``publish``, then the unchanged bytes to the stream's function in
    ``tees``. ``publish`` must not block. The caller must reap the command: until then, its process id is not reused.
    """

    tees: Mapping[str, Callable[[bytes], None]]
    publish: Callable[[LineBatch], None]
    _: KW_ONLY
    max_line_bytes: int = MAX_LINE_BYTES
    masks: Masks | None = None
    clock: Callable[[], float] = time.time

    def run(self, child: Child) -> None:
        """Returns once the command has ended and its pipes are closed, or at :meth:`_deadline` if they stay open."""
        self._child = child
        self._selector = selectors.DefaultSelector()
        #: When the command ended, in monotonic seconds; infinite while it runs.
        self._ended_at = math.inf
        self._last_read_at = time.monotonic()
        #: Becomes readable when the command ends (Linux 5.3). Without it, the loop polls.
        self._exit: int | None = None
        with contextlib.suppress(AttributeError, OSError):
            self._exit = os.pidfd_open(child.pid)
        self._pipes: set[_Pipe] = set()
        for stream, source in (("stdout", child.stdout), ("stderr", child.stderr)):
            if source is not None:
                assembler = LineAssembler(stream, self.max_line_bytes, self.masks)
                self._add(_Pipe(stream, source, self.tees[stream], assembler))
        if self._exit is not None:
            self._selector.register(self._exit, selectors.EVENT_READ, None)
        try:
            self._run()
        finally:
            for pipe in list(self._pipes):
                self._close(pipe)
            self._selector.close()
            if self._exit is not None:
                os.close(self._exit)

    def _run(self) -> None:
        while time.monotonic() < self._deadline():
            ready = [key.data for key, _ in self._selector.select(self._timeout()) if key.data is not None]
            # Empties stdout before stderr, because an error is usually written after the output that waits in stdout.
            ready.sort(key=lambda pipe: pipe.stream == "stderr")
            for pipe in ready:
                waiting = _waiting(pipe) if len(ready) > 1 else 0
                size = self._read(pipe)
                if size >= 16_384:
                    # More output usually follows a large read. Waiting makes the next read larger: 0.25 instead of 0.7
                    # µs per line. A pipe of 1 MiB does not fill up meanwhile, and a terminal has no such large reads.
                    time.sleep(0.001)
                self._read_up_to(pipe, waiting - size)
            now = time.monotonic()
            for pipe in self._pipes:
                self._publish_all(pipe.assembler.flush_due(now))
            if self._ended_at == math.inf and _has_ended(self._child.pid):
                self._ended_at = time.monotonic()
                if self._exit is not None:
                    self._selector.unregister(self._exit)
        # A grandchild keeps these pipes open. They can still hold output, if the reader of our own output is slow.
        for pipe in list(self._pipes):
            with contextlib.suppress(OSError):
                self._read_up_to(pipe, _waiting(pipe))

    def _add(self, pipe: _Pipe) -> None:
        # The kernel refuses this to users with many large pipes; then the pipe stays small.
        with contextlib.suppress(OSError, AttributeError):
            # The capacity of a pipe in bytes (Linux).
            fcntl.fcntl(pipe.source, fcntl.F_SETPIPE_SZ, 1_048_576)
        self._selector.register(pipe.source, selectors.EVENT_READ, pipe)
        self._pipes.add(pipe)

    def _read_up_to(self, pipe: _Pipe, rest: int) -> None:
        """Reads at least ``rest`` bytes, or to the pipe's end."""
        while rest > 0 and (size := self._read(pipe)):
            rest -= size

    def _read(self, pipe: _Pipe) -> int:
        try:
            # Large, so that a busy command costs few reads. A batch has at most this many bytes, plus one line.
            data = os.read(pipe.source.fileno(), 262_144)
        except BlockingIOError:
            return 0
        except OSError as error:
            # On Linux, EIO means that no process has the pseudo-terminal open (see tty_io.c; pty(7) lacks this).
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self._close(pipe)
            return 0
        self._last_read_at = time.monotonic()
        self._publish_all(pipe.assembler.feed(data, iso_timestamp(self.clock()), self._last_read_at))
        pipe.tee(data)
        return len(data)

    def _publish_all(self, batches: list[LineBatch]) -> None:
        for batch in batches:
            self.publish(batch)

    def _close(self, pipe: _Pipe) -> None:
        self._publish_all(pipe.assembler.close())
        self._selector.unregister(pipe.source)
        pipe.source.close()
        self._pipes.discard(pipe)

    def _deadline(self) -> float:
        """When to close open pipes: once quiet, or 10 s after the command's end. Infinite while the command runs."""
        if not self._pipes:
            return self._ended_at
        return min(max(self._last_read_at, self._ended_at) + ORPHAN_QUIET_SECONDS, self._ended_at + 10.0)

    def _timeout(self) -> float:
        moment = min([self._deadline(), *(pipe.assembler.due for pipe in self._pipes)])
        # If the command's end cannot wake the loop, the loop must look often.
        longest = 0.05 if self._exit is None else 1.0
        return min(max(0.0, moment - time.monotonic()), longest)


def _waiting(pipe: _Pipe) -> int:
    """How many bytes can be read from ``pipe`` immediately."""
    return int.from_bytes(fcntl.ioctl(pipe.source, termios.FIONREAD, bytes(4)), sys.byteorder)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it was reaped already, as gevent's Popen does
        return True
