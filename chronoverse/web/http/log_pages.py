"""Pages of logs for requests. A page of all lines is read here, and one with a filter by the scan server.

A worker reads at most a thousand lines for a page. With a filter it may have to look at many more, which takes a
processor for long. See :mod:`chronoverse.history.pages` and :mod:`chronoverse.history.scans`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import gevent.socket
from flask import request

from chronoverse.history.pages import Page, PageBudget, first_page, read_all_lines
from chronoverse.history.scans.client import PendingScan
from chronoverse.history.scans.scan import BaseScan, LineScan
from chronoverse.history.tiered_log import BatchReader, read_batches
from chronoverse.joblog.entries import Batch, RawEntry
from chronoverse.joblog.model import Job, JobRef
from chronoverse.web.guards.connection import HangupWatch
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.guards.turns import WAIT_SECONDS
from chronoverse.web.http.dependencies import Dependencies, principal

_Part = TypeVar("_Part")


def log_page(deps: Dependencies, job: Job, position: int, limit: int, *, descending: bool) -> Page:
    """Up to ``limit`` lines strictly after ``position`` in the order asked for.

    Raises as the store, the archive and :meth:`Turns.page` do.
    """
    with deps.turns.page(job.ref, principal().subject):
        read, budget = partial(_reader(deps), limit=limit), PageBudget(clock=deps.monotonic)
        pages = _with_rounds(read_all_lines(read, deps.archive, job, position, descending=descending))
        return first_page(pages, job, position, limit, budget, descending=descending)


def read_log(deps: Dependencies, job: Job, position: int, **options: Any) -> Iterator[Batch]:
    """The log strictly after ``position``, with a round of the event loop between two batches.

    ``options`` and errors are those of :func:`~chronoverse.history.tiered_log.read_batches`, and :class:`AtCapacity`.
    """
    return _with_rounds(_reader(deps)(job, position, **options))


def _reader(deps: Dependencies) -> BatchReader:
    store = _LockedStore(deps, principal().subject)
    return partial(read_batches, store, deps.archive, max_line_bytes=deps.settings.max_line_bytes)


def _with_rounds(parts: Iterable[_Part]) -> Iterator[_Part]:
    for part in parts:
        yield part
        yield_to_loop()


@contextlib.contextmanager
def pending_scan(deps: Dependencies, kind: type[BaseScan], ref: JobRef, **fields: Any) -> Iterator[PendingScan]:
    """Asks the scan server for a scan of this ``kind`` with these ``fields``, in the turn for pages of ``ref``.

    When the client of the request closes its side, the scan server is notified, and ends the answer soon. Raises as
    :meth:`Turns.page` and :meth:`ScanClient.ask` do.
    """
    sock, subject = request.environ.get("gunicorn.socket"), principal().subject
    with deps.turns.page(ref, subject):
        scan = kind(**ref._asdict(), asked_at=deps.monotonic(), patience=WAIT_SECONDS, **fields)
        with deps.scans.ask(scan, subject) as pending, contextlib.ExitStack() as undo:
            if isinstance(sock, gevent.socket.socket):
                undo.callback(HangupWatch(sock, lambda _: pending.shorten()).close)
            yield pending


def scan_page(deps: Dependencies, ref: JobRef, limit: int, **filters: Any) -> Page:
    """The page of up to ``limit`` lines that the scan server finds. ``filters`` are fields of :class:`LineScan`.

    Raises as :func:`pending_scan` and :class:`PendingScan` do.
    """
    with pending_scan(deps, LineScan, ref, limit=limit, **filters) as pending:
        return pending.page()


class _LockedStore:
    """The store for :class:`TieredLog`. Each read of lines takes a turn of ``subject``.

    Reads of the archive take no lock. So a slow archive delays no other request.
    """

    def __init__(self, deps: Dependencies, subject: str) -> None:
        self._deps = deps
        self._subject = subject

    def get_job(self, job: JobRef) -> Job | None:
        return self._deps.store.get_job(job)

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        with self._deps.turns.read(job, self._subject):
            return self._deps.store.page(job, after=after, before=before, count=count)
