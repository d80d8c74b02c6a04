"""Routes for a workflow's jobs, for one job, and for registering a job before it starts."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flask import Response

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.labels import Labels, has_labels
from chronoverse.joblog.model import Job, JobRef, ListingPosition
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import (
    LISTED_AT_ONCE,
    labels_in_cursor,
    listing_cursor,
    listing_start,
    page_response,
    read_listing,
)
from chronoverse.web.http.publish_schemas import RegisterBody
from chronoverse.web.http.schemas import JOB_ROUTE, Blueprint, JobSchema, JobsQuery, JobsSchema


class WantedJobs(NamedTuple):
    """The ``most`` newest jobs of a workflow with this status and all labels."""

    workflow_id: str
    most: int
    status: str | None
    labels: Labels


def newest_jobs(
    deps: Dependencies, wanted: WantedJobs, start: ListingPosition | None, subject: str
) -> tuple[list[Any], ListingPosition | None]:
    """Returns the jobs as JSON, newest first, and the start of the next page.

    Raises the errors of the store and of :meth:`Turns.page`.
    """
    store, (workflow_id, limit, status, labels) = deps.store, wanted
    lock_ref = JobRef(workflow_id, "")

    def read(position: ListingPosition | None) -> Iterator[tuple[ListingPosition, Any]]:
        # Skipping a hundred jobs takes as long as reading six.
        listed = store.listing.page(workflow_id, position, 100 if status else LISTED_AT_ONCE)
        ids = [job_id for _, job_id in listed]
        others = store.listing.ended_otherwise(workflow_id, ids, status) if status and ids else frozenset()
        refs = [JobRef(workflow_id, job_id) for job_id in ids if job_id not in others][:LISTED_AT_ONCE]
        jobs = dict(zip(refs, store.get_jobs(refs), strict=True))
        gone = [ref.job_id for ref, job in jobs.items() if job is None]
        if gone:
            store.listing.unlist(workflow_id, gone)
        for position in listed:
            ref = JobRef(workflow_id, position[1])
            if ref not in jobs and ref.job_id not in others:
                return  # the next call reads this job
            job = jobs.get(ref)
            if isinstance(job, StoreUnavailable):
                raise job
            found = job if isinstance(job, Job) and has_labels(job.labels, labels) else None
            yield position, found.to_json() if found and status in (None, found.status) else None

    with deps.turns.page(lock_ref, subject):
        found, position = read_listing(deps, lock_ref, start, limit, read, subject)
        if position is None:
            return found, None
        with deps.turns.read(lock_ref, subject):
            return found, position if store.listing.page(workflow_id, position, 1) else None


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("jobs", "Jobs.")

    @routes.route("/workflows/<id:workflow_id>/jobs")
    @routes.arguments(JobsQuery(), location="query", as_kwargs=True)
    @routes.response(200, JobsSchema, description="A page, possibly short or empty; `Link` names the next.")
    def list_jobs(workflow_id: str, **query: Any) -> Response:
        """List a workflow's jobs, newest first. A short or empty page can have a cursor."""
        status, labels, subject = query.get("status"), query.get("label", ()), principal().subject
        listing = ("jobs", workflow_id, status, *labels_in_cursor(labels))
        wanted = WantedJobs(workflow_id, query["limit"], status, labels)
        found, position = newest_jobs(deps, wanted, listing_start(query, listing), subject)
        cursor = listing_cursor(listing, position)
        return page_response({"workflow_id": workflow_id, "jobs": found, "cursor": cursor}, cursor, query)

    @routes.route(JOB_ROUTE)
    @routes.response(200, JobSchema)
    def get_job(workflow_id: str, job_id: str) -> Response:
        """Return a job."""
        return page_response(deps.store.require_job(JobRef(workflow_id, job_id)).to_json())

    @routes.route(JOB_ROUTE, methods=["PUT"])
    @routes.response(200, JobSchema, description="Already registered.")
    @routes.alt_response(201, schema=JobSchema, description="Registered, PENDING.")
    @routes.problem(409, "`reason` is DELETED: its id is not free yet; or label-set: a label cannot be set.")
    @routes.takes_body(deps.body_reader, RegisterBody(), required=False)
    def register_job(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Register a job, so that viewers can attach before it starts."""
        ref = JobRef(workflow_id, job_id)
        new = deps.store.register(ref, body["labels"])
        response = page_response(deps.store.require_job(ref).to_json())
        response.status_code = 201 if new else 200
        return response

    return routes
