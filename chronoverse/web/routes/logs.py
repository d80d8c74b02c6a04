"""``GET …/logs``: a job's log in pages, upwards or downwards, from anywhere."""

from typing import Any

from flask import Response

from chronoverse.joblog.values import JobRef
from chronoverse.web.http import pages
from chronoverse.web.http.cursors import encode_cursor
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.schemas import Blueprint, LogsQuery, LogsSchema, ProblemSchema


def blueprint(deps: Dependencies) -> Blueprint:
    """The history route."""
    routes = Blueprint("logs", __name__, description="History.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs")
    @routes.doc(operationId="pageJobLog")
    @routes.arguments(LogsQuery(), location="query", as_kwargs=True)
    @routes.response(200, LogsSchema, description="A page, perhaps a short one; `Link` names the next.")
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    def logs(workflow_id: str, job_id: str, limit: int, order: str, **query: Any) -> Response:
        """One page of a job's log."""
        ref, stream = JobRef(workflow_id, job_id), query.get("stream")
        listing = ("logs", workflow_id, job_id, order, stream)
        job = deps.require_job(ref)
        descending = order == "desc"
        place = pages.start_position(query, listing, job, descending=descending)
        wanted = (lambda line: line.stream == stream) if stream else None
        with pages.page_budget(deps, ref, limit) as budget:
            found = pages.read_page(deps, job, place, limit, budget, descending=descending, predicate=wanted)
            cursor = encode_cursor(listing, [found.position]) if found.has_more else None
            lines = found.to_json(descending=descending)
            body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
            return pages.page_response(body, cursor, found.position, limit=limit, order=order, stream=stream)

    return routes
