"""The systemd unit: read by systemd's own tools, and its command run as it says, but for systemd."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.conftest import DEPLOY, Gunicorn, seconds
from tests.support.service import ROOT
from tests.support.tools import tool
from tests.support.waiting import wait_until

UNIT: Final = DEPLOY / "chronoverse.service"
ARCHIVER: Final = DEPLOY / "chronoverse-archiver.service"
#: What systemd says of a unit's exposure, in tenths: the lower, the less it could do; unhardened services have 96.
MOST_EXPOSED: Final = 12
START_SECONDS: Final = 20.0


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    """The unit's assignments; each name is there once but for those that add up."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if re.match("[A-Z]", line)]
    return {name: value for name, _, value in lines}


@pytest.fixture(params=[(UNIT, "serve"), (ARCHIVER, "archive")], ids=["service", "archiver"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit with a command that is there."""
    unit: Path = request.param[0]
    command: str = request.param[1]
    text = unit.read_text()
    assert f"ExecStart=/opt/chronoverse/bin/chronoverse {command}\n" in text
    path = tmp_path / unit.name
    path.write_text(text.replace("/opt/chronoverse/bin/chronoverse", sys.executable))
    return path


def test_systemd_understands_every_line(copy: Path) -> None:
    """It would warn of a name or a value that it does not know."""
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert [line for line in done.stderr.splitlines() if copy.name in line] == []
    assert done.returncode == 0, done.stderr


def test_the_service_could_do_little_harm(copy: Path) -> None:
    """As systemd itself reckons."""
    command = [tool("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout[-200:]


def test_limits_fit_what_the_service_is_set_to(unit: dict[str, str], gunicorn: Gunicorn) -> None:
    """It may drain, and hold as many connections as a worker takes."""
    assert seconds(unit["TimeoutStopSec"]) > gunicorn.drain_seconds
    assert int(unit["LimitNOFILE"]) > 2 * int(gunicorn["worker_connections"])
    assert unit["Environment"] == f"CHRONOVERSE_DATA_DIR=/var/lib/{unit['StateDirectory']}"


@pytest.mark.long
def test_the_command_says_when_it_is_ready_reloads_and_goes(unit: dict[str, str], tmp_path: Path) -> None:
    """In the way that ``Type=notify``, ``ExecReload`` and ``KillSignal`` expect, within the times given."""
    assert (unit["Type"], unit["KillMode"]) == ("notify", "mixed")
    assert shlex.split(unit["ExecReload"]) == ["/bin/kill", "-HUP", "$MAINPID"]
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "chronoverse"
    environ = {
        "PATH": "/usr/bin:/bin",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "CHRONOVERSE_BIND": "127.0.0.1:0",
        "CHRONOVERSE_DATA_DIR": str(tmp_path / "data"),
        "WEB_CONCURRENCY": "1",
    }
    output, command = tmp_path / "log", [sys.executable, "-m", "chronoverse", *arguments]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, output.open("wb") as log:
        notified.settimeout(START_SECONDS)
        notified.bind(environ["NOTIFY_SOCKET"])
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            assert notified.recv(4096).startswith(b"READY=1")
            wait_until(lambda: b"Booting worker" in output.read_bytes(), START_SECONDS, "a worker")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: output.read_bytes().count(b"Booting worker") == 2, START_SECONDS, "a new worker")
            process.send_signal(signal.Signals[unit["KillSignal"]])
            assert process.wait(seconds(unit["TimeoutStopSec"])) == 0
        finally:
            process.kill()
            process.wait()


def test_workers_see_what_the_processors_do(unit: dict[str, str]) -> None:
    """Or replays would never hold back."""
    assert unit["ProcSubset"] == "all"
