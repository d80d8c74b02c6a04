"""An agent without its state, service or files: each line once, in order; each end once, after the lines."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.collect.apiserver import ApiServer
from tests.collect.node import SOON, Agent, Jobs, cri_line, ended, node_with_pod, rotate, texts
from tests.support.faultproxy import FaultProxy
from tests.support.secret_keys import GITHUB
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

Agents = Callable[..., Agent]
#: Anyone who reads a job whose lease has expired makes it LOST: these tests do not read while an agent waits for it.
short_lease = pytest.mark.parametrize("lease_seconds", [5], indirect=True, scope="session")
WORKFLOW: Final = "shop.one"
JOB: Final = "one.main"


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


@pytest.mark.long
def test_files_keep_what_the_service_rejects(agent: Agents, api: ApiServer, jobs: Jobs, proxy: FaultProxy) -> None:
    """Although they are rotated and removed meanwhile, and the container ends. Some lines were in two parts."""
    node, one, writer = node_with_pod(agent(url=proxy.http_url), api)
    lines = texts(700)
    with node:
        writer.print(*lines[:10])
        jobs.wait_for_lines(WORKFLOW, JOB, 10)
        proxy.refuse()
        proxy.cut()
        for start in range(10, 700, 115):
            for number, text in enumerate(lines[start : start + 115]):
                stream = ("stdout", "stderr")[number % 2]
                parts = (cri_line(text[:3], stream, "P"), cri_line(text[3:], stream))
                writer.write(*parts if number % 5 == 0 else (cri_line(text, stream),))
            wait_for_open(node, writer.path)
            rotate(writer, max_files=4, now=1_772_532_005 + start)
        api.apply(ended(one, 1))
        proxy.heal()
        job = jobs.wait_for_end(WORKFLOW, JOB)

    assert jobs.texts(WORKFLOW, JOB) == lines
    assert (job["status"], job["lines"]) == ("FAILED", 700)


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
