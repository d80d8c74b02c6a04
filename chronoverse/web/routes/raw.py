"""``GET …/logs/raw``: a log as a download."""

import errno
import logging
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from flask import Response, request

from chronoverse.errors import ChronoverseError, StoreUnavailable, Unauthorized
from chronoverse.history.pages import MAX_ENTRIES, Page, read_all_lines
from chronoverse.history.scans.scan import SHORT_SCAN_SECONDS, LineScan
from chronoverse.history.tiered_log import BATCH_CHARACTERS, MAX_BATCH, LogReader
from chronoverse.joblog.model import Job, JobRef, Line
from chronoverse.joblog.terminal import LineRenderer
from chronoverse.web.guards.admission import StreamTicket
from chronoverse.web.guards.connection import DOWNLOAD_LIMITS, begin_long_answer
from chronoverse.web.guards.event_loop import TimeSlice, yield_to_loop
from chronoverse.web.guards.turns import DOWNLOAD_WAIT_SECONDS
from chronoverse.web.http.dependencies import Dependencies, principal, stream_ticket
from chronoverse.web.http.paging import PRIVATE_HEADERS
from chronoverse.web.http.schemas import JOB_ROUTE, Blueprint, RawQuery

WRITE_BYTES: Final = 2**16

_CONTENT_TYPES: Final = {"txt": "text/plain; charset=utf-8", "json": "application/json", "jsonl": "application/jsonl"}

_DOCUMENTED: Final = {
    "application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Line"}}},
    "application/jsonl": {"schema": {"type": "string"}},
}

log = logging.getLogger(__name__)


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("raw", "Downloading.")

    @routes.route(f"{JOB_ROUTE}/logs/raw")
    @routes.doc(responses={200: {"content": _DOCUMENTED}})
    @routes.arguments(RawQuery, location="query", as_kwargs=True)
    @routes.response(200, {"type": "string"}, content_type="text/plain", description="The log so far.")
    def download_job_log(
        workflow_id: str, job_id: str, format: str, regex: bool, control_sequences: bool, **query: Any
    ) -> Response:
        """Download a job's log: all lines stored at the time of the request.

        The connection is cut when the token expires, before the end of the body.
        """
        job = deps.store.require_job(JobRef(workflow_id, job_id))
        name = f'attachment; filename="{workflow_id}-{job_id}.{format}"'
        headers = {**PRIVATE_HEADERS, "Content-Disposition": name, "Vary": "Accept-Encoding"}
        compressed = request.accept_encodings["gzip"] > 0
        if compressed:
            headers["Content-Encoding"] = "gzip"
        # Without an iterator, the answer to HEAD would have a Content-Length of 0.
        response = Response(iter(()), content_type=_CONTENT_TYPES[format], headers=headers)
        if request.method == "HEAD":
            return response
        # Counts as a stream, because it can last as long.
        ticket = stream_ticket(deps)
        deps.admission.enter(ticket)
        try:
            expires_at = deps.monotonic() + principal().expires_at - deps.wall_clock()
            begin_long_answer(request.environ, DOWNLOAD_LIMITS, expires_at)
            # Reads the other stream's lines, too, which can separate the parts of a long line.
            only_stream = query.get("stream") if format == "txt" and "q" not in query else None
            is_scan = query and only_stream is None
            pages = _scan_pages(deps, job, regex=regex, **query) if is_scan else _read_pages(deps, job)
            renderer = LineRenderer(colour=False, raw=control_sequences, only_stream=only_stream)
            parts = _encode(_check_pages(deps, job, pages, expires_at), format, renderer)
            # A log that cannot be read at all gets a problem document. Later errors can only cut the download.
            first = next(parts, b"")
        except BaseException:
            deps.admission.leave(ticket)
            raise
        download = _Download(deps, ticket, job.ref, format)
        response.call_on_close(download.end)
        body = download.send(chain([first], parts))
        response.response = _gzip(body) if compressed else body
        return response

    return routes


class _Download:
    """A download admitted with ``ticket``. Counts the bytes sent, for the log."""

    def __init__(self, deps: Dependencies, ticket: StreamTicket, job: JobRef, form: str) -> None:
        self._deps = deps
        self._ticket = ticket
        self._fields = {"job": str(job), "format": form, "client": ticket.address, "sub": ticket.subject}
        self._bytes = 0
        self._reason = "left"

    def send(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Yields ``parts`` in small pieces, because gunicorn copies each one. Resets the connection after an error."""
        try:
            for part in parts:
                for start in range(0, len(part), WRITE_BYTES):
                    self._bytes += len(part[start : start + WRITE_BYTES])
                    yield part[start : start + WRITE_BYTES]
            self._reason = "end"
        except ChronoverseError as error:
            self._reason = "expired" if isinstance(error, Unauthorized) else "error"
            log.warning("a download is cut off: %s", error)
            raise ConnectionResetError(errno.ECONNRESET, "a download is cut off") from error

    def end(self) -> None:
        """Frees the download's slot, and logs its end."""
        self._deps.admission.leave(self._ticket)
        seconds = round(self._deps.monotonic() - self._ticket.since, 3)
        fields = {**self._fields, "why": self._reason, "bytes": self._bytes, "seconds": seconds}
        log.info("download ended", extra={"fields": {"request_id": self._ticket.request_id, **fields}})


def _read_pages(deps: Dependencies, job: Job) -> Iterator[Page]:
    """All lines of the log. Raises the errors of the store, the archive and :meth:`Turns.download`."""
    # This runs at the first ``next``, while the request's context still exists.
    subject = principal().subject
    read = LogReader(deps.store, deps.archive, deps.settings.max_line_bytes)
    pages = read_all_lines(read, deps.archive, job, job.first - 1)
    while True:
        with deps.turns.download(job.ref, subject):
            page = next(pages, None)
        if page is None:
            return
        yield page


def _scan_pages(deps: Dependencies, job: Job, **filters: Any) -> Iterator[Page]:
    """The scan server's pages of lines that pass ``filters``, which are fields of :class:`LineScan`.

    Raises what :meth:`ScanClient.ask` and :class:`PendingScan` raise.
    """
    subject, position, has_more = principal().subject, 0, True
    bounds = {"limit": MAX_ENTRIES, "page_bytes": BATCH_CHARACTERS, "seconds": SHORT_SCAN_SECONDS}
    asked = {**job.ref._asdict(), **filters, **bounds, "form": "whole", "patience": DOWNLOAD_WAIT_SECONDS}
    while has_more:
        scan = LineScan(**asked, position=position, asked_at=deps.monotonic())
        with deps.scans.ask(scan, subject) as pending:
            page = pending.page()
        yield page
        position, has_more = page.position, page.has_more


def _check_pages(deps: Dependencies, job: Job, pages: Iterator[Page], expires_at: float) -> Iterator[list[bytes]]:
    """Yields the JSON of the lines up to ``job.last``, at most :data:`MAX_BATCH` at a time.

    The caller clears each list after encoding it, so that only the bytes to send stay in memory. Raises
    :class:`StoreError`, also if the log was replaced, and :class:`Unauthorized` at the monotonic time ``expires_at``.
    """
    for lines, position, has_more, *_ in pages:
        is_end = position >= job.last
        if is_end or not has_more:
            _check_same_log(deps, job)
        if position > job.last:
            lines[:] = [each for each in lines if Line.decode(each).sequence_num <= job.last]
        while True:
            if deps.monotonic() >= expires_at:
                raise Unauthorized("the token has expired")
            some, lines[:MAX_BATCH] = lines[:MAX_BATCH], []
            yield some
            yield_to_loop()
            if not lines:
                break
        if is_end:
            return


def _check_same_log(deps: Dependencies, job: Job) -> None:
    """Raises :class:`StoreUnavailable` if the job's log was replaced. A new download can succeed."""
    current = deps.store.get_job(job.ref)
    if current is None:
        return
    created_at = {each.created_at for each in (job, current) if each.created_at}
    if current.last < job.last or len(created_at) > 1:
        raise StoreUnavailable("the log was replaced during the download")


def _encode(batches: Iterable[list[bytes]], form: str, renderer: LineRenderer) -> Iterator[bytes]:
    """The download's bytes: one message per line for ``txt``, one object per line for ``jsonl`` and ``json``.

    ``txt`` joins the pieces of a long line, unless missing lines or a line of the other stream come between them.
    """
    time_slice, opening = TimeSlice(), b"[\n"
    for lines in batches:
        if form == "txt":
            rendered: list[str] = []
            for each in lines:
                rendered.append(renderer.render(Line.decode(each)))
                # Yields often, because lines of control characters take a hundred times as long as others.
                time_slice.check()
            text = "".join(rendered).encode()
        elif form == "jsonl":
            text = b"\n".join([*lines, b""])
        elif lines:
            text, opening = opening + b",\n".join(lines), b",\n"
        else:
            text = b""
        lines.clear()
        yield text
    if form == "txt":
        yield renderer.close_line().encode()
    elif form == "json":
        yield b"[]\n" if opening == b"[\n" else b"\n]\n"


def _gzip(parts: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip stream of ``parts``, each flushed. Clients notice an interrupted stream: it lacks the gzip trailer."""
    # Level 1 compresses logs to a sixth of their size, at 100 MB/s. Higher levels would delay the worker's viewers.
    compressor = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    for part in parts:
        yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
