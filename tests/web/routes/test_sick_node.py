"""A Cluster with a node that accepts connections and does not answer. Jobs on other nodes must not be delayed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from tests.support.fleets import Cluster
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream

#: Time limit for a job on a healthy node, in seconds. Some milliseconds are normal, more on a busy machine. A command
#: to the sick node times out after five seconds.
MAX_DELAY_SECONDS: Final = 0.5
#: The same for requests to the scan server, and for one request to ``/readyz``. A process that is new to the Cluster
#: can ask the sick node first.
MAX_SCAN_DELAY_SECONDS: Final = 2.0
#: The number of requests to ``/readyz``, which pings any master. The first ping to the sick node waits for a second;
#: after that this node is asked last.
READY_REQUESTS: Final = 5
#: Lines per job.
LINES: Final = 600
#: How long clients request the sick node's jobs before the others are tested, in seconds. The tail reads the state of
#: each quiet job once per second, and waits for the answer.
SICK_SECONDS: Final = 1.2


@pytest.fixture(scope="module")
def service(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on the Cluster."""
    with serving(tmp_path_factory.mktemp("service"), cluster.url, heartbeat_seconds=1) as service:
        yield service


@pytest.mark.long
def test_an_unresponsive_node_does_not_delay_jobs_of_other_nodes(cluster: Cluster, service: Service) -> None:
    """Viewers, pages, searches and listings work as before, however many requests the sick node gets."""
    sick_number = next(each for each in cluster.masters() if each not in cluster.pair)
    nodes = {cluster.workflow(each): cluster.servers[each].url for each in (sick_number, cluster.pair[0])}
    sick, healthy = nodes
    jobs = [Foreign(url, workflow, f"job_{each}") for workflow, url in nodes.items() for each in (1, 2, 3)]
    for job in jobs:
        job.lines(["a line"] * LINES)
    headers = {"Authorization": f"Bearer {service.token()}"}
    paths = ("", "/job_1", "/job_1/logs?limit=10", "/job_2/logs?limit=10&stream=stdout", "/job_3/logs/search?q=none")
    opened: list[Stream] = []
    took: dict[str, float] = {}

    def get(workflow: str, path: str) -> None:
        httpx.get(f"{service.url}/workflows/{workflow}/jobs{path}", headers=headers, timeout=30, verify=False)

    def watch(job: Foreign) -> Stream:
        opened.append(Stream(service, f"{job.path}/events", headers))
        return opened[-1]

    def timed(what: str, work: Callable[..., Any], *args: Any) -> None:
        began = time.monotonic()
        work(*args)
        took[what] = time.monotonic() - began

    def seen(stream: Stream, job: Foreign) -> None:
        stream.wait_for(b"id: %d\n\n" % job.last)

    _, sick_2, sick_3, first, second, third = jobs
    live = [watch(job) for job in (jobs[0], first)][1]
    seen(live, first)
    asking = [threading.Thread(target=get, args=(sick, path)) for path in paths * 3]
    asking += [threading.Thread(target=watch, args=(job,)) for job in (sick_2, sick_3)]
    os.kill(cluster.servers[sick_number].pid, signal.SIGSTOP)
    try:
        for thread in asking:
            thread.start()
        time.sleep(SICK_SECONDS)
        for number in range(READY_REQUESTS):
            timed(
                f"GET /readyz {number}",
                lambda: httpx.get(f"{service.url}/readyz", timeout=5, verify=False).raise_for_status(),
            )
        for path in paths:
            timed(f"GET jobs{path}", get, healthy, path)
        for job in (second, third):
            stream = watch(job)
            timed(f"the replay of {job.job_id}", seen, stream, job)
            job.line("a new line")
            timed(f"a line of {job.job_id}", seen, stream, job)
        first.line("a new line")
        timed(f"a line of {first.job_id}", seen, live, first)
    finally:
        os.kill(cluster.servers[sick_number].pid, signal.SIGCONT)
        for thread in asking:
            thread.join()
        for stream in opened:
            stream.close()

    scans = {what: seconds for what, seconds in took.items() if "search" in what or "stream=" in what}
    assert len(scans) == 2
    assert {what: seconds for what, seconds in scans.items() if seconds > MAX_SCAN_DELAY_SECONDS} == {}
    late = {what: took[what] for what in took.keys() - scans if took[what] > MAX_DELAY_SECONDS}
    pings = [late.pop(what) for what in [*late] if "readyz" in what]
    assert late == {}
    assert len(pings) <= 1
    assert sum(pings) < MAX_SCAN_DELAY_SECONDS
