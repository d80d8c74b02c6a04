"""A process beside this one: started again when it dies, and ended with it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chronoverse.backoff import Backoff, RetryPolicy

#: Seconds between looks whether it lives.
POLL_SECONDS: Final = 0.5
#: How long to wait before it is started again. One that has lived for the longest delay starts the delays anew.
RESTART: Final = RetryPolicy(first=1.0, longest=60.0, jitter=0)
#: Seconds that it has to go when it is told to: a step of its work, and a slow disk.
STOP_SECONDS: Final = 10.0


class SupervisedProcess:
    """``argv`` with ``environ``. Its standard input ends when this process, and all that it has forked, have ended.

    Not a Popen: gevent's and gunicorn's masters both reap children, and each other's. ``died`` is told its
    process id, and in how many seconds it starts again.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], died: Callable[[int, float], None]) -> None:
        self._argv = list(argv)
        self._environ = dict(environ)
        self._died = died
        self._owner = os.getpid()
        self._over = threading.Event()
        self._pid = 0
        self._began = 0.0
        #: Never written to.
        self._lifeline: Final = os.pipe()

    def start(self) -> None:
        """Starts it, and minds it from now on."""
        self._spawn()
        threading.Thread(target=self._mind, name="companion", daemon=True).start()

    def stop(self) -> None:
        """Tells it to go, and waits; in the end it is killed."""
        self._over.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self._lives() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 10)
            if self._lives():
                os.kill(self._pid, signal.SIGKILL)

    def _spawn(self) -> None:
        actions = [(os.POSIX_SPAWN_DUP2, self._lifeline[0], 0)]
        # A group of its own: a terminal's Ctrl-C is for the master, which then tells it to go.
        self._pid = os.posix_spawn(self._argv[0], self._argv, self._environ, file_actions=actions, setpgroup=0)
        self._began = time.monotonic()

    def _lives(self) -> bool:
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def _mind(self) -> None:
        backoff = Backoff(RESTART)
        while not self._over.wait(POLL_SECONDS):
            self._keep_to_owner()
            if self._lives():
                continue
            if time.monotonic() - self._began > RESTART.longest:
                backoff.record_success()
            backoff.record_failure()
            pause = backoff.delay()
            self._died(self._pid, pause)
            if self._over.wait(pause):
                return
            self._keep_to_owner()
            self._spawn()

    def _keep_to_owner(self) -> None:
        """A fork has this thread too, where threads are greenlets. It is none of its business, and must not end there:
        the fork's threading knows of no such thread, which fails with KeyError."""
        if os.getpid() != self._owner:
            threading.Event().wait()
