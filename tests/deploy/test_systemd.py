"""The systemd unit: systemd's own tools check it, and its command is started as defined, only without systemd."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest

from chronoverse.cli.notify.notifier import THREADS
from tests.deploy.conftest import DEPLOY, Gunicorn, seconds
from tests.support.service import ROOT
from tests.support.tools import tool
from tests.support.waiting import wait_until

UNIT: Final = DEPLOY / "chronoverse.service"
ARCHIVER: Final = DEPLOY / "chronoverse-archiver.service"
NOTIFIER: Final = DEPLOY / "chronoverse-notifier.service"
#: The highest exposure that systemd can report, in tenths. Lower is safer; a service without hardening has 96.
MOST_EXPOSED: Final = 12
START_SECONDS: Final = 20.0


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    """The unit's assignments. Each name occurs once, unless its values add up."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if re.match("[A-Z]", line)]
    return {name: value for name, _, value in lines}


@pytest.fixture(
    params=[(UNIT, "serve"), (ARCHIVER, "archive"), (NOTIFIER, "notify")], ids=["service", "archiver", "notifier"]
)
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the unit with an existing command."""
    unit: Path = request.param[0]
    command: str = request.param[1]
    text = unit.read_text()
    assert f"ExecStart=/opt/chronoverse/bin/chronoverse {command}" in text
    path = tmp_path / unit.name
    path.write_text(text.replace("/opt/chronoverse/bin/chronoverse", sys.executable))
    return path


@pytest.mark.long
def test_systemd_understands_every_line(copy: Path) -> None:
    """systemd warns about unknown names and values."""
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert [line for line in done.stderr.splitlines() if copy.name in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_unit_is_hardened(copy: Path) -> None:
    """systemd's own assessment of the exposure is low."""
    command = [tool("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout[-200:]
    assert f"{MOST_EXPOSED / 10} of 10" in (ROOT / "docs" / "deploying.md").read_text()


@pytest.mark.long
def test_limits_fit_the_settings_of_the_service(unit: dict[str, str], gunicorn: Gunicorn) -> None:
    """It has time to drain, and can open as many connections as a worker accepts."""
    assert seconds(unit["TimeoutStopSec"]) > gunicorn.drain_seconds
    assert int(unit["LimitNOFILE"]) > 2 * int(gunicorn["worker_connections"])
    assert unit["Environment"] == f"CHRONOVERSE_DATA_DIR=/var/lib/{unit['StateDirectory']}"


def test_all_units_share_their_user_and_directory_and_stop_in_order() -> None:
    """Only the main process gets SIGTERM. Each reads its Redis user's URL; the notifier's user is the service's."""
    units = [path.read_text().splitlines() for path in (UNIT, ARCHIVER, NOTIFIER)]
    same = ["DynamicUser=yes", "User=chronoverse", "StateDirectory=chronoverse", "StateDirectoryMode=0700"]
    for line in (*same, "KillSignal=SIGTERM", "KillMode=mixed", "Restart=always"):
        assert all(line in unit for unit in units), line
    files = [[line for line in unit if line.startswith("EnvironmentFile=")] for unit in units]

    assert files == [
        ["EnvironmentFile=-/etc/chronoverse/environment", "EnvironmentFile=-/etc/chronoverse/service"],
        ["EnvironmentFile=/etc/chronoverse/environment", "EnvironmentFile=-/etc/chronoverse/archiver"],
        ["EnvironmentFile=-/etc/chronoverse/environment", "EnvironmentFile=/etc/chronoverse/service"],
    ]
    # At the limit, the notifier would crash.
    (tasks,) = (line.removeprefix("TasksMax=") for line in units[2] if line.startswith("TasksMax="))
    assert int(tasks) > 7 * THREADS
    for unit, name in zip(units, ("service", "archiver", "service"), strict=True):
        assert any(line.startswith(f"#   CHRONOVERSE_REDIS_URL=rediss://{name}:") for line in unit)


def test_the_documented_second_node_is_the_unit_with_another_port(tmp_path: Path) -> None:
    """The documented command makes it from the unit, and `deploy/nginx-nodes.conf` has its port."""
    commands = (ROOT / "docs" / "deploying.md").read_text().splitlines()
    (command,) = (line for line in commands if "chronoverse-2.service" in line)
    second = tmp_path / "chronoverse-2.service"
    subprocess.run(
        ["/bin/sh", "-c", command.replace("/etc/systemd/system", shlex.quote(str(tmp_path)))],
        cwd=ROOT,
        check=True,
        timeout=10,
    )
    changed = set(second.read_text().splitlines()) - set(UNIT.read_text().splitlines())

    assert changed == {"Environment=CHRONOVERSE_DATA_DIR=/var/lib/chronoverse CHRONOVERSE_BIND=127.0.0.1:8001"}
    assert "server 127.0.0.1:8001 " in (DEPLOY / "nginx-nodes.conf").read_text()


@pytest.mark.long
def test_the_command_reports_readiness_reloads_and_ends(unit: dict[str, str], tmp_path: Path) -> None:
    """As ``Type=notify``, ``ExecReload`` and ``KillSignal`` expect, within the configured times.

    While a file that a setting names is invalid, nothing is reloaded, a worker that dies is replaced, and the service
    continues.
    """
    assert (unit["Type"], unit["KillMode"]) == ("notify", "mixed")
    assert shlex.split(unit["ExecReload"]) == ["/bin/kill", "-HUP", "$MAINPID"]
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "chronoverse"
    forms = tmp_path / "forms.toml"
    forms.write_text("[forms]\n")
    environ = {
        "PATH": "/usr/bin:/bin",
        "CHRONOVERSE_MASK_FORMS": str(forms),
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
            forms.write_text("[")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: b"not reloaded: CHRONOVERSE_MASK" in output.read_bytes(), START_SECONDS, "the error")
            address, pid = re.findall(rb"Listening at: (\S+)|Booting worker with pid: ([0-9]+)", output.read_bytes())
            os.kill(int(pid[1]), signal.SIGKILL)
            wait_until(lambda: output.read_bytes().count(b"Booting worker") == 2, START_SECONDS, "another worker")
            assert urlopen(f"{address[0].decode()}/healthz", timeout=START_SECONDS).status == 200
            forms.write_text("[forms]\n")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: output.read_bytes().count(b"Booting worker") == 3, START_SECONDS, "a new worker")
            process.send_signal(signal.Signals[unit["KillSignal"]])
            assert process.wait(seconds(unit["TimeoutStopSec"])) == 0
        finally:
            process.kill()
            process.wait()
