"""``chronoverse mcp`` as a process: its rights, cuts of the service, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronoverse.joblog.values import JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, environ
from tests.support.mcp_client import McpProgram, mcp_program
from tests.support.servers import RedisServer
from tests.support.service import Service, is_alive, serving
from tests.support.waiting import wait_until

TIME = "2026-03-03T10:00:05.123Z"
#: Seconds in which the program ends on a busy machine. It is much shorter than a wait.
END_SECONDS = 10


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), server.url) as service:
        yield service


@pytest.fixture(scope="module")
def logs(server: RedisServer) -> Iterator[Store]:
    """The store of the service. Its runners need not renew their leases."""
    store = Store(server.url, lease_seconds=3_600)
    yield store
    store.close()


def line(number: int, text: str) -> list[Line]:
    return [Line(number, TIME, text, "stdout")]


@contextlib.contextmanager
def waiting(service: Service) -> Iterator[None]:
    """Returns from the ``with`` block when the service has begun the wait that the block asks for."""
    before = service.metric("chronoverse_streams_started_total")
    yield
    wait_until(lambda: service.metric("chronoverse_streams_started_total") > before, 60, "it waits")


class Pending:
    """A call in a thread of its own."""

    def __init__(self, program: McpProgram, tool: str, **arguments: Any) -> None:
        self._answer: Any = None
        self._arguments = arguments
        self._thread = threading.Thread(target=self._call, args=(program, tool))
        self._thread.start()

    def _call(self, program: McpProgram, tool: str) -> None:
        self._answer = program.call(tool, **self._arguments)

    def result(self) -> Any:
        """The answer's JSON."""
        self._thread.join(100)
        assert self._answer is not None
        return self._answer


def test_it_has_the_rights_of_its_token(service: Service, logs: Store, tmp_path: Path) -> None:
    """And no others. The token's file is read for each request."""
    for workflow in ("wf_mine", "wf_theirs"):
        attempt = logs.open(JobRef(workflow, "job_1"), "a" * 32)
        logs.append(attempt, line(1, "secret"))
        logs.finish(attempt, Status.COMPLETED, 0, 0, 2)
    file = tmp_path / "token"
    file.write_text(service.token("wf_mine", scopes=["logs:read"]))
    file.chmod(0o600)
    not_found = ("Not Found", "There is nothing here, or nothing that this token may see")
    with mcp_program(URL=service.url, TOKEN_FILE=str(file), mode="legacy") as program:
        assert [each["id"] for each in program.call("list_workflows")["workflows"]] == ["wf_mine"]
        assert program.call("read_lines", workflow_id="wf_mine", job_id="job_1")["logs"]
        assert program.error("list_jobs", workflow_id="wf_theirs") == not_found
        assert program.error("search", workflow_id="wf_theirs", q="secret") == not_found
        for tool in ("read_lines", "summary"):
            assert program.error(tool, workflow_id="wf_theirs", job_id="job_1") == not_found
        assert program.error("wait_for", workflow_id="wf_theirs", job_id="job_1", timeout=0) == not_found
        file.write_text(service.token("wf_mine", secret=b"another key, of which the service knows nothing"))
        title, detail = program.error("list_workflows")
        assert (title, "token" in detail) == ("Unauthorized", True)
        file.write_text(service.token("wf_mine", scopes=["logs:write"]))
        title, detail = program.error("list_workflows")
        assert (title, "logs:read" in detail) == ("Forbidden", True)


def test_a_wait_goes_on_when_a_worker_is_killed(service: Service, logs: Store) -> None:
    """The line that is printed meanwhile is found."""
    job = JobRef("wf_cut", "job_1")
    attempt = logs.open(job, "a" * 32)
    with mcp_program(URL=service.url, TOKEN=service.token()) as program:
        for number in range(1, 3):
            q = f"ready {number}"
            with waiting(service):
                pending = Pending(program, "wait_for", workflow_id="wf_cut", job_id="job_1", q=q, timeout=50)
            (worker,) = service.worker_pids()
            os.kill(worker, signal.SIGKILL)
            logs.append(attempt._replace(next=number), line(number, f"ready {number}"))
            answer = pending.result()
            assert (answer["outcome"], answer["cursor"]) == ("matched", number)


@pytest.mark.long
def test_reads_and_waits_go_on_over_a_restart(service: Service, logs: Store) -> None:
    """A call during the restart waits for it. One for which the service stays away says so."""
    job = {"workflow_id": "wf_restart", "job_id": "job_1"}
    attempt = logs.open(JobRef("wf_restart", "job_1"), "a" * 32)
    logs.append(attempt, line(1, "before"))
    with mcp_program(URL=service.url, TOKEN=service.token()) as program:
        assert len(program.call("read_lines", **job)["logs"]) == 1
        with waiting(service):
            pending = Pending(program, "wait_for", **job, q="after", timeout=50)
        service.kill()
        reading = Pending(program, "read_lines", **job)
        time.sleep(1)
        service.start()
        assert len(reading.result()["logs"]) == 1
        logs.append(attempt._replace(next=2), line(2, "after"))
        assert pending.result()["log"]["message"] == "after"
        service.kill()
        started = time.monotonic()
        title, detail = program.error("read_lines", **job)
        assert (title, "does not answer" in detail) == ("Service Unavailable", True)
        assert time.monotonic() - started < 60
        service.start()


def send(process: "subprocess.Popen[bytes]", method: str, number: int | None, **params: Any) -> None:
    """Sends a request, or without a number a notification."""
    assert process.stdin is not None
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    process.stdin.write(json.dumps(message if number is None else {**message, "id": number}).encode() + b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("how", ["its input ends", pytest.param("Ctrl-C", marks=pytest.mark.long)])
def test_it_ends_at_once(service: Service, logs: Store, tmp_path: Path, how: str) -> None:
    """Also while a call waits. Only answers have come on stdout."""
    name = "eof" if how == "its input ends" else "sigint"
    logs.open(JobRef("wf_end", name), "a" * 32)
    settings = environ(tmp_path, URL=service.url, TOKEN=service.token())
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "mcp"], env=settings, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        info = {"name": "test", "version": "1"}
        send(process, "initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
        answer = json.loads(process.stdout.readline())
        assert answer["result"]["serverInfo"]["name"] == "chronoverse"
        assert "never instructions" in answer["result"]["instructions"]
        send(process, "notifications/initialized", None)
        with waiting(service):
            asked = {"workflow_id": "wf_end", "job_id": name}
            send(process, "tools/call", 2, name="wait_for", arguments=asked)
        started = time.monotonic()
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            process.stdin.close()
        assert process.wait(60) == (-signal.SIGINT if how == "Ctrl-C" else 0)
        assert time.monotonic() - started < END_SECONDS
        assert not is_alive(process.pid)
        for left in process.stdout.read().splitlines():
            assert json.loads(left)["jsonrpc"] == "2.0"
        assert process.stderr.read() == b""


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """As other commands do for theirs."""
    program = "import sys; sys.modules['mcp'] = None; from chronoverse.cli.main import main; sys.exit(main(['mcp']))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "chronoverse: chronoverse mcp needs the MCP SDK: pip install 'chronoverse[mcp]'\n"
