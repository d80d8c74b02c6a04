"""Answers most requests of the events route before Flask sees them.

It answers only the common case: a valid token, a plain query, and a job that the worker already knows. All other
requests, and all that must be refused, go on to Flask, whose route gives the same answers to the common case. So this
is only an optimisation. After a restart or a failover many viewers come back at once, and Flask, which validates and
describes the routes, is two thirds of the cost of opening one.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from marshmallow import RAISE, ValidationError

from chronoverse.auth.tokens import READ
from chronoverse.errors import AtCapacity, ChronoverseError
from chronoverse.joblog.values import IDENTIFIER, JobRef
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.request_id import HEADER, accept_or_create
from chronoverse.web.http.schemas import EventsQuery, parse_last_event_id
from chronoverse.web.http.tracing import SPAN_KEY
from chronoverse.web.routes.events import start_offset
from chronoverse.web.streaming.admission import StreamTicket
from chronoverse.web.streaming.connection import begin_long_answer
from chronoverse.web.streaming.opening import (
    ACCEPT_SLOT,
    CONTENT_TYPE,
    detach,
    open_viewer,
    stream_headers,
    viewer_request,
)

#: Parsed query strings that are cached. Many viewers send the same one.
CACHED_QUERIES: Final = 256

_PATH: Final = re.compile(rf"/workflows/({IDENTIFIER.pattern})/jobs/({IDENTIFIER.pattern})/events", re.ASCII)
#: A query string without escapes.
_QUERY: Final = re.compile(r"[a-z]+=[a-z0-9]+(?:&[a-z]+=[a-z0-9]+)*|", re.ASCII)


class FastPath:
    """A WSGI application that answers some requests of the events route, and passes all others to ``app``."""

    def __init__(self, app: Any, deps: Dependencies) -> None:
        self._app = app
        self._deps = deps

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """The response, or gunicorn's ``ALREADY_HANDLED`` when a stream writer has taken over the socket."""
        found = _PATH.fullmatch(environ["PATH_INFO"])
        if (
            found is not None
            and environ["REQUEST_METHOD"] == "GET"
            and self._deps.stream_writers.can_take_over(environ)
        ):
            answer = self._answer(JobRef(found[1], found[2]), environ)
            if answer is not None:
                return answer
        return self._app(environ, start_response)

    def _answer(self, ref: JobRef, environ: dict[str, Any]) -> object | None:
        """Opens the stream and returns ``ALREADY_HANDLED``, or returns None when Flask must answer."""
        deps, query = self._deps, parse_query(environ["QUERY_STRING"])
        # A path with escapes is left to Flask.
        is_plain = environ.get("RAW_URI", "").partition("?")[0] == environ["PATH_INFO"]
        last_event_id = environ.get("HTTP_LAST_EVENT_ID")
        after = None if last_event_id is None else parse_last_event_id(last_event_id)
        if query is None or not is_plain or (after is None) is not (last_event_id is None):
            return None
        try:
            with deps.accept_lock:
                environ[ACCEPT_SLOT] = True
        except AtCapacity as error:
            environ[ACCEPT_SLOT] = error
            return None
        job = deps.tail.known_job(ref) or deps.ended_jobs.get_cached(ref)
        if job is None or (job.end and after is not None and after >= job.end.sequence_num):
            return None
        try:
            principal = deps.verifier.verify(environ.get("HTTP_AUTHORIZATION"), deps.wall_clock())
            principal.require(READ)
        except ChronoverseError:
            return None
        client = deps.proxies.client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR"))
        request_id = accept_or_create(environ.get("HTTP_X_REQUEST_ID", ""))
        ticket = StreamTicket(principal.subject, client, request_id, deps.monotonic(), environ.get(SPAN_KEY))
        if not principal.may_access(ref.workflow_id) or not deps.admission.would_admit(ticket):
            return None
        stream = query.get("stream")
        if after is None:
            if stream is not None and "tail" in query:
                return None
            after = start_offset(deps, job, query.get("offset"), query.get("tail"), stream)
        request = viewer_request(deps, ref, job, after, stream, query["wait"], principal.expires_at)
        viewer, on_end = open_viewer(deps, ticket, request)
        fields = [*stream_headers(after).items(), ("Content-Type", CONTENT_TYPE), (HEADER, request_id)]
        return detach(deps, viewer, on_end, begin_long_answer(environ), fields)


@lru_cache(CACHED_QUERIES)
def parse_query(query: str) -> Mapping[str, Any] | None:
    """The parsed query string. None when Flask must judge it: it has escapes, repeats a parameter, or is not valid."""
    pairs = parse_qsl(query) if _QUERY.fullmatch(query) else None
    if pairs is None or len(dict(pairs)) < len(pairs):
        return None
    try:
        parsed: dict[str, Any] = EventsQuery().load(dict(pairs), unknown=RAISE)
    except ValidationError:
        return None
    return parsed
