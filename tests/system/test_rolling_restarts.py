"""Two nodes behind the shipped nginx are restarted one after the other, while clients of all kinds use them.

One node is stopped as soon as the other is up again, while nginx still avoids the latter.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
import pytest

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.runner.http_log_writer import HttpLogWriter
from tests.support.jobs import read_lines
from tests.support.nginx import Nginx, nginx_for
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.support.viewers import ReconnectingViewers
from tests.support.waiting import deadline

#: The job that all viewers read: the README's.
JOB: Final = JobRef("demo", "job-1")
#: Jobs whose runners publish over HTTP.
JOBS: Final = (JOB, JobRef("demo", "job-2"), JobRef("demo", "job-3"))
VIEWERS: Final = 40
#: Intervals between two polls, and between two of a runner's lines, in seconds.
POLL_SECONDS: Final = 0.1
LINE_SECONDS: Final = 0.1
#: A runner's delay between attempts at a failed request, in seconds.
RETRY_SECONDS: Final = 0.1
#: Time limit of the whole trial, in seconds.
PATIENCE_SECONDS: Final = 90.0

pytestmark = pytest.mark.long

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Trial:
    """What all clients saw, and the store's contents."""

    #: nginx's access log, one object per request.
    requests: list[dict[str, str]]
    #: The polls' statuses.
    polls: Counter[int]
    #: Why runners' requests failed.
    runner_failures: list[str]
    viewers: ReconnectingViewers
    #: Messages of each job, as published by runners and as stored.
    published: dict[JobRef, list[str]]
    stored: dict[JobRef, list[str]]


class Runner:
    """Opens a job, then publishes it over HTTP, line by line, until ``stop`` is set."""

    def __init__(self, nginx: Nginx, token: str, job: JobRef, stop: threading.Event) -> None:
        self.job = job
        self.messages: list[str] = []
        self.failures: list[str] = []
        self._stop = stop
        self._writer = HttpLogWriter(nginx.url, token, ca_file=nginx.certificate)
        self._attempt = self._writer.open(job, secrets.token_hex(16))

    def run(self) -> None:
        """Publishes all lines, then the end."""
        while not self._stop.wait(LINE_SECONDS):
            number = len(self.messages) + 1
            line = Line(number, iso_timestamp(time.time()), f"line {number}", "stdout")
            self._insist(lambda line=line: self._writer.append(self._attempt, [line]))  # type: ignore[misc]
            self.messages.append(line.message)
        end = len(self.messages) + 1
        self._insist(lambda: self._writer.finish(self._attempt, Status.COMPLETED, 0, 0, end))
        self._writer.close()

    def _insist(self, request: Callable[[], _Result]) -> _Result:
        """Retries a request until it is answered, like a runner, and records each failure."""
        in_time = deadline(60, "a request is answered")
        while True:
            try:
                return request()
            except StoreUnavailable as error:
                self.failures.append(str(error))
                in_time()
                time.sleep(RETRY_SECONDS)


def poll(nginx: Nginx, token: str, stop: threading.Event, statuses: Counter[int]) -> None:
    """Requests a page of the log ten times a second."""
    with nginx.client(headers={"Authorization": f"Bearer {token}"}) as client:
        due = time.monotonic()
        while not stop.wait(max(due - time.monotonic(), 0)):
            due += POLL_SECONDS
            path = f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/logs?order=desc&limit=10"
            statuses[client.get(path).status_code] += 1


def restart_all(nodes: list[Service], may_begin: threading.Event, stop: threading.Event) -> None:
    """Restarts one node after the other, then sets ``stop``."""
    try:
        may_begin.wait(PATIENCE_SECONDS)
        for node in nodes:
            node.stop()
            node.start()
    finally:
        stop.set()


def try_out(nodes: list[Service], nginx: Nginx, server: RedisServer) -> Trial:
    """Runs all clients, and restarts the nodes meanwhile."""
    token, statuses = nodes[0].token(), Counter[int]()
    may_begin, stop = threading.Event(), threading.Event()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(stop.set)
        runners = [Runner(nginx, token, job, stop) for job in JOBS]
        tasks: list[Future[Any]] = [pool.submit(runner.run) for runner in runners]
        tasks.append(pool.submit(poll, nginx, token, stop, statuses))
        tasks.append(pool.submit(restart_all, nodes, may_begin, stop))
        path = f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/events"
        viewers = ReconnectingViewers(nginx, path, f"Authorization: Bearer {token}\r\n", VIEWERS)
        deadline = time.monotonic() + PATIENCE_SECONDS

        def is_hopeless() -> bool:
            """Whether to give up. Also starts the restarts once all clients are connected."""
            if viewers.connected == VIEWERS:
                may_begin.set()
            failed = any(task.done() and task.exception() for task in tasks)
            return failed or time.monotonic() > deadline

        viewers.run(is_hopeless)
        stop.set()
        may_begin.set()
        for task in tasks:
            task.result(PATIENCE_SECONDS)
        return Trial(
            requests=[orjson.loads(line) for line in nginx.access_log()],
            polls=statuses,
            runner_failures=[failure for runner in runners for failure in runner.failures],
            viewers=viewers,
            published={runner.job: runner.messages for runner in runners},
            stored={job: read_lines(server, job) for job in JOBS},
        )


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """The rolling restarts, once for all tests."""
    directory = tmp_path_factory.mktemp("rolling")
    with ExitStack() as stack:
        server = stack.enter_context(running(directory / "store"))
        nodes = []
        for name in ("first", "second"):
            (directory / name).mkdir()
            nodes.append(stack.enter_context(serving(directory / name, server.url, drain_seconds=1)))
        nginx = stack.enter_context(nginx_for(directory, *nodes))
        yield try_out(nodes, nginx, server)


def test_no_client_sees_a_server_error(trial: Trial) -> None:
    """Neither viewers, polls nor runners. nginx has sent requests to the other node while one was down."""
    failed = [each for each in trial.requests if each["status"] >= "500"]
    assert failed == []
    assert set(trial.polls) == {200}
    assert trial.runner_failures == []
    assert any(each["upstream_status"] == "502, 200" for each in trial.requests)
    # Every viewer had to reconnect at each restart of its node.
    assert trial.viewers.answers["200"] >= 2 * VIEWERS
    assert set(trial.viewers.answers) <= {"200", "204", "whole", "cut"}


def test_no_line_is_lost_or_duplicated(trial: Trial) -> None:
    """The store has everything that runners published, and each viewer received all numbers in order."""
    assert trial.stored == trial.published
    assert trial.viewers.errors == 0
    # The end has a number, too.
    assert {viewer.lines for viewer in trial.viewers.viewers} == {len(trial.published[JOB]) + 1}
