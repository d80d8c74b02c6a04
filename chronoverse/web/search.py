"""``GET …/logs/search``: the lines that say something, in pages, each with the places where it says it.

A page may be short, or empty, and still have a next one: a request looks through so much and no more. How far it has
come is in its ``Last-Event-ID``, so that a reader of a running job can go on from there when there is more.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
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
    # A request by itself is two milliseconds, without a line looked at: it stands back four times on its way. Who may
    # not search does not keep the moments for that from who may.
    routes.before_request(services.stand_back)

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
        near = pages.around(services, job, found.lines, *context, stream) if any(context) else {}
        said = _spelt(found.lines, near, matcher, pages.Turns.of_search(services))
        lines = [said[number] for number in sorted(said, reverse=descending)]
        services.stand_back()
        body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
        asked = {name: query.get(name) or None for name in ("stream", "since", "until", "before", "after")}
        asked |= {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order}
        response = pages.page_response(body, cursor, found.place, **asked)
        services.stand_back()
        return response

    return routes


def _spelt(
    lines: Sequence[Line], near: Mapping[int, Line], matcher: Matcher, turns: pages.Turns
) -> dict[int, orjson.Fragment]:
    """The JSON, by number, of lines with the places where they match, and of those that are only ``near`` them.

    Each by itself: a thousand at once would hold up everybody for a millisecond.
    """
    said = {}
    for line in lines:
        turns.give()
        spelt = orjson.dumps({**line.to_json(), "highlights": matcher.places(line.message)})
        said[line.sequence_num] = orjson.Fragment(spelt)
    for number in near.keys() - said.keys():
        turns.give()
        spelt = orjson.dumps({**near[number].to_json(), "highlights": [], "context": True})
        said[number] = orjson.Fragment(spelt)
    return said
