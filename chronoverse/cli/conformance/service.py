"""A temporary service: ``chronoverse serve`` on a free port, with an embedded store that is deleted afterwards."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.minting import mint
from chronoverse.cli.serve import serve_command
from chronoverse.client.client import Client
from chronoverse.embedded.listeners import local_service_url
from chronoverse.embedded.supervisor import die_with
from chronoverse.errors import ChronoverseError, Unreachable
from chronoverse.settings import job_environ

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
#: The lease in seconds: longer than the outages of the cases, and short enough to wait until it expires.
LEASE_SECONDS: Final = 10
WORKFLOW: Final = "conformance"


class Target(NamedTuple):
    """The service to test with. Both tokens can write jobs of WORKFLOW; ``token`` can also read them."""

    url: str
    token: str
    runner_token: str


@contextlib.contextmanager
def running_service() -> Iterator[Target]:
    """Runs a service in the ``with`` block. Raises :class:`Unreachable`, with the output, if it does not start."""
    with tempfile.TemporaryDirectory(prefix="chronoverse-conformance-", ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        # Ignores the user's settings, including those of gunicorn, metrics and traces.
        foreign = ("GUNICORN_", "PROMETHEUS_", "OTEL_")
        environ = {name: value for name, value in job_environ().items() if not name.startswith(foreign)}
        environ |= {
            "CHRONOVERSE_DATA_DIR": temporary,
            "CHRONOVERSE_LEASE_SECONDS": str(LEASE_SECONDS),
            # An archiver would read jobs whose runners the tests delay, which declares the jobs LOST.
            "CHRONOVERSE_ARCHIVE_URL": "none",
            "CHRONOVERSE_DRAIN_SECONDS": "0",
            "CHRONOVERSE_LOG_LEVEL": "warning",
        }
        argv, environ = serve_command("127.0.0.1:0", "1", environ)
        with (directory / "service.log").open("wb") as log:
            # The service also ends if this process is killed.
            tie = partial(die_with, os.getpid(), signal.SIGTERM)
            process = subprocess.Popen(
                argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=tie
            )
        try:
            url = _wait_until_ready(process, directory)
            make_token = partial(mint, local_secret(directory), "conformance", ttl_seconds=3_600, now=time.time())
            scopes = ("logs:write", "logs:read")
            yield Target(url, *(make_token(scopes[:count], [WORKFLOW]) for count in (2, 1)))
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # The supervisor removes the socket when the store's server has ended.
            deadline = time.monotonic() + STOP_SECONDS
            while (directory / "server.sock").exists() and time.monotonic() < deadline:
                time.sleep(0.05)


def _wait_until_ready(process: "subprocess.Popen[bytes]", directory: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        url = local_service_url(directory)
        with contextlib.suppress(ChronoverseError):
            if url and Client(url, max_attempts=1).read("/readyz"):
                return url
        time.sleep(0.05)
    raise Unreachable(f"the service does not start: {(directory / 'service.log').read_text('utf-8', 'replace')}")
