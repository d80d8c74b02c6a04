"""A name for every request: taken from ``X-Request-ID`` or made, echoed in the answer, told in problems and logs."""

import re
import secrets
from typing import Final

from flask import Flask, Response, g, has_app_context, request

HEADER: Final = "X-Request-ID"
#: A client's own name for its request, as long as it is harmless in a log and a header.
_NAME: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}", re.ASCII)
#: Bytes of randomness in a name that we make.
ID_BYTES: Final = 8


def register(app: Flask) -> None:
    """Names every request of ``app``, before anything else is done with it."""
    app.before_request(_name)
    app.after_request(_echo)


def request_id() -> str | None:
    """The current request's name; None outside of any."""
    name: str | None = g.get("request_id") if has_app_context() else None
    return name


def accept_or_create(given: str) -> str:
    """The name of a request whose client calls it ``given``, empty when it does not."""
    return given if _NAME.fullmatch(given) else secrets.token_hex(ID_BYTES)


def _name() -> None:
    g.request_id = accept_or_create(request.headers.get(HEADER, ""))


def _echo(response: Response) -> Response:
    if name := request_id():
        response.headers[HEADER] = name
    return response
