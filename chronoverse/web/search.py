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
from chronoverse.period import Period
from chronoverse.web import pages
from chronoverse.web.cursors import encode_cursor
from chronoverse.web.schemas import Blueprint, ProblemSchema
from chronoverse.web.searches import CONTEXT_PAGE, SearchQuery, SearchSchema
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
        # A request by itself is a millisecond or two, without a line looked at: in three parts.
        services.stand_back()
        ref, stream, matcher = JobRef(workflow_id, job_id), query.get("stream"), Matcher(q, regex=regex)
        period, context = Period(query.get("since"), query.get("until")), (query["before"], query["after"])
        digest = hashlib.sha256(q.encode()).hexdigest()[:16]
        listing = ("search", workflow_id, job_id, order, stream, regex, digest, *period)
        job = services.job(ref)
        descending = order == "desc"

        def wanted(line: Line) -> bool:
            return stream in (None, line.stream) and period.has(line.timestamp)

        place = pages.start(query, listing, job, descending=descending)
        most = min(limit, max(1, CONTEXT_PAGE // (1 + sum(context)))) if any(context) else limit
        look = pages.Search(matcher, period)
        found = pages.page(services, job, place, most, descending=descending, wanted=wanted, search=look)
        cursor = encode_cursor(listing, [found.place]) if found.more else None
        lines = list(_highlighted(found.lines, matcher, pages.Turns.of_search(services)))
        if any(context):
            near = pages.around(services, job, found.lines, *context, stream)
            said = {number: {**line.to_json(), "highlights": [], "context": True} for number, line in near.items()}
            said |= {line["sequence_num"]: line for line in lines}
            lines = [said[number] for number in sorted(said, reverse=descending)]
        services.stand_back()
        body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
        asked = {name: query.get(name) or None for name in ("stream", "since", "until", "before", "after")}
        asked |= {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order}
        return pages.page_response(body, cursor, found.place, **asked)

    return routes


def _highlighted(lines: list[Line], matcher: Matcher, turns: pages.Turns) -> Iterator[dict[str, Any]]:
    """The lines' JSON with the places where they match."""
    for line in lines:
        turns.give()
        yield {**line.to_json(), "highlights": matcher.places(line.message)}
