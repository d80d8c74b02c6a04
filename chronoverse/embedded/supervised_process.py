"""Runs another program beside this process: restarts it if it crashes or hangs, and stops it at the end."""

import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final

from chronoverse.backoff import Backoff, RetryPolicy

POLL_SECONDS: Final = 0.5
#: Delays between restarts. A run that is longer than the longest delay resets the delay.
_RESTART: Final = RetryPolicy(first=1.0, longest=60.0, jitter=0)
#: Seconds after which a program that does not read its standard input is killed. It has a minute to start.
ANSWER_SECONDS: Final = 5.0


def on_owner_end(act: Callable[[], object]) -> None:
    """Calls ``act`` in a thread when standard input ends, because the process that supervises this one has ended."""

    def wait() -> None:
        # Reads the descriptor, because a thread blocked in sys.stdin holds a lock that the interpreter needs at exit.
        while os.read(0, 4_096):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def _inheritable_descriptors() -> list[int]:
    """Descriptors that the program must not inherit. With gunicorn's sockets, it would keep a drained port open."""
    found = []
    for descriptor in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the descriptor used to list the directory
            if descriptor > 2 and os.get_inheritable(descriptor):
                found.append(descriptor)
    return found


@dataclass(eq=False)
class SupervisedProcess:
    """Runs ``argv`` with ``environ``. The program's stdin ends when this process and all its forks have ended.

    The program must keep reading stdin (:func:`on_owner_end`); otherwise it is killed with its process group.
    ``file`` is its descriptor 3. ``on_death`` gets its process id and the seconds until the restart; ``report`` gets
    whether it is responding. Does not use Popen, because gevent and gunicorn reap all children.
    """

    argv: list[str]
    environ: Mapping[str, str]
    on_death: Callable[[int, float], None]
    _: KW_ONLY
    file: int | None = None
    report: Callable[[bool], object] = lambda _: None
    answer_seconds: float = ANSWER_SECONDS
    #: Seconds between SIGTERM and SIGKILL. The program finishes its current step, perhaps on a slow disk.
    stop_seconds: float = 10.0
    #: Measures how long the program has run.
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._owner = os.getpid()
        self._stopped = threading.Event()
        # The value until the start: no process has this id, while 0 would mean our own process group.
        self._pid = 2**31 - 1
        self._started_at = 0.0
        self._asked_at = 0.0
        self._has_answered = False
        self._lifeline = os.pipe()

    def start(self) -> None:
        """Starts the program, and a thread that restarts it."""
        self._spawn()
        threading.Thread(target=self._watch, name="supervised-process", daemon=True).start()

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL to its process group if the program does not end within ``stop_seconds``."""
        self._stopped.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + self.stop_seconds
            while self._is_running() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 10)
            if self._is_running():
                os.killpg(self._pid, signal.SIGKILL)
        for end in self._lifeline:
            os.close(end)

    def _spawn(self) -> None:
        self._started_at = self.clock()
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, self._lifeline[0], 0)]
        actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable_descriptors()]
        if self.file is not None:
            actions.append((os.POSIX_SPAWN_DUP2, self.file, 3))
        # The program gets its own process group, so that Ctrl-C only reaches gunicorn's master, which then stops it.
        self._pid = os.posix_spawn(self.argv[0], self.argv, self.environ, file_actions=actions, setpgroup=0)
        self._has_answered = False
        self._ask()

    def _ask(self) -> None:
        """Writes a byte for the program to read, unless the previous byte is unread."""
        if not self._has_question():
            os.write(self._lifeline[1], b"?")
        self._asked_at = time.monotonic()

    def _has_question(self) -> bool:
        unread: int = struct.unpack("i", fcntl.ioctl(self._lifeline[0], termios.FIONREAD, bytes(4)))[0]
        return unread > 0

    def _stands_still(self) -> bool:
        if not self._has_question():
            self._has_answered = True
            self._ask()
        silent = time.monotonic() - self._asked_at
        if self._has_answered:
            self.report(silent < self.answer_seconds)
        return silent > (self.answer_seconds if self._has_answered else 60.0)

    def _is_running(self) -> bool:
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def _watch(self) -> None:
        backoff = Backoff(_RESTART)
        while not self._stopped.wait(POLL_SECONDS):
            self._stay_in_owner()
            if self._is_running():
                if self._stands_still():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._pid, signal.SIGKILL)
                continue
            self.report(False)
            if self.clock() - self._started_at > _RESTART.longest:
                backoff.record_success()
            backoff.record_failure()
            pause = backoff.delay()
            self.on_death(self._pid, pause)
            if self._stopped.wait(pause):
                return
            self._stay_in_owner()
            # Fails at a limit of processes or open files, or during an upgrade. The next round tries again.
            with contextlib.suppress(OSError):
                self._spawn()

    def _stay_in_owner(self) -> None:
        """Blocks forever in a fork, because with gevent, a fork has a copy of this thread.

        The copy must not end, because the fork's ``threading`` does not know it, and would raise KeyError.
        """
        if os.getpid() != self._owner:
            threading.Event().wait()
