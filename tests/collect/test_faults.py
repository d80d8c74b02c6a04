"""Faults of an agent and its dependencies: each line once, in order, or reported; each end once, after the lines."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson
import pytest

from chronoverse.joblog.model import Gap, JobRef
from chronoverse.runner.http_log_writer import HttpLogWriter
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
from tests.support.service import Service
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


@pytest.mark.long
def test_a_killed_agent_continues_where_it_stopped(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """Whatever it had sent or recorded."""
    node, one, writer = node_with_pod(agent(), api)
    with Printing(writer) as printing:
        for kill in range(5):
            with node:
                # An empty file is not rotated.
                printing.wait_for(1)
                jobs.wait_for_lines(WORKFLOW, JOB, printing.count + 100 * (kill % 3))
            rotate(writer, now=1_772_532_005 + kill)
    api.apply(ended(one, 7))
    with node:
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert (job["status"], job["exit_code"], job["lines"]) == ("FAILED", 7, printing.count)
    assert jobs.texts(WORKFLOW, JOB) == texts(printing.count)


def job_ids(jobs: Jobs) -> set[str]:
    return {each["id"] for each in jobs.client.read("/workflows/{}/jobs", WORKFLOW)["jobs"]}


def test_an_ended_job_is_not_changed_again(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """The agent is killed before recording the end, or has lost its state."""
    node, one = agent(), pod("one")
    writer = ContainerWriter(node.pods, one)
    writer.print(*texts(3))
    api.apply(ended(one))
    with node:
        jobs.wait_for_end(WORKFLOW, JOB)
    shutil.rmtree(node.state)
    with node:
        node.wait_for_state('"ended":true')
        two = pod("two")
        ContainerWriter(node.pods, two).print("other")
        api.apply(ended(two))
        jobs.wait_for_end("shop.two", "two.main")

    assert jobs.texts(WORKFLOW, JOB) == texts(3)
    assert job_ids(jobs) == {JOB}


@short_lease
@pytest.mark.long
@pytest.mark.parametrize("rotations", [0, 2], ids=["one file", "rotated"])
def test_an_agent_without_its_state_compares(agent: Agents, api: ApiServer, jobs: Jobs, rotations: int) -> None:
    """It waits for the previous agent's lease. Identical lines do not confuse it."""
    node, one, writer = node_with_pod(agent(), api)
    blank = [cri_line("", at=time.time() + 60)] * 150
    with node:
        writer.print(*texts(100))
        for number in range(rotations):
            rotate(writer, now=1_772_532_005 + number)
            writer.write(*blank)
        jobs.wait_for_lines(WORKFLOW, JOB, 100 + 150 * rotations)
    shutil.rmtree(node.state)
    writer.write(*blank)
    writer.print(*texts(200, 100))
    api.apply(ended(one))
    with node:
        node.wait_for_state('"next":')
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert job["status"] == "COMPLETED"
    assert jobs.texts(WORKFLOW, JOB) == [*texts(100), *[""] * (150 * (rotations + 1)), *texts(200, 100)]


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


def test_removed_lines_are_reported(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """All files that the agent knew are gone when it returns."""
    check_removed_lines(agent, api, jobs, has_state=True)


@short_lease
@pytest.mark.long
def test_removed_lines_are_reported_without_the_agents_state(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    check_removed_lines(agent, api, jobs, has_state=False)


def check_removed_lines(agent: Agents, api: ApiServer, jobs: Jobs, has_state: bool) -> None:
    node, one, writer = node_with_pod(agent(), api)
    with node:
        writer.print(*texts(3))
        jobs.wait_for_lines(WORKFLOW, JOB, 3)
        node.wait_for_state('"next":4')
    for number in range(3):
        writer.print(f"unseen {number}")
        rotate(writer, max_files=2, now=1_772_532_005 + number)
    writer.print("last")
    if not has_state:
        shutil.rmtree(node.state)
    api.apply(ended(one))
    with node:
        if not has_state:
            node.wait_for_state('"next":')
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert jobs.summary(WORKFLOW, JOB) == [*texts(3), Gap(4, 4, "missing"), "unseen 2", "last"]
    assert (job["status"], job["dropped"]) == ("COMPLETED", 0)


@short_lease
@pytest.mark.long
@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("is_running", [True, False])
def test_a_lost_job_is_continued_by_another(
    agent: Agents, api: ApiServer, jobs: Jobs, has_state: bool, is_running: bool
) -> None:
    """No agent ran for longer than the lease. The other job ends like the container, possibly without lines."""
    node, one, writer = node_with_pod(agent(), api)
    writer.print(*texts(3))
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 3)
        node.wait_for_state('"next":4')
    if is_running:
        writer.print(*texts(5, 3))
    assert jobs.wait_for_end(WORKFLOW, JOB)["status"] == "LOST"
    if not has_state:
        shutil.rmtree(node.state)
    with node:
        if is_running:
            jobs.wait_for_lines(WORKFLOW, f"{JOB}-from-4", 2)
            writer.print(*texts(6, 5))
        api.apply(ended(one, 3))
        job = jobs.wait_for_end(WORKFLOW, f"{JOB}-from-4")

    assert (job["status"], job["exit_code"], job["labels"]["continues"]) == ("FAILED", 3, JOB)
    assert jobs.texts(WORKFLOW, JOB) == texts(3)
    assert jobs.summary(WORKFLOW, f"{JOB}-from-4") == (texts(6, 3) if is_running else [])


@short_lease
@pytest.mark.long
def test_a_job_lost_before_its_first_line_is_continued(
    agent: Agents, api: ApiServer, jobs: Jobs, service: Service
) -> None:
    """The agent that continued another job was killed after opening this one."""
    node, one, writer = node_with_pod(agent(), api)
    writer.print(*texts(3))
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 3)
    with contextlib.closing(HttpLogWriter(service.url, service.token())) as other:
        other.open(JobRef(WORKFLOW, f"{JOB}-from-4"), "0" * 32)
    writer.print(*texts(5, 3))
    for job in (JOB, f"{JOB}-from-4"):
        assert jobs.wait_for_end(WORKFLOW, job)["status"] == "LOST"
    api.apply(ended(one))
    with node:
        jobs.wait_for_end(WORKFLOW, f"{JOB}-from-5")

    assert jobs.texts(WORKFLOW, f"{JOB}-from-5") == texts(5, 3)


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
        wait_until(lambda: len(job_ids(jobs)) > 1, SOON, "another job")
        (other,) = job_ids(jobs) - {JOB}
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


@short_lease
@pytest.mark.long
def test_a_stopped_agent_leaves_jobs_waiting(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """None of them is LOST, however long no agent runs."""
    node, one, writer = node_with_pod(agent(), api)
    writer.print(*texts(3))
    with node:
        jobs.wait_for_lines(WORKFLOW, JOB, 3)
        node.stop()
    # Longer than the lease.
    for _ in range(3):
        with pytest.raises(AssertionError):
            wait_until(lambda: jobs.job(WORKFLOW, JOB)["status"] != "RUNNING", 2.5, "the job does not run")
    writer.print(*texts(6, 3))
    with node:
        api.apply(ended(one))
        assert jobs.wait_for_end(WORKFLOW, JOB)["status"] == "COMPLETED"
    assert jobs.texts(WORKFLOW, JOB) == texts(6)


@pytest.mark.parametrize(
    ("started", "has_gap"),
    [
        pytest.param("2026-03-03T10:00:05Z", False, id="first"),
        pytest.param("2026-03-03T10:00:02Z", True, id="late"),
        pytest.param(None, True, id="unknown", marks=pytest.mark.long),
    ],
)
def test_lines_removed_before_the_first_scan_are_reported(
    agent: Agents, api: ApiServer, jobs: Jobs, started: str | None, has_gap: bool
) -> None:
    """A rotated log whose first line is later than its container's start may have lost lines."""
    node, one = agent(), pod("one")
    writer = ContainerWriter(node.pods, one)
    writer.write(cri_line("early", at=1_772_532_005.0))
    rotate(writer, now=1_772_532_006)
    writer.write(cri_line("last", at=1_772_532_007.0))
    done = {"exitCode": 0, "reason": "Completed", **({"startedAt": started} if started else {})}
    api.apply(with_state(one, terminated=done))
    with node:
        jobs.wait_for_end(WORKFLOW, JOB)

    gap = [Gap(1, 1, "missing")] if has_gap else []
    assert jobs.summary(WORKFLOW, JOB) == [*gap, "early", "last"]


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
    (checkpoint,) = node.state.glob("*.json")
    saved = orjson.loads(checkpoint.read_bytes())
    (first,) = writer.path.parent.glob("0.log.*")
    position = [first.stat().st_ino, first.read_bytes()[:64].hex(), 0, saved["position"][3]]
    checkpoint.write_bytes(orjson.dumps({**saved, "next": 1, "position": position}))
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
        wait_until(lambda: not [*node.state.glob("*.json")], SOON, "the checkpoint is gone")

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
