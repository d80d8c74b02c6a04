"""A service with a private authority's certificate: what commands and the Python API report, and whom they trust."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from chronoverse.api import JobLog, Line, follow
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, Cli, environ
from tests.support.commands import after_link
from tests.support.nginx import nginx_for
from tests.support.servers import RedisServer
from tests.support.service import serving

pytestmark = pytest.mark.long

WORKFLOW = "wf_tls"
HINT = "CHRONOVERSE_CA_FILE can name a file with your own authority's certificate"


class Secure(NamedTuple):
    """A service behind an nginx with its own certificate."""

    url: str
    token: str
    certificate: Path


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, backend: RedisServer) -> Iterator[Secure]:
    directory = tmp_path_factory.mktemp("secure")
    with serving(directory, backend.url) as service, nginx_for(directory, service) as nginx:
        store = Store(backend.url)
        store.register(JobRef(WORKFLOW, "job_1"))
        store.close()
        yield Secure(nginx.url, service.token(), nginx.certificate)


@pytest.mark.parametrize("argv", [("jobs", WORKFLOW), ("logs", "-f", WORKFLOW, "job_1")], ids=" ".join)
def test_an_unknown_authority_is_reported_as_the_cause(cli: Cli, secure: Secure, argv: tuple[str, ...]) -> None:
    """Immediately, since no retry can help. For another name, no other authority would help either."""
    done = cli(*argv, URL=secure.url, TOKEN=secure.token)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith(f"chronoverse: the certificate of {secure.url} is not trusted: ")
    assert done.stderr.endswith(f"; {HINT}\n")
    assert done.stderr.count("\n") == 1

    url = secure.url.replace("127.0.0.1", "127.1")
    done = cli(*argv, URL=url, TOKEN=secure.token, CA_FILE=str(secure.certificate))
    assert (done.returncode, "Hostname mismatch" in done.stderr, HINT in done.stderr) == (69, True, False)
    done = cli(*argv, CA_FILE="/nowhere.pem")
    assert (done.returncode, "CHRONOVERSE_CA_FILE must be the path of a readable file" in done.stderr) == (78, True)


def test_a_given_authority_is_trusted(cli: Cli, secure: Secure) -> None:
    """For reading and publishing."""
    settings = {"URL": secure.url, "TOKEN": secure.token, "CA_FILE": str(secure.certificate), "DURABILITY": "acked"}
    command = ("run", "--workflow", WORKFLOW, "--job", "job_2", "--server", secure.url)
    ran = cli(*command, "--", "echo", "hello", **settings)

    assert (ran.returncode, after_link(ran.stderr)) == (0, "")
    assert cli("logs", WORKFLOW, "job_2", **settings).stdout == "hello\n"


def test_a_runner_reports_the_cause_and_keeps_the_lines(cli: Cli, secure: Secure, tmp_path: Path) -> None:
    """The command runs, and its lines can be delivered once the certificate is trusted."""
    command = ("run", "--workflow", WORKFLOW, "--job", "job_3", "--server", secure.url)
    started = time.monotonic()
    done = cli(*command, "--", "echo", "hello", TOKEN=secure.token)

    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert HINT in done.stderr
    assert list((tmp_path / "spool").iterdir())
    assert time.monotonic() - started < 30, "it does not try until the time of --deliver-timeout is over"


@pytest.mark.parametrize("given", ["argument", "setting"])
def test_a_python_program_trusts_a_given_authority(secure: Secure, given: str) -> None:
    """The file is an argument, or the commands' setting."""
    ca_file = secure.certificate if given == "argument" else None
    environ = {"CHRONOVERSE_CA_FILE": str(secure.certificate)} if given == "setting" else {}
    with mock.patch.dict(os.environ, environ):
        log = JobLog.open(secure.url, WORKFLOW, f"job_{given}", token=secure.token, ca_file=ca_file)
    log.write("stdout", "hello")

    assert log.finish()

    with mock.patch.dict(os.environ, environ):
        events = list(follow(secure.url, WORKFLOW, f"job_{given}", token=secure.token, ca_file=ca_file))

    assert [event.message for event in events if isinstance(event, Line)] == ["hello"]


def test_the_service_does_not_start_with_a_certificate(tmp_path: Path) -> None:
    """An nginx in front of it has the certificate. The message says so, before anything listens."""
    flags = {"GUNICORN_CMD_ARGS": "--certfile server.crt --keyfile server.key"}
    command = [*COMMAND, "serve", "--bind", "127.0.0.1:0"]
    done = subprocess.run(
        command, env=environ(tmp_path) | flags, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 78
    assert done.stderr.endswith(
        "chronoverse: the service does not speak TLS itself: put nginx in front of it, as deploy/nginx.conf does\n"
    )
