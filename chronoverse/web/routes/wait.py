"""``GET …/wait``: answers when a line has come, when the job has ended, or when the time is over."""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from flask import Response, request
from gunicorn.workers.base_async import ALREADY_HANDLED
from werkzeug.datastructures import Headers

from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.viewer import Viewer
from chronoverse.live.wait import Wait
from chronoverse.web.guards.connection import begin_long_answer, on_hangup
from chronoverse.web.http.dependencies import Dependencies, stream_ticket
from chronoverse.web.http.paging import json_response
from chronoverse.web.http.problems import problem, problem_for
from chronoverse.web.http.schemas import Blueprint, WaitQuery, WaitSchema
from chronoverse.web.routes.events import line_filter_of
from chronoverse.web.streaming.opening import fixed_headers, open_viewer
from chronoverse.web.streaming.stream_writer import WaitWriter

#: Seconds for which a wait looks at what is there already, also when its client does not want to wait at all. After the
#: first line it looks as long for further ones.
LOOK_SECONDS: Final = 0.25


def blueprint(deps: Dependencies) -> Blueprint:
    """The wait route."""
    routes = Blueprint("wait", __name__, description="Waiting.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/wait")
    @routes.doc(operationId="waitForLine")
    @routes.arguments(WaitQuery, location="query", as_kwargs=True)
    @routes.response(200, WaitSchema, description="What came first.")
    @routes.problem(429, "The token or the client's address has as many streams as it may.")
    def wait(workflow_id: str, job_id: str, timeout: int, **query: Any) -> Response:
        """Wait until a line matches, the job ends, or the time is over. Without `q`, wait for the end."""
        ref, ticket = JobRef(workflow_id, job_id), stream_ticket(deps)
        deps.admission.check(ticket)
        job = deps.tail.known_job(ref) or deps.store.get_job(ref)
        if job is None and (timeout == 0 or deps.store.is_deleted(ref)):
            raise JobNotFound("no such job")
        if request.method == "HEAD":
            # It starts nothing.
            return json_response(b"")
        wants_line = "q" in query
        wanted = {
            "after": query.get("offset", 0 if wants_line or job is None else job.last),
            # Somebody who waits for the end gets a filter. A line that passes it all the same does no harm.
            "line_filter": line_filter_of(query) if wants_line else LineFilter(q="\0"),
            "wait": timeout,
            # There are no heartbeats, because the answer has not begun.
            "heartbeat_seconds": math.inf,
            "closes_at": deps.monotonic() + max(timeout, LOOK_SECONDS),
        }
        viewer, on_end = open_viewer(deps, ticket, ref, job, **wanted)
        wait = Wait(limit=query.get("limit", 1) if wants_line else 0)
        return WaitResponse(deps, ref, viewer, wait, on_end, with_lines="limit" in query)

    return routes


class WaitResponse(Response):
    """The answer to a wait. It takes over the socket where it can, and otherwise holds gunicorn's greenlet."""

    def __init__(
        self,
        deps: Dependencies,
        ref: JobRef,
        viewer: Viewer,
        wait: Wait,
        on_end: Callable[[], None],
        *,
        with_lines: bool,
    ) -> None:
        super().__init__(iter(()))
        self._deps = deps
        self._ref = ref
        self._viewer = viewer
        self._wait = wait
        self._on_end = on_end
        self._with_lines = with_lines

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        del self.headers["Content-Type"]
        answer = partial(_answer, self._deps, self._ref, self._viewer, self._wait, with_lines=self._with_lines)
        sock, headers = begin_long_answer(environ), [*self.headers]
        if self._deps.stream_writers.can_take_over(environ):
            # This holds on to no more than it needs: there may be thousands of waiters.
            make = partial(WaitWriter, wait=self._wait, answer=partial(_to_bytes, self._deps, answer, headers))
            self._deps.stream_writers.take_over(self._viewer, sock, self._on_end, b"", make)
            return ALREADY_HANDLED
        unwatch = on_hangup(sock, self._viewer.disconnect) if sock else None
        try:
            with closing(self._viewer.chunks()) as chunks:
                for frames in chunks:
                    self._wait.feed(frames)
                    if self._wait.is_over:
                        break
                response = answer()
        finally:
            if unwatch:
                unwatch()
            self._on_end()
        response.headers.extend(Headers(headers))
        return response(environ, start_response)


def _answer(deps: Dependencies, ref: JobRef, viewer: Viewer, wait: Wait, *, with_lines: bool) -> Response:
    """The answer to a wait that is over."""
    try:
        if wait.is_over:
            _read_further_lines(viewer, wait, deps.monotonic)
        outcome = wait.outcome(viewer)
        job = _known_job(deps, ref, viewer, wait.cursor) or deps.store.get_job(ref)
        if job is None:
            return problem_for(JobNotFound("no such job"))
        if outcome is None:
            return problem(503, wait.error)
        return json_response(wait.to_json(outcome, viewer, job, with_lines=with_lines))
    except ChronoverseError as error:
        return problem_for(error)


def _read_further_lines(viewer: Viewer, wait: Wait, clock: Callable[[], float]) -> None:
    """Reads what else is there after the first line, and does not wait for more."""
    until = clock() + LOOK_SECONDS
    while not wait.is_full and not viewer.done and clock() < until:
        frames = viewer.next()
        if frames is None:
            return
        wait.feed(frames)


def _known_job(deps: Dependencies, ref: JobRef, viewer: Viewer, cursor: int) -> Job | None:
    """The job as the tail knows it, if its log has line ``cursor``. Its status is some seconds old at most.

    When a job ends, all who wait for it are answered at once. With a read of the store for each, half of 2,000 got 503.
    """
    job = deps.tail.known_job(ref)
    if job is None and viewer.feed and viewer.feed.job and viewer.feed.job.end:
        job = viewer.feed.job
    return job if job and job.last >= cursor else None


def _to_bytes(deps: Dependencies, answer: Callable[[], Response], headers: Iterable[tuple[str, str]]) -> bytes:
    """The answer with more ``headers``, as it is sent on a connection that ends with it."""
    response = answer()
    body = response.get_data()
    status = HTTPStatus(response.status_code)
    fields = [*response.headers, *headers]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *fixed_headers(deps.wall_clock())]
    lines += [f"{name}: {value}" for name, value in fields if name != "Content-Length"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "\r\n"]).encode("latin-1") + body
