"""The routes for a workflow's jobs, for one job, and for registering a job before it starts."""

from typing import Any, Final

from flask import Response

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.model import Job, JobRef, ListingPosition
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import decode_listed, encode_listed, page_response
from chronoverse.web.http.schemas import Blueprint, JobSchema, JobsQuery, JobsSchema

#: Jobs, or workflows, that are read at once. Ten jobs take about 1 ms of the store's time and of the worker's, and all
#: other requests wait for it.
BATCH_SIZE: Final = 10
#: Seconds after which a listing ends with what it has found, and a cursor for the next page. It always reads
#: at least one batch.
LISTING_SECONDS: Final = 0.5


def blueprint(deps: Dependencies) -> Blueprint:
    """The job routes."""
    routes = Blueprint("jobs", __name__, description="Jobs.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs")
    @routes.doc(operationId="listJobs")
    @routes.arguments(JobsQuery(), location="query", as_kwargs=True)
    @routes.response(200, JobsSchema, description="A page, perhaps a short or an empty one; `Link` names the next.")
    def jobs(workflow_id: str, limit: int, **query: Any) -> Response:
        """A workflow's jobs, newest first. A page may be short, or empty, and still have a cursor to go on with."""
        status = query.get("status")
        listing = ("jobs", workflow_id, status)
        position = decode_listed(query.get("cursor"), listing)
        # All jobs of a workflow are on one server, so the reference needs no job.
        with deps.turns.page(JobRef(workflow_id, ""), principal().subject):
            found, next_position = _read_listing(deps, workflow_id, position, limit, status)
        cursor = encode_listed(listing, next_position)
        body = {"workflow_id": workflow_id, "jobs": [job.to_json() for job in found], "cursor": cursor}
        return page_response(body, cursor, limit=limit, status=status)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>")
    @routes.doc(operationId="getJob")
    @routes.response(200, JobSchema)
    def job(workflow_id: str, job_id: str) -> Response:
        """One job."""
        return page_response(deps.require_job(JobRef(workflow_id, job_id)).to_json())

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>", methods=["PUT"])
    @routes.doc(operationId="registerJob")
    @routes.response(200, JobSchema, description="It was registered already.")
    @routes.alt_response(201, schema=JobSchema, description="It is registered, PENDING.")
    @routes.problem(409, "`reason` is DELETED: there was such a job, and its id is not free yet.")
    def register(workflow_id: str, job_id: str) -> Response:
        """Register a job, so that viewers can attach before it starts."""
        ref = JobRef(workflow_id, job_id)
        new = deps.store.register(ref)
        response = page_response(deps.require_job(ref).to_json())
        response.status_code = 201 if new else 200
        return response

    return routes


def _read_listing(
    deps: Dependencies, workflow_id: str, position: ListingPosition | None, limit: int, status: str | None
) -> tuple[list[Job], ListingPosition | None]:
    """Up to ``limit`` jobs of that ``status`` after ``position``, and the next position.

    The next position is None when there are no more jobs.
    """
    store, subject, deadline = deps.store, principal().subject, deps.monotonic() + LISTING_SECONDS
    found: list[Job] = []
    while True:
        count = min(BATCH_SIZE, limit - len(found)) if status is None else BATCH_SIZE
        with deps.turns.read(JobRef(workflow_id, ""), subject):
            listed = store.listing.page(workflow_id, position, count)
            jobs = store.get_jobs([JobRef(workflow_id, job_id) for _, job_id in listed])
            gone = [job_id for (_, job_id), job in zip(listed, jobs, strict=True) if job is None]
            if gone:
                store.listing.unlist(workflow_id, gone)
        for position, job in zip(listed, jobs, strict=True):
            if isinstance(job, StoreUnavailable):
                raise job
            if isinstance(job, Job) and status in (None, job.status):
                found.append(job)
                if len(found) == limit:
                    return found, position
        if len(listed) < count:
            return found, None
        if deps.monotonic() > deadline:
            return found, position
        yield_to_loop()
