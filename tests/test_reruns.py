"""Runs of this suite that end badly: a failed test is retried, as by ``.ci/run``, or a signal ends everything."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).parents[1]
#: A test that fails at its first attempt. The second one fails, too, if anything of the first is left.
UNLUCKY: Final = """
import pytest
tries = []

@pytest.fixture(scope="session")
def shared():
    yield (written := [])
    tries.append(written)

@pytest.fixture(scope="module")
def of_module(shared):
    return shared

def test_before(of_module):
    of_module.append("before")

def test_unlucky(of_module):
    of_module.append("unlucky")
    assert tries == [["before", "unlucky"]]
    assert of_module == ["unlucky"]

def test_after(of_module):
    assert of_module == ["unlucky"]
"""


@pytest.mark.long
def test_the_second_attempt_has_new_fixtures(tmp_path: Path) -> None:
    """Including those of the module and session. The last lines name and count the test."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_unlucky.py").write_text(UNLUCKY)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:valkey", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--reruns", "1", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    *_, counted, named, closing = filter(None, done.stdout.splitlines())
    assert "tests that were tried again: 1" in counted, done.stdout
    assert named == "test_unlucky.py::test_unlucky"
    assert "3 passed, 1 rerun" in closing


#: A test that runs until the run ends. Its server's process is named in a file.
ENDLESS: Final = """
import os, time

def test_endless(server):
    with open(os.environ["SERVER_PID"], "w") as file:
        print(server.pid, file=file, flush=True)
    time.sleep(300)
"""


@pytest.mark.long
@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_no_server_outlives_a_run(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    """Its terminal is closed, or ``timeout`` ends it. Only the process that the user started receives the signal."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    named = tmp_path / "pid"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:valkey", "--rootdir", str(tmp_path)]
    options = ["-n", str(processes), "--basetemp", str(tmp_path / "files"), str(tmp_path)]
    environ = {**os.environ, "SERVER_PID": str(named)}
    with subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, env=environ) as run:
        wait_until(lambda: named.exists() and named.read_text().endswith("\n"), 60, "the test runs")
        server = psutil.Process(int(named.read_text()))
        run.send_signal(number)
        try:
            run.wait(30)
            wait_until(lambda: not server.is_running(), 10, "the server has ended")
        finally:
            run.kill()
            if server.is_running():
                server.kill()
