"""The reader's end of the HTTP: follows a job's log through dropped connections, and pages through its history.

attempt ─> bytes ─> follower ─> Line | Gap | JobState | Trouble
   ^                   │
   └── Last-Event-ID ──┘   until the end, or a refusal that no retry can change
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode

import orjson
import urllib3
from urllib3.exceptions import HTTPError

from chronoverse.backoff import Backoff, retry_after
from chronoverse.client.follower import Follower, LogEvent, Notice
from chronoverse.errors import BadRequest, ChronoverseError, Forbidden, JobNotFound, Unauthorized, Unreachable
from chronoverse.joblog import sse
from chronoverse.joblog.values import IDENTIFIER, JobRef, Line, parse_number

#: Seconds between heartbeats unless told otherwise, and how many may be missing before a connection is given up.
HEARTBEAT_SECONDS: Final = 15.0
MISSED_HEARTBEATS: Final = 3
#: Seconds a connection may take to open.
CONNECT_SECONDS: Final = 5.0
#: Seconds for which following goes on without getting anywhere: a bad deployment, noticed and mended.
MAX_RETRY_SECONDS: Final = 600.0
#: Seconds before a new attempt, when the service did not say.
RETRY_DELAY_SECONDS: Final = 1.0
#: Attempts at a request that is no stream: somebody waits for the answer.
MAX_ATTEMPTS: Final = 4
#: Bytes of one read, and of a refusal's body.
READ_BYTES: Final = 65_536
#: Lines of one page: as many as the service gives.
PAGE_LINES: Final = 1_000
#: Seconds that one request may ask the service to wait for a job.
MAX_WAIT_SECONDS: Final = 300

_FINAL_ERRORS: Final[Mapping[int, type[ChronoverseError]]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: JobNotFound,
}


class _Retryable(Exception):
    """An attempt that failed in a way worth repeating, ``after`` seconds at the earliest.

    ``at_once``: nothing is wrong, and waiting would only delay the next line.
    """

    def __init__(self, reason: str, min_delay: float = 0, at_once: bool = False) -> None:
        super().__init__(reason)
        self.after = min_delay
        self.at_once = at_once


class _StreamFailed(_Retryable):
    """The stream itself ended with an error, and said which."""


class FoundLine(NamedTuple):
    """A line that matches, or that is ``beside`` one that does."""

    line: Line
    is_context: bool

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "FoundLine":
        """As the service spells it."""
        return cls(Line.from_json(said), bool(said.get("context")))


class Client:
    """The service at ``url``. ``token`` may be a function, which makes one for each attempt; None sends none.

    ``clock`` is monotonic, in seconds; ``sleep`` waits between attempts at what is no stream. Every method raises
    :class:`Unauthorized`, :class:`Forbidden`, :class:`JobNotFound` or a plain :class:`ChronoverseError` for what no
    retry can change, and :class:`Unreachable` when retries were in vain.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None = None,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        max_retry_seconds: float = MAX_RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._max_retry_seconds = max_retry_seconds
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=MISSED_HEARTBEATS * heartbeat_seconds)
        self._http = urllib3.PoolManager(retries=False, timeout=timeout)

    def close(self) -> None:
        """Closes idle connections. The client can be used again."""
        self._http.clear()

    def follow(
        self,
        job: JobRef,
        *,
        offset: int | str | None = None,
        tail: int | None = None,
        stream: str | None = None,
        wait: float = 0,
        stop: threading.Event | None = None,
    ) -> Iterator[LogEvent]:
        """The log from ``offset``, or its last ``tail`` lines, live and to its end, over as many connections as needed.

        Each number comes once, in order, or a Gap names it; the last JobState says how the job ended. ``wait`` is
        for how many seconds a job that does not exist may still come. ``stop`` ends delays at once, and a
        connection at its next byte, which is a heartbeat at the latest.
        """
        stop = stop or threading.Event()
        follower = Follower()
        effort = Backoff(self._clock, self._chance)
        awaited_until = self._clock() + wait
        again: _Retryable | None = None
        while not stop.is_set():
            start = {"offset": offset, "tail": tail} if follower.last_number is None else {}
            left = min(max(ceil(awaited_until - self._clock()), 0), MAX_WAIT_SECONDS)
            query = {**start, "stream": stream, "wait": left or None}
            effort.begun()
            try:
                yield from self._follow_connection(job, query, follower, effort, stop)
                again = _Retryable("the service closed the stream")
            except _Retryable as error:
                again = error
            except JobNotFound as error:
                # That there is no such job says less than the error with which its stream has just ended.
                raise JobNotFound(str(again)) if isinstance(again, _StreamFailed) else error from error
            if follower.ended or stop.is_set():
                return
            if effort.seconds_in_vain() > self._max_retry_seconds:
                raise Unreachable(str(again)) from again
            first = RETRY_DELAY_SECONDS if follower.retry_ms is None else follower.retry_ms / 1000
            delay = 0.0 if again.at_once else effort.delay(first, again.after)
            if effort.vain:
                yield Notice(f"{again}; trying again in {delay:.1f} s")
            stop.wait(delay)

    def _follow_connection(
        self, job: JobRef, query: Mapping[str, Any], follower: Follower, effort: Backoff, stop: threading.Event
    ) -> Iterator[LogEvent]:
        headers = {"Accept": "text/event-stream"}
        if follower.last_number is not None:
            headers["Last-Event-ID"] = str(follower.last_number)
        self._http.clear()  # an idle connection may be a dead one, and would look like a failed attempt
        response = self._request(self._job_path(job) + "/events", query, headers)
        try:
            if response.status == 204:
                follower.ended = True
                return
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise ChronoverseError(f"{self._url} does not answer with an event stream: is it the right address?")
            follower.start_connection(response.headers.get("Last-Event-ID"))
            while not (follower.ended or stop.is_set()) and (chunk := response.read1(READ_BYTES)):
                if not chunk.strip(b":\n"):
                    effort.rewarded()  # a heartbeat: the service is well, there is just nothing to say
                for item in follower.feed(chunk):
                    if isinstance(item, Notice) and not follower.ended:
                        renewable = item.reason == sse.TOKEN_EXPIRED and callable(self._token)
                        raise _StreamFailed(item.reason, at_once=renewable)
                    effort.rewarded()
                    yield item
        except (HTTPError, OSError) as error:
            raise _Retryable("the connection was lost") from error
        except ValueError as error:
            raise _Retryable(f"the service sent {error}") from error
        finally:
            response.close()

    def job(self, job: JobRef) -> dict[str, Any]:
        """What the service knows of the job, as its route spells it."""
        return self._json(self._job_path(job), {})

    def logs(
        self, job: JobRef, *, order: str = "asc", stream: str | None = None, offset: int | None = None
    ) -> Iterator[Line]:
        """The lines that are there now, strictly after ``offset``, page by page."""
        query = {"limit": PAGE_LINES, "order": order, "stream": stream, "offset": offset}
        for page, _ in self._pages(self._job_path(job) + "/logs", query):
            yield from _read_items(page, "logs", Line.from_json)

    def search(self, job: JobRef, q: str, reached: Callable[[int], object] = bool, **query: Any) -> Iterator[FoundLine]:
        """The lines that match, and those beside them, upwards; ``query`` is as the route has it.

        What is beside the last match of a page may come again with the next one. ``reached`` is told how far the
        service has looked.
        """
        for page, place in self._pages(self._job_path(job) + "/logs/search", {"q": q, "limit": PAGE_LINES, **query}):
            yield from _read_items(page, "logs", FoundLine.from_json)
            if place is not None:
                reached(place)

    def jobs(self, workflow_id: str, status: str | None = None) -> Iterator[dict[str, Any]]:
        """The workflow's jobs, newest first, as their own route spells them."""
        if not IDENTIFIER.fullmatch(workflow_id):
            raise JobNotFound("no such workflow")
        for page, _ in self._pages(f"/workflows/{workflow_id}/jobs", {"limit": PAGE_LINES, "status": status}):
            yield from _read_items(page, "jobs", dict)

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Every page, and the number that it has come to."""
        while True:
            page, place = self._get_json(path, query)
            yield page, place
            cursor = page.get("cursor")
            if cursor is None or cursor == query.get("cursor"):
                return
            query = {**query, "offset": None, "cursor": cursor}

    def _json(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return self._get_json(path, query)[0]

    def _get_json(self, path: str, query: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        effort = Backoff(self._clock, self._chance)
        while True:
            effort.begun()
            try:
                response = self._request(path, query, {"Accept": "application/json"})
                return self._read_json(response), parse_number(response.headers.get("Last-Event-ID", ""))
            except _Retryable as again:
                if effort.vain == MAX_ATTEMPTS:
                    raise Unreachable(str(again)) from again
                self._sleep(effort.delay(RETRY_DELAY_SECONDS, again.after))

    def _read_json(self, response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
        try:
            body: dict[str, Any] = orjson.loads(response.read())
        except (HTTPError, OSError) as error:
            raise _Retryable("the connection was lost") from error
        except ValueError as error:
            raise ChronoverseError(f"{self._url} does not answer with JSON: is it the right address?") from error
        return body

    def _job_path(self, job: JobRef) -> str:
        if not (IDENTIFIER.fullmatch(job.workflow_id) and IDENTIFIER.fullmatch(job.job_id)):
            raise JobNotFound("no such job")  # the service would say the same, of whatever else the path became
        return f"/workflows/{job.workflow_id}/jobs/{job.job_id}"

    def _request(self, path: str, query: Mapping[str, Any], headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """One attempt: an answer of 200 or 204, its body unread. Raises :class:`_Again`, or the final refusal."""
        token = self._token() if callable(self._token) else self._token
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        arguments = urlencode({name: value for name, value in query.items() if value is not None})
        url = f"{self._url}{path}{'?' if arguments else ''}{arguments}"
        try:
            response = self._http.request("GET", url, headers=headers, preload_content=False, redirect=False)
            if response.status in (200, 204):
                return response
            detail = _refusal_detail(response)
            response.close()
        except (HTTPError, OSError) as error:
            raise _Retryable(f"{self._url} does not answer: {_describe(error)}") from error
        if response.status == 429 or response.status >= 500:
            raise _Retryable(detail, retry_after(response))
        raise _FINAL_ERRORS.get(response.status, ChronoverseError)(detail)


_Item = TypeVar("_Item")


def _read_items(page: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], _Item]) -> list[_Item]:
    """What is on a page."""
    try:
        return [read(each) for each in page[key]]
    except (KeyError, TypeError, ValueError) as error:
        raise ChronoverseError("the service sent an unreadable page") from error


def _describe(error: Exception) -> str:
    cause = error.__cause__ or error
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__


def _refusal_detail(response: urllib3.BaseHTTPResponse) -> str:
    """What a refusal says of itself, by RFC 9457."""
    try:
        problem = orjson.loads(response.read(READ_BYTES))
        return str(problem.get("detail") or problem["title"])
    except (ValueError, LookupError, AttributeError, TypeError):
        return f"the service answers {response.status} {response.reason or ''}".rstrip()
