"""Gives every request an id, taken from ``X-Request-ID`` or generated. Answers, problems and log lines include it."""

import re
import secrets
from typing import Final

from flask import Flask, Response, g, has_app_context, request

#: Accepted ids from clients: harmless in a log and in a header.
_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}", re.ASCII)


def register(app: Flask) -> None:
    app.before_request(_set_id)
    app.after_request(_repeat_id)


def request_id() -> str | None:
    current: str | None = g.get("request_id") if has_app_context() else None
    return current


def _set_id() -> None:
    given = request.environ.get("HTTP_X_REQUEST_ID", "")
    g.request_id = given if _ACCEPTED.fullmatch(given) else secrets.token_hex(8)


def _repeat_id(response: Response) -> Response:
    if current := g.get("request_id"):
        response.headers["X-Request-ID"] = current
    return response
