"""``GET …/logs/raw``: what there is of a log, as a file to keep."""

import errno
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final

import orjson
from flask import Response, request

from chronoverse.errors import ChronoverseError, StoreUnavailable, Unauthorized
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.values import Job, JobRef, Line
from chronoverse.web.http import pages
from chronoverse.web.http.dependencies import Dependencies, principal, stream_ticket
from chronoverse.web.http.schemas import Blueprint, ProblemSchema, RawQuery
from chronoverse.web.streaming.connection import DOWNLOAD, tune

#: zlib's level: 1 packs logs to a sixth, at 100 MB/s. Higher ones take the worker's time from its viewers.
GZIP_LEVEL: Final = 1

#: Bytes that are handed to the server at a time.
WRITE_BYTES: Final = 2**16

_CONTENT_TYPES: Final = {
    "txt": "text/plain; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/jsonl",
}

_DOCUMENTED: Final = {
    "application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Line"}}},
    "application/jsonl": {"schema": {"type": "string"}},
}

log = logging.getLogger(__name__)


def blueprint(deps: Dependencies) -> Blueprint:
    """The download route."""
    routes = Blueprint("raw", __name__, description="Downloading.")
    deps.guard(routes)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs/raw")
    @routes.doc(operationId="downloadJobLog", responses={200: {"content": _DOCUMENTED}})
    @routes.arguments(RawQuery, location="query", as_kwargs=True)
    @routes.response(200, {"type": "string"}, content_type="text/plain", description="The log, as it is by now.")
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    def raw(workflow_id: str, job_id: str, format: str, regex: bool, **query: Any) -> Response:
        """Download a job's log: all that is stored when it is asked for, also while the job runs.

        A slow reader gets all of it, however long it takes, but not beyond the token's `exp`: then the connection is
        cut, without the body's end.
        """
        job = deps.require_job(JobRef(workflow_id, job_id))
        wanted = _line_predicate(deps, query.get("stream"), Matcher(query["q"], regex=regex) if "q" in query else None)
        response = Response(content_type=_CONTENT_TYPES[format])
        response.headers["Content-Disposition"] = f'attachment; filename="{workflow_id}-{job_id}.{format}"'
        response.headers["Cache-Control"] = "private, no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Vary"] = "Accept-Encoding"
        packed = request.accept_encodings["gzip"] > 0
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        if request.method == "HEAD":
            return response
        # It may last as long as a viewer's stream, and holds a place like one.
        asking = stream_ticket(deps)
        deps.admission.enter(asking)
        try:
            until = deps.monotonic() + principal().expires_at - deps.wall_clock()
            tune(request.environ, DOWNLOAD, until)
            text = _ENCODERS[format](_read_lines(deps, job, wanted, until))
            # What cannot be read at all is refused, not cut off.
            first = next(text, b"")
        except BaseException:
            deps.admission.leave(asking)
            raise
        response.call_on_close(partial(deps.admission.leave, asking))
        whole = _end_connection_on_error(chain([first], text))
        response.response = _gzip(whole) if packed else whole
        return response

    return routes


def _line_predicate(deps: Dependencies, stream: str | None, matcher: Matcher | None) -> Callable[[Line], bool]:
    # A download goes on when its request's context is gone.
    heavy_work = partial(deps.run_heavy, subject=principal().subject)

    def wanted(line: Line) -> bool:
        if stream not in (None, line.stream):
            return False
        return matcher is None or pages.matches(matcher, line, heavy_work)

    return wanted


def _end_connection_on_error(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The ``texts`` in short pieces, since the server makes a copy of each.

    An error in between ends the connection, so that nobody takes the part that was sent for the whole.
    """
    try:
        for text in texts:
            for start in range(0, len(text), WRITE_BYTES):
                yield text[start : start + WRITE_BYTES]
    except ChronoverseError as error:
        log.warning("a download is cut off: %s", error)
        raise ConnectionResetError(errno.ECONNRESET, "a download is cut off") from error


def _read_lines(deps: Dependencies, job: Job, wanted: Callable[[Line], bool], until: float) -> Iterator[list[Line]]:
    """The lines up to ``last`` that are ``wanted``, in batches, each of which its taker clears.

    While a client takes its time nothing is held of a batch but the bytes to be sent.

    Raises StoreError when the store fails or the log is deleted, also when there is another of its name by then, and
    :class:`Unauthorized` at the monotonic time ``until``.
    """
    time_slice = deps.time_slice()
    for batch in pages.batches(deps, job, 0):
        if deps.monotonic() >= until:
            raise Unauthorized("the token has expired")
        found = []
        for line in batch.lines:
            time_slice.check()
            if line.sequence_num <= job.last and wanted(line):
                found.append(line)
        over = batch.place >= job.last
        if over or batch.last:
            _check_same_log(deps, job)
        batch.lines.clear()
        yield found
        if over:
            return


def _check_same_log(deps: Dependencies, job: Job) -> None:
    """Raises :class:`StoreUnavailable` when the job's log is not the one that it was: then asking again may help."""
    now = deps.store.get_job(job.ref)
    made = {each.created_at for each in (job, now) if each is not None and each.created_at}
    if now is not None and (now.last < job.last or len(made) > 1):
        raise StoreUnavailable("the log is another one by now")


def _encode_text(batches: Iterable[list[Line]]) -> Iterator[bytes]:
    """Message by message. The pieces of a long line come joined, unless a line of the other stream is between them."""
    unfinished = None
    for lines in batches:
        parts = []
        for line in lines:
            if unfinished and unfinished != line.stream:
                parts.append("\n")
            parts.append(line.message if line.partial else f"{line.message}\n")
            unfinished = line.stream if line.partial else None
        lines.clear()
        text = "".join(parts).encode()
        parts.clear()
        yield text
    if unfinished:
        yield b"\n"


def _encode_json_lines(batches: Iterable[list[Line]]) -> Iterator[bytes]:
    for lines in batches:
        text = b"".join(orjson.dumps(line.to_json()) + b"\n" for line in lines)
        lines.clear()
        yield text


def _encode_json(batches: Iterable[list[Line]]) -> Iterator[bytes]:
    """One array, a line of text for each of the log's."""
    opening = b"[\n"
    for lines in batches:
        if lines:
            text = opening + b",\n".join(orjson.dumps(line.to_json()) for line in lines)
            lines.clear()
            yield text
            opening = b",\n"
    yield b"[]\n" if opening == b"[\n" else b"\n]\n"


def _gzip(texts: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip file, whose parts come as the texts do. Cut off, it has no end, and nobody takes it for whole."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=zlib.MAX_WBITS | 16)
    for text in texts:
        yield packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


_ENCODERS: Final[dict[str, Callable[[Iterable[list[Line]]], Iterator[bytes]]]] = {
    "txt": _encode_text,
    "json": _encode_json,
    "jsonl": _encode_json_lines,
}
