"""A client that learns of a workflow's jobs only through events."""

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from chronoverse.client.follower import JobChange, Reset, WorkflowEvent, WorkflowFollower


class Client(threading.Thread):
    """Learns of a workflow's jobs only through events, over connections cut at any point. ``token`` creates a token."""

    #: Average duration of a connection in seconds.
    connected_seconds = 1.4

    def __init__(self, host: str, port: int, token: Callable[[], str], workflow: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.known: dict[str, Any] = {}
        self.resets = 0
        self.connections = 0
        self.problems: list[str] = []
        self._address, self._token = (host, port), token
        self._path = f"/workflows/{workflow}/events?jobs=1000"
        self._random = random.Random(seed)
        self._follower = WorkflowFollower()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._connect()
            self._stopped.wait(0.05)

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)

    def _connect(self) -> None:
        headers, last = {"Authorization": f"Bearer {self._token()}"}, self._follower.last_number
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        connection = http.client.HTTPConnection(*self._address, timeout=5 + self.connected_seconds)
        ends_at = time.monotonic() + self._random.expovariate(1 / self.connected_seconds)
        with contextlib.closing(connection):
            connection.request("GET", self._path, headers=headers)
            response = connection.getresponse()
            if response.status not in (200, 503):
                self.problems.append(f"{response.status} {response.read()!r}")
                return
            self.connections += 1
            self._follower.start_connection(None)
            while not self._stopped.is_set() and time.monotonic() < ends_at and (chunk := response.read1(65_536)):
                is_cut = self._random.random() < 0.1
                self.resets += b"event: reset" in chunk
                for event in self._follower.feed(chunk[: self._random.randrange(len(chunk)) if is_cut else None]):
                    self._take(event)
                if is_cut:
                    return

    def _take(self, event: WorkflowEvent) -> None:
        match event:
            case JobChange(status="DELETED"):
                self.known.pop(event.job_id, None)
            case JobChange():
                self.known[event.job_id] = event.job
            case Reset():
                self.known.clear()


def said(job: dict[str, Any]) -> list[Any]:
    return [job.get(name) for name in ("id", "status", "attempt", "exit_code", "labels")]
