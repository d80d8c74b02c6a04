"""Scheduled commands: the unit template and the crontab's shell, called like systemd and cron do."""

import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.deploy.conftest import DEPLOY
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service, serving
from tests.support.tools import tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

TEMPLATE: Final = DEPLOY / "chronoverse-run@.service"
CRON: Final = DEPLOY / "chronoverse-cron"
PAGE: Final = (ROOT / "docs" / "cron-systemd.md").read_text("utf-8")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), redis_server.url) as service:
        yield service


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The installed program."""
    path = tmp_path / "bin" / "chronoverse"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec env PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} -m chronoverse "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def variables(service: Service, tmp_path: Path) -> dict[str, str]:
    """The administrator's variables."""
    token = tmp_path / "token"
    token.write_text(service.token())
    return {
        "CHRONOVERSE_URL": service.url,
        "CHRONOVERSE_TOKEN_FILE": str(token),
        "CHRONOVERSE_DATA_DIR": str(tmp_path / "data"),
    }


def job_of(service: Service, workflow: str, job: str) -> dict[str, object] | None:
    """A job's status, exit code and lines."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    url = f"{service.url}/workflows/{workflow}/jobs/{job}"
    found = httpx.get(url, headers=headers, verify=service.verify)
    if found.status_code == 404:
        return None
    lines = httpx.get(f"{url}/logs", headers=headers, verify=service.verify).json()["logs"]
    state = found.json()
    return {"status": state["status"], "code": state["exit_code"], "lines": [each["message"] for each in lines]}


def unit_command(text: str, name: str, environ: dict[str, str]) -> list[str]:
    """The command that systemd runs: ``%i`` is the instance, and ``${NAME}`` is always one argument."""
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    parts = (part.replace("%i", name) for part in shlex.split(line))
    return [re.sub(r"\$\{(\w+)\}", lambda found: environ[found[1]], part) for part in parts]


def test_systemd_understands_every_line_of_an_instance(tmp_path: Path, program: Path) -> None:
    """systemd warns about unknown names and values."""
    path = tmp_path / "chronoverse-run@backup.service"
    path.write_text(TEMPLATE.read_text().replace("/opt/chronoverse/bin/chronoverse", str(program)))
    command = [tool("systemd-analyze"), "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in done.stderr.splitlines() if path.name in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "status", "code", "lines"),
    [
        ("echo 'one two'; echo three | tr a-z A-Z", "COMPLETED", 0, ["one two", "THREE"]),
        ("echo out; exit 3", "FAILED", 3, ["out"]),
        ('echo "${CHRONOVERSE_TOKEN_FILE-no token}"', "COMPLETED", 0, ["no token"]),
    ],
)
def test_each_start_of_a_unit_is_a_job(
    service: Service, program: Path, variables: dict[str, str], command: str, status: str, code: int, lines: list[str]
) -> None:
    """It fails and succeeds with the command, which is a whole shell command."""
    text = TEMPLATE.read_text().replace("/opt/chronoverse/bin/chronoverse", str(program))
    environ = {**variables, "PATH": "/usr/bin:/bin", "INVOCATION_ID": uuid.uuid4().hex, "COMMAND": command}
    done = subprocess.run(unit_command(text, "nightly-backup", environ), env=environ, timeout=60, check=False)

    assert done.returncode == code
    found = job_of(service, "nightly-backup", f"nightly-backup-{environ['INVOCATION_ID']}")
    assert found == {"status": status, "code": code, "lines": lines}


def test_a_stopped_unit_cancels_its_job(service: Service, program: Path, variables: dict[str, str]) -> None:
    """With ``KillMode=mixed``, only the main process gets the signal, and ends the command."""
    text = TEMPLATE.read_text().replace("/opt/chronoverse/bin/chronoverse", str(program))
    assert "KillMode=mixed" in text
    environ = {**variables, "PATH": "/usr/bin:/bin", "INVOCATION_ID": uuid.uuid4().hex}
    environ["COMMAND"] = "echo one; sleep 600; echo two"
    job = f"stopped-{environ['INVOCATION_ID']}"
    with subprocess.Popen(unit_command(text, "stopped", environ), env=environ, start_new_session=True) as process:
        wait_until(lambda: (job_of(service, "stopped", job) or {}).get("lines") == ["one"], 30, "it runs")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) != 0
    found = job_of(service, "stopped", job)
    assert found is not None
    assert (found["status"], found["lines"]) == ("CANCELED", ["one"])


@pytest.mark.parametrize(
    ("command", "job", "code", "lines"),
    [
        ("/usr/bin/printf 'one\\ntwo\\n'", "printf", 0, ["one", "two"]),
        ("cd / && pwd && exit 4 # where is it?", "where-is-it-", 4, ["/"]),
        ("echo a; echo ' # b'", "echo", 0, ["a", " # b"]),
        ("echo '#x'\t# -report", "report", 0, ["#x"]),
        ("[ -d / ] && echo a", "job", 0, ["a"]),
        ("KEY=secret /bin/echo a", "job", 0, ["a"]),
        (f"echo a # .- {'x' * 200}", "x" * 100, 0, ["a"]),
    ],
)
def test_a_crontab_publishes_its_commands_output(
    service: Service, program: Path, variables: dict[str, str], command: str, job: str, code: int, lines: list[str]
) -> None:
    """cron calls its shell with ``-c`` and the command, and few variables. The second run has its own id."""
    workflow = f"cron-{uuid.uuid4().hex}"
    environ = {
        **variables,
        "PATH": f"/usr/bin:/bin:{program.parent}",
        "HOME": "/",
        "SHELL": str(CRON),
        "LOGNAME": "root",
    }
    for name in (job, f"{job}.2"):
        done = subprocess.run(
            [environ["SHELL"], "-c", command], env={**environ, "WORKFLOW": workflow}, timeout=60, check=False
        )
        assert done.returncode == code
        status = "FAILED" if code else "COMPLETED"
        assert job_of(service, workflow, name) == {"status": status, "code": code, "lines": lines}
    url, headers = f"{service.url}/workflows/{workflow}/jobs", {"Authorization": f"Bearer {service.token()}"}
    found = httpx.get(url, params={"label": f"command={job}"}, headers=headers, verify=service.verify)
    assert [each["id"] for each in found.json()["jobs"]] == [f"{job}.2", job]


def test_the_page_matches_the_files() -> None:
    """The page's crontab is the one in the script's head, and the page writes the unit's files."""
    head = [line.removeprefix("#").strip() for line in CRON.read_text().splitlines() if line.startswith("#")]
    (crontab,) = re.findall(r"^```\n(SHELL=.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert set(crontab.splitlines()) <= set(head)
    required = re.findall(r"^EnvironmentFile=(/.*)$", TEMPLATE.read_text(), re.MULTILINE)
    written = re.findall(r" >(/etc/.*)$", PAGE, re.MULTILINE)
    assert written == [each.replace("%i", "backup") for each in required]
