"""``GET /workflows/{workflow_id}/jobs/{job_id}/events``: a job's log as an event stream.

Every refusal is decided before the first byte is sent. flask-smorest documents this route, but does not parse its
parameters, which would be most of the cost of opening a stream.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Final

from flask import Response, request
from gunicorn import SERVER
from gunicorn.workers.base_async import ALREADY_HANDLED
from marshmallow import Schema
from werkzeug.wrappers import Request

from chronoverse import metrics
from chronoverse.errors import JobNotFound
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.viewer import Viewer
from chronoverse.web.guards.admission import StreamTicket, retry_ms
from chronoverse.web.guards.connection import begin_long_answer
from chronoverse.web.http.bodies import load
from chronoverse.web.http.dependencies import Dependencies, principal, stream_ticket
from chronoverse.web.http.paging import scan_page
from chronoverse.web.http.read_audit import set_start
from chronoverse.web.http.schemas import (
    EVENT_SCHEMA,
    Blueprint,
    EventsHeaders,
    EventsQuery,
    ProblemSchema,
    parse_last_event_id,
)
from chronoverse.web.streaming.stream_writer import chunk

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
#: Characters forbidden in header fields (RFC 9110 section 5.5).
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")
#: Answers that only a job's event stream has.
_RESPONSES: Final = {"204": {"description": "`Last-Event-ID` is at or past the end of the log. Do not reconnect."}}

log = logging.getLogger(__name__)


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("events", "A job's log, live and from any offset.")

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/events")
    @routes.doc(**stream_operation(EventsQuery, EVENT_SCHEMA, "", **_RESPONSES))
    def stream_job_log(workflow_id: str, job_id: str) -> Response:
        """Stream a job's log as Server-Sent Events."""
        environ = request.environ
        query = parse_query(environ.get("QUERY_STRING", ""))
        after = given = last_event_id(environ.get("HTTP_LAST_EVENT_ID"))
        ref, ticket = JobRef(workflow_id, job_id), stream_ticket(deps)
        if environ["REQUEST_METHOD"] != "HEAD":
            deps.admission.check(ticket)
        job = deps.tail.known_job(ref) or deps.store.get_job(ref)
        if job is None and (not query["wait"] or deps.store.is_deleted(ref)):
            raise JobNotFound("no such job")
        if given is not None and job is not None and job.end is not None and given >= job.end.sequence_num:
            return Response(status=204)
        line_filter = line_filter_of(query)
        if after is None:
            after = start_offset(deps, job, query.get("offset"), query.get("tail"), line_filter)
        return open_stream(deps, ticket, ref, job, after, line_filter=line_filter, wait=query["wait"])

    return routes


def stream_operation(query: Any, event: Any, end: str, **responses: Any) -> dict[str, Any]:
    """An event stream's route in the OpenAPI document."""
    return {
        "parameters": [{"in": "header", "schema": EventsHeaders}, {"in": "query", "schema": query}],
        "responses": {
            "200": {
                "description": f"Server-Sent Events, each like this.{end}",
                "content": {"text/event-stream": {"schema": event}},
            },
            **responses,
            "400": "BAD_REQUEST",
            "429": {
                "description": "The token or the client's address has reached its maximum number of streams.",
                "content": {"application/problem+json": {"schema": ProblemSchema}},
            },
            "default": "DEFAULT_ERROR",
        },
    }


# Many viewers send the same query.
@lru_cache(256)
def parse_query(query: str, schema: type[Schema] = EventsQuery) -> Mapping[str, Any]:
    """Parses a query string from WSGI's environ. Raises werkzeug's BadRequest with the errors of all parameters.

    Uses only the first of duplicate parameters, which ``Dependencies.check_request`` has already refused.
    """
    args = Request({"QUERY_STRING": query}).args
    labels = {"label": args.getlist("label")} if "label" in args else {}
    return load({**args.to_dict(), **labels}, schema(), "query")


def last_event_id(header: str | None) -> int | None:
    """The number in a ``Last-Event-ID`` header. None if absent. Raises what :func:`parse_query` raises."""
    number = None if header is None else parse_last_event_id(header)
    if number is None and header is not None:
        load({"Last-Event-ID": header}, EventsHeaders(), "headers")
    return number


def line_filter_of(query: Mapping[str, Any]) -> LineFilter | None:
    """The filter of ``query``. None for all lines."""
    if "stream" not in query and "q" not in query:
        return None
    return LineFilter(query.get("stream"), query.get("q"), query["regex"] and "q" in query)


def start_offset(
    deps: Dependencies, job: Job | None, offset: int | str | None, tail: int | None, line_filter: LineFilter | None
) -> int:
    """The number after which a stream without ``Last-Event-ID`` starts.

    With a filter, finds the last ``tail`` matching lines, within the time limit of a page. Raises what
    :func:`scan_page` raises.
    """
    if isinstance(offset, int):
        return offset
    if job is None:
        return 0
    if offset == "latest" or tail == 0:
        return job.last
    if tail is None:
        return 0
    if line_filter is None:
        return max(job.last - tail, min(job.first - 1, job.last))
    filters = line_filter.of_lines
    page = scan_page(deps, job.ref, tail, position=job.last + 1, descending=True, form="number", **filters)
    if len(page.lines) == tail or page.has_more:
        return int(page.lines[-1]) - 1 if page.lines else job.last
    return min(job.first - 1, job.last)


class EventStream(Response):
    """A viewer's response. Adds headers late: the read audit takes ``Last-Event-ID`` for the last line read."""

    def __init__(self, deps: Dependencies, after: int, viewer: Viewer, on_end: Callable[[], None]) -> None:
        super().__init__(iter(()), content_type=CONTENT_TYPE)
        self._deps = deps
        self._after = after
        self._viewer = viewer
        self._on_end = on_end

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        writers, viewer = self._deps.stream_writers, self._viewer
        begin_long_answer(environ)
        # HTTP/1.0 has no chunks.
        if writers.can_take_over(environ) and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
            try:
                own = {"Transfer-Encoding": "chunked", **stream_headers(self._after)}
                head = response_head([*own.items(), *self.headers], self._deps.wall_clock())
                frames = viewer.next()
                writers.take_over(viewer, environ, self._on_end, head + chunk(frames) if frames else head)
            except BaseException:
                self._on_end()
                raise
            return ALREADY_HANDLED
        self.headers.extend(stream_headers(self._after))
        self.response = viewer.chunks()
        # A ``finally`` of the generator would not run if the generator was never started.
        self.call_on_close(self._on_end)
        return super().__call__(environ, start_response)


def stream_headers(after: int) -> dict[str, str]:
    """The headers of an event stream that starts after line ``after``, except the content type."""
    return {
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "Last-Event-ID": str(after),
    }


def open_stream(
    deps: Dependencies,
    ticket: StreamTicket,
    ref: JobRef,
    job: Job | None,
    after: int,
    make: Callable[..., Viewer] = Viewer,
    **wanted: Any,
) -> Response:
    """A stream that starts after line ``after``. HEAD gets only headers. More arguments: :func:`open_viewer`."""
    if request.method == "HEAD":
        return Response(iter(()), headers=stream_headers(after), content_type=CONTENT_TYPE)
    return EventStream(deps, after, *open_viewer(deps, ticket, ref, job, make, after=after, **wanted))


def open_viewer(
    deps: Dependencies,
    ticket: StreamTicket,
    ref: JobRef,
    job: Job | None,
    make: Callable[..., Viewer] = Viewer,
    **wanted: Any,
) -> tuple[Viewer, Callable[[], None]]:
    """Admits and opens a viewer. Returns it, and a function to call once, after its stream has ended.

    ``wanted`` are arguments for ``make``, in addition to those from the settings and the token. Raises what
    :meth:`AdmissionControl.check` raises.
    """
    settings, now = deps.settings, deps.monotonic()
    options = {
        "retry_ms": retry_ms(),
        "heartbeat_seconds": settings.heartbeat_seconds,
        "expires_at": now + principal().expires_at - deps.wall_clock(),
        # Maximum ages vary by a tenth, so that clients do not all reconnect at once.
        "closes_at": now + settings.max_stream_seconds * random.uniform(0.9, 1),
        "subject": ticket.subject,
        **wanted,
    }
    deps.admission.enter(ticket)
    deps.tail.start()
    metrics.STREAMS_OPEN.inc()
    metrics.STREAMS_STARTED.inc()
    set_start(wanted["after"])
    ticket.viewer = viewer = make(deps.replay_cache, deps.tail, ref, job, **options)
    if ticket.span:
        ticket.span.stream_opened(viewer.cursor)
    return viewer, partial(_close_viewer, deps, ticket, ref, viewer.cursor, viewer)


def response_head(headers: Iterable[tuple[str, str]], now: float, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    """The head of a response with ``headers``, as gunicorn would write it at Unix time ``now``. Ten times as fast.

    Raises ValueError if a header contains a character that would end its line.
    """
    # Days and months are in English, because no locale is set. email.utils takes four times as long.
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
    # gunicorn cannot use the connection afterwards, so it must not be kept alive.
    fixed = {"Server": SERVER, "Date": date, "Connection": "close"}
    lines = [f"{name}: {value}" for name, value in (*fixed.items(), *headers)]
    if _FORBIDDEN.search("".join(lines)):
        raise ValueError("a header has an invalid character")
    return "\r\n".join((f"HTTP/1.1 {status.value} {status.phrase}", *lines, "\r\n")).encode("latin-1")


def _close_viewer(deps: Dependencies, ticket: StreamTicket, ref: JobRef, after: int, viewer: Viewer) -> None:
    viewer.close()
    deps.admission.leave(ticket)
    reason = viewer.reason or "left"
    metrics.STREAMS_OPEN.dec()
    metrics.STREAMS_ENDED.labels(reason).inc()
    who = {"request_id": ticket.request_id, "job": str(ref), "client": ticket.address, "sub": ticket.subject}
    seconds = round(deps.monotonic() - ticket.since, 3)
    fields = {**who, "after": after, "why": reason, "at": viewer.cursor, "seconds": seconds}
    log.info("stream ended", extra={"fields": fields})
    if ticket.span:
        ticket.span.stream_ended(reason, viewer.cursor)
