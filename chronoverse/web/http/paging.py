"""Pages over HTTP: reads them, encodes their cursors, and adds the ``Link`` to the next page.

Filtered pages come from the scan server. A cursor is opaque, and bound to one job or workflow, order and filter.
"""

import base64
import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import gevent.socket
import orjson
from flask import Response, request

from chronoverse.errors import BadRequest
from chronoverse.history.pages import PAGE_BYTES, Page, PageBudget, first_page, read_all_lines
from chronoverse.history.scans.client import PendingScan
from chronoverse.history.scans.scan import BaseScan, LineScan
from chronoverse.history.tiered_log import BatchReader, LogReader
from chronoverse.joblog.entries import Batch, RawEntry
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER, Job, JobRef, ListingPosition
from chronoverse.web.guards.connection import HangupWatch
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.guards.turns import WAIT_SECONDS
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.read_audit import set_start

#: Jobs or workflows read at once. Ten jobs take store and worker about 1 ms, which delays other requests.
LISTED_AT_ONCE: Final = 10

_Part = TypeVar("_Part")
_Position = TypeVar("_Position")

#: Headers of answers that must not be cached or shared.
PRIVATE_HEADERS: Final = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}


def log_page(deps: Dependencies, job: Job, position: int, limit: int, *, descending: bool) -> Page:
    """A page of up to ``limit`` lines strictly after ``position`` in the requested order.

    Raises the errors of the store, the archive and :meth:`Turns.page`.
    """
    with deps.turns.page(job.ref, principal().subject):
        read, budget = partial(_reader(deps), limit=limit), PageBudget(clock=deps.monotonic)
        pages = _yielding(read_all_lines(read, deps.archive, job, position, descending=descending))
        return first_page(pages, job, position, limit, budget, descending=descending)


def read_log(deps: Dependencies, job: Job, position: int, **options: Any) -> Iterator[Batch]:
    """The lines strictly after ``position``, as :class:`LogReader` yields them. Other greenlets run in between."""
    return _yielding(_reader(deps)(job, position, **options))


def _reader(deps: Dependencies) -> BatchReader:
    store = _LockedStore(deps, principal().subject)
    return LogReader(store, deps.archive, deps.settings.max_line_bytes)


def _yielding(parts: Iterable[_Part]) -> Iterator[_Part]:
    for part in parts:
        yield part
        yield_to_loop()


@contextlib.contextmanager
def pending_scan(deps: Dependencies, kind: type[BaseScan], ref: JobRef, **fields: Any) -> Iterator[PendingScan]:
    """Waits for a turn to scan ``ref``, then asks the scan server for a scan of ``kind`` with ``fields``.

    The scan ends early if the request's client disconnects. Raises what :meth:`Turns.scan` and :meth:`ScanClient.ask`
    raise.
    """
    sock, subject = request.environ.get("gunicorn.socket"), principal().subject
    with deps.turns.scan(ref, subject):
        scan = kind(**ref._asdict(), asked_at=deps.monotonic(), patience=WAIT_SECONDS, **fields)
        with deps.scans.ask(scan, subject) as pending, contextlib.ExitStack() as undo:
            if isinstance(sock, gevent.socket.socket):
                undo.callback(HangupWatch(sock, lambda _: pending.shorten()).close)
            yield pending


def scan_page(deps: Dependencies, ref: JobRef, limit: int, **filters: Any) -> Page:
    """The scan server's page of up to ``limit`` lines. ``filters`` are fields of :class:`LineScan`.

    Raises what :func:`pending_scan` and :class:`PendingScan` raise.
    """
    with pending_scan(deps, LineScan, ref, limit=limit, **filters) as pending:
        return pending.page()


@dataclass(frozen=True, slots=True)
class _LockedStore:
    """The store for :class:`LogReader`. Reads of lines wait for ``subject``'s turn; reads of the archive do not."""

    deps: Dependencies
    subject: str

    def get_job(self, job: JobRef) -> Job | None:
        return self.deps.store.get_job(job)

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        with self.deps.turns.read(job, self.subject):
            return self.deps.store.page(job, after=after, before=before, count=count)


def encode_cursor(listing: Sequence[Any], position: Sequence[Any]) -> str:
    """A cursor for ``position``, valid only for ``listing``. Both contain only JSON scalars."""
    return base64.urlsafe_b64encode(orjson.dumps([*listing, *position])).rstrip(b"=").decode()


def decode_cursor(cursor: str, listing: Sequence[Any], *parsers: Callable[[Any], Any]) -> list[Any]:
    """Decodes the cursor's position in ``listing``, and parses its values. Raises :class:`BadRequest`."""
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        bound_to, position = values[: len(listing)], values[len(listing) :]
        parsed = [parse(value) for parse, value in zip(parsers, position, strict=True)]
    except (ValueError, TypeError, LookupError) as error:
        raise BadRequest("cursor: invalid") from error
    if bound_to != list(listing):
        raise BadRequest("cursor: it belongs to another job, order or filter")
    return parsed


def digest(text: str) -> str:
    """A digest of a long query parameter, for use in a cursor."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def labels_in_cursor(labels: Sequence[Any]) -> Sequence[str]:
    """The part of a cursor that identifies the query's labels. Empty if there are none."""
    return [digest(repr(sorted(labels)))] if labels else []


def number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ValueError
    return value


def created_ms(value: Any) -> float:
    """Parses a creation time. It is a string, because JSON has no infinity, which a foreign runner can write."""
    if type(value) is not str or math.isnan(created := float(value)):
        raise ValueError
    return created


def identifier(value: Any) -> str:
    if not IDENTIFIER.fullmatch(value):
        raise ValueError
    found: str = value
    return found


def listing_start(query: Mapping[str, Any], listing: Sequence[Any]) -> ListingPosition | None:
    if "cursor" not in query:
        return None
    created, identity = decode_cursor(query["cursor"], listing, created_ms, identifier)
    return created, identity


def listing_cursor(listing: Sequence[Any], position: ListingPosition | None) -> str | None:
    return None if position is None else encode_cursor(listing, (repr(position[0]), position[1]))


def read_listing(
    deps: Dependencies,
    lock_ref: JobRef,
    position: _Position | None,
    limit: int,
    read: Callable[[_Position | None], Iterable[tuple[_Position, Any]]],
    subject: str,
) -> tuple[list[Any], _Position | None]:
    """Returns up to ``limit`` items after ``position``, and the start of the next page (None on the last page).

    ``read`` returns some positions after a given one, each with its item (None if the item is gone or filtered out); at
    the end, it returns nothing. Each call waits for ``subject``'s turn at the server of ``lock_ref``.
    """
    found: list[Any] = []
    size = 0
    # After the deadline, the page ends with the items found so far.
    deadline = deps.monotonic() + 0.5
    while True:
        with deps.turns.read(lock_ref, subject):
            batch = list(read(position))
        if not batch:
            return found, None
        for position, item in batch:
            if item is not None:
                found.append(item)
                # The size is limited, too: a job with many long labels takes 17 KB.
                size += len(orjson.dumps(item))
                if len(found) == limit or size > PAGE_BYTES:
                    return found, position
        if deps.monotonic() > deadline:
            return found, position
        yield_to_loop()


def start_position(query: Mapping[str, Any], listing: Sequence[Any], job: Job, *, more: int = 0) -> list[int]:
    """The numbers in the ``query``'s cursor: the log page's start (exclusive), then ``more`` other numbers.

    Without a cursor, the page starts at the offset, at the log's beginning, or (if descending) at its end; the other
    numbers are 0. Raises :class:`BadRequest`.
    """
    position = [query.get("offset", job.last + 1 if query["order"] == "desc" else 0), *[0] * more]
    if "cursor" in query:
        position = decode_cursor(query["cursor"], listing, *[number] * (1 + more))
    set_start(position[0])
    return position


def json_response(json: bytes) -> Response:
    """A JSON answer that must not be cached."""
    return Response(json, content_type="application/json", headers=PRIVATE_HEADERS)


def log_page_response(
    ref: JobRef, page: Page, listing: Sequence[Any], query: Mapping[str, Any], *more: int, **members: Any
) -> Response:
    """A page of a job's lines, with ``members``. Its cursor contains the page's position and the numbers ``more``."""
    cursor = encode_cursor(listing, [page.position, *more]) if page.has_more else None
    # orjson copies fragments without encoding them again.
    lines = [orjson.Fragment(each) for each in page.lines]
    body = {"workflow_id": ref.workflow_id, "id": ref.job_id, "logs": lines, **members, "cursor": cursor}
    return page_response(body, cursor, query, page.position)


def page_response(
    body: dict[str, Any], cursor: str | None = None, query: Mapping[str, Any] | None = None, position: int | None = None
) -> Response:
    """``body`` as JSON. With a ``cursor``, a ``Link`` (RFC 8288) to the next page repeats ``query``.

    ``position``, the page's last line number, becomes ``Last-Event-ID``.
    """
    response = json_response(orjson.dumps(body))
    if position is not None:
        response.headers["Last-Event-ID"] = str(position)
    if cursor:
        parameters = {name: _parameter(value) for name, value in (query or {}).items() if value}
        parameters.pop("offset", None)
        next_query = urlencode({**parameters, "cursor": cursor}, doseq=True)
        response.headers["Link"] = f'<{request.path}?{next_query}>; rel="next"'
    return response


def _parameter(value: Any) -> Any:
    # An empty pair is ``*``.
    return ["=".join(pair) or "*" for pair in value] if isinstance(value, list) else "true" if value is True else value
