"""``GET …/logs/search``: the lines that match, in pages, each with the spans that match.

A page may be short or empty and still have a next one, because a request looks through a bounded part of the log. Its
``Last-Event-ID`` is how far it has come, so that a reader of a running job can go on from there later. The scan server
makes the pages: see :mod:`chronoverse.history.scans`.
"""

import hashlib
from typing import Any

import orjson
from flask import Response

from chronoverse.errors import InvalidCursor
from chronoverse.history.scans.scan import WorkflowPosition, WorkflowScan
from chronoverse.joblog.model import MAX_NUMBER, JobRef, iso_or_none
from chronoverse.web.http import log_pages
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.paging import (
    decode_cursor,
    encode_cursor,
    log_page_response,
    page_response,
    parse_position,
    start_position,
)
from chronoverse.web.http.schemas import (
    LOOKED_THROUGH,
    Blueprint,
    SearchQuery,
    SearchSchema,
    WorkflowSearchQuery,
    WorkflowSearchSchema,
)


def blueprint(deps: Dependencies) -> Blueprint:
    """The search route."""
    routes = Blueprint("search", __name__, description="Searching.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs/search")
    @routes.doc(operationId="searchJobLog")
    @routes.arguments(SearchQuery, location="query", as_kwargs=True)
    @routes.response(200, SearchSchema, **LOOKED_THROUGH)
    def search(workflow_id: str, job_id: str, q: str, regex: bool, limit: int, order: str, **query: Any) -> Response:
        """The lines that match, in pages."""
        ref, stream, since, until = JobRef(workflow_id, job_id), *map(query.get, ("stream", "since", "until"))
        filters = {"stream": stream, "since": since, "until": until, "before": query["before"], "after": query["after"]}
        filters |= {"q": q, "regex": regex}
        listing = ("search", workflow_id, job_id, order, stream, regex, _digest(q), since, until)
        descending = order == "desc"
        position = start_position(query, listing, deps.require_job(ref), descending=descending)
        page = log_pages.scan_page(deps, ref, limit, position=position, descending=descending, **filters)
        cursor = encode_cursor(listing, [page.position]) if page.has_more else None
        return log_page_response(ref, page, cursor, {**filters, "limit": limit, "order": order})

    @routes.route("/workflows/<id:workflow_id>/logs/search")
    @routes.doc(operationId="searchWorkflow")
    @routes.arguments(WorkflowSearchQuery, location="query", as_kwargs=True)
    @routes.response(
        200,
        WorkflowSearchSchema,
        description="A page, perhaps an empty one; `Link` names the next. `Searched-To` is how far it has looked.",
        headers={
            "Searched-To": {
                "schema": {"type": "string", "examples": ["job-1;created=2026-03-03T10:00:05.123Z;line=7"]},
                "description": "The last job that it has looked at, when that was created, and up to which line, if it"
                " has not come to that job's end. Without a next page there is none.",
            }
        },
    )
    def search_workflow(workflow_id: str, q: str, regex: bool, limit: int, per_job: int, **query: Any) -> Response:
        """The lines that match in all jobs of a workflow, the newest job first."""
        filters = {name: query.get(name) for name in ("stream", "status", "since", "until")}
        listing = ("search", workflow_id, regex, _digest(q), *filters.values())
        start: WorkflowPosition | None = None
        if "cursor" in query:
            created, job_id, line, found = decode_cursor(query["cursor"], listing, [str, str, int, int])
            if not (-1 <= line <= MAX_NUMBER and 0 <= found <= MAX_NUMBER):
                raise InvalidCursor("cursor: this is not one of ours")
            parse_position(created, job_id)
            start = WorkflowPosition(created, job_id, None if line < 0 else line, found)
        asked = {"before": query["before"], "after": query["after"], **filters, "q": q, "regex": regex}
        asked |= {"limit": limit, "per_job": per_job}
        with log_pages.pending_scan(deps, WorkflowScan, JobRef(workflow_id, ""), start=start, **asked) as pending:
            page = pending.jobs_page()
        cursor = None
        if page.position is not None:
            created, job_id, line, found = page.position
            cursor = encode_cursor(listing, (created, job_id, -1 if line is None else line, found))
        body = {"workflow_id": workflow_id, "jobs": [orjson.Fragment(each) for each in page.jobs], "cursor": cursor}
        response = page_response(body, cursor, **asked)
        if page.position is not None:
            response.headers["Searched-To"] = _searched_to(page.position)
        return response

    return routes


def _searched_to(position: WorkflowPosition) -> str:
    """How far a search has come in a workflow, as the header's value. Ids of jobs have no semicolons."""
    created = iso_or_none(float(position.created))
    line = None if position.line is None else str(position.line)
    more = [f"{name}={value}" for name, value in (("created", created), ("line", line)) if value is not None]
    return ";".join([position.job_id, *more])


def _digest(q: str) -> str:
    """What a cursor contains of its query, which may be long."""
    return hashlib.sha256(q.encode()).hexdigest()[:16]
