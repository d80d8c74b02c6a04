"""Keeps one server alive for exactly as long as somebody holds its directory. A program of its own.

    python -I -S supervisor.py DIRECTORY LOCK_FD SERVER [OPTION…]

``embedded`` starts it and hands it ``LOCK_FD``, the exclusive lock on ``DIRECTORY/keeper``. The server inherits
that lock, so no second one can start on the same files for as long as either of them lives, whoever was killed.

Every holder has a shared lock on ``DIRECTORY/holders``. The kernel drops it with the holder's last process, so an
exclusive lock granted here means: nobody is left. While we have it, newcomers wait; then they start afresh.

    keeper ─┬─ watcher   blocks for the exclusive lock on ``holders``, exits 0 when it has it
            └─ server    started again when it ends before the watcher does

Needs nothing but the standard library, and little of that: every import here delays the first line of a cold start.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import Final, NoReturn

#: Seconds a server may take from SIGTERM to its end before SIGKILL. Less than an opener waits for the lock.
STOP_SECONDS: Final = 5.0
#: Seconds between looks at a server that was told to stop.
STOP_POLL_SECONDS: Final = 0.005
#: Seconds before a server that died is started again: first and longest, doubling between. Not from
#: ``chronoverse.backoff``, which this program cannot import: it runs without the package.
BACKOFF_SECONDS: Final = (0.02, 1.0)
#: Seconds after which a server counts as having come up.
SETTLED_SECONDS: Final = 1.0
#: Starts in a row, before any came up, after which we give up: the opener then shows what the server said.
MAX_FAILED_STARTS: Final = 3
#: Bytes of server.log from which the next start of a server moves it aside to server.log.1.
LOG_BYTES: Final = 1 << 20
#: Seconds to wait for a server that outlived its keeper to take our SHUTDOWN.
SHUTDOWN_SECONDS: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


def main(directory: str, lock: str, *command: str) -> None:
    """Leave the opener behind and keep ``command`` running until nobody holds ``directory``."""
    os.chdir(directory)
    os.umask(0o077)
    os.set_inheritable(int(lock), True)
    if os.fork():
        os._exit(0)  # nobody's child from here on: the opener has no zombie to reap, and none to be surprised by
    _settle_signals()
    holders = os.open("holders", os.O_RDWR | os.O_CREAT, 0o600)
    _keep(command, holders, int(lock))


def _settle_signals() -> None:
    """Forget what the opener's process did with signals, and let holders alone decide when we end.

    A service manager may send SIGTERM to us and to the server while the holders still drain: the server then comes
    back for them.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _keep(command: tuple[str, ...], holders: int, lock: int) -> None:
    patience = _Patience()
    server, born = _start_server(command), time.monotonic()
    watcher = _start_watcher(holders, lock)
    while True:
        pid, status = os.wait()
        if pid == watcher and status == 0:
            return _stop(server)
        if pid == watcher:
            time.sleep(BACKOFF_SECONDS[0])
            watcher = _start_watcher(holders, lock)
        elif pid == server:
            pause = patience.after(time.monotonic() - born)
            if pause is None:
                return os.kill(watcher, signal.SIGKILL)
            time.sleep(pause)
            server, born = _start_server(command), time.monotonic()


class _Patience:
    """How long to wait before a server that died is started again, and when to leave it."""

    def __init__(self) -> None:
        self._pause, self._failures, self._came_up = BACKOFF_SECONDS[0], 0, False

    def after(self, lived: float) -> float | None:
        """Seconds to wait after a server that lived for ``lived`` seconds; None: it will never come up."""
        self._failures += 1
        if lived >= SETTLED_SECONDS:
            self._pause, self._came_up = BACKOFF_SECONDS[0], True
        elif not self._came_up and self._failures == MAX_FAILED_STARTS:
            return None
        pause, self._pause = self._pause, min(self._pause * 2, BACKOFF_SECONDS[1])
        return pause


def _start_watcher(holders: int, lock: int) -> int:
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with(keeper)
        os.close(lock)  # or a watcher left behind would keep the next keeper out
        fcntl.flock(holders, fcntl.LOCK_EX)  # belongs to the open file, which the keeper shares: it has the lock too
        if os.getppid() != keeper:
            _shut_down_orphan()
        os._exit(0)
    finally:
        os._exit(1)


def _shut_down_orphan() -> None:
    """End a server whose keeper was killed, where the kernel cannot: not on Linux."""
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
        link.settimeout(SHUTDOWN_SECONDS)
        link.connect("server.sock")
        link.sendall(b"SHUTDOWN\r\n")
        link.recv(1)


def _start_server(command: tuple[str, ...]) -> int:
    _rotate_log()
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _die_with(keeper)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when ``parent`` ends: prctl(2), so on Linux only.

    By SIGKILL, since a stuck server must not stay either. It loses nothing: Redis writes what it acknowledges to
    the file before it answers, and cuts an unacknowledged torn end off when it loads.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
        time.sleep(STOP_POLL_SECONDS)
    with contextlib.suppress(FileNotFoundError):
        os.unlink("server.sock")


def _rotate_log() -> None:
    """Point our stderr, which takes what the server cannot write itself, at a server.log of bounded size."""
    with contextlib.suppress(OSError):
        if os.path.exists("server.log") and os.stat("server.log").st_size > LOG_BYTES:
            os.replace("server.log", "server.log.1")
        log = os.open("server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 2)
        os.close(log)


def _usage() -> NoReturn:
    sys.exit("usage: supervisor.py DIRECTORY LOCK_FD SERVER [OPTION…]")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 3 else _usage()
