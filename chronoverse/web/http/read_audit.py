"""Logs a line for each read of a job log's text, if the settings ask for it. The line never contains search terms."""

from typing import Final

from flask import Flask, Response, g, request

from chronoverse.store.audit import audit_log
from chronoverse.web.http.dependencies import principal

_ALL: Final = "search.search_all"
#: The views below a workflow that show no text of a log. Any other view counts, also one that is new.
_WITHOUT_TEXT: Final = frozenset(
    {"jobs.jobs", "jobs.job", "workflow-events.workflow_events", "admin.redactions", "watches.watches", "watches.get"}
)


def register(app: Flask) -> None:
    """Makes ``app`` log answers that contain text of a log."""
    app.after_request(_log_read)


def set_start(after: int) -> None:
    """Notes that the current request reads from after line ``after``."""
    g.reads_after = after


def _log_read(response: Response) -> Response:
    arguments = request.view_args or {}
    ids = [arguments[name] for name in ("workflow_id", "job_id") if name in arguments]
    has_text = request.endpoint == _ALL or (ids and request.endpoint not in _WITHOUT_TEXT)
    # A refusal may have the status 200, too.
    is_answer = response.status_code == 200 and response.mimetype != "application/problem+json"
    if request.method == "GET" and has_text and is_answer:
        fields = {
            "sub": principal().subject,
            "job": "/".join(ids) or "*",
            # What follows the job or the workflow in the path.
            "route": request.path.removeprefix(f"/workflows/{'/jobs/'.join(ids)}/").removeprefix("/"),
            "after": g.get("reads_after"),
            "to": response.headers.get("Last-Event-ID"),
            "query_characters": len(request.args["q"]) if "q" in request.args else None,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        audit_log.info("read", extra={"fields": fields})
    return response
