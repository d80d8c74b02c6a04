"""Viewers of the fault suite: each writes down all that it is told, over as many connections as it takes."""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

import httpx

from chronoverse.client.client import Client
from chronoverse.client.follower import JobState, name_gaps
from chronoverse.joblog.sse import Decoder, Event
from chronoverse.joblog.values import Gap, JobRef, Line
from tests.faults.oracle import GAP, JOB, LINE, Seen

#: Seconds of silence after which a connection is given up; heartbeats come every second.
SILENCE_SECONDS: Final = 10.0
#: Seconds before the next connection.
AGAIN_SECONDS: Final = 0.1
#: Seconds that a job may take to come.
WAIT_SECONDS: Final = 30
#: Bytes of one read.
READ_BYTES: Final = 65_536


class Watcher:
    """Follows a job from line 1 to its end in a thread: raw SSE with Last-Event-ID, so that nothing is tidied up."""

    def __init__(self, url: str, job: JobRef, token: str, verify: ssl.SSLContext | bool = False) -> None:
        self.url = url
        self.verify = verify
        self.job = job
        self.token = token
        self.seen: list[Seen] = []
        #: Texts of ``error`` frames, and what broke connections.
        self.troubles: list[str] = []
        self.connections = 0
        #: ``end`` or ``error`` once the log is at its end; ``204`` if only a reconnect said so.
        self.ending = ""
        self._place = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watcher of {job}", daemon=True)

    @property
    def lines(self) -> list[Seen]:
        """The lines it saw."""
        return [seen for seen in self.seen if seen.kind == LINE]

    @property
    def highest(self) -> int:
        """The number of the last line it saw; 0 before the first."""
        return next((seen.number for seen in reversed(self.seen) if seen.kind == LINE), 0)

    @property
    def states(self) -> list[dict[str, object]]:
        """The states of the job that it was told."""
        return [dict(seen.state) for seen in self.seen if seen.state is not None]

    def start(self) -> "Watcher":
        """Begins."""
        self._thread.start()
        return self

    def join(self, seconds: float) -> bool:
        """Waits for the log's end. Whether it came."""
        self._thread.join(seconds)
        return bool(self.ending) and not self._thread.is_alive()

    def leave(self) -> None:
        """Goes at the next thing it is told, a heartbeat at the latest."""
        self._stop.set()

    def stop(self) -> None:
        """Leaves, and waits for that."""
        self.leave()
        self._thread.join(SILENCE_SECONDS * 2)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.ending:
            self.connections += 1
            decoder = Decoder(self._place)
            try:
                self._connection(decoder)
            except (OSError, http.client.HTTPException) as error:
                self.troubles.append(repr(error))
            self._place = decoder.last_event_id
            if not self.ending:
                self._stop.wait(AGAIN_SECONDS)

    def _link(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if isinstance(self.verify, ssl.SSLContext):
            return http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=SILENCE_SECONDS, context=self.verify
            )
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SILENCE_SECONDS)

    @property
    def _path(self) -> str:
        return f"/workflows/{self.job.workflow_id}/jobs/{self.job.job_id}/events?wait={WAIT_SECONDS}"

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", **({"Last-Event-ID": self._place} if self._place else {})}

    def _connection(self, decoder: Decoder) -> None:
        link = self._link()
        try:
            link.request("GET", self._path, headers=self._headers)
            response = link.getresponse()
            if self._begins(response.status):
                while not self._over and (chunk := response.read1(READ_BYTES)):
                    self._take(decoder, chunk)
            else:
                self.troubles.append(f"{response.status} {response.read()!r}")
        finally:
            link.close()

    @property
    def _over(self) -> bool:
        return self._stop.is_set() or bool(self.ending)

    def _begins(self, status: int) -> bool:
        """Whether a body of events follows, or the end."""
        if status == 204:
            self.ending = "204"
        return status in (200, 204)

    def _take(self, decoder: Decoder, chunk: bytes) -> None:
        for event in decoder.feed(chunk):
            self._event(event)

    def _event(self, event: Event) -> None:
        if event.event == "log":
            line = Line.from_json(json.loads(event.data))
            assert event.id == str(line.sequence_num)
            self.seen.append(_seen(self.connections, line))
        elif event.event == "gap":
            gap = json.loads(event.data)
            self.seen.append(_seen(self.connections, Gap(gap["from"], gap["to"], gap["reason"])))
        elif event.event == "job":
            self.seen.append(Seen(self.connections, time.monotonic(), JOB, state=json.loads(event.data)))
        elif event.event == "end":
            self.ending = "end"
        elif event.event == "error":
            # Only the error that closes a lost job has an id of its own.
            self.troubles.append(event.data)
            self.ending = "error" if event.id != self._place else ""
        self._place = event.id


class Http2Watcher(Watcher):
    """The same over HTTP/2, as a browser behind nginx speaks. Trusts whom ``SSL_CERT_FILE`` names."""

    def _connection(self, decoder: Decoder) -> None:
        try:
            with (
                # A context of its own: it tells of HTTP/2 to whoever shares it.
                httpx.Client(http2=True, verify=ssl.create_default_context(), timeout=SILENCE_SECONDS) as client,
                client.stream("GET", self.url + self._path, headers=self._headers) as response,
            ):
                if self._begins(response.status_code):
                    assert response.http_version == "HTTP/2"
                    for chunk in response.iter_raw():
                        self._take(decoder, chunk)
                        if self._over:
                            break
                else:
                    self.troubles.append(f"{response.status_code} {response.read()!r}")
        except httpx.HTTPError as error:
            self.troubles.append(repr(error))


class ClientWatcher(Watcher):
    """The same by way of our own client, which trusts whom ``SSL_CERT_FILE`` names."""

    def _run(self) -> None:
        client = Client(self.url, self.token, heartbeat_seconds=SILENCE_SECONDS / 3)
        self.connections = 1
        for item in client.follow(self.job, wait=WAIT_SECONDS, stop=self._stop):
            if isinstance(item, Line | Gap):
                self.seen.append(_seen(1, item))
        self.ending = "" if self._stop.is_set() else "end"
        client.close()


def history(url: str, job: JobRef, token: str, *, named: bool = False) -> list[Seen]:
    """The log as its pages give it; with the numbers that they pass over ``named`` as gaps if asked for."""
    client = Client(url, token)
    state = JobState.from_json(client.job(job))
    lines = client.logs(job)
    items = [_seen(0, item) for item in (name_gaps(lines, 0, state) if named else lines)]
    client.close()
    return items


def silence(seen: list[Seen], since: float) -> float:
    """Seconds from ``since`` to the next line."""
    return min((each.at for each in seen if each.kind == LINE and each.at >= since), default=float("inf")) - since


def longest_silence(watchers: Sequence[Watcher], since: float) -> float:
    """The longest time, from ``since`` to each one's last line, in which a viewer saw none."""
    longest = 0.0
    for watcher in watchers:
        times = [each.at for each in watcher.lines if each.at >= since]
        longest = max([longest, *(later - earlier for earlier, later in pairwise([since, *times]))])
    return longest


def _seen(connection: int, item: Line | Gap) -> Seen:
    now = time.monotonic()
    if isinstance(item, Gap):
        return Seen(connection, now, GAP, item.first, item.last, item.reason)
    message = f"{item.stream}: {item.message}" if item.partial else item.message
    return Seen(connection, now, LINE, item.sequence_num, message=message, timestamp=item.timestamp)
