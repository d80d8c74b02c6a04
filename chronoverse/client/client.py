"""The HTTP client: follows a job's log across reconnects, reads its pages, redacts lines and deletes jobs.

connection ─> bytes ─> follower ─> Line | Gap | JobState | Notice | RedactedLines
     ^                    │
     └── Last-Event-ID ───┘   until the log ends, or the service refuses permanently
"""

import contextlib
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.client.follower import (
    Follower,
    JobState,
    LogEvent,
    Notice,
    WorkflowEvent,
    WorkflowFollower,
    read_line,
)
from chronoverse.client.service_connection import CONNECTION_ERRORS, RequestFailed, ServiceConnection
from chronoverse.errors import ChronoverseError, JobNotFound, Unauthorized, Unreachable
from chronoverse.joblog.events import TOKEN_EXPIRED
from chronoverse.joblog.model import IDENTIFIER, JobRef, Line, parse_number

#: Maximum seconds of one waiting request. Proxies can time out after a minute.
WAIT_SECONDS: Final = 20
RETRY: Final = RetryPolicy(first=1.0, longest=30.0)
READ_BYTES: Final = 65_536
PAGE_LINES: Final = 1_000

_SETTING_NAMES: Final = {"day_bytes": "bytes_per_day"}

_Result = TypeVar("_Result")


#: The likely reason if streams repeatedly time out without a byte.
_IS_BUFFERED: Final = "if other commands work, a proxy buffers the stream: turn off its response buffering"


class _StreamFailed(RequestFailed):
    """Raised when a stream ends with an ``error`` event. The message is the event's text."""


# Its repr would contain the token.
@dataclass(eq=False, repr=False)
class Client:
    """A client of the service at ``url``. ``token`` is a bearer token, or a function that returns one per request.

    Requests other than streams are tried ``max_attempts`` times within ``max_retry_seconds``. Raises
    :class:`Unreachable` if all retries failed, and another :class:`ChronoverseError` if no retry can succeed.
    """

    url: str
    token: str | Callable[[], str | None] | None = None
    _: KW_ONLY
    #: Additional certificate authorities.
    ca_file: Path | None = None
    heartbeat_seconds: float = 15.0
    max_attempts: int = 4
    max_retry_seconds: float = 600.0
    #: Called with a message before each retry delay of requests other than streams.
    on_retry: Callable[[str], object] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    #: Returns a random number from 0 to 1.
    chance: Callable[[], float] = random.random
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        self._service = ServiceConnection(
            self.url,
            self.token,
            ca_file=self.ca_file,
            connect_seconds=5.0,
            # A connection is considered dead after three missed heartbeats.
            read_seconds=3 * self.heartbeat_seconds,
        )

    def close(self) -> None:
        self._service.close()

    def follow(
        self,
        job: JobRef,
        *,
        offset: int | str | None = None,
        tail: int | None = None,
        stream: str | None = None,
        q: str | None = None,
        regex: bool = False,
        wait: float = 0,
        stop: threading.Event | None = None,
    ) -> Iterator[LogEvent]:
        """Follows the log after ``offset``, or from its last ``tail`` lines, until the job ends.

        Yields each line that matches ``stream`` and ``q`` (a regular expression if ``regex``) once, in order, or a Gap.
        The last JobState is final. The job must appear within ``wait`` seconds. ``stop`` ends a retry delay
        immediately, and a stream when its next byte arrives.
        """
        path = _path("/workflows/{}/jobs/{}/events", *job)
        filters = {"stream": stream, "q": q, "regex": regex}
        yield from self._follow(path, Follower(), {"offset": offset, "tail": tail}, filters, stop, wait)

    def follow_workflow(
        self,
        workflow_id: str,
        *,
        jobs: int | None = None,
        status: str | None = None,
        label: Sequence[str] | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[WorkflowEvent]:
        """Follows a workflow's jobs: yields the newest ``jobs``, oldest first, then each change. Never ends.

        Yields only jobs with this ``status`` and every ``label`` (KEY=VALUE). ``stop`` is as in :meth:`follow`.
        """
        filters = {"jobs": jobs, "status": status, "label": label}
        path = _path("/workflows/{}/events", workflow_id)
        yield from self._follow(path, WorkflowFollower(), {}, filters, stop)

    def _follow(
        self,
        path: str,
        follower: Follower,
        first: Mapping[str, Any],
        filters: Mapping[str, Any],
        stop: threading.Event | None,
        wait: float = 0,
    ) -> Iterator[Any]:
        """Yields the events that ``follower`` decodes, across reconnects. Sends ``first`` until a stream has begun."""
        stop = stop or threading.Event()
        backoff = Backoff(RETRY, self.clock, self.chance)
        wait_until = self.clock() + wait
        failure: RequestFailed | None = None
        while not stop.is_set():
            start = first if follower.last_number is None else {}
            left = min(max(ceil(wait_until - self.clock()), 0), 300)  # the service's maximum
            query = {**start, **filters, "wait": left or None}
            backoff.record_failure()  # reset once the stream yields something
            try:
                yield from self._follow_connection(path, query, follower, backoff, stop)
                failure = RequestFailed("the service closed the stream")
            except RequestFailed as error:
                failure = error
            except Unauthorized as error:
                # A token can expire a moment before its file is renewed, so a retry can succeed.
                if follower.last_number is None or not callable(self.token):
                    raise
                failure = RequestFailed(str(error))
            except JobNotFound as error:
                # An error event that has just ended the stream says more than "no such job".
                if isinstance(failure, _StreamFailed):
                    raise JobNotFound(str(failure)) from error
                raise
            if follower.ended or stop.is_set():
                return
            if backoff.seconds_failing() > self.max_retry_seconds:
                raise failure
            if follower.retry_ms:  # with 0, retries would have no delay
                backoff.policy = replace(RETRY, first=follower.retry_ms / 1000)
            # If the token expired, the next request gets a new one, and waiting would only delay the next line.
            at_once = callable(self.token) and isinstance(failure, _StreamFailed) and str(failure) == TOKEN_EXPIRED
            # If no job appeared in time, the next request follows immediately, and gets a 404 because it does not wait.
            is_over = bool(left) and isinstance(failure, _StreamFailed) and self.clock() >= wait_until
            delay = 0.0 if at_once or is_over else max(backoff.delay(), failure.min_delay)
            if backoff.failures > 1 and isinstance(failure.__cause__, TimeoutError):
                failure = RequestFailed(f"{failure}; {_IS_BUFFERED}")
            if backoff.failures and not is_over:
                yield Notice(_retry_message(failure, delay))
            stop.wait(delay)

    def _follow_connection(
        self, path: str, query: Mapping[str, Any], follower: Follower, backoff: Backoff, stop: threading.Event
    ) -> Iterator[Any]:
        headers = {"Accept": "text/event-stream"}
        if follower.last_number is not None:
            headers["Last-Event-ID"] = str(follower.last_number)
        self._service.close()  # an idle connection may be dead, which would fail this attempt
        with self._service.stream("GET", path, query, headers) as response:
            if response.status == 204:
                follower.ended = True
                return
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise Unreachable(f"{self._service.url} did not return an event stream: is it the right address?")
            failure: _StreamFailed | None = None
            try:
                follower.start_connection(response.headers.get("Last-Event-ID"))
                while not (follower.ended or stop.is_set()) and (chunk := response.read1(READ_BYTES)):
                    if not chunk.strip(b":\n"):
                        backoff.record_success()  # heartbeats show that the service works
                    for item in follower.feed(chunk):
                        if failure is not None:
                            yield Notice(str(failure))  # more follows, so the error concerned a single entry
                            failure = None
                        if isinstance(item, Notice) and not follower.ended:
                            failure = _StreamFailed(item.reason)
                            continue
                        backoff.record_success()
                        yield item
                if failure is not None:
                    raise failure
            except ValueError as error:
                raise RequestFailed(f"the service sent {error}") from error

    def job(self, job: JobRef) -> dict[str, Any]:
        return self.read("/workflows/{}/jobs/{}", *job)

    def state(self, job: JobRef) -> JobState:
        found = self.job(job)
        with reading("job"):
            return JobState.from_json(found)

    def read(self, route: str, *ids: str, **query: Any) -> dict[str, Any]:
        """The JSON of a ``route`` such as ``/workflows/{}/jobs``, whose braces are filled with ``ids``.

        Adds the values of headers: ``reached``, the last line covered, and ``searched_to``, the last job searched.
        Omits parameters in ``query`` that are None or False.
        """
        path = _path(route, *ids)
        return self._retry(lambda: self._get_once(path, query))

    def read_complete(
        self,
        route: str,
        *ids: str,
        seconds: float,
        show: Callable[[dict[str, Any]], object] = lambda found: None,
        **query: Any,
    ) -> dict[str, Any]:
        """Repeats :meth:`read` up to ``seconds`` until the answer is ``complete``. ``show`` gets earlier answers."""
        deadline = self.clock() + seconds
        while True:
            found = self.read(route, *ids, **query)
            if found.get("complete") is not False or self.clock() >= deadline:
                return found
            show(found)

    def pages(self, route: str, *ids: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yields all pages of a ``route``, each as :meth:`read` returns it."""
        while True:
            page = self.read(route, *ids, **query)
            yield page
            cursor = page.get("cursor")
            if cursor is None or cursor == query.get("cursor"):
                return
            query = {**query, "offset": None, "cursor": cursor}

    def logs(
        self,
        job: JobRef,
        *,
        order: str = "asc",
        stream: str | None = None,
        offset: int | None = None,
        page_size: int = PAGE_LINES,
    ) -> Iterator[Line]:
        """The log's current lines after ``offset``, in pages of up to ``page_size`` lines."""
        query = {"limit": min(page_size, PAGE_LINES), "order": order, "stream": stream, "offset": offset}
        for page in self.pages("/workflows/{}/jobs/{}/logs", *job, **query):
            yield from read_items(page, "logs", read_line)

    def wait(
        self, job: JobRef, *, q: str | None, regex: bool, stream: str | None, offset: int | None, seconds: float | None
    ) -> dict[str, Any]:
        """Waits until a line matches ``q``, the job ends, or ``seconds`` are over. Returns the last answer, with the
        ``gaps`` of all answers.

        Raises :class:`JobNotFound` if the job does not appear in that time, or was deleted.
        """
        deadline = None if seconds is None else self.clock() + seconds
        query = {"q": q, "regex": regex, "stream": stream}
        path = _path("/workflows/{}/jobs/{}/wait", *job)
        backoff = Backoff(RETRY, self.clock, self.chance)
        max_failures: int | None = self.max_attempts
        was_refused, gaps = False, list[Any]()
        while True:
            left = WAIT_SECONDS if deadline is None else min(max(ceil(deadline - self.clock()), 0), WAIT_SECONDS)
            asked_at = self.clock()
            is_last = deadline is not None and asked_at + left >= deadline
            try:
                answer = self._get_once(path, {**query, "offset": offset, "timeout": left})
            except JobNotFound:
                if is_last:
                    raise
                max_failures = None
                if self.clock() - asked_at >= left / 2:
                    backoff.record_success()
                    continue
                # The service did not wait: the job was deleted, or the service is shutting down.
                backoff.record_failure()
                if backoff.failures == self.max_attempts:
                    raise
                self.sleep(backoff.delay())
                continue
            except Unauthorized:
                # The token may have expired during the wait; the next request gets a new one.
                if was_refused or not callable(self.token):
                    raise
                was_refused = True
                continue
            except RequestFailed as failure:
                if failure.answered == 429:  # the service works, and other waits can end
                    max_failures = None
                delay = self._delay(backoff, failure, max_failures)
                if deadline is not None and self.clock() + delay >= deadline:
                    raise
                self.on_retry(_retry_message(failure, delay))
                self.sleep(delay)
                continue
            max_failures, was_refused = None, False
            backoff.record_success()
            with reading("answer"):
                gaps += answer.get("gaps", [])
                # A request waits for at most WAIT_SECONDS, so a timeout is final only after the deadline.
                if answer["outcome"] != "timeout" or (deadline is not None and self.clock() >= deadline):
                    return {**answer, "gaps": gaps} if gaps else answer
                # Without ``q``, the wait is only for the job's end, and needs no position to continue from.
                offset = answer["cursor"] if q is not None else None

    def download(self, job: JobRef, **query: Any) -> Iterator[bytes]:
        """Yields a log file in pieces. ``query`` has the URL's parameters. Raises :class:`Unreachable` if cut off."""
        headers = {"Accept-Encoding": "gzip"}
        path = _path("/workflows/{}/jobs/{}/logs/raw", *job)
        with contextlib.ExitStack() as stack:
            response = self._retry(lambda: stack.enter_context(self._service.stream("GET", path, query, headers)))
            is_gzip = response.headers.get("Content-Encoding") == "gzip"
            inflater = zlib.decompressobj(zlib.MAX_WBITS | 16) if is_gzip else None
            try:
                while piece := response.read1(READ_BYTES):
                    yield inflater.decompress(piece) if inflater else piece
                if response.length or (inflater and not inflater.eof):
                    raise EOFError
            except (*CONNECTION_ERRORS, EOFError, zlib.error) as error:
                raise Unreachable("the download was cut off before its end") from error

    def redact(self, job: JobRef, **query: Any) -> tuple[int, bool]:
        """Redacts lines, in several requests if needed. Returns their number, and whether the old text can come back.

        Also raises :class:`LineStillOpen` and :class:`ArchiveNotConfigured`. After an error, some lines can already be
        redacted.
        """
        body = {name: value for name, value in query.items() if value is not None}
        lines, pending = 0, False
        while True:
            answer = self.send("POST", "/workflows/{}/jobs/{}/logs/redact", *job, body=body)
            with reading("answer"):
                lines, pending = lines + answer["redacted"], pending or answer["pending"]
                if answer["next"] is None:
                    return lines, pending
                body = {**body, "from": answer["next"]}

    def delete(self, job: JobRef) -> None:
        """Deletes the job and its log. Also raises :class:`Held` while its runner is alive."""
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self._service.request(
                    "DELETE", _path("/workflows/{}/jobs/{}", *job), {}, {"Accept": "application/json"}
                )
            except JobNotFound:
                # An earlier attempt, whose answer was lost or an error, may have deleted the job.
                if attempts == 1:
                    raise

        self._retry(attempt)

    def end(self, job: JobRef, status: str, exit_code: int | None = None) -> dict[str, Any]:
        """Ends a job that no runner holds, and returns it. Idempotent. Also raises :class:`Held`, :class:`Closed`."""
        return self.send("POST", "/workflows/{}/jobs/{}/end", *job, body={"status": status, "exit_code": exit_code})

    def send(self, method: str, route: str, *ids: str, body: Any = None) -> dict[str, Any]:
        """Writes to a ``route``. Returns the answer's JSON, or {} if it has no body. The request must be idempotent."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        path, data = _path(route, *ids), None if body is None else orjson.dumps(body)
        text, _ = self._retry(lambda: self._service.request(method, path, {}, headers, data))
        return self._parse(text) if text else {}

    def workflow_settings(self, workflow_id: str, changes: Mapping[str, int | None]) -> dict[str, int | None]:
        """Applies ``changes`` to the workflow's settings, and returns them as in :class:`WorkflowSettings`."""
        path = "/workflows/{}/settings"
        found = self.read(path, workflow_id)
        if changes:
            body = {**found, **{_SETTING_NAMES.get(name, name): value for name, value in changes.items()}}
            found = self.send("PUT", path, workflow_id, body=body)
        with reading("page"):
            names = ("retention_seconds", "job_bytes", "day_bytes")
            values = ((name, found[_SETTING_NAMES.get(name, name)]) for name in names)
            return {name: None if value is None else int(value) for name, value in values}

    def _get_once(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        text, headers = self._service.request("GET", path, query, {"Accept": "application/json"})
        body = self._parse(text)
        if (reached := parse_number(headers.get("Last-Event-ID", ""))) is not None:
            body["reached"] = reached
        if searched_to := headers.get("Searched-To"):
            body["searched_to"] = searched_to.partition(";")[0]
        return body

    def _retry(self, attempt: Callable[[], _Result]) -> _Result:
        """The result of ``attempt``, which is retried within the client's limits."""
        backoff = Backoff(RETRY, self.clock, self.chance)
        while True:
            try:
                return attempt()
            except RequestFailed as failure:
                delay = self._delay(backoff, failure, self.max_attempts)
                self.on_retry(_retry_message(failure, delay))
                self.sleep(delay)

    def _delay(self, backoff: Backoff, failure: RequestFailed, max_failures: int | None) -> float:
        backoff.record_failure()
        left = self.max_retry_seconds - backoff.seconds_failing()
        if backoff.failures == max_failures or left <= 0 or failure.min_delay > left:
            raise failure
        return max(min(backoff.delay(), left), failure.min_delay)

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            body = orjson.loads(text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreachable(f"{self._service.url} did not return JSON: is it the right address?")
        return body


def _retry_message(failure: RequestFailed, delay: float) -> str:
    return f"{str(failure).removesuffix('; try again')}; trying again in {delay:.1f} s"


def _path(route: str, *ids: str) -> str:
    """The path of a route. Raises :class:`JobNotFound` for an invalid id, which could change the path."""
    if not all(map(IDENTIFIER.fullmatch, ids)):
        raise JobNotFound("no such workflow or job")
    return route.format(*ids)


_Item = TypeVar("_Item")


def read_items(page: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], _Item]) -> list[_Item]:
    with reading("page"):
        return [read(each) for each in page[key]]


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises :class:`ChronoverseError` if the JSON read in the ``with`` block is malformed."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ChronoverseError(f"the service sent an unreadable {what}") from error
