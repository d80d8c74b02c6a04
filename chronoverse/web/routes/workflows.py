"""The route that lists a token's workflows."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

from flask import Response

from chronoverse.auth.rights import READ
from chronoverse.errors import StoreError
from chronoverse.joblog.model import JobRef, ListingPosition, iso_or_none
from chronoverse.store.workflows import Workflow
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import LISTED_AT_ONCE, listing_cursor, listing_start, page_response, read_listing
from chronoverse.web.http.schemas import Blueprint, WorkflowsQuery, WorkflowsSchema


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("workflows", "Workflows.")

    @routes.route("/workflows")
    @routes.arguments(WorkflowsQuery(), location="query", as_kwargs=True)
    @routes.response(200, WorkflowsSchema, description="A page, perhaps empty; `Link` names the next.")
    @routes.problem(403)
    def list_workflows(**query: Any) -> Response:
        """List the token's workflows, newest job first."""
        status, workflows = query.get("status"), deps.store.workflows
        listing = ("workflows",) if status is None else ("workflows", status)
        lock_ref = JobRef(workflows.slot, "")
        allowed = principal().rights[READ]
        wanted = None if allowed.are_all else allowed

        def read_list(position: ListingPosition | None) -> Iterator[tuple[ListingPosition, Any]]:
            listed = workflows.page(position, LISTED_AT_ONCE, wanted)
            for position, workflow in zip(listed, workflows.read([each for _, each in listed]), strict=True):
                yield position, workflow and _to_json(position, workflow, status)

        start, subject = listing_start(query, listing), principal().subject
        with deps.turns.page(lock_ref, subject):
            read = read_list
            # Skipping 10,000 workflows in the list takes no longer than reading a hundred.
            if not allowed.prefixes and len(allowed.ids) <= 100:
                read = partial(_after, _read_named(deps, sorted(allowed.ids), status))
            found, position = read_listing(deps, lock_ref, start, query["limit"], read, subject)
        cursor = listing_cursor(listing, position)
        return page_response({"workflows": found, "cursor": cursor}, cursor, query)

    return routes


def _read_named(deps: Dependencies, ids: list[str], status: str | None) -> list[tuple[ListingPosition, Any]]:
    """The workflows that a token names, newest job first. Reads all of them, which is needed to sort them."""
    known: list[tuple[ListingPosition, Any]] = []
    for start in range(0, len(ids), LISTED_AT_ONCE):
        batch = ids[start : start + LISTED_AT_ONCE]
        with deps.turns.read(JobRef(batch[0], ""), principal().subject):
            read = deps.store.workflows.read(batch)
        for workflow_id, workflow in zip(batch, read, strict=True):
            if workflow is not None:
                position = (workflow.last_job_ms if isinstance(workflow, Workflow) else 0.0, workflow_id)
                known.append((position, _to_json(position, workflow, status)))
        yield_to_loop()
    return sorted(known, key=itemgetter(0), reverse=True)


def _after(
    known: list[tuple[ListingPosition, Any]], position: ListingPosition | None
) -> Iterator[tuple[ListingPosition, Any]]:
    return islice((each for each in known if position is None or each[0] < position), LISTED_AT_ONCE)


def _to_json(position: ListingPosition, workflow: Workflow | StoreError, status: str | None) -> dict[str, Any] | None:
    """The workflow as listed. None if its newest job does not have the requested ``status``."""
    created_ms, workflow_id = position
    known = workflow if isinstance(workflow, Workflow) else None
    # None until its newest job has been read.
    last_status = known.recent[0] if known and known.last_job else None
    if status not in (None, last_status):
        return None
    return {
        "id": workflow_id,
        "jobs": known and known.jobs,
        "running": known and known.running,
        "last_job_at": iso_or_none(known.last_job_ms if known else created_ms),
        "last_job": known and known.last_job,
        "last_status": last_status,
        "recent": list(known.recent) if known else [],
    }
