"""``GET /workflows/{workflow_id}/events``: a workflow's jobs as an event stream.

A workflow's changes take the same path as a log's lines. Only the beginning of the stream differs.
"""

from functools import partial
from typing import Any, Final

import orjson
from flask import Response, request

from chronoverse.errors import StoreError
from chronoverse.joblog import sse
from chronoverse.joblog.events import RESET_FRAME, EventName
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.replay_cache import ReplaySegment
from chronoverse.live.workflow_viewer import WorkflowViewer
from chronoverse.web.guards.turns import WAIT_SECONDS
from chronoverse.web.http.dependencies import Dependencies, stream_ticket
from chronoverse.web.http.schemas import WORKFLOW_EVENT_SCHEMA, Blueprint, WorkflowEventsQuery
from chronoverse.web.routes.events import last_event_id, open_stream, parse_query, stream_operation
from chronoverse.web.routes.jobs import WantedJobs, newest_jobs

LOOK_SECONDS: Final = 2.0


def read_newest(deps: Dependencies, wanted: WantedJobs, subject: str, least: int, cursor: int) -> tuple[bytes, int]:
    """Returns the jobs' frames, and the number (``least`` to ``cursor``) up to which they include all changes.

    One read serves all streams that start within a second. Raises :class:`ShareExceeded`, and what :func:`newest_jobs`
    raises.
    """

    def read() -> ReplaySegment:
        jobs, position, until = list[Any](), None, deps.monotonic() + LOOK_SECONDS
        while len(jobs) < wanted.most:
            left = wanted._replace(most=wanted.most - len(jobs))
            more, position = newest_jobs(deps, left, position, subject)
            jobs += more
            if position is None or deps.monotonic() >= until:
                break
        frames = b"".join([sse.frame(EventName.JOB, orjson.dumps(job)) for job in reversed(jobs)])
        return ReplaySegment(frames, cursor, None, 0, len(frames), complete=True)

    key, seconds = (JobRef(wanted.workflow_id, ""), wanted, 0), LOOK_SECONDS + WAIT_SECONDS
    return deps.replay_cache.load_once(key, seconds, read, lambda known: least <= known.cursor <= cursor)[:2]


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("workflow-events", "A workflow's jobs, live.")

    @routes.route("/workflows/<id:workflow_id>/events")
    @routes.doc(**stream_operation(WorkflowEventsQuery, WORKFLOW_EVENT_SCHEMA, " They do not end."))
    def stream_workflow(workflow_id: str) -> Response:
        """Stream a workflow's jobs: the newest ones, then each change, as Server-Sent Events."""
        environ = request.environ
        query = parse_query(environ.get("QUERY_STRING", ""), WorkflowEventsQuery)
        # An empty header means that the client has received nothing.
        given = last_event_id(environ.get("HTTP_LAST_EVENT_ID") or None)
        ref, ticket = JobRef(workflow_id, ""), stream_ticket(deps)
        if environ["REQUEST_METHOD"] != "HEAD":
            deps.admission.check(ticket)
        state: Job | StoreError | None = deps.tail.known_job(ref)
        # Another worker may have seen newer changes.
        if not isinstance(state, Job) or (given is not None and given > state.last):
            (state,) = deps.store.get_jobs([ref])
        if not isinstance(state, Job):
            raise state or StoreError("the workflow's changes cannot be read")
        labels = tuple(query.get("label", ()))
        jobs = WantedJobs(workflow_id, query["jobs"], query.get("status"), labels)
        # With 0, a client can know jobs from the listing that an empty store has lost.
        is_kept = given is not None and state.first - 1 <= given <= state.last > 0
        after = given if given is not None and is_kept else state.last
        wanted = {
            "line_filter": LineFilter(status=jobs.status, labels=labels) if jobs.status or labels else None,
            "jobs": partial(read_newest, deps, jobs, ticket.subject),
            "opening": None if is_kept else (b"" if given is None else RESET_FRAME, state.first - 1),
        }
        return open_stream(deps, ticket, ref, state, after, WorkflowViewer, **wanted)

    return routes
