"""Converts errors to RFC 9457 problem documents. :mod:`chronoverse.errors` defines their statuses and reasons."""

import logging
from http import HTTPStatus
from typing import Any, Final

import orjson
from flask import Flask, Response, has_request_context, request
from werkzeug.exceptions import HTTPException

from chronoverse import metrics
from chronoverse.errors import ChronoverseError, Forbidden, LabelSet, SequenceGap, StoreError, TooFast, Unauthorized
from chronoverse.live.tail import count_store_error
from chronoverse.web.http.request_id import request_id

#: Seconds after which a refused client should retry: about the duration of a restart or failover.
RETRY_AFTER_SECONDS: Final = 2

#: One text for every 404, so that clients cannot distinguish missing resources, missing access and unknown paths.
NOT_FOUND: Final = "Not found, or no access."

log = logging.getLogger(__name__)


def problem(status: int, detail: str, errors: list[dict[str, str]] | None = None, **members: Any) -> Response:
    """A problem document. ``errors`` are ``[{"parameter": …, "detail": …}]``. ``members`` are added unchanged."""
    body: dict[str, Any] = {
        "type": "about:blank",
        # RFC 9110 renamed the status "Request Entity Too Large".
        "title": "Content Too Large" if status == 413 else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **members,
    }
    if errors:
        body["errors"] = errors
    # All 404s must be identical, so they have no request id.
    if status != 404 and (current := request_id()):
        body["request_id"] = current
    metrics.REQUESTS_REFUSED.labels(status).inc()
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    response = Response(orjson.dumps(body), status, headers, content_type="application/problem+json")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    # A wait is answered when its request's context is gone.
    if status in (400, 404, 409) and has_request_context() and request.headers.get("Prefer") == "status=200":
        # A browser would log any other status as an error of the page. The document has the actual status.
        response.status_code = 200
        response.headers["Preference-Applied"] = "status=200"
    return response


def register(app: Flask) -> None:
    app.register_error_handler(ChronoverseError, problem_for)
    app.register_error_handler(HTTPException, _problem_for_http_error)
    app.register_error_handler(Exception, _problem_for_unexpected_error)


def problem_for(error: ChronoverseError) -> Response:
    status = error.status
    if status == 404:
        return problem(404, NOT_FOUND)
    if status >= 500:
        # The store's address and answer are for operators only.
        log.warning("refused with %d: %s", status, error)
        if isinstance(error, StoreError):
            count_store_error("request", error)
    elif isinstance(error, Unauthorized | Forbidden):
        # Explains to operators why a token was refused. Never contains a part of the token.
        log.info("refused with %d: %s", status, error.explanation if isinstance(error, Unauthorized) else error)
    detail = str(error) if status < 500 or error.detail is None else error.detail
    # Additional members for runners.
    members: dict[str, Any] = {"reason": error.reason} if error.reason else {}
    if isinstance(error, SequenceGap):
        members["expected"] = error.expected
    if isinstance(error, LabelSet):
        members["labels"] = error.keys
    response = problem(status, detail, **members)
    if isinstance(error, TooFast):
        response.headers["Retry-After"] = str(error.seconds)
    if status == 403:
        response.headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    return response


def _problem_for_http_error(error: HTTPException) -> Response:
    status = error.code or 500
    if status == 404:
        return problem(404, NOT_FOUND)
    errors, omitted = _parameter_errors(getattr(error, "data", None) or {})
    texts = [f"{e['parameter']}: {e['detail']}" for e in errors] + ([f"and {omitted} more"] if omitted else [])
    detail = "; ".join(texts) or error.description or error.name
    response = problem(status, detail, errors)
    for name, value in error.get_headers():
        if name in ("Accept-Encoding", "Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _parameter_errors(data: dict[str, Any]) -> tuple[list[dict[str, str]], int]:
    """The errors of the first 10 parameters, and the number of parameters omitted.

    ``data`` contains the errors that webargs found: ``{"messages": {"query": {"offset": ["…"]}}}``.
    """
    found = [
        (name if name != "_schema" else location, details)
        for location, fields in data.get("messages", {}).items()
        for name, details in fields.items()
    ]
    # Cuts names to 100 characters and details to 500, because a client can make up thousands of long parameters.
    entries = [{"parameter": name[:100], "detail": _detail(name, details)[:500]} for name, details in found[:10]]
    return entries, len(found) - len(entries)


def _detail(name: str, details: Any) -> str:
    """Joins a parameter's errors: ``["…"]``, or ``{1: ["…"]}`` for elements of a list. A label's error names it."""
    if isinstance(details, dict):
        is_label = name in ("label", "against_label")
        return "; ".join(("" if is_label else f"{index}: ") + " ".join(texts) for index, texts in details.items())
    return " ".join(map(str, details))


def _problem_for_unexpected_error(error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return problem(500, "Internal error; it has been logged.")
