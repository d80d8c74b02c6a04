"""The route that lists the workflows that a token may see."""

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
from chronoverse.web.routes.jobs import BATCH_SIZE, LISTING_SECONDS


def blueprint(deps: Dependencies) -> Blueprint:
    """The route."""
    routes = Blueprint("workflows", __name__, description="Workflows.")
    deps.guard(routes)

    @routes.route("/workflows")
    @routes.doc(operationId="listWorkflows")
    @routes.arguments(WorkflowsQuery(), location="query", as_kwargs=True)
    @routes.response(
        200, WorkflowsSchema, description="A page, perhaps a short or an empty one; `Link` names the next."
    )
    @routes.problem(403)
    def workflows(limit: int, **query: Any) -> Response:
        """The workflows that the token may see, the one with the newest job first."""
        status = query.get("status")
        listing = ("workflows",) if status is None else ("workflows", status)
        position = decode_listed(query.get("cursor"), listing)
        named = principal().workflows
        # The list's server has no job of its own, so the reference only names its slot.
        with deps.turns.page(JobRef(deps.store.workflows.slot, ""), principal().subject):
            if EVERY_WORKFLOW in named:
                found, following = _read_list(deps, position, limit, status)
            else:
                found, following = _read_named(deps, sorted(named), position, limit, status)
        cursor = encode_listed(listing, following)
        return page_response({"workflows": found, "cursor": cursor}, cursor, limit=limit, status=status)

    return routes


def _read_list(
    deps: Dependencies, position: ListingPosition | None, limit: int, status: str | None
) -> tuple[list[dict[str, Any]], ListingPosition | None]:
    """Up to ``limit`` workflows after ``position``, and the next position. None when there are no more.

    With a ``status`` only those whose newest job has it.
    """
    found: list[dict[str, Any]] = []
    deadline = deps.monotonic() + LISTING_SECONDS
    lock_ref = JobRef(deps.store.workflows.slot, "")
    while True:
        with deps.turns.read(lock_ref, principal().subject):
            listed = deps.store.workflows.page(position, limit)
        for start in range(0, len(listed), BATCH_SIZE):
            batch = listed[start : start + BATCH_SIZE]
            with deps.turns.read(lock_ref, principal().subject):
                read = deps.store.workflows.read([workflow_id for _, workflow_id in batch])
            for position, workflow in zip(batch, read, strict=True):
                if workflow is not None and status in (None, _last_status(workflow)):
                    found.append(_to_json(position, workflow))
                    if status is not None and len(found) == limit:
                        return found, position
            if deps.monotonic() > deadline:
                return found, position
            yield_to_loop()
        if len(listed) < limit:
            return found, None
        if status is None:
            return found, position


def _read_named(
    deps: Dependencies, ids: list[str], position: ListingPosition | None, limit: int, status: str | None
) -> tuple[list[dict[str, Any]], ListingPosition | None]:
    """As :func:`_read_list`, for the workflows that a token names. All are read: only then is their order known."""
    known: list[tuple[ListingPosition, Workflow | StoreError]] = []
    for start in range(0, len(ids), BATCH_SIZE):
        batch = ids[start : start + BATCH_SIZE]
        with deps.turns.read(JobRef(batch[0], ""), principal().subject):
            read = deps.store.workflows.read(batch)
        for workflow_id, workflow in zip(batch, read, strict=True):
            if workflow is not None:
                score = workflow.last_job_ms if isinstance(workflow, Workflow) else 0.0
                known.append(((score, workflow_id), workflow))
        yield_to_loop()
    known.sort(key=lambda each: each[0], reverse=True)
    left = [
        each for each in known if (position is None or each[0] < position) and status in (None, _last_status(each[1]))
    ]
    page = left[:limit]
    return [_to_json(*each) for each in page], page[-1][0] if len(left) > limit else None


def _last_status(workflow: Workflow | StoreError) -> str | None:
    """How the newest job of a workflow stands. None while that is not known."""
    return workflow.recent[0] if isinstance(workflow, Workflow) and workflow.last_job else None


def _to_json(position: ListingPosition, workflow: Workflow | StoreError) -> dict[str, Any]:
    created_ms, workflow_id = position
    known = workflow if isinstance(workflow, Workflow) else None
    return {
        "id": workflow_id,
        "jobs": known and known.jobs,
        "running": known and known.running,
        "last_job_at": iso_or_none(known.last_job_ms if known else created_ms),
        "last_job": known and known.last_job,
        "last_status": _last_status(workflow),
        "recent": list(known.recent) if known else [],
    }
