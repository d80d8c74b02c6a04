"""``GET …/logs/new``: the lines that are new, compared with other runs, in pages.

A page may be empty and not have come any further, because a request reads only a bounded part of the runs that it
compares with. A cursor contains the number of such pages in a row. So each cursor differs from the one before it.
"""

from typing import Any

from flask import Response

from chronoverse.errors import InvalidCursor
from chronoverse.joblog.model import MAX_NUMBER, JobRef
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.log_pages import scan_page
from chronoverse.web.http.paging import decode_cursor, encode_cursor, log_page_response
from chronoverse.web.http.schemas import LOOKED_THROUGH, Blueprint, NewLinesQuery, NewLinesSchema


def blueprint(deps: Dependencies) -> Blueprint:
    """The route of new lines."""
    routes = Blueprint("new_lines", __name__, description="Comparing.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs/new")
    @routes.doc(operationId="listNewLines")
    @routes.arguments(NewLinesQuery(), location="query", as_kwargs=True)
    @routes.response(200, NewLinesSchema, **LOOKED_THROUGH)
    @routes.problem(404)
    @routes.problem(409, "`reason` is nothing-to-compare: no run is there that this one could be compared with.")
    def new_lines(workflow_id: str, job_id: str, limit: int, order: str, **query: Any) -> Response:
        """The lines with a shape that none of the runs has that the log is compared with."""
        ref, stream, against = JobRef(workflow_id, job_id), query.get("stream"), query.get("against")
        listing = ("new", workflow_id, job_id, order, stream, against)
        filters = {"stream": stream, "against": against, "before": query["before"], "after": query["after"]}
        job = deps.require_job(ref)
        descending = order == "desc"
        start, waited = job.last + 1 if descending else 0, 0
        position = query.get("offset", start)
        if "cursor" in query:
            position, waited = decode_cursor(query["cursor"], listing, [int, int])
            if not (0 <= position <= MAX_NUMBER and 0 <= waited <= MAX_NUMBER):
                raise InvalidCursor("cursor: this is not one of ours")
        page = scan_page(deps, ref, limit, position=position, descending=descending, only_new=True, **filters)
        waited = waited + 1 if page.position == position else 0
        cursor = encode_cursor(listing, [page.position, waited]) if page.has_more else None
        parameters = {"limit": limit, "order": order, **filters}
        return log_page_response(ref, page, cursor, parameters, compared_with=page.compared_with)

    return routes
