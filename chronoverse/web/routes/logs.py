"""``GET …/logs``: a job's log in pages, in either order, from any position."""

from typing import Any

from flask import Response

from chronoverse.joblog.model import JobRef
from chronoverse.web.http import log_pages
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.paging import encode_cursor, log_page_response, start_position
from chronoverse.web.http.schemas import Blueprint, LogsQuery, LogsSchema


def blueprint(deps: Dependencies) -> Blueprint:
    """The history route."""
    routes = Blueprint("logs", __name__, description="History.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs")
    @routes.doc(operationId="pageJobLog")
    @routes.arguments(LogsQuery(), location="query", as_kwargs=True)
    @routes.response(200, LogsSchema, description="A page, perhaps a short one; `Link` names the next.")
    def logs(workflow_id: str, job_id: str, limit: int, order: str, **query: Any) -> Response:
        """One page of a job's log."""
        ref, stream = JobRef(workflow_id, job_id), query.get("stream")
        listing = ("logs", workflow_id, job_id, order, stream)
        job = deps.require_job(ref)
        descending = order == "desc"
        position = start_position(query, listing, job, descending=descending)
        if stream is None:
            page = log_pages.log_page(deps, job, position, limit, descending=descending)
        else:
            page = log_pages.scan_page(deps, ref, limit, position=position, descending=descending, stream=stream)
        cursor = encode_cursor(listing, [page.position]) if page.has_more else None
        return log_page_response(ref, page, cursor, {"limit": limit, "order": order, "stream": stream})

    return routes
