"""Routes for watches: webhooks about a workflow's jobs."""

import base64
import secrets
from collections.abc import Mapping
from typing import Any, Final

from flask import Response
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from chronoverse.auth.rights import ADMIN
from chronoverse.errors import BadRequest, JobNotFound
from chronoverse.joblog.labels import MAX_LABELS
from chronoverse.joblog.watches import DEFAULT_STATUSES, SECRET, Event, Watch, split_url
from chronoverse.store.watches import MAX_WATCHES, KeptWatch
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import page_response
from chronoverse.web.http.publish_schemas import JsonInteger, LabelsField
from chronoverse.web.http.schemas import Blueprint, Members, answer, integer, list_of, matching, one_of, text

_ROUTE: Final = "/workflows/<id:workflow_id>/watches"
_ENDS: Final = ("COMPLETED", "FAILED", "CANCELED", "LOST")


class WatchBody(Schema):
    on = one_of(
        tuple(DEFAULT_STATUSES),
        "The end of a job, a change of the outcome since the previous job, or silence.",
        required=True,
    )
    status = fields.List(
        one_of(_ENDS),
        allow_none=True,
        load_default=None,
        validate=validate.Length(1, 4),
        metadata={"description": "End statuses to send. Default: FAILED and LOST; for a `change` also COMPLETED."},
    )
    label = LabelsField("Jobs with all of these labels.")
    same = fields.List(
        matching("[a-z][a-z0-9._/-]{0,62}"),
        load_default=list,
        validate=validate.Length(max=MAX_LABELS),
        metadata={"description": "With `change`: compare jobs with the same values of these labels, such as `branch`."},
    )
    seconds = JsonInteger("With `silent`: seconds without a line.", 1, 604_800, allow_none=True, load_default=None)
    url = text("Webhook URL.", required=True)
    secret = matching(
        SECRET.pattern,
        "Secret that signs messages (Standard Webhooks). Default: generated for a new watch and returned"
        " once; an existing watch keeps its own.",
        allow_none=True,
        load_default=None,
    )

    @validates_schema
    def _check(self, data: dict[str, Any], **kwargs: Any) -> None:
        if (data["on"] == "silent") != (data["seconds"] is not None):
            raise ValidationError("required with `silent`, otherwise not allowed", "seconds")
        if data["on"] == "silent" and data["status"]:
            raise ValidationError("not allowed with `silent`", "status")
        if data["on"] != "change" and data["same"]:
            raise ValidationError("requires `change`", "same")


_WATCH: Final[Members] = {
    "workflow_id": text(),
    "id": text(),
    "on": one_of(tuple(DEFAULT_STATUSES)),
    "status": list_of(one_of(_ENDS)),
    "label": fields.Dict(text(), text()),
    "same": list_of(text()),
    "seconds": integer(allow_none=True),
    "url": text(),
    "state": one_of(("ok", "retrying", "failing"), "`failing` when no delivery has succeeded for a day."),
    "error": text("Why the last delivery failed; null after a success.", allow_none=True),
    "failing_since": text(allow_none=True),
    "delivered_at": text("Time of the last success.", allow_none=True),
    "waiting": integer("Messages waiting for delivery."),
    "dropped": integer("Messages dropped after a day, or because 10,000 were waiting."),
}
WatchSchema: Final = answer("Watch", _WATCH, {"secret": text("A generated secret, returned once.")})
WatchesSchema: Final = answer("Watches", {"workflow_id": text(), "watches": list_of(WatchSchema)})


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("watches", "Messages about a workflow's jobs.", scope=ADMIN)
    hosts = dict(deps.settings.webhook_hosts)

    def kept(workflow_id: str, watch_id: str) -> KeptWatch:
        """The watch with this id. Raises :class:`JobNotFound`."""
        for each in deps.store.watches.read(workflow_id):
            if each.watch.id == watch_id:
                return each
        raise JobNotFound("no such watch")

    def record(workflow_id: str, what: str) -> None:
        deps.store.audit_trail.record(principal().subject, "watch", workflow_id, None, what)

    @routes.route(_ROUTE)
    @routes.response(200, WatchesSchema)
    def list_watches(workflow_id: str) -> Response:
        """List a workflow's watches and the state of their deliveries, without secrets."""
        now = deps.wall_clock()
        found = [each.to_json(now) for each in deps.store.watches.read(workflow_id)]
        return page_response({"workflow_id": workflow_id, "watches": found})

    @routes.route(f"{_ROUTE}/<id:watch_id>")
    @routes.response(200, WatchSchema)
    def get_watch(workflow_id: str, watch_id: str) -> Response:
        """Return a watch and the state of its deliveries."""
        return page_response(kept(workflow_id, watch_id).to_json(deps.wall_clock()))

    @routes.route(f"{_ROUTE}/<id:watch_id>", methods=["PUT"])
    @routes.response(201, WatchSchema, description="Created; 200 if it existed.")
    @routes.alt_response(200, schema=WatchSchema)
    @routes.problem(403, "The token lacks the scope, or the host is not in CHRONOVERSE_WEBHOOK_HOSTS.")
    @routes.takes_body(deps.body_reader, WatchBody())
    def put_watch(workflow_id: str, watch_id: str, body: Mapping[str, Any]) -> tuple[Response, int]:
        """Create or replace a watch. It applies to later events."""
        try:
            _, host, _ = split_url(body["url"], hosts)
        except ValueError as error:
            raise BadRequest(f"url: {error}") from error
        generated = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        known = {each.watch.id: each.watch.secret for each in deps.store.watches.read(workflow_id)}
        if watch_id not in known and len(known) >= MAX_WATCHES:
            raise BadRequest(f"a workflow can have at most {MAX_WATCHES} watches")
        secret = body["secret"] or known.get(watch_id, generated)
        status = body["status"] or list(DEFAULT_STATUSES[body["on"]])
        own: dict[str, Any] = {"secret": secret, "status": status, "label": dict(body["label"])}
        watch = Watch(workflow_id=workflow_id, id=watch_id, **{**body, **own})
        record(workflow_id, f"{watch_id}: on {watch.on}, to {host}")
        deps.store.watches.put(watch)
        shown = {"secret": generated} if watch.secret == generated else {}
        answered = page_response({**kept(workflow_id, watch_id).to_json(deps.wall_clock()), **shown})
        return answered, 200 if watch_id in known else 201

    @routes.route(f"{_ROUTE}/<id:watch_id>", methods=["DELETE"])
    @routes.response(204, description="Deleted, with its waiting messages.")
    def delete_watch(workflow_id: str, watch_id: str) -> Response:
        """Delete a watch."""
        kept(workflow_id, watch_id)
        record(workflow_id, f"{watch_id} deleted")
        deps.store.watches.delete(workflow_id, watch_id)
        return Response(status=204)

    @routes.route(f"{_ROUTE}/<id:watch_id>/test", methods=["POST"])
    @routes.response(202, WatchSchema, description="Queued: `delivered_at` or `error` changes once it is sent.")
    def test_watch(workflow_id: str, watch_id: str) -> tuple[Response, int]:
        """Send a test message about the workflow's newest job, and all waiting messages, now."""
        found = kept(workflow_id, watch_id)
        job_id = next((newest for _, newest in deps.store.listing.page(workflow_id, None, 1)), "")
        event = Event(f"test.{secrets.token_hex(8)}", job_id, 0, "", round(1000 * deps.wall_clock()))
        deps.store.watches.add(found.watch, event)
        deps.store.watches.retry(found.watch)
        return page_response(found.to_json(deps.wall_clock())), 202

    return routes
