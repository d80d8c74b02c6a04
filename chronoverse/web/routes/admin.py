"""Routes that need the scope ``logs:admin``: redaction, deletion, workflow settings, the audit trail."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import gevent
from flask import Response
from marshmallow import Schema, ValidationError, validate, validates_schema

from chronoverse.archive import retention
from chronoverse.archive.caches import RECORD_SECONDS
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.archive.workflow_settings import change_settings
from chronoverse.auth.rights import ADMIN
from chronoverse.errors import ArchiveNotConfigured, JobNotFound
from chronoverse.history.pages import matches
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import MAX_NUMBER, JobRef, Line, iso_timestamp, seconds_of
from chronoverse.joblog.terminal import counted
from chronoverse.live.replay_cache import CACHE_SECONDS
from chronoverse.live.tail import RING_SECONDS
from chronoverse.store.audit import Position
from chronoverse.store.catalog import RETENTION_SECONDS
from chronoverse.web.guards.event_loop import TimeSlice, yield_to_loop
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import decode_cursor, encode_cursor, number, page_response, read_listing
from chronoverse.web.http.publish_schemas import JsonBoolean, JsonInteger
from chronoverse.web.http.request_id import request_id
from chronoverse.web.http.schemas import (
    IDS,
    JOB_ROUTE,
    SETTINGS_ROUTE,
    AuditQuery,
    AuditSchema,
    Blueprint,
    SearchFields,
    answer,
    boolean,
    integer,
    list_of,
    text,
)

#: Seconds for which other workers can still show old text after a redaction. They use the old chunk's record for
#: RECORD_SECONDS, and then a segment cached from this chunk for CACHE_SECONDS. They show rings for RING_SECONDS.
STALE_SECONDS: Final = max(RECORD_SECONDS + CACHE_SECONDS, RING_SECONDS)


class RedactBody(SearchFields):
    """The lines to redact: a range, the matching lines in a range, or all matching lines."""

    from_ = JsonInteger("First line. Default: 1.", 1, data_key="from")
    to = JsonInteger("Last line. Default: the log's last.", 1)
    regex = JsonBoolean(load_default=False)
    reason = text("Reason, stored and logged: must not contain secrets.", validate=validate.Length(1, 200))

    @validates_schema
    def _check_range(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "q" not in data and not ("from_" in data and "to" in data):
            raise ValidationError("pass q, or from and to", "q")
        if data.get("from_", 1) > data.get("to", MAX_NUMBER):
            raise ValidationError("is before from", "to")


class WorkflowSettingsBody(Schema):
    """A workflow's settings. Where a field is omitted or null, the service's setting applies."""

    retention_seconds = JsonInteger("After the end.", 1, RETENTION_SECONDS, allow_none=True, load_default=None)
    job_bytes = JsonInteger("Bytes stored of one job's messages; 0: no limit.", allow_none=True, load_default=None)
    day_bytes = JsonInteger(
        "Bytes stored per UTC day; 0: no limit.", data_key="bytes_per_day", allow_none=True, load_default=None
    )


WorkflowSettingsSchema: Final = answer(
    "WorkflowSettings", {name: integer(allow_none=True) for name in ("retention_seconds", "job_bytes", "bytes_per_day")}
)
RedactedSchema: Final = answer(
    "Redacted",
    {
        **IDS,
        "redacted": integer("Number of newly redacted lines."),
        "through": integer("Last line checked."),
        "next": integer("If not null: repeat the request with this as `from`.", allow_none=True),
        "pending": boolean("True while the old text could reappear. An archiver or a retry finishes the redaction."),
    },
)
RedactionSchema: Final = answer(
    "Redaction",
    {
        "at": text(),
        "subject": text(),
        "request_id": text(allow_none=True),
        "reason": text(allow_none=True),
        "from": integer(),
        "to": integer(),
        "count": integer(),
    },
)
RedactionsSchema: Final = answer("Redactions", {**IDS, "redactions": list_of(RedactionSchema)})


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("admin", "For administrators.", scope=ADMIN)

    @routes.route(f"{JOB_ROUTE}/logs/redact", methods=["POST"])
    @routes.response(
        200, RedactedSchema, description="Lines up to `through` are redacted; their old text is not served."
    )
    @routes.problem(409, "`reason` is STILL_LIVE or NO_ARCHIVE.")
    @routes.takes_body(deps.body_reader, RedactBody())
    def redact_job_log(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Replace messages with `[redacted]` in archive and store; numbers, times and streams stay."""
        done = _redact(deps, JobRef(workflow_id, job_id), body)
        time.sleep(STALE_SECONDS)
        next_number = None if done.complete else done.last_checked + 1
        answer = {"redacted": done.lines, "through": done.last_checked, "next": next_number, "pending": done.pending}
        return page_response({"workflow_id": workflow_id, "id": job_id, **answer})

    @routes.route(f"{JOB_ROUTE}/logs/redactions")
    @routes.response(200, RedactionsSchema)
    def list_redactions(workflow_id: str, job_id: str) -> Response:
        """List a job's redactions."""
        ref = JobRef(workflow_id, job_id)
        deps.store.require_job(ref)
        found = deps.store.chunks.audit(ref)
        return page_response({"workflow_id": workflow_id, "id": job_id, "redactions": found})

    @routes.route("/audit")
    @routes.arguments(AuditQuery(), location="query", as_kwargs=True)
    @routes.response(200, AuditSchema, description="A page, possibly short or empty; `Link` names the next.")
    @routes.problem(403)
    def list_audit_trail(**query: Any) -> Response:
        """List the audit trail of the token's workflows, newest first."""
        listing = ("audit", query.get("since"), query.get("until"))
        start: Position | None = None
        if "cursor" in query:
            at_ms, entry_number = decode_cursor(query["cursor"], listing, _entry_ms, number)
            start = at_ms, entry_number
        since_ms, until_ms = _milliseconds(query.get("since")), _milliseconds(query.get("until"))
        trail, allowed = deps.store.audit_trail, principal().rights[ADMIN]

        def read(position: Position | None) -> Iterator[tuple[Position, Any]]:
            # Reads 100 entries at a time: this takes 1 ms, which delays other requests.
            for found_at, entry in trail.page(since_ms or 0, until_ms, position, 100):
                yield found_at, entry if entry["workflow_id"] in allowed else None

        # The trail belongs to no job: this reference only selects the trail's server.
        lock_ref = JobRef(trail.slot, "")
        with deps.turns.page(lock_ref, principal().subject):
            found, position = read_listing(deps, lock_ref, start, query["limit"], read, principal().subject)
        cursor = None if position is None else encode_cursor(listing, position)
        return page_response({"entries": found, "cursor": cursor}, cursor, query)

    @routes.route(SETTINGS_ROUTE)
    @routes.response(200, WorkflowSettingsSchema)
    def get_workflow_settings(workflow_id: str) -> Response:
        """Return a workflow's own retention and quotas; null where the service's apply."""
        return _settings_response(deps.store.catalog.settings_of(workflow_id).own)

    @routes.route(SETTINGS_ROUTE, methods=["PUT"])
    @routes.response(200, WorkflowSettingsSchema)
    @routes.takes_body(deps.body_reader, WorkflowSettingsBody())
    def put_workflow_settings(workflow_id: str, body: Mapping[str, Any]) -> Response:
        """Replace a workflow's retention and quotas, immediately and also for existing jobs."""

        def record(did: str, what: str) -> None:
            deps.store.audit_trail.record(principal().subject, did, workflow_id, None, what)

        change_settings(deps.store, workflow_id, body, deps.settings.retention_seconds, record)
        return _settings_response(body)

    @routes.route(JOB_ROUTE, methods=["DELETE"])
    @routes.response(204, description="Deleted from the archive and the store.")
    @routes.problem(409, "`reason` is HELD: its runner is alive.")
    def delete_job(workflow_id: str, job_id: str) -> Response:
        """Delete a job and its log. Its id stays blocked for the retention.

        Repeat an interrupted deletion to finish it.
        """
        ref = JobRef(workflow_id, job_id)
        if deps.store.get_job(ref) is None and not retention.has_leftovers(deps.store, deps.object_store, ref):
            raise JobNotFound("no such job")
        tombstone_ms = deps.store.retention_ms(workflow_id)
        record = partial(deps.store.audit_trail.record, principal().subject, "delete", *ref, "the job and its log")
        retention.delete_job(deps.store, deps.object_store, ref, tombstone_ms=tombstone_ms, on_hidden=record)
        deps.replay_cache.invalidate(ref)
        return Response(status=204)

    return routes


def _settings_response(own: Mapping[str, int | None]) -> Response:
    return page_response({"bytes_per_day" if name == "day_bytes" else name: value for name, value in own.items()})


def _milliseconds(timestamp: str | None) -> int | None:
    seconds = seconds_of(timestamp)
    return None if seconds is None else max(round(1000 * seconds), 0)


def _entry_ms(value: Any) -> int:
    """Parses an entry's time in a cursor. Rejects 0: no entry is that old, and the store rejects the id 0-0."""
    if not number(value):
        raise ValueError
    return int(value)


def _redact(deps: Dependencies, ref: JobRef, body: Mapping[str, Any]) -> RedactionResult:
    deps.store.require_job(ref)
    if deps.object_store is None:
        raise ArchiveNotConfigured("redaction needs an archive: set CHRONOVERSE_ARCHIVE_URL")
    subject, reason = principal().subject, body.get("reason")
    at = iso_timestamp(deps.wall_clock())
    audit = {"at": at, "subject": subject, "request_id": request_id(), "reason": reason}
    first, last = body.get("from_", 1), body.get("to", MAX_NUMBER)
    asked = RedactionRequest(first, last, _line_predicate(body), audit, exact="q" not in body)
    done = Redaction(deps.store, deps.object_store, ref, asked, pause=yield_to_loop).run()
    deps.replay_cache.invalidate(ref)
    what = f"{counted(done.lines)} from {first} to {done.last_checked}{f': {reason}' if reason else ''}"
    deps.store.audit_trail.record(subject, "redact", *ref, what)
    return done


def _line_predicate(body: Mapping[str, Any]) -> Callable[[Line], bool]:
    if "q" not in body:
        return lambda line: True
    matcher, time_slice = Matcher(body["q"], regex=body["regex"]), TimeSlice()

    def predicate(line: Line) -> bool:
        time_slice.check()
        if matcher.is_heavy(len(line.message)):
            # Runs in a thread, so that other greenlets can run.
            return bool(gevent.get_hub().threadpool.apply(matches, (matcher, line)))
        return matches(matcher, line)

    return predicate
