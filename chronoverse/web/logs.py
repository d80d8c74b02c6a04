"""``GET …/logs``: a job's log in pages, upwards or downwards, from anywhere."""

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from flask import Response, request

from chronoverse.joblog import Job, JobRef, Line, read_entries
from chronoverse.web.cursors import decode_cursor, encode_cursor
from chronoverse.web.schemas import Blueprint, LogsQuery, LogsSchema, ProblemSchema
from chronoverse.web.services import Services

#: Entries one request looks through when a filter lets few of them pass; the cursor goes on from there.
SCAN_ENTRIES: Final = 20_000


def blueprint(services: Services) -> Blueprint:
    """The history route."""
    routes = Blueprint("logs", __name__, description="History.")
    services.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs")
    @routes.arguments(LogsQuery, location="query", as_kwargs=True)
    @routes.response(200, LogsSchema, description="A page; `Link` names the next one.")
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    def logs(workflow_id: str, job_id: str, limit: int, order: str, **query: Any) -> Response:
        """One page of a job's log."""
        ref, stream = JobRef(workflow_id, job_id), query.get("stream")
        listing = ("logs", workflow_id, job_id, order, stream)
        job = services.job(ref)
        descending = order == "desc"
        place = query.get("offset", job.last + 1 if descending else 0)
        if "cursor" in query:
            (place,) = decode_cursor(query["cursor"], listing, [int])
        lines, place, more = _page(services, job, place, limit, stream, descending)
        cursor = encode_cursor(listing, [place]) if more else None
        body = {"workflow_id": workflow_id, "id": job_id, "logs": [line.to_json() for line in lines], "cursor": cursor}
        return page_response(body, cursor, limit=limit, order=order, stream=stream)

    return routes


def page_response(body: dict[str, Any], cursor: str | None, **query: Any) -> Response:
    """A page with the ``Link`` (RFC 8288) to the next one."""
    response = Response(orjson.dumps(body), content_type="application/json")
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if cursor:
        wanted = {name: value for name, value in query.items() if value is not None}
        response.headers["Link"] = f'<{request.path}?{urlencode({**wanted, "cursor": cursor})}>; rel="next"'
    return response


def _page(
    services: Services, job: Job, place: int, limit: int, stream: str | None, descending: bool
) -> tuple[list[Line], int, bool]:
    """Up to ``limit`` lines strictly after ``place`` in the order asked for, the place to go on, and whether to."""
    found: list[Line] = []
    scanned = 0
    while scanned < SCAN_ENTRIES:
        lines, count = _read(services, job.ref, place, limit, descending)
        scanned += count
        for line in lines:
            place = line.sequence_num
            if stream in (None, line.stream):
                found.append(line)
                if len(found) == limit:
                    return found, place, _more(job, place, descending)
        if count < limit:
            return found, place, False
    return found, place, _more(job, place, descending)


def _read(services: Services, ref: JobRef, place: int, count: int, descending: bool) -> tuple[list[Line], int]:
    """One read's lines in the order asked for, and how many entries they were among."""
    if not descending:
        entries = services.store.page(ref, after=place, count=count)
        return list(_lines(read_entries(entries, place))), len(entries)
    entries = services.store.page(ref, before=place, count=count)
    return list(_lines(read_entries(reversed(entries), 0)))[::-1], len(entries)


def _lines(entries: Any) -> Iterator[Line]:
    return (entry for entry in entries if isinstance(entry, Line))


def _more(job: Job, place: int, descending: bool) -> bool:
    return place > job.first if descending else place < job.last
