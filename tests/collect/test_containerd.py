"""Most nodes' real writer: containerd, through its CRI. The test takes the kubelet's role."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chronoverse.joblog.model import JobRef
from tests.collect.apiserver import ApiServer
from tests.collect.containerd import IMAGE, MOUNTED, Containerd, decode, running_containerd
from tests.collect.node import SOON, Agent, ContainerWriter, Jobs, pod, rotate, with_state
from tests.support.tools import unavailable
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: The host's network, with one PID namespace per container.
NAMESPACES = {1: 2, 2: 1}
EXITED = 2


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    if os.getuid() != 0:
        unavailable("containers need root")
    # Short: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cv-") as directory, running_containerd(Path(directory)) as found:
        yield found


class Container(ContainerWriter):
    """A command in a container. The kubelet's rotation makes containerd reopen its log."""

    def run(self, containerd: Containerd, command: str, *mounted: Path) -> None:
        self.close()
        self.path.unlink()
        self._cri = containerd
        sandbox = {1: {1: "one", 2: "uid-one", 3: "shop"}, 3: self.path.parents[1], 8: {2: {1: NAMESPACES}}}
        try:
            self._sandbox = containerd.call("RunPodSandbox", {1: sandbox})[1].decode()
        except RuntimeError as error:
            pytest.skip(f"containers cannot run here: {error}")
        mounts = [{1: path, 2: path, 3: 1} for path in (*MOUNTED, *mounted)]
        config = {1: {1: "main"}, 2: {1: IMAGE}, 3: ["/bin/sh", "-c", command], 7: mounts, 11: "main/0.log"}
        config |= {15: {2: {3: NAMESPACES}}}
        self._id = containerd.call("CreateContainer", {1: self._sandbox, 2: config, 3: sandbox})[1].decode()
        containerd.call("StartContainer", {1: self._id})

    def status(self) -> dict[int, Any]:
        return decode(self._cri.call("ContainerStatus", {1: self._id})[1])

    def reopen(self) -> None:
        with suppress(RuntimeError):  # it has ended
            self._cri.call("ReopenContainerLog", {1: self._id})

    def wait(self) -> dict[str, Any]:
        """The container's terminated state, as in its pod's status."""
        wait_until(lambda: self.status().get(3) == EXITED, SOON, "the container ends")
        found = self.status()
        started = datetime.fromtimestamp(found[5] // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"exitCode": found.get(7, 0), "reason": found[10].decode(), "startedAt": started}

    def remove(self) -> None:
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            self._cri.call(method, {1: self._sandbox})


@pytest.fixture
def container(tmp_path: Path, containerd: Containerd) -> Iterator[Callable[..., Container]]:
    """Runs a command in a pod's container, with read access to some of the test's paths."""
    made: list[Container] = []

    def run(command: str, *mounted: Path) -> Container:
        found = Container(tmp_path / "pods", pod("one"))
        found.run(containerd, command, *mounted)
        made.append(found)
        return found

    yield run
    for each in made:
        each.remove()


def test_long_lines_and_ends(
    agent: Callable[..., Agent], api: ApiServer, jobs: Jobs, container: Callable[..., Container]
) -> None:
    """containerd cuts lines at 16 KiB, and marks an unterminated last line as complete."""
    with agent():
        writer = container('head -c 50000 /dev/zero | tr "\\0" x; echo; echo oops >&2; printf end; exit 4')
        api.apply(with_state(pod("one"), terminated=writer.wait()))
        job = jobs.wait_for_end("shop.one", "one.main")

    assert " P " in writer.path.read_text()
    assert (job["status"], job["exit_code"], job["labels"]["reason"]) == ("FAILED", 4, "Error")
    lines = list(jobs.client.logs(JobRef("shop.one", "one.main")))
    assert [line.message for line in lines if line.stream == "stderr"] == ["oops"]
    assert [line.message for line in lines if line.stream == "stdout"] == ["x" * 50_000, "end"]


def test_rotation_and_killed_agents_lose_nothing(
    agent: Callable[..., Agent], api: ApiServer, jobs: Jobs, container: Callable[..., Container], tmp_path: Path
) -> None:
    """ReopenContainerLog under load, with files removed; no gap is reported."""
    node = agent()
    api.apply(with_state(pod("one"), running={}))
    stop = tmp_path / "stop" / "now"
    stop.parent.mkdir()
    command = "echo line $i; echo err $i >&2; [ $((i % 50)) -gt 0 ] || sleep 0.03"
    writer = container(f"i=0; until [ -e {stop} ]; do {command}; i=$((i+1)); done; exit 3", stop.parent)
    for number in range(6):
        with node:
            # Otherwise a file could be removed before it was read.
            jobs.wait_for_lines("shop.one", "one.main", 2 * last_number(writer) + 500)
            rotate(writer, max_files=4, now=1_772_532_005 + number)
    last_number(writer)
    stop.touch()
    api.apply(with_state(pod("one"), terminated=writer.wait()))
    with node:
        job = jobs.wait_for_end("shop.one", "one.main")

    count = last_number(writer) + 1
    assert (job["status"], job["exit_code"], job["lines"]) == ("FAILED", 3, 2 * count)
    lines = list(jobs.client.logs(JobRef("shop.one", "one.main")))
    for stream, word in (("stdout", "line"), ("stderr", "err")):
        assert [each.message for each in lines if each.stream == stream] == [f"{word} {n}" for n in range(count)]


def last_number(writer: Container) -> int:
    """The last number that the container printed on stdout."""
    numbers: list[str] = []

    def has_printed() -> bool:
        numbers[:] = re.findall(r" stdout F line ([0-9]+)\n", writer.path.read_text())
        return bool(numbers)

    wait_until(has_printed, SOON, "the container prints")
    return int(numbers[-1])
