"""One viewer replays a whole log through ``/events``: the time, the comparison of every byte, the worker's memory."""

import contextlib
import hashlib
import http.client
import re
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import psutil

from chronoverse.joblog.model import JobRef
from tests.support.service import Service

#: Bytes of one read of the socket.
READ_BYTES: Final = 2**20
#: Seconds after which a silent stream is an error.
PATIENCE_SECONDS: Final = 30.0
#: Seconds between two measurements of the worker's memory.
MEASURE_SECONDS: Final = 0.05
#: The parts of a line's frame that do not depend on time, and the names of other events.
_LINE: Final = re.compile(rb'event: log\ndata: \{"timestamp":"[0-9T:.Z-]{24}",([^\n]*\nid: \d+\n)\n')
_EVENT: Final = re.compile(rb"(?m)^event: (\w+)$")


class Replayed(NamedTuple):
    """The seconds of a replay, and the worker's memory in bytes: before, and minimum and maximum during it."""

    seconds: float
    before: int
    least: int
    most: int


class Memory(threading.Thread):
    """Measures a process's resident memory over time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.seen = [self._process.memory_info().rss]

    def run(self) -> None:
        """Measures until it is stopped."""
        while not self._over.wait(MEASURE_SECONDS):
            self.seen.append(self._process.memory_info().rss)

    def stop(self) -> list[int]:
        """The minimum and the maximum."""
        self._over.set()
        self.join()
        return self.seen


def digest(messages: Iterator[bytes]) -> str:
    """The digest of a log's frames without their times. ``messages`` are on stdout and need no escapes in JSON."""
    found = hashlib.sha256()
    for number, message in enumerate(messages, 1):
        found.update(b'"message":"%b","sequence_num":%d,"stream":"stdout"}\nid: %d\n' % (message, number, number))
    return found.hexdigest()


def replay(service: Service, job: JobRef, expected: str) -> Replayed:
    """Reads the log from before the first line to its end. Its lines must have the digest ``expected``."""
    (pid,) = service.worker_pids()
    memory = Memory(pid)
    connection = http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        memory.start()
        began = time.monotonic()
        path = f"/workflows/{job.workflow_id}/jobs/{job.job_id}/events"
        connection.request("GET", path, headers={"Authorization": f"Bearer {service.token()}"})
        found, unread, others = hashlib.sha256(), b"", b""
        answer = connection.getresponse()
        while body := answer.read1(READ_BYTES):
            unread += body
            cut = unread.rfind(b"\n\n")
            cut = 0 if cut < 0 else cut + 2
            parts = _LINE.split(unread[:cut])
            found.update(b"".join(parts[1::2]))
            others += b"".join(parts[::2])
            unread = unread[cut:]
        seconds = time.monotonic() - began
    seen = memory.stop()
    assert _EVENT.findall(others) == [b"connected", b"job", b"job", b"end"], others
    assert found.hexdigest() == expected, "not all lines are as they were printed"
    return Replayed(seconds, seen[0], min(seen), max(seen))
