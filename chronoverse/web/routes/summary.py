"""``GET …/summary``: what a person, or a program with little room, needs first of a job."""

from flask import Response

from chronoverse.history.scans.scan import SummaryScan
from chronoverse.joblog.model import JobRef
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.log_pages import pending_scan
from chronoverse.web.http.paging import json_response
from chronoverse.web.http.schemas import Blueprint, SummaryQuery, SummarySchema


def blueprint(deps: Dependencies) -> Blueprint:
    """The summary route."""
    routes = Blueprint("summary", __name__, description="Summaries.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/summary")
    @routes.doc(operationId="summarizeJob")
    @routes.arguments(SummaryQuery, location="query", as_kwargs=True)
    @routes.response(200, SummarySchema, description="The summary, in no more bytes than asked for.")
    def summary(workflow_id: str, job_id: str, max_bytes: int) -> Response:
        """A job's new lines, errors and last lines, as far as they fit."""
        ref = JobRef(workflow_id, job_id)
        with pending_scan(deps, SummaryScan, ref, page_bytes=max_bytes) as pending:
            return json_response(pending.answer()[1])

    return routes
