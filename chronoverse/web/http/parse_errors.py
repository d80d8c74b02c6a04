"""Problem documents for requests that gunicorn refuses before the application sees them.

gunicorn itself would answer with HTML.
"""

import re
import secrets
import ssl
from typing import Any, Final, NamedTuple

import orjson
from gunicorn.http import errors

from chronoverse.errors import AtCapacity
from chronoverse.web.http.problems import RETRY_AFTER_SECONDS, TITLES
from chronoverse.web.http.request_id import HEADER, ID_BYTES

#: A host and an optional port, as in RFC 3986 section 3.2.2.
_HOST: Final = re.compile(r"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)


class BadHost(errors.ParseException):
    """Raised when a request's Host header is missing or is not a host."""


#: Status and detail for each of gunicorn's errors. The first that fits is taken. None repeats what the client sent.
_REFUSALS: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    # These are about headers of our own answer, so the fault is ours.
    (errors.InvalidResponseHeader, 500, "Something went wrong here; it has been logged."),
    (errors.InvalidResponseHeaderName, 500, "Something went wrong here; it has been logged."),
    (errors.LimitRequestLine, 414, "A request line may have {line} bytes."),
    (
        errors.LimitRequestHeaders,
        431,
        "A request may have {fields} headers of {field_size} bytes each, all together 32 KiB.",
    ),
    (errors.UnsupportedTransferCoding, 501, "This transfer coding is not understood; chunked is."),
    (errors.ExpectationFailed, 417, "This expectation cannot be met; 100-continue can."),
    (errors.InvalidHTTPVersion, 400, "This version of HTTP is not spoken; 1.0 and 1.1 are."),
    (errors.InvalidRequestMethod, 400, "This is not a method."),
    (errors.InvalidRequestLine, 400, "The first line is not one of an HTTP request."),
    (errors.ObsoleteFolding, 400, "A header may not be folded."),
    (errors.InvalidHeader, 400, "A header is malformed, or contradicts another."),
    (errors.InvalidHeaderName, 400, "A header's name is malformed."),
    (BadHost, 400, "A request names its host, and only HTTP/1.0 may leave that out."),
    (errors.ParseException, 400, "This is not a request as HTTP has it."),
    (AtCapacity, 503, "This worker has too many requests at a time; try again."),
    (ssl.SSLError, 400, "This is not TLS as it is spoken here."),
)


class Refusal(NamedTuple):
    """An answer: its status, and all of its bytes. ``request_id`` is in the answer and in the log."""

    status: int
    request_id: str
    answer: bytes


def check_host(request: Any) -> None:
    """Raises :class:`BadHost` when gunicorn's ``request`` has no valid Host header. HTTP/1.0 may leave it out.

    gunicorn refuses two Host headers, and checks nothing else. https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    """
    host = next((value for name, value in request.headers if name == "HOST"), None)
    if host is None and request.version < (1, 1):
        return
    if host is None or not _HOST.fullmatch(host):
        raise BadHost("no host")


def refusal_for(error: BaseException, cfg: Any) -> Refusal:
    """The answer to a request for which gunicorn, with the settings ``cfg``, raised ``error``.

    It closes the connection.
    """
    status, template = next(
        ((status, template) for kind, status, template in _REFUSALS if isinstance(error, kind)), (500, _REFUSALS[0][2])
    )
    detail = template.format(
        line=cfg.limit_request_line, fields=cfg.limit_request_fields, field_size=cfg.limit_request_field_size
    )
    title, request_id = TITLES[status], secrets.token_hex(ID_BYTES)
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": request_id}
    body = orjson.dumps(document)
    head = (
        f"HTTP/1.1 {status} {title}",
        "Connection: close",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"{HEADER}: {request_id}",
        *([f"Retry-After: {RETRY_AFTER_SECONDS}"] if status == 503 else []),
    )
    return Refusal(status, request_id, "\r\n".join([*head, "", ""]).encode() + body)
