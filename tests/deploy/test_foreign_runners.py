"""Foreign runners as in docs/redis.md. Its commands run as printed, as the required user."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.deploy.conftest import DEPLOY
from tests.support.guarded_server import GuardedServer
from tests.support.service import Service, serving
from tests.support.tools import tool

pytestmark = pytest.mark.long

#: The section's blocks of commands: a whole log, labels, the start of a job with a lease, a renewal, and an expiry.
WHOLE_LOG, LABELS, WITH_LEASE, RENEWAL, EXPIRY = re.findall(
    r"```sh\n(redis-cli .*?)```", (DEPLOY.parent / "docs" / "redis.md").read_text("utf-8"), re.DOTALL
)
RETENTION_SECONDS: Final = 3
#: Time limit on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A server with the documented users."""
    with GuardedServer(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def service(server: GuardedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that keeps jobs for three seconds. Its leases last one second."""
    url, directory = server.url_of("service"), tmp_path_factory.mktemp("service")
    with serving(directory, url, retention_seconds=RETENTION_SECONDS, lease_seconds=1) as service:
        yield service


class Shell:
    """Runs the document's commands with a ``redis-cli`` that is set up for the server and the user."""

    def __init__(self, server: GuardedServer, directory: Path) -> None:
        user = "foreign-runner"
        login = ("-s", str(server.socket), "--no-auth-warning", "--user", user, "--pass", server.password_of(user))
        program = directory / "bin" / "redis-cli"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.join([tool("redis-cli"), "-e", *login])} "$@"\n')
        program.chmod(0o755)
        self._environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(self, commands: str) -> list[str]:
        """Their output, line by line. Fails if one of them fails."""
        done = subprocess.run(
            ["sh", "-euc", commands], env=self._environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def shell(server: GuardedServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A foreign runner's shell."""
    return Shell(server, tmp_path_factory.mktemp("shell"))


def ask(service: Service, path: str) -> httpx.Response:
    """The answer to a request about the workflow."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    return httpx.get(f"{service.url}/workflows/wf_1/jobs{path}", headers=headers, timeout=PATIENCE_SECONDS)


def listed(service: Service, job_id: str) -> str | None:
    """The job's state in its workflow's list. None if it is not listed."""
    return {job["id"]: job["status"] for job in ask(service, "").json()["jobs"]}.get(job_id)


def test_plain_commands_are_enough(server: GuardedServer, service: Service, shell: Shell) -> None:
    """The job is listed once it was read, and expires after its end was read. Its runner can set a different expiry."""
    log = "chronoverse:{wf_1}:job_1:log"
    *lines, end = WHOLE_LOG.splitlines(keepends=True)
    assert shell.run("".join(lines)) == ["1-0", "2-0"]
    assert listed(service, "job_1") is None
    assert ask(service, "/job_1").json()["status"] == "RUNNING"
    assert listed(service, "job_1") == "RUNNING"
    shell.run(LABELS)
    shell.run(end)
    assert server.ask("PTTL", log) == -1
    job: dict[str, Any] = ask(service, "/job_1").json()
    assert (job["status"], job["exit_code"], job["lines"]) == ("COMPLETED", 0, 2)
    assert job["labels"] == {"branch": "main", "commit": "4f0c1de"}
    assert 0 < server.ask("PTTL", log) <= 1_000 * RETENTION_SECONDS
    page = ask(service, "/job_1/logs").json()
    assert [line["message"] for line in page["logs"]] == ["Starting", "Done"]
    shell.run(EXPIRY)
    assert server.ask("TTL", log) > RETENTION_SECONDS
    assert server.ask("ACL", "LOG") == []


def test_a_runner_with_a_lease_is_lost_without_it(server: GuardedServer, service: Service, shell: Shell) -> None:
    """It is RUNNING while it renews the lease. After that, its next line is rejected."""
    assert shell.run(WITH_LEASE)[0] == "OK"
    assert shell.run(RENEWAL) == ["OK"]
    assert ask(service, "/job_2").json()["status"] == "RUNNING"
    assert listed(service, "job_2") == "RUNNING"
    # Another runner cannot get it.
    assert shell.run(WITH_LEASE.splitlines()[0]) == [""]
    # The lease expires. A server declares no job LOST before it has been up for a whole lease.
    time.sleep(1)
    server.ask("DEL", "chronoverse:{wf_1}:job_2:lease")
    assert ask(service, "/job_2").json()["status"] == "LOST"
    with pytest.raises(AssertionError, match="equal or smaller"):
        shell.run(WITH_LEASE.splitlines()[-1].replace("1-0", "2-0"))
