"""One viewer replays a whole log through ``/events``: how fast, whether it is every byte, what the worker takes."""

import contextlib
import hashlib
import http.client
import re
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import psutil

from chronoverse.joblog.values import JobRef
from tests.support.service import Service

#: Bytes of one read of the socket.
READ_BYTES: Final = 2**20
#: Seconds that nothing may come for.
PATIENCE_SECONDS: Final = 30.0
#: Seconds between two looks at the worker's memory.
LOOK_SECONDS: Final = 0.05
#: A line's frame: what is the same each time that the line is printed; and what other frames are called.
_LINE: Final = re.compile(rb'event: log\ndata: \{"timestamp":"[0-9T:.Z-]{24}",([^\n]*\nid: \d+\n)\n')
_EVENT: Final = re.compile(rb"(?m)^event: (\w+)$")


class Replayed(NamedTuple):
    """Seconds that it took, and the worker's memory in bytes: before it, and the least and most during it."""

    seconds: float
    before: int
    least: int
    most: int


class Memory(threading.Thread):
    """A process's resident memory over time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.seen = [self._process.memory_info().rss]

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(LOOK_SECONDS):
            self.seen.append(self._process.memory_info().rss)

    def stop(self) -> list[int]:
        """What was seen."""
        self._over.set()
        self.join()
        return self.seen


def digest(messages: Iterator[bytes]) -> str:
    """Of a log's frames but for their times, when it says ``messages`` on stdout, which JSON spells as they are."""
    found = hashlib.sha256()
    for number, message in enumerate(messages, 1):
        found.update(b'"message":"%b","sequence_num":%d,"stream":"stdout"}\nid: %d\n' % (message, number, number))
    return found.hexdigest()


def replay(service: Service, job: JobRef, expected: str) -> Replayed:
    """All of it, from before the first line to the end; its lines must have the digest ``expected``."""
    (pid,) = service.worker_pids()
    memory = Memory(pid)
    connection = http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        memory.start()
        began = time.monotonic()
        path = f"/workflows/{job.workflow_id}/jobs/{job.job_id}/events"
        connection.request("GET", path, headers={"Authorization": f"Bearer {service.token()}"})
        found, rest, others = hashlib.sha256(), b"", b""
        answer = connection.getresponse()
        while body := answer.read1(READ_BYTES):
            rest += body
            cut = rest.rfind(b"\n\n")
            cut = 0 if cut < 0 else cut + 2
            parts = _LINE.split(rest[:cut])
            found.update(b"".join(parts[1::2]))
            others += b"".join(parts[::2])
            rest = rest[cut:]
        seconds = time.monotonic() - began
    seen = memory.stop()
    assert _EVENT.findall(others) == [b"connected", b"job", b"job", b"end"], others
    assert found.hexdigest() == expected, "not all lines are as they were printed"
    return Replayed(seconds, seen[0], min(seen), max(seen))
