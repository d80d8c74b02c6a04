"""The HTTP side of pages: cursors, the position at which a page of a log starts, and the answer with its ``Link``.

A cursor is opaque to clients. It is bound to one listing: the job or workflow, the order and the filter that it was
made for.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from flask import Response, request

from chronoverse.errors import InvalidCursor
from chronoverse.history.pages import Page
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER, Job, JobRef, ListingPosition

#: Headers of an answer that nobody else may see.
PRIVATE_HEADERS: Final = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}


def encode_cursor(listing: Sequence[Any], position: Sequence[Any]) -> str:
    """A cursor for ``position`` in ``listing``, which is all that it is bound to. Both are JSON scalars."""
    return base64.urlsafe_b64encode(orjson.dumps([*listing, *position])).rstrip(b"=").decode()


def decode_cursor(cursor: str, listing: Sequence[Any], types: Sequence[type]) -> list[Any]:
    """The position in ``listing``: one value of each of ``types``. Raises :class:`InvalidCursor`."""
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, orjson.JSONDecodeError, ValueError) as error:
        raise InvalidCursor("cursor: this is not one of ours") from error
    if not isinstance(values, list) or len(values) != len(listing) + len(types):
        raise InvalidCursor("cursor: this is not one of ours")
    bound_to, position = values[: len(listing)], values[len(listing) :]
    if bound_to != list(listing):
        raise InvalidCursor("cursor: it was made for another job, order or filter")
    if any(type(value) is not expected for value, expected in zip(position, types, strict=True)):
        raise InvalidCursor("cursor: this is not one of ours")
    return position


def parse_position(score: str, identifier: str) -> ListingPosition:
    """The creation time and the id in a cursor. Raises :class:`InvalidCursor`.

    A foreign runner may have written any time that Redis accepts, such as infinity.
    """
    try:
        created_ms = float(score)
    except ValueError as error:
        raise InvalidCursor("cursor: this is not one of ours") from error
    if math.isnan(created_ms) or not IDENTIFIER.fullmatch(identifier):
        raise InvalidCursor("cursor: this is not one of ours")
    return created_ms, identifier


def encode_listed(listing: Sequence[Any], position: ListingPosition | None) -> str | None:
    """A cursor for ``position`` in ``listing``. None for None."""
    return None if position is None else encode_cursor(listing, (repr(position[0]), position[1]))


def decode_listed(cursor: str | None, listing: Sequence[Any]) -> ListingPosition | None:
    """The position of :func:`encode_listed`. Raises :class:`InvalidCursor`."""
    if cursor is None:
        return None
    return parse_position(*decode_cursor(cursor, listing, [str, str]))


def start_position(query: dict[str, Any], listing: Sequence[Any], job: Job, *, descending: bool) -> int:
    """The number after which a page of a log starts, in the order asked for.

    It is what the ``query``'s cursor or offset says. Without either it is the log's beginning, or its end when
    ``descending``. Raises :class:`InvalidCursor`.
    """
    if "cursor" not in query:
        offset: int = query.get("offset", job.last + 1 if descending else 0)
        return offset
    (number,) = decode_cursor(query["cursor"], listing, [int])
    if not 0 <= number <= MAX_NUMBER:
        raise InvalidCursor("cursor: this is not one of ours")
    position: int = number
    return position


def json_response(json: bytes) -> Response:
    """An answer of JSON, which nobody else may see."""
    response = Response(json, content_type="application/json")
    response.headers.update(PRIVATE_HEADERS)
    return response


def log_page_response(
    ref: JobRef, page: Page, cursor: str | None, query: Mapping[str, Any], **members: Any
) -> Response:
    """A page of a job's lines as :func:`page_response` sends it. ``members`` are added to the body."""
    # orjson copies these fragments without encoding them again.
    lines = [orjson.Fragment(each) for each in page.lines]
    body = {"workflow_id": ref.workflow_id, "id": ref.job_id, "logs": lines, **members, "cursor": cursor}
    return page_response(body, cursor, page.position, **query)


def page_response(
    body: dict[str, Any], cursor: str | None = None, position: int | None = None, **query: Any
) -> Response:
    """``body`` as JSON, with a ``Link`` (RFC 8288) to the next page where there is a ``cursor``.

    ``position`` is how far the page has come in a log; it becomes ``Last-Event-ID``. ``query`` are the parameters of
    the link beside its cursor. Those that are None, 0 or False are left out.
    """
    response = json_response(orjson.dumps(body))
    if position is not None:
        response.headers["Last-Event-ID"] = str(position)
    if cursor:
        parameters = {name: "true" if value is True else value for name, value in query.items() if value}
        response.headers["Link"] = f'<{request.path}?{urlencode({**parameters, "cursor": cursor})}>; rel="next"'
    return response
