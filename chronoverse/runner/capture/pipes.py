"""From a command's pipes to lines: one loop reads both pipes, so there is one order and one clock."""

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Final, NamedTuple, Protocol

from chronoverse.joblog.values import MAX_LINE_BYTES, iso_timestamp
from chronoverse.runner.capture.line_assembler import LineAssembler
from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.capture.masking import Masks

#: Bytes of one read. Large, so that a busy job costs few reads; a block is at most this and a line.
READ_BYTES: Final = 262_144
#: Bytes a pipe holds where the system lets us say (Linux): room for a job to go on while we are elsewhere.
PIPE_BYTES: Final = 1_048_576
#: Seconds of silence after which a pipe that outlived its command (a grandchild holds it) is closed.
ORPHAN_QUIET_SECONDS: Final = 2.0
#: Seconds after the command's end when such a pipe is closed even though it still speaks.
ORPHAN_SECONDS: Final = 10.0
#: Seconds between looks at the command where its end cannot be waited for beside its pipes (no pidfd).
EXIT_POLL_SECONDS: Final = 0.05


#: What the descriptor is registered with that signals write to.
_WAKE: Final = "wake"


class Child(Protocol):
    """What is needed of a started command: its process and the reading ends of its pipes."""

    pid: int
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None


class _Pipe(NamedTuple):
    """One stream: where it is read, shown and written down."""

    source: IO[bytes]
    echo: Callable[[bytes], None]
    scribe: LineAssembler


class Capture:
    """Reads a command's two pipes, or its pseudo-terminal, until they are closed and the command has ended.

    Every read goes to ``publish`` as blocks of lines, masked, which must not wait; then to the stream's ``echoes``
    function as it is. The command is not reaped: its process id stays its own until the caller waits for it.
    """

    def __init__(
        self,
        child: Child,
        tees: Mapping[str, Callable[[bytes], None]],
        publish: Callable[[LineBatch], None],
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        masks: Masks | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._child = child
        self._publish = publish
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._ended_at: float | None = None
        self._heard_at = time.monotonic()
        self._exit = _exit_descriptor(child.pid)
        self._pipes: set[_Pipe] = set()
        for stream, source in (("stdout", child.stdout), ("stderr", child.stderr)):
            if source is not None:
                self._watch(_Pipe(source, tees[stream], LineAssembler(stream, max_line_bytes, masks)))
        if self._exit is not None:
            self._selector.register(self._exit, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Returns when the command has ended and its pipes are closed, or were left open too long."""
        try:
            with _woken_by_signals(self._selector):
                self._run()
        finally:
            for pipe in list(self._pipes):
                self._close(pipe)
            self._selector.close()
            if self._exit is not None:
                os.close(self._exit)

    def _run(self) -> None:
        while not self._over():
            ready = [(key.data, key.fd) for key, _ in self._selector.select(self._timeout())]
            for data, descriptor in ready:
                if isinstance(data, _Pipe):
                    self._read(data)
                elif data is _WAKE:
                    os.read(descriptor, READ_BYTES)
            self._tick()
            self._look(exited=any(data is None for data, _ in ready))

    def _watch(self, pipe: _Pipe) -> None:
        # Refused to unprivileged users who have many large pipes: an optimisation, nothing more.
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe.source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._selector.register(pipe.source, selectors.EVENT_READ, pipe)
        self._pipes.add(pipe)

    def _read(self, pipe: _Pipe) -> None:
        data = _some(pipe.source.fileno())
        if data is None:
            return
        if not data:
            self._close(pipe)
            return
        self._heard_at = time.monotonic()
        for block in pipe.scribe.feed(data, iso_timestamp(self._clock()), self._heard_at):
            self._publish(block)
        pipe.echo(data)

    def _tick(self) -> None:
        now = time.monotonic()
        for pipe in self._pipes:
            if pipe.scribe.due is not None and now >= pipe.scribe.due:
                for block in pipe.scribe.flush_due(now):
                    self._publish(block)

    def _close(self, pipe: _Pipe) -> None:
        for block in pipe.scribe.close():
            self._publish(block)
        self._selector.unregister(pipe.source)
        pipe.source.close()
        self._pipes.discard(pipe)

    def _look(self, exited: bool) -> None:
        if self._ended_at is not None or not (exited or (self._exit is None and _has_ended(self._child.pid))):
            return
        self._ended_at = time.monotonic()
        if self._exit is not None:
            self._selector.unregister(self._exit)

    def _over(self) -> bool:
        if self._ended_at is None:
            return False
        return not self._pipes or time.monotonic() >= self._deadline(self._ended_at)

    def _deadline(self, ended_at: float) -> float:
        return min(max(self._heard_at, ended_at) + ORPHAN_QUIET_SECONDS, ended_at + ORPHAN_SECONDS)

    def _timeout(self) -> float | None:
        moments = [pipe.scribe.due for pipe in self._pipes if pipe.scribe.due is not None]
        if self._ended_at is not None:
            moments.append(self._deadline(self._ended_at))
        elif self._exit is None:
            moments.append(time.monotonic() + EXIT_POLL_SECONDS)
        return max(0.0, min(moments) - time.monotonic()) if moments else None


@contextlib.contextmanager
def _woken_by_signals(selector: selectors.BaseSelector) -> Iterator[None]:
    """While entered, a signal ends a wait of ``selector``, so that its handler runs. For the main thread alone.

    The wait by itself does not see one that comes a moment before it, or to another thread: the handler would run when
    the command next says something, be that in an hour.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    selector.register(woken, selectors.EVENT_READ, _WAKE)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        selector.unregister(woken)
        os.close(woken)
        os.close(wake)


def _some(descriptor: int) -> bytes | None:
    """What there is to read; nothing at the end, and None if there was nothing after all."""
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        # How Linux says that nobody has a pseudo-terminal open any more. tty_io.c, pty(7) does not tell.
        if error.errno != errno.EIO:
            raise
        return b""


def _exit_descriptor(pid: int) -> int | None:
    """A descriptor that turns readable when the process ends (Linux 5.3), or None."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody else reaped it: gevent's Popen does
        return True
