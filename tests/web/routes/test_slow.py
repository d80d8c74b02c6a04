"""slowhttptest against the service, directly and through nginx: slow heads, bodies and readers delay nobody."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.nginx import Nginx
from tests.support.service import Service
from tests.support.tools import tool
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint, Stream

#: The number of slow connections of each kind, for the service and for nginx, and their duration in seconds.
CONNECTIONS: Final = 100
ATTACK_SECONDS: Final = 4
#: The numbers of open and closed connections in slowhttptest's report, and its colour codes.
COUNTS: Final = re.compile(rb"(?:connected|closed):\s*([0-9]+)")
COLOURS: Final = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
#: Time limit of a line, in seconds. The machine also runs the attack.
LATE_SECONDS: Final = 5.0
#: Each is as slow as possible: one byte per second of a head or a body, or reading eight bytes per second.
KINDS: Final = {
    "head": ["-H", "-i", "1", "-x", "24"],
    "body": ["-B", "-i", "1", "-s", "8192", "-t", "POST"],
    "read": ["-X", "-w", "8", "-y", "16", "-n", "1", "-z", "8", "-k", "3"],
}


class Attack:
    """All kinds of attack at the same time. Each writes a report to one of ``outputs``."""

    def __init__(self, directory: Path) -> None:
        self.outputs: list[Path] = []
        self._directory = directory
        self._program = tool("slowhttptest")
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, endpoint: Endpoint) -> None:
        """Starts every kind against ``endpoint``."""
        bounds = ["-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-l", str(ATTACK_SECONDS), "-p", "3"]
        for kind, options in KINDS.items():
            command = [self._program, *bounds, *options, "-u", f"{endpoint.url}/openapi.json"]
            self.outputs.append(self._directory / f"{name}-{kind}")
            with self.outputs[-1].open("wb") as output:
                process = subprocess.Popen(command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=output)
            self._processes.append(process)

    @property
    def lasts(self) -> bool:
        """Whether any of them is still running."""
        return any(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def attack(service: Service, nginx: Nginx, tmp_path: Path) -> Iterator[Attack]:
    """An attack on the service, directly and through nginx."""
    attack = Attack(tmp_path)
    attack.start("direct", service)
    attack.start("nginx", nginx)
    yield attack
    attack.stop()


@pytest.mark.long
def test_slow_clients_delay_nobody(
    service: Service, nginx: Nginx, auth: dict[str, str], job: Foreign, attack: Attack
) -> None:
    """Viewers get each line in time, directly and through nginx, and the service answers."""
    job.line("first")
    endpoints: list[Endpoint] = [service, nginx]
    delays, answers = [], []
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(endpoint, f"{job.path}/events", auth)) for endpoint in endpoints]
        clients = [
            stack.enter_context(httpx.Client(base_url=endpoint.url, verify=endpoint.verify)) for endpoint in endpoints
        ]
        while attack.lasts:
            started = time.monotonic()
            number = job.line("x")
            for stream in streams:
                stream.wait_for(b"id: %d\n\n" % number)
            delays.append(time.monotonic() - started)
            answers += [client.get("/healthz", timeout=LATE_SECONDS).status_code for client in clients]
        job.end()
        for stream in streams:
            assert stream.wait_end().numbers() == list(range(1, job.last + 1))

    for output in attack.outputs:
        # Without a token a body is not read, so slow bodies are rejected immediately.
        # gunicorn's timeout of a head is also five seconds.
        there = sum(map(int, COUNTS.findall(COLOURS.sub(b"", output.read_bytes()))[-2:]))
        assert output.name == "direct-body" or there == CONNECTIONS, output
    assert len(delays) >= ATTACK_SECONDS
    assert max(delays) < LATE_SECONDS
    assert set(answers) == {200}
