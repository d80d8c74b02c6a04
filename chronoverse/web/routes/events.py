"""``GET /workflows/{workflow_id}/jobs/{job_id}/events``: a job's log as an event stream.

Every refusal is decided before the first byte, because a status cannot be changed afterwards. So a client that does not
get 200 learns why from a problem document.
"""

from collections.abc import Callable
from typing import Any

from flask import Response, request

from chronoverse.errors import AtCapacity, JobNotFound
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.viewer import Viewer
from chronoverse.web.http.dependencies import Dependencies, principal, stream_ticket
from chronoverse.web.http.pages import open_page, read_batches
from chronoverse.web.http.schemas import EVENT_SCHEMA, Blueprint, EventsHeaders, EventsQuery, ProblemSchema
from chronoverse.web.streaming.connection import begin_long_answer, on_hangup, stop_receiving
from chronoverse.web.streaming.opening import (
    ACCEPT_SLOT,
    CONTENT_TYPE,
    detach,
    open_viewer,
    stream_headers,
    viewer_request,
)


def blueprint(deps: Dependencies) -> Blueprint:
    """The events route."""
    routes = Blueprint("events", __name__, description="A job's log, live and from any offset.")

    @routes.before_request
    def wait_for_accept_slot() -> None:
        # A new viewer costs a millisecond. Without this, 60 that come together would delay everybody's lines by 60 ms.
        # The fast path may already have queued this request, or failed to. Do not queue it twice.
        slot = request.environ.get(ACCEPT_SLOT)
        if isinstance(slot, AtCapacity):
            raise slot
        if slot is None:
            with deps.accept_lock:
                pass

    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/events")
    @routes.doc(operationId="streamJobLog")
    @routes.arguments(EventsQuery(), location="query", as_kwargs=True)
    @routes.arguments(EventsHeaders(), location="headers", as_kwargs=True)
    @routes.response(
        200, EVENT_SCHEMA, content_type="text/event-stream", description="Server-Sent Events, each like this."
    )
    @routes.alt_response(204, description="`Last-Event-ID` is at or past the end: there is nothing more, ever.")
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    @routes.alt_response(
        429,
        schema=ProblemSchema,
        content_type="application/problem+json",
        description="The token or the client's address has as many streams as it may.",
    )
    def events(workflow_id: str, job_id: str, wait: int, last_event_id: int | None = None, **query: Any) -> Response:
        """Stream a job's log as Server-Sent Events."""
        ref, ticket = JobRef(workflow_id, job_id), stream_ticket(deps)
        if request.method != "HEAD":
            deps.admission.check(ticket)
        job = deps.tail.known_job(ref) or deps.ended_jobs.get_job(ref)
        if job is None and (not wait or deps.store.is_deleted(ref)):
            raise JobNotFound("no such job")
        if last_event_id is not None and job and job.end and last_event_id >= job.end.sequence_num:
            return Response(status=204)
        stream, after = query.get("stream"), last_event_id
        if after is None:
            after = start_offset(deps, job, query.get("offset"), query.get("tail"), stream)
        if request.method == "HEAD":
            return Response(iter(()), headers=stream_headers(after), content_type=CONTENT_TYPE)
        viewer_params = viewer_request(deps, ref, job, after, stream, wait, principal().expires_at)
        return EventStream(deps, after, *open_viewer(deps, ticket, viewer_params))

    return routes


def start_offset(
    deps: Dependencies, job: Job | None, offset: int | str | None, tail: int | None, stream: str | None
) -> int:
    """The number after which the stream starts, for a request without ``Last-Event-ID``."""
    if isinstance(offset, int):
        return offset
    if job is None:
        return 0
    if offset == "latest" or tail == 0:
        return job.last
    if tail is None:
        return 0
    if stream is None:
        return max(job.last - tail, min(job.first - 1, job.last))
    return _start_of_stream_tail(deps, job, tail, stream)


def _start_of_stream_tail(deps: Dependencies, job: Job, tail: int, stream: str) -> int:
    """The number before the last ``tail`` lines of one ``stream``.

    When the budget of a page ends first, it is the number before the lines that were found until then. Raises as
    :func:`chronoverse.web.http.pages.read_batches` does.
    """
    start = job.last
    time_slice = deps.search_slice()
    with open_page(deps, job.ref, 1) as budget:
        for batch in read_batches(deps, job, job.last + 1, descending=True, let_others_run=deps.wait_for_idle_slot):
            for line in batch.lines:
                time_slice.check()
                budget.entries_left -= 1
                if line.stream == stream:
                    start, tail = line.sequence_num - 1, tail - 1
                if tail == 0 or budget.is_used_up():
                    return start
    return min(job.first - 1, job.last)


class EventStream(Response):
    """A viewer's response.

    Where a :class:`StreamWriter` can take over the socket, it does. Otherwise gunicorn asks for the viewer's chunks.
    """

    def __init__(self, deps: Dependencies, after: int, viewer: Viewer, on_end: Callable[[], None]) -> None:
        super().__init__(iter(()), headers=stream_headers(after), content_type=CONTENT_TYPE)
        self._deps = deps
        self._viewer = viewer
        self._on_end = on_end

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        sock = begin_long_answer(environ)
        if self._deps.stream_writers.can_take_over(environ):
            fields = self.get_wsgi_headers(environ).to_wsgi_list()
            return detach(self._deps, self._viewer, self._on_end, sock, fields)
        unwatch = on_hangup(sock, self._viewer.disconnect) if sock else None

        def closed() -> None:
            if unwatch:
                unwatch()
            if sock and self._deps.admission.is_draining:
                # Otherwise gunicorn would wait for the client's next request before the worker may exit.
                stop_receiving(sock)
            self._on_end()

        self.response = self._viewer.chunks()
        # A ``finally`` in the generator would not do: it does not run in a generator that was never started.
        self.call_on_close(closed)
        return super().__call__(environ, start_response)
