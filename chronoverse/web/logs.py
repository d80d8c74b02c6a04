"""``GET …/logs``: a job's log in pages, upwards or downwards, from anywhere."""

from typing import Any, Final
from urllib.parse import urlencode

import orjson
from flask import Response, request

from chronoverse.entries import RawEntry, entry_number, read_entries
from chronoverse.errors import InvalidCursor
from chronoverse.joblog import MAX_NUMBER, Job, JobRef, Line
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
    @routes.doc(operationId="pageJobLog")
    @routes.arguments(LogsQuery(), location="query", as_kwargs=True)
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
            if not 0 <= place <= MAX_NUMBER:
                raise InvalidCursor("cursor: this is not one of ours")
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
        entries = _read(services, job.ref, place, limit, descending)
        scanned += len(entries)
        for line in _lines(entries, place, descending):
            if stream in (None, line.stream):
                found.append(line)
                if len(found) == limit:
                    return found, line.sequence_num, _more(job, line.sequence_num, descending)
        if len(entries) < limit:
            return found, place, False
        place = entry_number(entries[-1][0])
    return found, place, _more(job, place, descending)


def _read(services: Services, ref: JobRef, place: int, count: int, descending: bool) -> list[RawEntry]:
    """Up to ``count`` entries strictly after ``place`` in the order asked for."""
    if not descending:
        return list(services.store.page(ref, after=place, count=count))
    entries = list(services.store.page(ref, before=place, count=count))
    if entries and not entries[-1][0].endswith(b"-0"):
        # Of several entries with one number the first is the line, and this read may have begun behind it.
        entries += services.store.page(ref, after=entry_number(entries[-1][0]) - 1, count=1)
    return entries


def _lines(entries: list[RawEntry], place: int, descending: bool) -> list[Line]:
    shown = read_entries(reversed(entries) if descending else entries, 0 if descending else place)
    lines = [entry for entry in shown if isinstance(entry, Line)]
    return lines[::-1] if descending else lines


def _more(job: Job, place: int, descending: bool) -> bool:
    return place > job.first if descending else place < job.last
