"""``GET …/logs/search``: the lines that say something, in pages, each with the places where it says it.

A page may be short, or empty, and still have a next one: a request looks through so much and no more. How far it has
come is in its ``Last-Event-ID``, so that a reader of a running job can go on from there when there is more.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from flask import Response

from chronoverse.joblog import JobRef, Line
from chronoverse.matcher import Matcher
from chronoverse.web import pages
from chronoverse.web.cursors import encode_cursor
from chronoverse.web.schemas import Blueprint, ProblemSchema, SearchQuery, SearchSchema
from chronoverse.web.services import Services


def blueprint(services: Services) -> Blueprint:
    """The search route."""
    routes = Blueprint("search", __name__, description="Searching.")
    services.guard(routes)

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
        ref, stream, matcher = JobRef(workflow_id, job_id), query.get("stream"), Matcher(q, regex=regex)
        listing = ("search", workflow_id, job_id, order, stream, regex, hashlib.sha256(q.encode()).hexdigest()[:16])
        job = services.job(ref)
        descending = order == "desc"

        def wanted(line: Line) -> bool:
            return stream in (None, line.stream) and pages.matches(matcher, line.message)

        place = pages.start(query, listing, job, descending=descending)
        found = pages.page(services, job, place, limit, descending=descending, wanted=wanted)
        cursor = encode_cursor(listing, [found.place]) if found.more else None
        lines = list(_highlighted(found.lines, matcher, pages.Turns(services.monotonic)))
        body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
        said = {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order, "stream": stream}
        return pages.page_response(body, cursor, found.place, **said)

    return routes


def _highlighted(lines: list[Line], matcher: Matcher, turns: pages.Turns) -> Iterator[dict[str, Any]]:
    """The lines' JSON with the places where they match."""
    for line in lines:
        turns.give()
        yield {**line.to_json(), "highlights": matcher.places(line.message)}
