"""The route that lists the workflows that a token may see."""

from collections.abc import Iterator
from typing import Any

from flask import Response

from chronoverse.auth.tokens import EVERY_WORKFLOW
from chronoverse.errors import StoreError
from chronoverse.joblog.model import JobRef, ListingPosition, iso_or_none
from chronoverse.store.workflows import Workflow
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import decode_listed, encode_listed, page_response
from chronoverse.web.http.schemas import Blueprint, WorkflowsQuery, WorkflowsSchema
from chronoverse.web.routes.jobs import BATCH_SIZE, read_listing


def blueprint(deps: Dependencies) -> Blueprint:
    """The route."""
    routes = deps.blueprint("workflows", "Workflows.")

    @routes.route("/workflows")
    @routes.doc(operationId="listWorkflows")
    @routes.arguments(WorkflowsQuery(), location="query", as_kwargs=True)
    @routes.response(
        200, WorkflowsSchema, description="A page, perhaps a short or an empty one; `Link` names the next."
    )
    @routes.problem(403)
    def workflows(**query: Any) -> Response:
        """The workflows that the token may see, the one with the newest job first."""
        limit, status = query["limit"], query.get("status")
        listing = ("workflows",) if status is None else ("workflows", status)
        position = decode_listed(query.get("cursor"), listing)
        named, workflows = principal().workflows, deps.store.workflows
        # The list's server has no job of its own, so the reference only names its slot.
        lock_ref = JobRef(workflows.slot, "")

        def read(position: ListingPosition | None) -> Iterator[tuple[ListingPosition, Any]]:
            listed = workflows.page(position, BATCH_SIZE)
            for position, workflow in zip(listed, workflows.read([each for _, each in listed]), strict=True):
                item = workflow and _to_json(position, workflow)
                yield position, item if item and status in (None, item["last_status"]) else None

        with deps.turns.page(lock_ref, principal().subject):
            if EVERY_WORKFLOW in named:
                found, following = read_listing(deps, lock_ref, position, limit, read)
            else:
                found, following = _read_named(deps, sorted(named), position, limit, status)
        cursor = encode_listed(listing, following)
        return page_response({"workflows": found, "cursor": cursor}, cursor, query)

    return routes


def _read_named(
    deps: Dependencies, ids: list[str], position: ListingPosition | None, limit: int, status: str | None
) -> tuple[list[dict[str, Any]], ListingPosition | None]:
    """Up to ``limit`` of the workflows that a token names, and the next position.

    All are read: only then is their order known.
    """
    known: list[tuple[ListingPosition, dict[str, Any]]] = []
    for start in range(0, len(ids), BATCH_SIZE):
        batch = ids[start : start + BATCH_SIZE]
        with deps.turns.read(JobRef(batch[0], ""), principal().subject):
            read = deps.store.workflows.read(batch)
        for workflow_id, workflow in zip(batch, read, strict=True):
            if workflow is not None:
                listed = (workflow.last_job_ms if isinstance(workflow, Workflow) else 0.0, workflow_id)
                known.append((listed, _to_json(listed, workflow)))
        yield_to_loop()
    known.sort(key=lambda each: each[0], reverse=True)
    left = [
        (listed, item)
        for listed, item in known
        if (position is None or listed < position) and status in (None, item["last_status"])
    ]
    return [item for _, item in left[:limit]], left[limit - 1][0] if len(left) > limit else None


def _to_json(position: ListingPosition, workflow: Workflow | StoreError) -> dict[str, Any]:
    created_ms, workflow_id = position
    known = workflow if isinstance(workflow, Workflow) else None
    return {
        "id": workflow_id,
        "jobs": known and known.jobs,
        "running": known and known.running,
        "last_job_at": iso_or_none(known.last_job_ms if known else created_ms),
        "last_job": known and known.last_job,
        # None while it is not known.
        "last_status": known.recent[0] if known and known.last_job else None,
        "recent": list(known.recent) if known else [],
    }
