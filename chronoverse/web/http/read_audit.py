"""Logs each read of log text, if the settings ask for it. Search terms are never logged."""

from typing import Final

from flask import Flask, Response, g, request

from chronoverse.store.audit import audit_log
from chronoverse.web.http.dependencies import principal

#: Workflow operations whose answers contain no log text. All others are logged, including those added later.
_WITHOUT_TEXT: Final = {
    *("list_jobs", "get_job", "stream_workflow", "list_redactions", "list_watches", "get_watch"),
    "get_workflow_settings",
}


def register(app: Flask) -> None:
    """Makes ``app`` log each answer that contains log text."""
    app.after_request(_log_read)


def set_start(after: int) -> None:
    """Records the line number after which the current request reads."""
    g.reads_after = after


def _log_read(response: Response) -> Response:
    arguments = request.view_args or {}
    ids = [arguments[name] for name in ("workflow_id", "job_id") if name in arguments]
    operation = (request.endpoint or "").rpartition(".")[2]
    # Requests for the page's documents also have ids, but no principal.
    has_text = "principal" in g and (operation == "search_all" or (ids and operation not in _WITHOUT_TEXT))
    # Errors can also have status 200 (``Prefer: status=200``).
    is_answer = response.status_code == 200 and response.mimetype != "application/problem+json"
    if request.method == "GET" and has_text and is_answer:
        fields = {
            "sub": principal().subject,
            "job": "/".join(ids) or "*",
            # The path after the job or workflow.
            "route": request.path.removeprefix(f"/workflows/{'/jobs/'.join(ids)}/").removeprefix("/"),
            "after": g.get("reads_after"),
            "to": response.headers.get("Last-Event-ID"),
            "query_characters": len(request.args["q"]) if "q" in request.args else None,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        audit_log.info("read", extra={"fields": fields})
    return response
