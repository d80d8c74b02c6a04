"""The service as deployed: a gunicorn process with the shipped configuration, on a free port."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx

from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.minting import mint
from chronoverse.auth.rights import READ, WRITE
from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
#: Time limit of stopping a service on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 20.0
#: Time limit of its start, which takes 2 s of CPU time: over 20 s on a busy machine.
START_SECONDS: Final = 60.0
#: Default validity of tokens in seconds. Longer than a run of all tests.
TOKEN_SECONDS: Final = 3600
#: The key that signs tokens if a test has its own store. With the embedded server, the service generates one.
SECRET: Final = b"a secret of the tests alone that signs nothing else"

_SERVES_AT = re.compile(r"serves at https?://([0-9.]+):([0-9]+)")
_BOOTED = re.compile(r"Booting worker with pid: ([0-9]+)")


class Service:
    """One gunicorn master and its workers. Its data stays in ``directory``, so it can be restarted.

    Without ``redis_url``, it uses the embedded server. ``settings`` are environment variables in lowercase, without
    ``CHRONOVERSE_``: ``heartbeat_seconds=1``. By default, a service that stops ends its streams immediately.
    ``worker_class`` and ``config`` replace the shipped ones. ``environ`` has additional environment variables.
    """

    def __init__(
        self,
        directory: Path,
        redis_url: str | None = None,
        *,
        workers: int = 1,
        worker_class: str | None = None,
        config: Path | None = None,
        environ: Mapping[str, str] | None = None,
        tree: Path = ROOT,
        **settings: Any,
    ) -> None:
        #: The checkout whose code runs. A change takes effect at the next start.
        self.tree = tree
        self.directory = directory
        self.data_dir = directory / "data"
        self.redis_url = redis_url
        self.host, self.port = "127.0.0.1", 0
        #: The ``verify`` argument for httpx. Without TLS, there is nothing to verify.
        self.verify: ssl.SSLContext | bool = False
        self._workers = workers
        self._worker_class = worker_class
        self._config = config
        self._extra_environ = dict(environ or {})
        self._settings = {"drain_seconds": 0, **settings}
        self._log = directory / "service.log"
        self._read_from = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The service's URL. Unchanged after a restart."""
        return f"http://{self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """A connection to the service, with a ``timeout`` per operation in seconds."""
        return socket.create_connection((self.host, self.port), timeout)

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def secret(self) -> bytes:
        """The key that signs tokens for this service."""
        return local_secret(self.data_dir) if self.redis_url is None else SECRET

    def start(self) -> Self:
        """Starts the service, initially or after a stop, and waits until it answers."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._read_from = log.tell()
            config = self._config or self.tree / "gunicorn.conf.py"
            command = [sys.executable, "-m", "gunicorn", "-c", str(config)]
            if self._worker_class is not None:
                command += ["--worker-class", self._worker_class]
            self._process = subprocess.Popen(
                command, cwd=self.tree, env=self._environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._ready, START_SECONDS, "the service answers")
        return self

    def _environ(self) -> dict[str, str]:
        foreign = ("CHRONOVERSE_", "PROMETHEUS_", "GUNICORN_", "WEB_CONCURRENCY")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environ |= {
            "CHRONOVERSE_BIND": f"{self.host}:{self.port}",
            "CHRONOVERSE_DATA_DIR": str(self.data_dir),
            "WEB_CONCURRENCY": str(self._workers),
        }
        environ |= self._extra_environ
        if self.redis_url is not None:
            environ |= {"CHRONOVERSE_REDIS_URL": self.redis_url, "CHRONOVERSE_JWT_SECRET": SECRET.decode()}
        return environ | {f"CHRONOVERSE_{name.upper()}": str(value) for name, value in self._settings.items()}

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.logs()
        found = _SERVES_AT.search(self.logs(self._read_from))
        if found is None:
            return False
        self.port = int(found[2])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=1, verify=self.verify).status_code == 200
        return False

    def logs(self, start: int = 0) -> str:
        """The service's output from byte ``start``, decoded with one character per byte."""
        return self._log.read_bytes()[start:].decode("latin-1")

    def log_size(self) -> int:
        """Bytes printed so far."""
        return self._log.stat().st_size

    def worker_pids(self) -> list[int]:
        """The process ids of live workers."""
        booted = [int(pid) for pid in _BOOTED.findall(self.logs(self._read_from))]
        return [pid for pid in booted if is_alive(pid)]

    def token(
        self,
        *workflows: str,
        scopes: Sequence[str] = (READ, WRITE),
        ttl: int = TOKEN_SECONDS,
        secret: bytes = b"",
        subject: str = "tests",
    ) -> str:
        """A token for ``workflows`` (by default all), valid for ``ttl`` seconds."""
        return mint(secret or self.secret, subject, scopes, workflows or ("*",), ttl, time.time())

    def metric(self, name: str) -> float:
        """The current value of a metric; 0 if it does not exist yet."""
        response = httpx.get(f"{self.url}/metrics", timeout=5, verify=self.verify)
        assert response.status_code == 200, response.text
        found = re.search(rf"^{re.escape(name)} (\S+)$", response.text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the master."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Waits up to ``timeout`` seconds for the master to exit. Returns its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def kill(self) -> None:
        """Kills the master and all workers, and waits until they are gone."""
        if self._process is None:
            return
        workers = self.worker_pids()
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, workers)), PATIENCE_SECONDS, "the workers are gone")

    def stop(self) -> None:
        """Stops the service with SIGTERM, or with SIGKILL if that takes too long. Idempotent."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_SECONDS)
        finally:
            # Even if pytest-timeout raises here because the test's time is over.
            if self._process.poll() is None:
                self.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *exception: object) -> None:
        self.stop()


def is_alive(pid: int) -> bool:
    """Whether the process is running. A zombie is not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as stat:
            return stat.read().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def serving(
    directory: Path, redis_url: str | None = None, *, workers: int = 1, worker_class: str | None = None, **settings: Any
) -> Iterator[Service]:
    """Runs a service inside a ``with`` block."""
    with Service(directory, redis_url, workers=workers, worker_class=worker_class, **settings) as service:
        yield service
