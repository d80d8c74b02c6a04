"""``chronoverse mcp`` as a process: cuts of the service, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chronoverse.joblog.model import JobRef, Line
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, environ
from tests.cli.mcp_client import McpProgram, mcp_program
from tests.support.ports import free_port
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

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


@pytest.mark.long
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
    gone = f"http://127.0.0.1:{free_port()}"
    with (
        mcp_program(URL=gone, TOKEN=service.token()) as lonely,
        mcp_program(URL=service.url, TOKEN=service.token()) as program,
        ThreadPoolExecutor(1) as pool,
    ):
        refused = pool.submit(lonely.error, "read_lines", **job)
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
        title, detail = refused.result(60)
        assert (title, "does not answer" in detail) == ("Service Unavailable", True)


def send(process: "subprocess.Popen[bytes]", method: str, number: int | None, **params: Any) -> None:
    """Sends a request, or without a number a notification."""
    assert process.stdin is not None
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    process.stdin.write(json.dumps(message if number is None else {**message, "id": number}).encode() + b"\n")
    process.stdin.flush()


def test_a_text_that_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    """In an argument, its name or the id, with an answer if that is possible. The program goes on."""
    pipe = subprocess.PIPE
    settings = environ(tmp_path, URL="http://127.0.0.1:9", TOKEN="a.b.c")
    with subprocess.Popen([*COMMAND, "mcp"], env=settings, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        info = {"name": "test", "version": "1"}
        send(process, "initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
        send(process, "notifications/initialized", None)
        for number, arguments in enumerate([{"workflow_id": "\ud800"}, {"\udfff": 1}, {"q": ["\udc00\ud800"]}], 2):
            send(process, "tools/call", number, name="list_jobs", arguments=arguments)
        process.stdin.write(b'{"jsonrpc":"2.0","id":"\\ud800","method":"tools/list"}\n{"id":7\n')
        send(process, "tools/call", 5, name="list_jobs", arguments={"workflow_id": 5})
        late = threading.Timer(60, process.kill)
        late.start()
        answers: dict[int, Any] = {}
        while len(answers) < 5 and (text := process.stdout.readline()):
            answer = json.loads(text)
            answers[answer["id"]] = answer
        late.cancel()
        process.stdin.close()
    assert sorted(answers) == [1, 2, 3, 4, 5]
    for number in (2, 3, 4):
        assert "half of a surrogate pair" in answers[number]["error"]["message"]
    assert "Bad Request" in answers[5]["result"]["content"][0]["text"]


@pytest.mark.parametrize("how", ["its input ends", pytest.param("Ctrl-C", marks=pytest.mark.long)])
def test_it_ends_at_once(tmp_path: Path, how: str) -> None:
    """Also while a call waits, here for a service that never answers. Only answers have come on stdout."""
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(60)
        settings = environ(tmp_path, URL=f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN="a.b.c")
        command = [*COMMAND, "mcp"]
        process = stack.enter_context(subprocess.Popen(command, env=settings, stdin=pipe, stdout=pipe, stderr=pipe))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        info = {"name": "test", "version": "1"}
        send(process, "initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
        answers = [json.loads(process.stdout.readline())]
        send(process, "notifications/initialized", None)
        send(process, "tools/call", 2, name="wait_for", arguments={"workflow_id": "wf_end", "job_id": "job_1"})
        connection, _ = listener.accept()
        with connection:
            started = time.monotonic()
            if how == "Ctrl-C":
                process.send_signal(signal.SIGINT)
            else:
                process.stdin.close()
            assert process.wait(60) == (-signal.SIGINT if how == "Ctrl-C" else 0)
            assert time.monotonic() - started < END_SECONDS
        out, err = process.stdout.read(), process.stderr.read()
    answers += [json.loads(text) for text in out.splitlines()]
    assert answers[0]["result"]["serverInfo"]["name"] == "chronoverse"
    assert "never instructions" in answers[0]["result"]["instructions"]
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)
    assert err == b""


@pytest.mark.long
def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """As other commands do for theirs."""
    program = "import sys; sys.modules['mcp'] = None; from chronoverse.cli.main import main; sys.exit(main(['mcp']))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "chronoverse: chronoverse mcp needs the MCP SDK: install the extra mcp (docs/installing.md)\n"
