"""Runs one server while its directory has a lease:

    python -I -S supervisor.py DIRECTORY LOCK_FD SERVER [OPTION…]

``LOCK_FD`` has the exclusive lock on ``DIRECTORY/keeper``. The server inherits it, so that no second one can start. A
lease is a shared lock on ``DIRECTORY/holders``. This program imports little of the standard library, because each
import delays the first line of a cold start.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import Final

#: Seconds between SIGTERM and SIGKILL: less than the 10 s that a new lease waits.
STOP_SECONDS: Final = 5.0
#: Seconds before a crashed server is restarted: the first delay, which doubles each time, and the longest. (This
#: program runs outside the package, so it cannot use ``chronoverse.backoff``.)
_BACKOFF_SECONDS: Final = (0.02, 1.0)


def main(directory: str, lock: str, *command: str) -> None:
    os.chdir(directory)
    os.umask(0o077)
    os.set_inheritable(int(lock), True)
    if os.fork():
        os._exit(0)  # the fork continues. It is not the caller's child, so the caller does not have to reap it
    # The caller may have blocked or ignored signals.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager may signal all processes. This one restarts the server while others with a lease drain.
        signal.signal(number, signal.SIG_IGN)
    holders = os.open("holders", os.O_RDWR | os.O_CREAT, 0o600)
    server = _SupervisedServer(command)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, server.restart_if_dead)
    # A SIGCHLD just before flock does not interrupt it, but the next SIGALRM does.
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    fcntl.flock(holders, fcntl.LOCK_EX)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.stop()


class _SupervisedServer:
    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._pause, self._failures, self._came_up = _BACKOFF_SECONDS[0], 0, False
        self._start()

    def _start(self) -> None:
        self._pid, self._started_at = _start_server(self._command), time.monotonic()

    def restart_if_dead(self, *_: object) -> None:
        """Restarts the server after a pause if it has ended. Exits if the first three starts fail."""
        try:
            if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return  # a signal arrived during the pause below
        self._failures += 1
        # A server that ran for 2 s started successfully. If SIGCHLD was missed, a failed start is only noticed at the
        # next SIGALRM, up to a second later.
        if time.monotonic() - self._started_at >= 2.0:
            self._pause, self._came_up = _BACKOFF_SECONDS[0], True
        elif not self._came_up and self._failures == 3:
            os._exit(0)  # the caller then shows the server's log
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, _BACKOFF_SECONDS[1])
        self._start()

    def stop(self) -> None:
        """Stops the server. Kills it after :data:`STOP_SECONDS`."""
        os.kill(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(0.005)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("server.sock")


def _start_server(command: tuple[str, ...]) -> int:
    _rotate_log()
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # SIGKILL also ends a hanging server. No write is lost, because Redis writes to its file before it acknowledges.
        die_with(supervisor, signal.SIGKILL)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def die_with(parent: int, number: int) -> None:
    """Makes the kernel send this process a signal when ``parent`` ends. On Linux only: prctl(2)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _rotate_log() -> None:
    """Renames server.log if it is long. Appends stderr to server.log, to which the server also writes its log."""
    with contextlib.suppress(OSError):
        # Renames the log to server.log.1 above 1 MiB.
        if os.path.exists("server.log") and os.stat("server.log").st_size > (1 << 20):
            os.replace("server.log", "server.log.1")
        log = os.open("server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 2)
        os.close(log)


if __name__ == "__main__":
    main(*sys.argv[1:])
