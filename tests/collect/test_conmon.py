"""A real writer: conmon, which writes the logs of CRI-O and podman. Its runtime is a script that starts a command."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from chronoverse.joblog.model import JobRef
from tests.collect.apiserver import ApiServer
from tests.collect.node import SOON, Agent, ContainerWriter, Jobs, ended, pod, with_state
from tests.support.tools import tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

RUNTIME: Final = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --pid-file ] && pid=$2; shift; done
sh -c '{command}' &
echo $! >"$pid"
"""


class Conmon(ContainerWriter):
    """A command whose output conmon writes."""

    def run(self, directory: Path, command: str) -> None:
        self.close()
        self.path.unlink()
        for name in ("bundle", "exits", "sockets"):
            (directory / name).mkdir()
        runtime = directory / "runtime"
        runtime.write_text(RUNTIME.format(command=command))
        runtime.chmod(0o755)
        self._directory = directory
        arguments = ["-c", "c1", "-u", "c1", "-n", "c1", "-r", str(runtime), "-p", str(directory / "pid")]
        arguments += ["-b", str(directory / "bundle"), "--exit-dir", str(directory / "exits")]
        arguments += ["--socket-dir-path", str(directory / "sockets"), "-l", f"k8s-file:{self.path}"]
        subprocess.run([tool("conmon"), *arguments], check=True, timeout=SOON)

    def wait(self) -> int:
        """The command's exit code."""
        code = self._directory / "exits" / "c1"
        wait_until(code.exists, SOON, "the command ends")
        return int(code.read_text())


@pytest.fixture
def conmon(tmp_path: Path) -> Callable[..., Conmon]:
    """Starts a command in a pod's container."""

    def start(command: str) -> Conmon:
        writer = Conmon(tmp_path / "pods", pod("one"))
        (tmp_path / "conmon").mkdir()
        writer.run(tmp_path / "conmon", command)
        return writer

    return start


def test_partial_lines_of_conmon_are_joined(
    agent: Callable[..., Agent], api: ApiServer, jobs: Jobs, conmon: Callable[..., Conmon]
) -> None:
    """It writes the bytes of one read, tagged P unless they end a line. The last line can lack its end."""
    begin, long = 'printf "no newline"; sleep 0.3; echo " yet"; echo oops >&2', 'head -c 200000 /dev/zero | tr "\\0" x'
    with agent():
        writer = conmon(f"{begin}; {long}; echo; printf end; exit 4")
        api.apply(with_state(pod("one"), running={}))
        code = writer.wait()
        api.apply(ended(pod("one"), code))
        job = jobs.wait_for_end("shop.one", "one.main")

    assert " P " in writer.path.read_text()
    assert job["exit_code"] == code == 4
    lines = list(jobs.client.logs(JobRef("shop.one", "one.main")))
    assert [line.message for line in lines if line.stream == "stderr"] == ["oops"]
    out = [line for line in lines if line.stream == "stdout"]
    assert (
        "".join(line.message + ("" if line.partial else "\n") for line in out)
        == f"no newline yet\n{'x' * 200_000}\nend\n"
    )
