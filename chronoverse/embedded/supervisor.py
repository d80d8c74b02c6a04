"""A program that runs one server for exactly as long as the server's directory has a lease.

    python -I -S supervisor.py DIRECTORY LOCK_FD SERVER [OPTION…]

:mod:`chronoverse.embedded.server` starts it. ``LOCK_FD`` has the exclusive lock on ``DIRECTORY/keeper``. The server
inherits that lock: no second server can start on the same files while either of the two lives.

Each lease is a shared lock on ``DIRECTORY/holders``. When the exclusive lock is granted here, there is no lease left,
and this program stops the server. New leases wait until it has ended, and start a new supervisor.

    supervisor ─┬─ watcher   waits for the exclusive lock on ``holders``, and exits with 0 when it has it
                └─ server    is started again when it ends before the watcher does

It uses only the standard library, and little of that: each import here delays the first line of a cold start.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import Final

#: Seconds from SIGTERM until a server that still runs gets SIGKILL. Less than a new lease waits for the lock.
STOP_SECONDS: Final = 5.0
#: Seconds before a server that died is started again: the first and the longest delay. Each is twice the one before.
#: This program runs without the package, so it cannot use ``chronoverse.backoff``.
BACKOFF_SECONDS: Final = (0.02, 1.0)


def main(directory: str, lock: str, *command: str) -> None:
    """Detaches from the caller, and runs ``command`` until ``directory`` has no lease."""
    os.chdir(directory)
    os.umask(0o077)
    os.set_inheritable(int(lock), True)
    if os.fork():
        os._exit(0)  # The child continues. It is not a child of the caller, so the caller has no zombie to reap.
    _reset_signals()
    holders = os.open("holders", os.O_RDWR | os.O_CREAT, 0o600)
    _supervise(command, holders, int(lock))


def _reset_signals() -> None:
    """Undoes what the caller's process did with signals, and ignores those that would end this program.

    A service manager may send SIGTERM to all processes while those with a lease still drain. The server then ends, and
    is started again for them.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _supervise(command: tuple[str, ...], holders: int, lock: int) -> None:
    restarts = _Restarts()
    server, started_at = _start_server(command), time.monotonic()
    watcher = _start_watcher(holders, lock)
    while True:
        pid, status = os.wait()
        if pid == watcher and status == 0:
            return _stop(server)
        if pid == watcher:
            time.sleep(BACKOFF_SECONDS[0])
            watcher = _start_watcher(holders, lock)
        elif pid == server:
            pause = restarts.pause_after(time.monotonic() - started_at)
            if pause is None:
                return os.kill(watcher, signal.SIGKILL)
            time.sleep(pause)
            server, started_at = _start_server(command), time.monotonic()


class _Restarts:
    """How long to wait before a server that died is started again, and when to give up."""

    def __init__(self) -> None:
        self._pause, self._failures, self._came_up = BACKOFF_SECONDS[0], 0, False

    def pause_after(self, lived: float) -> float | None:
        """Seconds to wait after a server that lived for ``lived`` seconds; None when it should not be started again."""
        self._failures += 1
        # A server that has run for that many seconds has started well.
        if lived >= 1.0:
            self._pause, self._came_up = BACKOFF_SECONDS[0], True
        elif not self._came_up and self._failures == 3:
            return None  # the caller then shows the server's log
        pause, self._pause = self._pause, min(self._pause * 2, BACKOFF_SECONDS[1])
        return pause


def _start_watcher(holders: int, lock: int) -> int:
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with(supervisor)
        os.close(lock)  # A watcher that outlives the supervisor must not lock out the next supervisor.
        fcntl.flock(holders, fcntl.LOCK_EX)  # The supervisor has the lock too, since they share the open file.
        if os.getppid() != supervisor:
            _shut_down_orphan()
        os._exit(0)
    finally:
        os._exit(1)


def _shut_down_orphan() -> None:
    """Ends a server whose supervisor was killed. On Linux the kernel does that; see :func:`_die_with`."""
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5.0)
        sock.connect("server.sock")
        sock.sendall(b"SHUTDOWN\r\n")
        sock.recv(1)


def _start_server(command: tuple[str, ...]) -> int:
    _rotate_log()
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _die_with(supervisor)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _die_with(parent: int) -> None:
    """Makes the kernel kill this process when ``parent`` ends: prctl(2), on Linux only.

    It is SIGKILL, so that a server that hangs ends too. Redis writes to its file before it acknowledges a write.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _stop(server: int) -> None:
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while os.waitpid(server, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            break
        # Seconds between checks whether the server has stopped.
        time.sleep(0.005)
    with contextlib.suppress(FileNotFoundError):
        os.unlink("server.sock")


def _rotate_log() -> None:
    """Renames a long server.log, and points stderr to the new one: what the server cannot log itself goes there."""
    with contextlib.suppress(OSError):
        # A server.log with more bytes is renamed to server.log.1 at the next start of a server.
        if os.path.exists("server.log") and os.stat("server.log").st_size > (1 << 20):
            os.replace("server.log", "server.log.1")
        log = os.open("server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 2)
        os.close(log)


if __name__ == "__main__":
    main(*sys.argv[1:])
