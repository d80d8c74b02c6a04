"""Faults of an agent and its dependencies: each line once, in order, or reported; each end once, after the lines."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson
import pytest

from chronoverse.joblog.model import Gap
from tests.collect.apiserver import ApiServer
from tests.collect.node import (
    SOON,
    Agent,
    ContainerWriter,
    Jobs,
    cri_line,
    ended,
    node_with_pod,
    pod,
    rotate,
    texts,
    with_state,
)
from tests.support.faultproxy import FaultProxy
from tests.support.secret_keys import GITHUB
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

Agents = Callable[..., Agent]
#: Anyone who reads a job whose lease has expired makes it LOST: these tests do not read while an agent waits for it.
short_lease = pytest.mark.parametrize("lease_seconds", [5], indirect=True, scope="module")
WORKFLOW: Final = "shop.one"
JOB: Final = "one.main"


class Printing:
    """Prints numbered lines on both streams, whole and partial, until stopped."""

    def __init__(self, writer: ContainerWriter, pause: float = 0.002) -> None:
        self.count = 0
        self._writer = writer
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Printing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            text, stream = f"line {self.count}", ("stdout", "stderr")[self.count % 2]
            if self.count % 5 == 0:
                self._writer.write(cri_line(text[:3], stream, "P"))
                text = text[3:]
            self._writer.write(cri_line(text, stream))
            self.count += 1

    def wait_for(self, count: int) -> None:
        wait_until(lambda: self.count >= count, SOON, f"{count} lines are printed")


@short_lease
@pytest.mark.long
def test_an_agent_can_publish_directly_to_the_store(
    agent: Agents, api: ApiServer, jobs: Jobs, redis_server: RedisServer
) -> None:
    """Even after losing its state: it then reads the end of the log there. It masks secrets before storing."""
    node, one, writer = node_with_pod(agent(store=redis_server.url), api)
    writer.print(*texts(300), f"token {GITHUB}")
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 301)
    shutil.rmtree(node.state)
    writer.print(*texts(400, 300))
    api.apply(ended(one, 2, "Error"))
    with node:
        node.wait_for_state('"next":')
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert (job["exit_code"], job["labels"]["reason"]) == (2, "Error")
    assert jobs.texts(WORKFLOW, JOB) == [*texts(300), "token [masked]", *texts(400, 300)]


@short_lease
@pytest.mark.long
def test_an_outage_longer_than_a_lease_loses_nothing(
    agent: Agents, api: ApiServer, jobs: Jobs, proxy: FaultProxy
) -> None:
    """More is printed than the agent keeps in memory; it is rotated and removed, and the job is declared LOST."""
    node, one, writer = node_with_pod(agent(url=proxy.http_url), api)
    with node:
        writer.print(*texts(10))
        jobs.wait_for_lines(WORKFLOW, JOB, 10)
        proxy.refuse()
        proxy.cut()
        total = 10
        for number in range(6):
            writer.print(*(f"line {each} {'x' * 1_000}" for each in range(total, total + 4_000)))
            total += 4_000
            wait_for_open(node, writer.path)
            rotate(writer, max_files=3, now=1_772_532_005 + number)
        assert jobs.wait_for_end(WORKFLOW, JOB)["status"] == "LOST"
        proxy.heal()
        api.apply(ended(one, 1))
        other = f"{JOB}-from-{jobs.job(WORKFLOW, JOB)['last_sequence_num'] + 1}"
        job = jobs.wait_for_end(WORKFLOW, other)

    found = [text.split(" x")[0] for each in (JOB, other) for text in jobs.texts(WORKFLOW, each)]
    assert (job["status"], found) == ("FAILED", texts(total))


def wait_for_open(node: Agent, path: Path) -> None:
    """Waits until the agent has opened the file."""
    assert node.process is not None
    fds, inode = Path(f"/proc/{node.process.pid}/fd"), path.stat().st_ino

    def is_open() -> bool:
        found = set()
        for each in fds.iterdir():
            with contextlib.suppress(OSError):
                found.add(each.stat().st_ino)
        return inode in found

    wait_until(is_open, SOON, f"{path} is open")


def test_rotated_files_begin_with_the_first_line(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """It is as old as the container, so nothing is missing."""
    node, one = agent(), pod("one")
    writer = ContainerWriter(node.pods, one)
    writer.write(cri_line("early", at=1_772_532_005.0))
    rotate(writer, now=1_772_532_006)
    writer.write(cri_line("last", at=1_772_532_007.0))
    done = {"exitCode": 0, "reason": "Completed", "startedAt": "2026-03-03T10:00:05Z"}
    api.apply(with_state(one, terminated=done))
    with node:
        jobs.wait_for_end(WORKFLOW, JOB)

    assert jobs.summary(WORKFLOW, JOB) == ["early", "last"]


def test_an_agent_compares_what_its_checkpoint_lacks(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """It was killed before recording a gap, which has a number but no line. The API server is down meanwhile."""
    node, one = agent(), pod("one")
    writer = ContainerWriter(node.pods, one)
    api.apply(with_state(one, running={"startedAt": "2026-03-03T10:00:00Z"}))
    writer.write(cri_line("early", at=1_772_532_005.0))
    rotate(writer, now=1_772_532_006)
    writer.write(cri_line("last", at=1_772_532_007.0))
    with node:
        node.wait_for_state('"next":4')
    checkpoint = node.state / "checkpoints.json"
    ((name, saved),) = orjson.loads(checkpoint.read_bytes()).items()
    (first,) = writer.path.parent.glob("0.log.*")
    position = [first.stat().st_ino, first.read_bytes()[:64].hex(), 0, saved["position"][3]]
    checkpoint.write_bytes(orjson.dumps({name: {**saved, "next": 1, "position": position}}))
    writer.print("more")
    api.refuses = 503
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 4)
        api.refuses = None
        api.apply(ended(one))
        assert jobs.wait_for_end(WORKFLOW, JOB)["status"] == "COMPLETED"

    assert jobs.summary(WORKFLOW, JOB) == [Gap(1, 1, "missing"), "early", "last", "more"]


def test_a_pod_that_is_gone_when_the_agent_returns_is_lost(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """Nobody knows what it printed meanwhile. Its checkpoint is removed."""
    node, one, writer = node_with_pod(agent(), api)
    writer.print(*texts(3))
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 3)
        node.stop()
    shutil.rmtree(writer.path.parents[1])
    api.delete(with_state(one, running={}))
    with node:
        assert jobs.wait_for_end(WORKFLOW, JOB)["status"] == "LOST"
        wait_until(lambda: (node.state / "checkpoints.json").read_bytes() == b"{}", SOON, "the checkpoint is gone")

    assert jobs.summary(WORKFLOW, JOB) == [*texts(3), Gap(4, 4, "missing")]


def test_files_keep_what_the_service_rejects(agent: Agents, api: ApiServer, jobs: Jobs, proxy: FaultProxy) -> None:
    """Although they are rotated and removed meanwhile, and the container ends."""
    node, one, writer = node_with_pod(agent(url=proxy.http_url), api)
    with node:
        with Printing(writer, 0.001) as printing:
            jobs.wait_for_lines(WORKFLOW, JOB, 10)
            proxy.refuse()
            proxy.cut()
            for number in range(10):
                # The agent looks for another file every 50 ms, later on a busy machine.
                printing.wait_for(printing.count + 100)
                rotate(writer, max_files=4, now=1_772_532_005 + number)
        api.apply(ended(one, 1))
        proxy.heal()
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert jobs.texts(WORKFLOW, JOB) == texts(printing.count)
    assert (job["status"], job["lines"]) == ("FAILED", printing.count)


def test_a_full_disk_of_checkpoints_loses_nothing(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """Earlier ones are kept, and what they lack is found by comparing."""
    node, one = agent(), pod("one")
    node.state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", node.state], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        writer = ContainerWriter(node.pods, one)
        api.apply(with_state(one, running={}))
        with Printing(writer) as printing:
            for _ in range(3):
                with node:
                    jobs.wait_for_lines(WORKFLOW, JOB, printing.count + 50)
                    fill(node.state / "rubbish")
                    jobs.wait_for_lines(WORKFLOW, JOB, printing.count + 50)
        api.apply(ended(one))
        with node:
            jobs.wait_for_end(WORKFLOW, JOB)
            assert "checkpoints cannot be written" in node.log.read_text()
    finally:
        node.kill()
        subprocess.run(["umount", node.state], check=True)

    assert jobs.texts(WORKFLOW, JOB) == texts(printing.count)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
