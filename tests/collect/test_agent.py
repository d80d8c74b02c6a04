"""An agent with a real service: pods become jobs, with their lines, labels and outcomes."""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest

from chronoverse.collect import agent as collecting
from chronoverse.collect.container_log import RunKey
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.joblog.model import Line
from tests.collect.apiserver import ApiServer
from tests.collect.node import SOON, Agent, ContainerWriter, Jobs, cri_line, ended, pod, rotate, texts, with_state
from tests.support.commands import call_main
from tests.support.faultproxy import FaultProxy
from tests.support.ports import free_port
from tests.support.secret_keys import GITHUB
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until

Agents = Callable[..., Agent]
ONE: Final = pod("one")
RUNNING: Final = with_state(ONE, running={})
LOST: Final = ContainerEnd(None, "")
FAILED: Final = ContainerEnd(3, "Error")


def test_a_pod_becomes_a_job_that_ends_like_its_container(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """Partial lines are joined per stream, times are those of the lines, and the end comes last."""
    name, job_id = "nightly-28000000-x7k2p", "nightly-28000000-x7k2p.main"
    with agent() as node:
        one = pod(name, owner=("Job", "nightly-28000000"))
        writer = ContainerWriter(node.pods, one)
        api.apply(with_state(one, running={}))
        at = 1_772_532_005.123456789
        writer.write(cri_line("one", at=at), cri_line("beg", tag="P", at=at + 1), cri_line("oops", "stderr", at=at + 2))
        jobs.wait_for_lines("shop.nightly", job_id, 2)
        writer.write(cri_line("in", tag="P", at=at + 3), cri_line("ning", tag="F", at=at + 4), cri_line("", at=at + 5))
        api.apply(ended(one, 3, "OOMKilled"))
        job = jobs.wait_for_end("shop.nightly", job_id)

    assert (job["status"], job["exit_code"], job["lines"], job["dropped"]) == ("FAILED", 3, 4, 0)
    labels = {"namespace": "shop", "pod": name, "container": "main", "node": "node-1", "reason": "OOMKilled"}
    assert job["labels"] == {**labels, "image": "registry.example.com/app:1"}
    assert jobs.entries("shop.nightly", job_id) == [
        Line(1, "2026-03-03T10:00:05.123Z", "one", "stdout"),
        Line(2, "2026-03-03T10:00:07.123Z", "oops", "stderr"),
        Line(3, "2026-03-03T10:00:09.123Z", "beginning", "stdout"),
        Line(4, "2026-03-03T10:00:10.123Z", "", "stdout"),
    ]


def test_each_restart_is_a_job_and_other_pods_are_ignored(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """Lines from before the agent's start, and of rotated and compressed files, come first."""
    node = agent("--namespace", "shop", "--label", "team")
    one = pod("one", labels={"team": "a"}, spec={"restartPolicy": "OnFailure"})
    ContainerWriter(node.pods, one).print("oldest")
    first = ContainerWriter(node.pods, one, restart=1)
    for number in range(3):
        first.print(f"line {number}")
        rotate(first, now=1_772_532_005 + number)
    first.print("line 3")
    second = ContainerWriter(node.pods, one, restart=2)
    second.print("again")
    last = {"exitCode": 1, "reason": "Error"}
    api.apply(with_state(one, restarts=2, running={}, last=last))
    web, foreign = pod("web", spec={"restartPolicy": "Always"}), pod("foreign", namespace="other")
    for each in (web, foreign, pod("two", spec={"nodeName": "node-2"})):
        ContainerWriter(node.pods, each).print("not ours")
        api.apply(ended(each))
    with node:
        oldest = jobs.wait_for_end("shop.one", "one.main")
        failed = jobs.wait_for_end("shop.one", "one.main.1")
        second.print("still")
        api.apply(ended(one, restarts=2))
        done = jobs.wait_for_end("shop.one", "one.main.2")

    assert oldest["status"] == "LOST"  # a pod's status has two runs
    assert (failed["status"], failed["exit_code"], failed["labels"]["team"]) == ("FAILED", 1, "a")
    assert (done["status"], done["exit_code"]) == ("COMPLETED", 0)
    assert jobs.texts("shop.one", "one.main") == ["oldest"]
    assert jobs.texts("shop.one", "one.main.1") == ["line 0", "line 1", "line 2", "line 3"]
    assert jobs.texts("shop.one", "one.main.2") == ["again", "still"]
    assert [each["id"] for each in jobs.client.read("/workflows")["workflows"]] == ["shop.one"]


def test_a_container_that_never_starts_has_a_line_with_the_reason(agent: Agents, api: ApiServer, jobs: Jobs) -> None:
    """The pod failed, or was deleted while waiting."""
    with agent():
        evicted = pod("evicted", phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
        stuck = with_state(pod("stuck"), waiting={"reason": "ImagePullBackOff", "message": 'Back-off pulling "x"'})
        broken = ended(pod("broken"), 128, "StartError")
        broken["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "no such file"
        for each in (evicted, stuck, broken):
            api.apply(each)
        assert jobs.wait_for_end("shop.evicted", "evicted.main")["labels"]["reason"] == "Evicted"
        assert jobs.wait_for_end("shop.broken", "broken.main")["exit_code"] == 128
        api.delete(stuck)
        job = jobs.wait_for_end("shop.stuck", "stuck.main")

    assert (job["status"], job["exit_code"], job["labels"]["reason"]) == ("FAILED", None, "ImagePullBackOff")
    (line,) = jobs.entries("shop.stuck", "stuck.main")
    assert isinstance(line, Line)
    assert (line.stream, line.message) == ("stderr", 'ImagePullBackOff: Back-off pulling "x"')
    assert jobs.texts("shop.evicted", "evicted.main") == ["Evicted: The node was low on resource: memory."]
    assert jobs.texts("shop.broken", "broken.main") == ["StartError: no such file"]


@pytest.mark.parametrize(
    ("known", "is_synced", "end"),
    [
        (None, False, None),
        (None, True, LOST),
        (Pod(RUNNING), True, None),
        (Pod(RUNNING, is_gone=True), False, None),
        (Pod(RUNNING, is_gone=True), True, LOST),
        (Pod(ended(ONE, 3), is_gone=True), True, FAILED),
        (Pod(with_state(ONE, restarts=1, running={}, last={"exitCode": 3, "reason": "Error"})), True, FAILED),
        (Pod(with_state(ONE, restarts=1, running={})), True, None),
        (Pod(with_state(ONE, restarts=2, running={})), True, LOST),
    ],
)
def test_how_a_run_is_known_to_have_ended(known: Pod | None, is_synced: bool, end: ContainerEnd | None) -> None:
    """Nothing follows from a pod that is missing before the first listing. Its log is kept until it has ended."""
    key = RunKey("uid-one", "main", 0)
    log: Any = SimpleNamespace(key=key, failure=None, end=None)
    watcher: Any = SimpleNamespace(pods={key.uid: known} if known else {}, is_synced=is_synced)
    around: Any = SimpleNamespace(checkpoints={str(key): {}}, say=print)
    agent = collecting.Agent(Path("/none"), watcher, around, threading.Event())
    agent._logs[key] = log
    agent._look()
    assert (log.end, agent._logs, {*around.checkpoints}) == (end, {key: log}, {str(key)})
    agent._logs[key] = None
    agent._look()
    kept = bool(known and not known.is_gone) or not is_synced
    assert ({*agent._logs}, bool(around.checkpoints)) == ({key} if kept else set(), kept)


def test_health_and_lag_are_shown(
    agent: Agents, api: ApiServer, jobs: Jobs, service: Service, proxy: FaultProxy
) -> None:
    """While the service is unavailable, each container's lag grows. Without the API server, publishing continues."""
    port = free_port()

    def lag(unit: str) -> float:
        name = f'chronoverse_collect_lag_{unit}{{container="main",namespace="shop",pod="one"}}'
        found = re.search(rf"{re.escape(name)} (\S+)", httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        assert found
        return float(found[1])

    with agent("--metrics", f"127.0.0.1:{port}", url=proxy.http_url) as node:
        one = pod("one")
        writer = ContainerWriter(node.pods, one)
        api.apply(with_state(one, running={}))
        began = time.monotonic()
        writer.print("first")
        jobs.wait_for_lines("shop.one", "one.main", 1)
        api.refuses = 503
        proxy.refuse()
        proxy.cut()
        writer.print("x" * 1_000)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        wait_until(lambda: lag("bytes") > 1_000, SOON, "lag")
        wait_until(lambda: lag("seconds") > 0, SOON, "lag")
        assert lag("seconds") <= time.monotonic() - began + 1
        proxy.heal()
        wait_until(lambda: lag("bytes") == 0, SOON, "no lag")
        api.refuses = None
        api.apply(ended(one))
        jobs.wait_for_end("shop.one", "one.main")
    assert jobs.texts("shop.one", "one.main") == ["first", "x" * 1_000]


@pytest.mark.long
def test_an_agent_can_publish_directly_to_the_store(
    agent: Agents, api: ApiServer, jobs: Jobs, redis_server: RedisServer
) -> None:
    """Even after losing its state: it then reads the end of the log there. It masks secrets before storing."""
    node, one = agent(store=redis_server.url), pod("one")
    writer = ContainerWriter(node.pods, one)
    api.apply(with_state(one, running={}))
    writer.print(*texts(300), f"token {GITHUB}")
    with node:
        jobs.wait_for_lines("shop.one", "one.main", 301)
        node.stop()
    shutil.rmtree(node.state)
    writer.print(*texts(400, 300))
    api.apply(ended(one, 2))
    with node:
        job = jobs.wait_for_end("shop.one", "one.main")

    assert (job["exit_code"], job["labels"]["reason"]) == (2, "Error")
    assert jobs.texts("shop.one", "one.main") == [*texts(300), "token [masked]", *texts(400, 300)]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ([f"l{number}" for number in range(10)], "--label can be given at most 9 times"),
        (["App"], "invalid label 'App'"),
    ],
)
def test_labels_that_a_job_cannot_have_are_rejected(tmp_path: Path, keys: list[str], problem: str) -> None:
    """Otherwise some would be missing, such as the agent's own reason of an end."""
    options = ["--node", "n", "--state", str(tmp_path), *(f"--label={key}" for key in keys)]
    done = call_main("collect", "kubernetes", *options, environ={})
    assert (done.returncode, problem in done.stderr) == (os.EX_USAGE, True)
