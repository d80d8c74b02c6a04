"""Opening a viewer's stream, and what is done when it ends, whoever answered the request."""

import logging
import random
import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache, partial
from typing import Any, Final

from gunicorn import SERVER

from chronoverse import metrics
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.viewer import Viewer, ViewerRequest
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.streaming.admission import StreamTicket, retry_ms

#: Share of the maximum age by which streams differ, so that they do not come back all at once.
AGE_JITTER: Final = 0.1

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"

#: In a request's environ: True when it has had its turn at arriving, or why it has not.
ACCEPT_SLOT: Final = "chronoverse.turn"

#: What no header field may hold. RFC 9110 section 5.5.
_BREAK: Final = re.compile(r"[\r\n\0]")

#: By the name that readers of the journal know, whoever answers.
log = logging.getLogger("chronoverse.web.routes.events")


def stream_headers(after: int) -> dict[str, str]:
    """A stream's own headers, but for its content type."""
    return {
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "Last-Event-ID": str(after),
    }


def viewer_request(
    deps: Dependencies, ref: JobRef, job: Job | None, after: int, stream: str | None, wait: int, expires_at: float
) -> ViewerRequest:
    """What a viewer asks for, with what the settings say of it. ``expires_at`` is the token's, in Unix time."""
    settings, now = deps.settings, deps.monotonic()
    age = settings.max_stream_seconds * random.uniform(1 - AGE_JITTER, 1)
    return ViewerRequest(
        ref,
        job,
        after=after,
        stream=stream,
        wait=wait,
        retry_ms=retry_ms(),
        heartbeat_seconds=settings.heartbeat_seconds,
        lease_seconds=settings.lease_seconds,
        expires_at=now + expires_at - deps.wall_clock(),
        closes_at=now + age,
    )


def open_viewer(deps: Dependencies, asking: StreamTicket, asked: ViewerRequest) -> tuple[Viewer, Callable[[], None]]:
    """A viewer in its place, and what to call once when it has ended. Raises as :meth:`AdmissionControl.check` does."""
    deps.admission.enter(asking)
    deps.tail.start()
    metrics.STREAMS_OPEN.inc()
    metrics.STREAMS_STARTED.inc()
    asking.viewer = viewer = Viewer(asked, deps.replay_cache, deps.tail, clock=deps.monotonic)
    _note("stream opened", asking, job=str(asked.ref), after=asked.after, client=asking.address, sub=asking.subject)
    if asking.span:
        asking.span.stream_opened(asking.request_id, asked.ref.workflow_id, asked.ref.job_id, asked.after)
    return viewer, partial(_ended, deps, asking, viewer)


def detach(
    deps: Dependencies,
    viewer: Viewer,
    ended: Callable[[], None],
    sock: Any,
    fields: Iterable[tuple[str, str]],
) -> object:
    """Has an outlet write all that ``viewer`` says, behind the response's head. Returns gunicorn's ``answer``."""
    try:
        begun, hello = response_head(fields, deps.wall_clock()), viewer.next()
        deps.stream_writers.take_over(viewer, sock, ended, begun + deps.stream_writers.chunk(hello) if hello else begun)
    except BaseException:
        ended()
        raise
    return deps.stream_writers.already_handled


def response_head(fields: Iterable[tuple[str, str]], now: float) -> bytes:
    """A stream's head with ``fields``, as gunicorn would write it at Unix time ``now``, for a tenth of the time.

    Raises ValueError when a field would break out of its line.
    """
    lines = [f"{name}: {value}" for name, value in fields]
    if any(_BREAK.search(line) for line in lines):
        raise ValueError("a header field holds what may not stand in a header")
    return "\r\n".join((_opening(int(now)), *lines, "\r\n")).encode("latin-1")


@lru_cache(1)
def _opening(now: int) -> str:
    # The connection is of no use to gunicorn afterwards, which must not promise to keep it.
    standing = f"Server: {SERVER}", f"Date: {formatdate(now, usegmt=True)}", "Connection: close"
    return "\r\n".join(("HTTP/1.1 200 OK", *standing, "Transfer-Encoding: chunked"))


def _ended(deps: Dependencies, asking: StreamTicket, viewer: Viewer) -> None:
    viewer.close()
    deps.admission.leave(asking)
    reason = viewer.reason or "left"
    metrics.STREAMS_OPEN.dec()
    metrics.STREAMS_ENDED.labels(reason).inc()
    _note("stream ended", asking, why=reason, at=viewer.cursor, seconds=round(deps.monotonic() - asking.since, 3))
    if asking.span:
        asking.span.stream_ended(reason, viewer.cursor)


def _note(what: str, asking: StreamTicket, **fields: object) -> None:
    log.info(what, extra={"fields": {"request_id": asking.request_id, **fields}})
