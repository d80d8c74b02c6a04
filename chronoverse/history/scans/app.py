"""The scan server's WSGI application. A process of the server calls it for one scan at a time."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import AtCapacity, ChronoverseError, JobNotFound, ScansUnavailable
from chronoverse.history.page_budget import PageBudget
from chronoverse.history.pages import (
    LineEncoder,
    Page,
    ReadBatch,
    Search,
    encode_line,
    read_batches,
    read_page,
)
from chronoverse.history.scans.matches import MatchEncoder
from chronoverse.history.scans.scan import HAS_MORE, POSITION, Form, Scan, error_to_json
from chronoverse.history.tiered_log import MissingArchive, StoredLog
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.time_range import TimeRange
from chronoverse.joblog.values import Line

log: Final = logging.getLogger(__name__)


class ScanApp:
    """Answers a :class:`Scan` with a :class:`Page`: its lines in the body, one on each line, and the rest in headers.

    ``max_line_bytes`` is how long a runner's lines may be. ``clock`` is monotonic, in seconds. It must be the clock of
    the workers.
    """

    def __init__(
        self,
        store: StoredLog,
        archive: ArchiveReader | MissingArchive,
        max_line_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._archive = archive
        self._max_line_bytes = max_line_bytes
        self._clock = clock

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        """The answer to one scan: 200 with a page, or 500 with one of our errors."""
        scan = Scan.from_json(environ["wsgi.input"].read())
        sock: socket.socket = environ["gunicorn.socket"]
        try:
            page = self.read(scan, lambda: _has_closed(sock))
            headers = {POSITION: str(page.position), HAS_MORE: str(int(page.has_more))}
            status, body = "200 OK", b"\n".join(page.lines)
        except MemoryError:
            log.error("a scan of %s takes more memory than it may", scan.ref)
            status, headers, body = "500 Error", {}, error_to_json(ScansUnavailable("the scan takes too much memory"))
        except ChronoverseError as error:
            status, headers, body = "500 Error", {}, error_to_json(error)
        content = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        start_response(status, [*headers.items(), *content.items()])
        return [body]

    def read(self, scan: Scan, client_is_gone: Callable[[], bool] = lambda: False) -> Page:
        """The page that ``scan`` asks for. It ends soon after ``client_is_gone`` returns true.

        Raises as the store and the archive do. Raises :class:`AtCapacity`, :class:`JobNotFound` and
        :class:`SearchTooExpensive`.
        """
        waited = self._clock() - scan.asked_at
        if waited > scan.patience:
            raise AtCapacity(f"too many searches at a time: this one did not get its turn within {scan.patience:g} s")
        job = self._store.get_job(scan.ref)
        if job is None:
            raise JobNotFound("no such job")
        time_range = TimeRange(scan.since, scan.until)
        matcher = None if scan.q is None else Matcher(scan.q, regex=scan.regex)

        def passes(line: Line) -> bool:
            return scan.stream in (None, line.stream) and time_range.has(line.timestamp)

        def batches(position: int, limit: int | None, descending: bool, search: Search | None) -> Iterator[ReadBatch]:
            return read_batches(
                self._store,
                self._archive,
                job,
                position,
                max_line_bytes=self._max_line_bytes,
                descending=descending,
                limit=limit,
                search=search,
            )

        def read_context(position: int, count: int, descending: bool) -> Iterator[ReadBatch]:
            return batches(position, count, descending, None)

        encode: LineEncoder
        if scan.form == Form.MATCH and matcher:
            context = scan.before, scan.after
            encode = MatchEncoder(read_context, matcher, context, scan.stream, descending=scan.descending)
        else:
            encode = _ENCODERS[scan.form]
        return read_page(
            batches(scan.position, None, scan.descending, Search(matcher, time_range) if matcher else None),
            job,
            scan.position,
            scan.limit,
            PageBudget(
                page_bytes=scan.page_bytes, seconds=scan.seconds, client_is_gone=client_is_gone, clock=self._clock
            ),
            descending=scan.descending,
            predicate=passes,
            matcher=matcher,
            encode=encode,
        )


def _encode_whole(line: Line, budget: PageBudget) -> dict[int, bytes] | None:
    json = orjson.dumps(line.to_json())
    return {line.sequence_num: json} if budget.take(json) else None


def _encode_number(line: Line, budget: PageBudget) -> dict[int, bytes]:
    return {line.sequence_num: b"%d" % line.sequence_num}


_ENCODERS: Final[dict[str, LineEncoder]] = {
    Form.LINE: encode_line,
    Form.WHOLE: _encode_whole,
    Form.NUMBER: _encode_number,
}


def _has_closed(sock: socket.socket) -> bool:
    """Whether the worker has closed its side of the connection: its client has left, or the worker has died."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
