"""The routes for a workflow's jobs, for one job, and for registering a job before it starts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from flask import Response

from chronoverse.errors import StoreUnavailable
from chronoverse.history.pages import PAGE_BYTES
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, JobRef, ListingPosition
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import (
    created_ms,
    decode_cursor,
    encode_cursor,
    identifier,
    labels_in_cursor,
    page_response,
)
from chronoverse.web.http.publish_schemas import RegisterBody
from chronoverse.web.http.schemas import JOB_ROUTE, Blueprint, JobSchema, JobsQuery, JobsSchema

#: Jobs, or workflows, that are read at once. Ten jobs take about 1 ms of the store's time and of the worker's, and all
#: other requests wait for it.
BATCH_SIZE: Final = 10

#: Reads the next :data:`BATCH_SIZE` positions after one, each with its item, or with None when that is gone.
ListingReader = Callable[[ListingPosition | None], Iterable[tuple[ListingPosition, Any]]]


def blueprint(deps: Dependencies) -> Blueprint:
    """The job routes."""
    routes = deps.blueprint("jobs", "Jobs.")

    @routes.route("/workflows/<id:workflow_id>/jobs")
    @routes.doc(operationId="listJobs")
    @routes.arguments(JobsQuery(), location="query", as_kwargs=True)
    @routes.response(200, JobsSchema, description="A page, perhaps a short or an empty one; `Link` names the next.")
    def jobs(workflow_id: str, **query: Any) -> Response:
        """A workflow's jobs, newest first. A page may be short, or empty, and still have a cursor to go on with."""
        store = deps.store
        # All jobs of a workflow are on one server, so the reference needs no job.
        lock_ref = JobRef(workflow_id, "")

        def read(position: ListingPosition | None) -> Iterator[tuple[ListingPosition, Any]]:
            listed = store.listing.page(workflow_id, position, BATCH_SIZE)
            jobs = store.get_jobs([JobRef(workflow_id, job_id) for _, job_id in listed])
            gone = [job_id for (_, job_id), job in zip(listed, jobs, strict=True) if job is None]
            if gone:
                store.listing.unlist(workflow_id, gone)
            for position, job in zip(listed, jobs, strict=True):
                if isinstance(job, StoreUnavailable):
                    raise job
                found = job if isinstance(job, Job) and has_labels(job.labels, wanted) else None
                yield position, found and found.to_json()

        wanted = query.get("label", ())
        listing = ("jobs", workflow_id, query.get("status"), *labels_in_cursor(wanted))
        with deps.turns.page(lock_ref, principal().subject):
            found, cursor = read_listing(deps, lock_ref, listing, query, read, "status")
        return page_response({"workflow_id": workflow_id, "jobs": found, "cursor": cursor}, cursor, query)

    @routes.route(JOB_ROUTE)
    @routes.doc(operationId="getJob")
    @routes.response(200, JobSchema)
    def job(workflow_id: str, job_id: str) -> Response:
        """One job."""
        return page_response(deps.require_job(JobRef(workflow_id, job_id)).to_json())

    @routes.route(JOB_ROUTE, methods=["PUT"])
    @routes.doc(operationId="registerJob")
    @routes.response(200, JobSchema, description="It was registered already.")
    @routes.alt_response(201, schema=JobSchema, description="It is registered, PENDING.")
    @routes.problem(
        409,
        "`reason` is DELETED: there was such a job, and its id is not free yet. Or it is label-set: a label has another"
        " value already, or the job has no room for it, or has ended.",
    )
    @routes.takes_body(deps.body_reader, RegisterBody(), required=False)
    def register(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Register a job, so that viewers can attach before it starts."""
        ref = JobRef(workflow_id, job_id)
        new = deps.store.register(ref, body["labels"])
        response = page_response(deps.require_job(ref).to_json())
        response.status_code = 201 if new else 200
        return response

    return routes


def read_listing(
    deps: Dependencies,
    lock_ref: JobRef,
    listing: Sequence[Any],
    query: Mapping[str, Any],
    read: ListingReader,
    status_key: str,
) -> tuple[list[Any], str | None]:
    """The items that ``query`` asks for by its cursor, limit and status; and the next page's cursor, or None.

    ``read`` is called in turns of the server that has ``lock_ref``. ``status_key`` is the item's key of its status.
    """
    position: ListingPosition | None = None
    if "cursor" in query:
        created, identity = decode_cursor(query["cursor"], listing, created_ms, identifier)
        position = created, identity

    def cursor_at(position: ListingPosition) -> str:
        return encode_cursor(listing, (repr(position[0]), position[1]))

    found: list[Any] = []
    size = 0
    # Then a listing ends with what it has found, and a cursor for the next page.
    deadline = deps.monotonic() + 0.5
    while True:
        with deps.turns.read(lock_ref, principal().subject):
            batch = list(read(position))
        for position, item in batch:
            if item is not None and query.get("status") in (None, item[status_key]):
                found.append(item)
                # A job with many long labels has 17 KB.
                size += len(orjson.dumps(item))
                if len(found) == query["limit"] or size > PAGE_BYTES:
                    return found, cursor_at(position)
        if len(batch) < BATCH_SIZE:
            return found, None
        if deps.monotonic() > deadline:
            return found, cursor_at(batch[-1][0])
        yield_to_loop()
