"""Opens event streams: headers, viewer, counting and logging."""

import logging
import random
import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache, partial
from typing import Any, Final

from gunicorn import SERVER

from chronoverse import metrics
from chronoverse.joblog.model import Job, JobRef
from chronoverse.live.viewer import Viewer, ViewerRequest
from chronoverse.web.guards.admission import StreamTicket, retry_ms
from chronoverse.web.http.dependencies import Dependencies, principal

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
#: Characters that no header field may have. RFC 9110 section 5.5.
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")

#: The events route's logger. Readers of the log know the route, and not this module.
log = logging.getLogger("chronoverse.web.routes.events")


def stream_headers(after: int) -> dict[str, str]:
    """The headers of an event stream that starts after line ``after``, without the content type."""
    return {
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "Last-Event-ID": str(after),
    }


def open_viewer(
    deps: Dependencies, ticket: StreamTicket, ref: JobRef, job: Job | None, **wanted: Any
) -> tuple[Viewer, Callable[[], None]]:
    """Admits and opens a viewer. Returns it, and a function to call once when its stream has ended.

    ``wanted`` are members of :class:`ViewerRequest`. The others come from the settings and the request's token. Raises
    as :meth:`AdmissionControl.check` does.
    """
    settings, now = deps.settings, deps.monotonic()
    members = {
        "retry_ms": retry_ms(),
        "heartbeat_seconds": settings.heartbeat_seconds,
        "lease_seconds": settings.lease_seconds,
        "expires_at": now + principal().expires_at - deps.wall_clock(),
        # The ages of streams differ by a tenth, so that clients do not connect again all at once.
        "closes_at": now + settings.max_stream_seconds * random.uniform(0.9, 1),
        "subject": ticket.subject,
        **wanted,
    }
    request = ViewerRequest(ref, job, **members)
    deps.admission.enter(ticket)
    deps.tail.start()
    metrics.STREAMS_OPEN.inc()
    metrics.STREAMS_STARTED.inc()
    ticket.viewer = viewer = Viewer(request, deps.replay_cache, deps.tail, clock=deps.monotonic)
    _log("stream opened", ticket, job=str(ref), after=request.after, client=ticket.address, sub=ticket.subject)
    if ticket.span:
        ticket.span.stream_opened(ticket.request_id, ref.workflow_id, ref.job_id, request.after)
    return viewer, partial(_close_viewer, deps, ticket, viewer)


def response_head(headers: Iterable[tuple[str, str]], now: float) -> bytes:
    """The head of a response with ``headers``, as gunicorn would write it at Unix time ``now``, in a tenth of the time.

    Raises ValueError when a header has a character that would end its line.
    """
    lines = [f"{name}: {value}" for name, value in headers]
    if any(_FORBIDDEN.search(line) for line in lines):
        raise ValueError("a header has a character that headers may not have")
    return "\r\n".join((_first_lines(int(now)), *lines, "\r\n")).encode("latin-1")


@lru_cache(1)
def _first_lines(now: int) -> str:
    """The lines that are the same for all streams that open in the same second."""
    return "\r\n".join(("HTTP/1.1 200 OK", *fixed_headers(now), "Transfer-Encoding: chunked"))


def fixed_headers(now: float) -> tuple[str, str, str]:
    """The header lines of every answer on a socket that was taken over, at Unix time ``now``."""
    # gunicorn cannot use the connection afterwards. So it must not be kept alive.
    return f"Server: {SERVER}", f"Date: {formatdate(now, usegmt=True)}", "Connection: close"


def _close_viewer(deps: Dependencies, ticket: StreamTicket, viewer: Viewer) -> None:
    viewer.close()
    deps.admission.leave(ticket)
    reason = viewer.reason or "left"
    metrics.STREAMS_OPEN.dec()
    metrics.STREAMS_ENDED.labels(reason).inc()
    _log("stream ended", ticket, why=reason, at=viewer.cursor, seconds=round(deps.monotonic() - ticket.since, 3))
    if ticket.span:
        ticket.span.stream_ended(reason, viewer.cursor)


def _log(event: str, ticket: StreamTicket, **fields: object) -> None:
    log.info(event, extra={"fields": {"request_id": ticket.request_id, **fields}})
