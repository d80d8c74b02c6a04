"""``GET …/wait``: answers when a line matches, the job ends, or the timeout is reached.

Uses a viewer, which handles lost runners, gaps, redactions and expired tokens.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import gevent
import orjson
from flask import Response, request
from gunicorn.workers.base_async import ALREADY_HANDLED
from werkzeug.datastructures import Headers

from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog import sse
from chronoverse.joblog.events import EventName
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.feed import SLICE_BYTES
from chronoverse.live.viewer import Viewer
from chronoverse.web.guards.connection import begin_long_answer
from chronoverse.web.http.dependencies import Dependencies, stream_ticket
from chronoverse.web.http.paging import PRIVATE_HEADERS, json_response
from chronoverse.web.http.problems import problem, problem_for
from chronoverse.web.http.schemas import JOB_ROUTE, Blueprint, WaitQuery, WaitSchema
from chronoverse.web.routes.events import line_filter_of, open_viewer, response_head
from chronoverse.web.streaming.stream_writer import StreamWriter, StreamWriters

#: Minimum seconds for searching existing lines, and maximum seconds for collecting more lines after the first match.
LOOK_SECONDS: Final = 0.25
#: Maximum gaps in an answer. Further gaps are only counted: a foreign log can have one per entry.
MAX_GAPS: Final = 100
#: The outcome for each ``reason`` of the viewer. Other reasons cut the wait short.
_OUTCOMES: Final = {"matched": "matched", "end": "ended", "age": "timeout"}


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("wait", "Waiting.")

    @routes.route(f"{JOB_ROUTE}/wait")
    @routes.arguments(WaitQuery, location="query", as_kwargs=True)
    @routes.response(200, WaitSchema, description="What came first.")
    @routes.problem(429, "The token or the client's address has reached its maximum number of streams.")
    def wait_for_line(workflow_id: str, job_id: str, timeout: int, **query: Any) -> Response:
        """Wait until a line matches, the job ends, or the timeout. Without `q`, wait for the end."""
        ref, ticket = JobRef(workflow_id, job_id), stream_ticket(deps)
        deps.admission.check(ticket)
        job = deps.tail.known_job(ref) or deps.store.get_job(ref)
        if job is None and (timeout == 0 or deps.store.is_deleted(ref)):
            raise JobNotFound("no such job")
        if request.method == "HEAD":
            # HEAD starts no wait. The iterator prevents a Content-Length of 0.
            return Response(iter(()), content_type="application/json", headers=PRIVATE_HEADERS)
        wants_line = "q" in query
        wanted = {
            "after": query.get("offset", 0 if wants_line or job is None else job.last),
            # Waiting for the end needs no lines. Almost no line passes this filter; if one does, it is ignored.
            "line_filter": line_filter_of(query) if wants_line else LineFilter(q="\0"),
            "wait": timeout,
            # There are no heartbeats before the answer begins.
            "heartbeat_seconds": math.inf,
            "closes_at": deps.monotonic() + max(timeout, LOOK_SECONDS),
        }
        viewer, on_end = open_viewer(deps, ticket, ref, job, **wanted)
        limit = query.get("limit", 1) if wants_line else 0
        return WaitResponse(deps, Wait(deps, ref, viewer, limit, "limit" in query), on_end)

    return routes


@dataclass(slots=True)  # small: there can be thousands
class Wait:
    """Collects matching lines from a viewer's frames. The wait is over when the first line arrives.

    :meth:`answer` then adds lines that already exist, up to ``limit``. If ``limit`` is 0, the wait is for the job's
    end, and ignores lines. ``with_lines``: the answer has all lines, not only the first.
    """

    deps: Dependencies
    ref: JobRef
    viewer: Viewer
    limit: int
    with_lines: bool
    #: Bytes left for lines in the answer. The first line is always included, whatever its length.
    _room: int = SLICE_BYTES
    _lines: tuple[str, ...] = ()
    #: Whether no further lines are wanted.
    _is_full: bool = False
    _cursor: int = 0
    #: The first gaps, as in their frames, and the number of further gaps.
    _gaps: tuple[dict[str, Any], ...] = ()
    _more_gaps: int = 0
    _error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether a line has matched."""
        return bool(self._lines)

    def feed(self, frames: bytes) -> None:
        """Reads complete frames. Ignores everything after the last line that fits."""
        for event in sse.Decoder().feed(frames):
            if self._is_full:
                return
            if event.event == EventName.LOG and self.limit:
                self._room -= len(event.data)
                self._is_full = bool(self._lines) and self._room < 0
                self._cursor = int(event.id) - self._is_full
                if not self._is_full:
                    self._lines += (event.data,)
                    self._is_full = len(self._lines) == self.limit
            elif event.event == EventName.GAP:
                if len(self._gaps) < MAX_GAPS:
                    self._gaps += (orjson.loads(event.data),)
                else:
                    self._more_gaps += 1
            elif event.event == EventName.ERROR:
                self._error = event.data

    def answer(self) -> Response:
        """The answer, once the wait is over or its viewer is done. First reads the frames that already exist."""
        viewer, clock = self.viewer, self.deps.monotonic
        try:
            until = clock() + LOOK_SECONDS
            while self._lines and not self._is_full and not viewer.done and clock() < until:
                frames = viewer.next()
                if frames is None:
                    break
                self.feed(frames)
            if self._lines:
                viewer.reason = "matched"
            if viewer.reason == "error" and self.deps.store.get_job(self.ref) is None:
                return problem_for(JobNotFound("no such job"))
            if viewer.reason not in _OUTCOMES:
                status = 401 if viewer.reason == "expired" else 503
                return problem(status, self._error or "The service is shutting down; try again.")
            job = self._known_job() or self.deps.store.get_job(self.ref)
            if job is None:
                return problem_for(JobNotFound("no such job"))
        except ChronoverseError as error:
            return problem_for(error)
        lines = [orjson.Fragment(line) for line in self._lines]
        # Without a query, the outcome depends only on the job's end, not on how far the viewer has read.
        is_ended = not self.limit and job.status.terminal
        body: dict[str, Any] = {
            "outcome": "ended" if is_ended else _OUTCOMES[viewer.reason],
            "log": lines[0] if lines else None,
            "cursor": self._cursor if self._is_full else viewer.cursor,
            "job": job.to_json(),
        }
        if self.with_lines:
            body["logs"] = lines
        if self._gaps:
            body["gaps"] = self._gaps
        if self._more_gaps:
            body["more_gaps"] = self._more_gaps
        return json_response(orjson.dumps(body))

    def _known_job(self) -> Job | None:
        """The tail's job, if it covers all lines of the answer. Its status can be some seconds old.

        Saves a read of the store: when a job ended, and each of 2,000 waiters read the store, half of them got a 503.
        """
        job, feed = self.deps.tail.known_job(self.ref), self.viewer.feed
        if job is None and feed.job and feed.job.end:
            job = feed.job
        return job if job and job.last >= self._cursor else None


class WaitResponse(Response):
    """The answer to a wait. Takes over the socket if possible; otherwise blocks the server's thread."""

    def __init__(self, deps: Dependencies, wait: Wait, on_end: Callable[[], None]) -> None:
        super().__init__(iter(()))
        self._deps = deps
        self._wait = wait
        self._on_end = on_end

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        del self.headers["Content-Type"]
        wait, headers = self._wait, [*self.headers]
        begin_long_answer(environ)
        if self._deps.stream_writers.can_take_over(environ):
            # Passes only what the writer needs, so that ``self`` does not stay in memory.
            make = partial(WaitWriter, wait=wait, answer=partial(_answer_bytes, self._deps, wait, headers))
            self._deps.stream_writers.take_over(wait.viewer, environ, self._on_end, b"", make)
            return ALREADY_HANDLED
        try:
            for frames in wait.viewer.chunks():
                wait.feed(frames)
                if wait.is_over:
                    break
            response = wait.answer()
        finally:
            self._on_end()
        response.headers.extend(Headers(headers))
        return response(environ, start_response)


def _answer_bytes(deps: Dependencies, wait: Wait, headers: Iterable[tuple[str, str]]) -> bytes:
    response = wait.answer()
    body = response.get_data()
    response.headers["Content-Length"] = str(len(body))
    fields = [*response.headers, *headers]
    return response_head(fields, deps.wall_clock(), HTTPStatus(response.status_code)) + body


class WaitWriter(StreamWriter):
    """Reads the frames of ``viewer``, and writes ``answer()`` when ``wait`` is over. See :class:`StreamWriter`.

    A waiter costs no more than a viewer: it has no greenlet, and joins broadcast groups. A timer makes its answer
    punctual, whereas a stream can end half a second late.
    """

    __slots__ = ("_answer", "_timer", "_wait")

    def __init__(
        self,
        viewer: Viewer,
        sock: Any,
        writers: StreamWriters,
        closed: Callable[[], None],
        wait: Wait,
        answer: Callable[[], bytes],
    ) -> None:
        super().__init__(viewer, sock, writers, closed)
        self._wait = wait
        self._answer = answer
        seconds = viewer.ends_at - writers.scheduler.clock()
        # The timer is 5 ms late, so that the viewer's deadline has passed when it wakes the viewer.
        self._timer = gevent.get_hub().loop.timer(max(seconds, 0) + 0.005)
        # Wakes the viewer in a greenlet, because the event loop must not block. Waking it after its end is harmless.
        self._timer.start(gevent.spawn, viewer.wake)

    @property
    def is_over(self) -> bool:
        return self.viewer.done or self._wait.is_over

    @property
    def take(self) -> Callable[[bytes], int]:
        """A function that ignores frames without an event, and makes the group pass others to :meth:`fall_behind`."""
        return _count_without_events

    @staticmethod
    def encode(frames: bytes) -> bytes:
        """Returns ``frames`` unchanged, because waiters read them unencoded."""
        return frames

    def fall_behind(self, unsent: bytes | memoryview) -> None:
        """Passes the frames ``unsent`` to the wait, and continues."""
        self._wait.feed(bytes(unsent))
        super().fall_behind(b"")

    def to_send(self, frames: bytes) -> bytes:
        """Sends nothing: the wait reads the frames."""
        self._wait.feed(frames)
        return b""

    def last_bytes(self) -> bytes:
        return self._answer()

    def close(self) -> None:
        self._timer.stop()
        self._timer.close()
        super().close()


def _count_without_events(frames: bytes) -> int:
    return 0 if b"event: " in frames else len(frames)
