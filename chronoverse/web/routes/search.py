"""``GET …/logs/search``: the lines that match, in pages, each with the spans that match.

A page may be short or empty and still have a next one, because a request looks through a bounded part of the log. Its
``Last-Event-ID`` is how far it has come, so that a reader of a running job can go on from there later. The scan server
makes the pages, see :mod:`chronoverse.history.scans`.
"""

import hashlib
from typing import Any

import orjson
from flask import Response

from chronoverse.history.scans.scan import Form
from chronoverse.joblog.values import JobRef
from chronoverse.web.http import pages
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.paging import encode_cursor, page_response, start_position
from chronoverse.web.http.schemas import MAX_CONTEXT_PAGE_LINES, Blueprint, ProblemSchema, SearchQuery, SearchSchema


def blueprint(deps: Dependencies) -> Blueprint:
    """The search route."""
    routes = Blueprint("search", __name__, description="Searching.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs/search")
    @routes.doc(operationId="searchJobLog")
    @routes.arguments(SearchQuery, location="query", as_kwargs=True)
    @routes.response(
        200,
        SearchSchema,
        description="A page, perhaps an empty one; `Link` names the next. `Last-Event-ID` is how far it has looked.",
        headers={"Last-Event-ID": {"schema": {"type": "string", "pattern": "^[0-9]{1,15}$"}}},
    )
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    def search(workflow_id: str, job_id: str, q: str, regex: bool, limit: int, order: str, **query: Any) -> Response:
        """The lines that match, in pages."""
        ref, stream, since, until = JobRef(workflow_id, job_id), *map(query.get, ("stream", "since", "until"))
        before, after = query["before"], query["after"]
        digest = hashlib.sha256(q.encode()).hexdigest()[:16]
        listing = ("search", workflow_id, job_id, order, stream, regex, digest, since, until)
        job = deps.require_job(ref)
        descending = order == "desc"
        position = start_position(query, listing, job, descending=descending)
        context = before + after
        max_matches = min(limit, max(1, MAX_CONTEXT_PAGE_LINES // (1 + context))) if context else limit
        page = pages.scan_page(
            deps,
            ref,
            max_matches,
            position=position,
            descending=descending,
            form=Form.MATCH,
            stream=stream,
            q=q,
            regex=regex,
            since=since,
            until=until,
            before=before,
            after=after,
        )
        cursor = encode_cursor(listing, [page.position]) if page.has_more else None
        lines = [orjson.Fragment(each) for each in page.lines]
        body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
        parameters = {name: query.get(name) or None for name in ("stream", "since", "until", "before", "after")}
        parameters |= {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order}
        return page_response(body, cursor, page.position, **parameters)

    return routes
