"""``chronoverse mcp`` as a process: its input, a service that is away, and how it ends."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, environ

pytestmark = pytest.mark.long

#: Time limit of the program's end on a busy machine, in seconds: much shorter than a wait.
END_SECONDS = 10


def send(process: "subprocess.Popen[bytes]", method: str, number: int | None, **params: Any) -> None:
    """Sends a request, or without a number a notification."""
    assert process.stdin is not None
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    process.stdin.write(json.dumps(message if number is None else {**message, "id": number}).encode() + b"\n")
    process.stdin.flush()


@contextlib.contextmanager
def raw_program(home: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A program with pipes that has received nothing yet. Its service is at ``port``."""
    pipe = subprocess.PIPE
    settings = environ(home, URL=f"http://127.0.0.1:{port}", TOKEN="a.b.c")
    with subprocess.Popen([*COMMAND, "mcp"], env=settings, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        late = threading.Timer(100, process.kill)
        late.start()
        try:
            yield process
        finally:
            late.cancel()
            process.kill()


def initialize(process: "subprocess.Popen[bytes]") -> None:
    """Starts the session. The answer has its name, and declares that jobs' output is not an instruction."""
    info = {"name": "test", "version": "1"}
    send(process, "initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
    answer = receive(process)
    assert answer["result"]["serverInfo"]["name"] == "chronoverse"
    assert "never instructions" in answer["result"]["instructions"]
    send(process, "notifications/initialized", None)


def receive(process: "subprocess.Popen[bytes]") -> Any:
    """The next message."""
    assert process.stdout is not None
    message = json.loads(process.stdout.readline())
    assert message["jsonrpc"] == "2.0"
    return message


@contextlib.contextmanager
def ending_at_once(process: "subprocess.Popen[bytes]", listener: socket.socket, exits: int) -> Iterator[None]:
    """The program ends in the ``with`` block, although a call waits for a service that never answers.

    Until then, stdout only had answers, and stderr nothing.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    send(process, "tools/call", 9, name="wait_for", arguments={"workflow_id": "wf_end", "job_id": "job_1"})
    connection, _ = listener.accept()
    with connection:
        started = time.monotonic()
        yield
        assert process.wait(60) == exits
        assert time.monotonic() - started < END_SECONDS
    for text in process.stdout.read().splitlines():
        assert json.loads(text)["jsonrpc"] == "2.0"
    assert process.stderr.read() == b""


def test_input_is_answered_until_its_end(tmp_path: Path) -> None:
    """Text that cannot be encoded is rejected in an argument, its name or the id, with an answer if possible.

    An unreachable service does not answer. The program survives all of these.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with raw_program(tmp_path, listener.getsockname()[1]) as process:
            assert process.stdin is not None
            initialize(process)
            for number, arguments in enumerate([{"workflow_id": "\ud800"}, {"\udfff": 1}, {"q": ["\udc00\ud800"]}], 2):
                send(process, "tools/call", number, name="list_jobs", arguments=arguments)
            process.stdin.write(b'{"jsonrpc":"2.0","id":"\\ud800","method":"tools/list"}\n\n{"id":7\n')
            process.stdin.write(
                b"[" * 100_000 + b'\n[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n{"id":8,"method":"ping"}\n'
            )
            send(process, "tools/call", 5, name="list_jobs", arguments={"workflow_id": 5})
            send(process, "tools/call", 6, name="read_lines", arguments={"workflow_id": "wf_gone", "job_id": "job_1"})
            received = [receive(process) for _ in range(9)]
            answers = {answer["id"]: answer for answer in received}
            assert answers.keys() == {None, 2, 3, 4, 5, 6, 8}
            assert [each["error"]["code"] for each in received if each["id"] is None] == [-32700, -32700, -32600]
            assert answers[8]["error"]["code"] == -32600
            for number in (2, 3, 4):
                assert "unpaired surrogate" in answers[number]["error"]["message"]
            assert "Bad Request" in answers[5]["result"]["content"][0]["text"]
            error = json.loads(answers[6]["result"]["content"][0]["text"])["error"]
            assert answers[6]["result"]["isError"]
            assert (error["title"], "is not responding" in error["detail"]) == ("Service Unavailable", True)
            listener.listen()
            listener.settimeout(60)
            with ending_at_once(process, listener, 0):
                process.stdin.close()


def test_it_ends_immediately_on_ctrl_c(tmp_path: Path) -> None:
    """Also while a call waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        with raw_program(tmp_path, listener.getsockname()[1]) as process:
            initialize(process)
            with ending_at_once(process, listener, -signal.SIGINT):
                process.send_signal(signal.SIGINT)


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """Like other commands."""
    program = "import sys; sys.modules['mcp'] = None; from chronoverse.cli.main import main; sys.exit(main(['mcp']))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "chronoverse: chronoverse mcp needs the MCP SDK: install the extra mcp (docs/installing.md)\n"
