"""Pages of a job's log: all lines, matching lines, new lines. Also summaries, profiles, and searches of workflows.

A request scans a limited part of the log, so a page can be empty and still have a next one. ``Last-Event-ID`` is the
last line that the page covers. The scan server makes all pages except those of plain lines.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import orjson
from flask import Response

from chronoverse.auth.rights import READ
from chronoverse.history.scans.scan import HistoryScan, ProfileScan, SummaryScan, WorkflowPosition, WorkflowScan
from chronoverse.joblog.model import JobRef, iso_or_none
from chronoverse.web.http import schemas
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import (
    created_ms,
    decode_cursor,
    digest,
    encode_cursor,
    identifier,
    json_response,
    labels_in_cursor,
    log_page,
    log_page_response,
    number,
    page_response,
    pending_scan,
    scan_page,
    start_position,
)
from chronoverse.web.http.schemas import JOB_ROUTE, Blueprint

_LOOKED_THROUGH: Final[dict[str, Any]] = {
    "description": "A page, possibly empty; `Link` names the next. `Last-Event-ID` is the last line searched.",
    "headers": {"Last-Event-ID": {"schema": {"type": "string", "pattern": "^[0-9]{1,15}$"}}},
}


def _searched_jobs(prefix: str) -> dict[str, Any]:
    return {
        "description": "A page, possibly empty; `Link` names the next. `Searched-To` is how far it searched.",
        "headers": {
            "Searched-To": {
                "schema": {"type": "string", "examples": [f"{prefix}job-1;created=2026-03-03T10:00:05.123Z;line=7"]},
                "description": "The last job searched, its creation time, and the last line searched unless that is the"
                " job's end. Absent on the last page.",
            }
        },
    }


def blueprints(deps: Dependencies) -> Sequence[Blueprint]:
    """The routes. The OpenAPI document has a section for each blueprint."""
    history = deps.blueprint("logs", "History.")
    searching = deps.blueprint("search", "Searching.")
    comparing = deps.blueprint("new_lines", "Comparing.")
    summaries = deps.blueprint("summary", "Summaries.")
    pasts = deps.blueprint("history", "Seen before.")
    profiles = deps.blueprint("profile", "Where the time went.")

    @history.route(f"{JOB_ROUTE}/logs")
    @history.arguments(schemas.LogsQuery(), location="query", as_kwargs=True)
    @history.response(200, schemas.LogsSchema, description="A page, possibly short; `Link` names the next.")
    def page_job_log(workflow_id: str, job_id: str, **query: Any) -> Response:
        """Return a page of a job's log."""
        ref, stream = JobRef(workflow_id, job_id), query.get("stream")
        listing = ("logs", workflow_id, job_id, query["order"], stream)
        job = deps.store.require_job(ref)
        (position,) = start_position(query, listing, job)
        if stream is None:
            page = log_page(deps, job, position, query["limit"], descending=query["order"] == "desc")
        else:
            page = scan_page(deps, ref, **_scanned(query, position))
        return log_page_response(ref, page, listing, query)

    @searching.route(f"{JOB_ROUTE}/logs/search")
    @searching.arguments(schemas.SearchQuery, location="query", as_kwargs=True)
    @searching.response(200, schemas.SearchSchema, **_LOOKED_THROUGH)
    def search_job_log(workflow_id: str, job_id: str, **query: Any) -> Response:
        """Search a job's log."""
        ref, times = JobRef(workflow_id, job_id), (query.get("since"), query.get("until"))
        filters = (query["order"], query.get("stream"), query["regex"], digest(query["q"]), *times)
        listing = ("search", workflow_id, job_id, *filters)
        (position,) = start_position(query, listing, deps.store.require_job(ref))
        page = scan_page(deps, ref, **_scanned(query, position))
        return log_page_response(ref, page, listing, query)

    @searching.route("/workflows/<id:workflow_id>/logs/search")
    @searching.arguments(schemas.WorkflowSearchQuery, location="query", as_kwargs=True)
    @searching.response(200, schemas.WorkflowSearchSchema, **_searched_jobs(""))
    def search_workflow(workflow_id: str, **query: Any) -> Response:
        """Search all jobs of a workflow, newest job first."""
        return search_jobs(workflow_id, (workflow_id,), query)

    @searching.route("/logs/search")
    @searching.arguments(schemas.WorkflowSearchQuery, location="query", as_kwargs=True)
    @searching.response(200, schemas.WorkflowsSearchSchema, **_searched_jobs("nightly/"))
    @searching.problem(403)
    def search_all(**query: Any) -> Response:
        """Search all jobs that the token can read, newest job first."""
        allowed = principal().rights[READ]
        return search_jobs("", allowed, query, ids=sorted(allowed.ids), prefixes=allowed.prefixes)

    def search_jobs(workflow_id: str, allowed: Container[str], query: dict[str, Any], **more: Any) -> Response:
        def allowed_id(value: Any) -> str:
            # The search continues in the workflow and job that the cursor names, and clients can forge cursors.
            if (found := identifier(value)) not in allowed:
                raise ValueError
            return found

        filters = map(query.get, ("stream", "status", "since", "until"))
        labels = query.get("label", ())
        listing = ("search", workflow_id, query["regex"], digest(query["q"]), *filters, *labels_in_cursor(labels))
        start: WorkflowPosition | None = None
        if "cursor" in query:
            parsers = (created_ms, allowed_id, identifier, _line_or_none, number)
            created, *rest = decode_cursor(query.pop("cursor"), listing, *parsers)
            start = WorkflowPosition(repr(created), *rest)
        fields = {name: value for name, value in query.items() if name != "label"} | more
        ref = JobRef(workflow_id, "")
        with pending_scan(deps, WorkflowScan, ref, start=start, labels=labels, **fields) as pending:
            page = pending.jobs_page()
        cursor, position = None, page.position
        if position is not None:
            line = -1 if position.line is None else position.line
            cursor = encode_cursor(listing, (position.created, *position.ref, line, position.found))
        body = {"jobs": [orjson.Fragment(each) for each in page.jobs], "cursor": cursor}
        body = {"workflow_id": workflow_id, **body} if workflow_id else body
        response = page_response(body, cursor, query)
        if position is not None:
            response.headers["Searched-To"] = _searched_to(position, "" if workflow_id else f"{position.workflow_id}/")
        return response

    @comparing.route(f"{JOB_ROUTE}/logs/new")
    @comparing.arguments(schemas.NewLinesQuery(), location="query", as_kwargs=True)
    @comparing.response(200, schemas.NewLinesSchema, **_LOOKED_THROUGH)
    @comparing.problem(404)
    @comparing.problem(409, "`reason` is nothing-to-compare: there is no run to compare with.")
    def list_new_lines(workflow_id: str, job_id: str, **query: Any) -> Response:
        """Return lines whose shape none of the compared runs has."""
        ref = JobRef(workflow_id, job_id)
        labels = _chosen(query.get("against_label"))
        compared = (query.get("against"), *(["*"] if labels == [] else labels_in_cursor(labels or ())))
        listing = ("new", workflow_id, job_id, query["order"], query.get("stream"), *compared)
        position, waited = start_position(query, listing, deps.store.require_job(ref), more=1)
        page = scan_page(deps, ref, **_scanned(query, position), only_new=True, labels=labels)
        # A page can be empty and not advance. Counts such pages, so that each cursor is different.
        waited = waited + 1 if page.position == position else 0
        return log_page_response(ref, page, listing, query, waited, compared_with=page.compared_with)

    @summaries.route(f"{JOB_ROUTE}/summary")
    @summaries.arguments(schemas.SummaryQuery, location="query", as_kwargs=True)
    @summaries.response(200, schemas.SummarySchema, description="The summary, in at most `bytes` bytes.")
    def summarize_job(
        workflow_id: str, job_id: str, max_bytes: int, against_label: Sequence[Any] | None = None
    ) -> Response:
        """Summarize a job: cause, new lines, errors and last lines."""
        ref = JobRef(workflow_id, job_id)
        with pending_scan(deps, SummaryScan, ref, page_bytes=max_bytes, labels=_chosen(against_label)) as pending:
            return json_response(pending.answer()[1])

    @pasts.route(f"{JOB_ROUTE}/logs/<line:number_text>/history")
    @pasts.arguments(schemas.HistoryQuery, location="query", as_kwargs=True)
    @pasts.response(
        200, schemas.HistorySchema, description="A page; `Link` names the next. It counts only this page's jobs."
    )
    def trace_line(
        workflow_id: str, job_id: str, number_text: str, jobs: int, label: Sequence[Any] = (), cursor: str | None = None
    ) -> Response:
        """Return the jobs in which a line of this shape was seen."""
        ref, line = JobRef(workflow_id, job_id), int(number_text)
        listing = ("history", workflow_id, job_id, line, jobs, *labels_in_cursor(label))
        start, left = None, jobs
        if cursor is not None:
            created, created_id, left = decode_cursor(cursor, listing, created_ms, identifier, number)
            left = min(left, jobs)
            start = repr(created), created_id
        with pending_scan(deps, HistoryScan, ref, line=line, jobs=left, start=start, labels=label) as pending:
            head, found = pending.answer()
        position = head["position"] and encode_cursor(listing, (*head["position"], left - head["looked_at"]))
        body: dict[str, Any] = {"workflow_id": workflow_id, "id": job_id, "sequence_num": line, "shape": head["shape"]}
        body |= {**orjson.loads(found), "cursor": position}
        return page_response(body, position, {"jobs": jobs, "label": label})

    @profiles.route(f"{JOB_ROUTE}/profile")
    @profiles.arguments(schemas.ProfileQuery, location="query", as_kwargs=True)
    @profiles.response(200, schemas.ProfileSchema, description="The profile of the lines scanned so far.")
    def profile_job(workflow_id: str, job_id: str, against_label: Sequence[Any] | None = None) -> Response:
        """Return where the time of a job went, compared with good runs."""
        with pending_scan(deps, ProfileScan, JobRef(workflow_id, job_id), labels=_chosen(against_label)) as pending:
            return json_response(pending.answer()[1])

    return history, searching, comparing, summaries, pasts, profiles


def _scanned(query: Mapping[str, Any], position: int) -> dict[str, Any]:
    others = ("cursor", "offset", "order", "against_label")
    fields = {name: value for name, value in query.items() if name not in others}
    return {**fields, "position": position, "descending": query["order"] == "desc"}


def _chosen(labels: Sequence[Any] | None) -> Sequence[Any] | None:
    return None if labels is None else [label for label in labels if label]


def _line_or_none(value: Any) -> int | None:
    """Parses the last scanned line in a cursor. -1 becomes None."""
    return None if value == -1 else number(value)


def _searched_to(position: WorkflowPosition, prefix: str) -> str:
    """The value of ``Searched-To``: how far a search has come. Ids contain neither slashes nor semicolons."""
    more = {"created": iso_or_none(float(position.created)), "line": position.line}
    return ";".join(
        [prefix + position.job_id, *(f"{name}={value}" for name, value in more.items() if value is not None)]
    )
