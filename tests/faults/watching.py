"""The fault suite's viewers. Each records everything it receives, and reconnects as often as needed."""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from chronoverse.client.client import Client
from chronoverse.client.follower import JobState, name_gaps
from chronoverse.joblog.model import Gap, JobRef, Line
from chronoverse.joblog.sse import Decoder
from chronoverse.joblog.sse import ServerSentEvent as Event
from tests.faults.oracle import GAP, JOB, LINE, Seen

#: Seconds without a byte until a watcher reconnects. Heartbeats come every second.
SILENCE_SECONDS: Final = 10.0
#: Delay before the next connection, in seconds.
RECONNECT_SECONDS: Final = 0.1
#: How long the service waits for a job that does not exist yet, in seconds.
WAIT_SECONDS: Final = 30
#: Timeout of a loop's wait in seconds: shorter than a pause of the job, so that some end without a line.
LOOP_WAIT_SECONDS: Final = 1
#: Maximum lines of every second answer of a loop.
LOOP_LINES: Final = 100
#: Bytes per read.
READ_BYTES: Final = 65_536


class Watcher:
    """Follows a job from line 1 to its end in a thread.

    It reads the raw event stream and sends Last-Event-ID, so that no client code can hide a fault of the service.
    """

    def __init__(self, url: str, job: JobRef, token: str, verify: ssl.SSLContext | bool = False) -> None:
        self.url = url
        self.verify = verify
        self.job = job
        self.token = token
        self.seen: list[Seen] = []
        #: Texts of ``error`` events, rejections, and connection errors.
        self.errors: list[str] = []
        self.connections = 0
        #: The event that ended the log, ``end`` or ``error``, or ``204`` for that answer to a reconnect; else empty.
        self.ending = ""
        self._cursor = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watcher of {job}", daemon=True)

    @property
    def lines(self) -> list[Seen]:
        """The received lines."""
        return [seen for seen in self.seen if seen.kind == LINE]

    @property
    def highest(self) -> int:
        """The number of the last received line, or 0."""
        return next((seen.number for seen in reversed(self.seen) if seen.kind == LINE), 0)

    def start(self) -> "Watcher":
        """Starts the thread."""
        self._thread.start()
        return self

    def join(self, seconds: float) -> bool:
        """Waits for the log's end. Returns False on timeout."""
        self._thread.join(seconds)
        return bool(self.ending) and not self._thread.is_alive()

    def request_stop(self) -> None:
        """Makes the thread exit when it next receives something, at the latest a heartbeat."""
        self._stop.set()

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self.request_stop()
        self._thread.join(SILENCE_SECONDS * 2)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.ending:
            self.connections += 1
            decoder = Decoder(self._cursor)
            try:
                self._read_stream(decoder)
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
            self._cursor = decoder.last_event_id
            if not self.ending:
                self._stop.wait(RECONNECT_SECONDS)

    def _new_connection(self) -> http.client.HTTPConnection:
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
        return {"Authorization": f"Bearer {self.token}", **({"Last-Event-ID": self._cursor} if self._cursor else {})}

    def _read_stream(self, decoder: Decoder) -> None:
        connection = self._new_connection()
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            if self._is_accepted(response.status):
                while not self._over and (chunk := response.read1(READ_BYTES)):
                    self._feed(decoder, chunk)
            else:
                self.errors.append(f"{response.status} {response.read()!r}")
        finally:
            connection.close()

    @property
    def _over(self) -> bool:
        return self._stop.is_set() or bool(self.ending)

    def _is_accepted(self, status: int) -> bool:
        """Whether the answer is an event stream, or reports the end of the log."""
        if status == 204:
            self.ending = "204"
        return status in (200, 204)

    def _feed(self, decoder: Decoder, chunk: bytes) -> None:
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
            # Only the error that closes a lost job has its own id.
            self.errors.append(event.data)
            self.ending = "error" if event.id != self._cursor else ""
        self._cursor = event.id


class Http2Watcher(Watcher):
    """A watcher over HTTP/2, like a browser behind nginx. It trusts the certificates in ``SSL_CERT_FILE``."""

    def _read_stream(self, decoder: Decoder) -> None:
        try:
            with (
                # Each watcher has its own context: httpx makes it offer HTTP/2, which HTTP/1.1 watchers must not offer.
                httpx.Client(http2=True, verify=ssl.create_default_context(), timeout=SILENCE_SECONDS) as client,
                client.stream("GET", self.url + self._path, headers=self._headers) as response,
            ):
                if self._is_accepted(response.status_code):
                    assert response.http_version == "HTTP/2"
                    for chunk in response.iter_raw():
                        self._feed(decoder, chunk)
                        if self._over:
                            break
                else:
                    self.errors.append(f"{response.status_code} {response.read()!r}")
        except httpx.HTTPError as error:
            self.errors.append(repr(error))


class FilteredWatcher(Watcher):
    """A watcher that receives only the lines that match ``query``, the part of the URL after ``?``."""

    def __init__(
        self, url: str, job: JobRef, token: str, verify: ssl.SSLContext | bool = False, *, query: str = ""
    ) -> None:
        super().__init__(url, job, token, verify)
        self._query = query

    @property
    def numbers(self) -> list[int]:
        """The numbers of the received lines, in order of arrival."""
        return [seen.number for seen in self.lines]

    @property
    def gaps(self) -> list[Seen]:
        """The lines reported to it as unavailable."""
        return [seen for seen in self.seen if seen.kind == GAP]

    @property
    def _path(self) -> str:
        return f"{super()._path}&{self._query}"


class WaitLoop(FilteredWatcher):
    """Waits for matching lines. Each wait starts at the previous answer's cursor.

    It alternately requests one line and everything available, so that it catches up even when each answer is slow.
    """

    def __init__(
        self, url: str, job: JobRef, token: str, verify: ssl.SSLContext | bool = False, *, query: str = ""
    ) -> None:
        super().__init__(url, job, token, verify, query=query)
        self._looked_at = 0
        self._limit = ""

    @property
    def _path(self) -> str:
        where = f"/workflows/{self.job.workflow_id}/jobs/{self.job.job_id}/wait"
        return f"{where}?{self._query}&offset={self._looked_at}&timeout={LOOP_WAIT_SECONDS}{self._limit}"

    def _read_stream(self, decoder: Decoder) -> None:
        connection = self._new_connection()
        try:
            while not self._over:
                connection.request("GET", self._path, headers=self._headers)
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    self.errors.append(f"{response.status} {body!r}")
                    break
                self._answer(json.loads(body))
        finally:
            connection.close()

    def _answer(self, answer: dict[str, Any]) -> None:
        items: list[Line | Gap] = [Gap(gap["from"], gap["to"], gap["reason"]) for gap in answer.get("gaps", [])]
        assert (answer["outcome"] == "matched") == bool(answer["log"])
        lines = answer["logs"] if self._limit else [answer["log"]] * bool(answer["log"])
        assert [answer["log"]] == (lines[:1] or [None])
        items += [Line.from_json(line) for line in lines]
        assert answer["cursor"] >= self._looked_at
        self.seen += [_seen(self.connections, item) for item in items]
        self._looked_at = answer["cursor"]
        self._limit = "" if self._limit else f"&limit={LOOP_LINES}"
        if answer["outcome"] == "ended":
            self.seen.append(Seen(self.connections, time.monotonic(), JOB, state=answer["job"]))
            self.ending = "end"


class ClientWatcher(Watcher):
    """A watcher that uses the Python client, which trusts the certificates in ``SSL_CERT_FILE``."""

    def _run(self) -> None:
        client = Client(self.url, self.token, heartbeat_seconds=SILENCE_SECONDS / 3)
        self.connections = 1
        for item in client.follow(self.job, wait=WAIT_SECONDS, stop=self._stop):
            if isinstance(item, Line | Gap):
                self.seen.append(_seen(1, item))
        self.ending = "" if self._stop.is_set() else "end"
        client.close()


def history(url: str, job: JobRef, token: str, *, with_gaps: bool = False) -> list[Seen]:
    """The log as returned by its pages. ``with_gaps`` adds a gap for the numbers that they omit."""
    client = Client(url, token)
    state = JobState.from_json(client.job(job))
    lines = client.logs(job)
    named = name_gaps(lines, attrgetter("sequence_num"), 0, state.last + 1, state.first)
    items = [_seen(0, item) for item in (named if with_gaps else lines)]
    client.close()
    return items


def seconds_to_next_line(seen: list[Seen], since: float) -> float:
    """Seconds from ``since`` to the next line, or infinity."""
    return min((each.at for each in seen if each.kind == LINE and each.at >= since), default=float("inf")) - since


def longest_silence(watchers: Sequence[Watcher], since: float) -> float:
    """The longest time in seconds between ``since`` and a viewer's last line in which it received no line."""
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
