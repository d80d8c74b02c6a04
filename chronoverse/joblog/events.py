"""The events of streams: names and frames. Pure. The OpenAPI document and our client use these names."""

from enum import StrEnum
from typing import Any, Final

import orjson

from chronoverse.joblog import sse


class EventName(StrEnum):
    """An event's name. ``job``, ``gap`` and ``redact`` are extensions of the published API.

    ``reset`` occurs only in a workflow's stream: changes are missing, and all jobs follow.
    """

    CONNECTED = "connected"
    JOB = "job"
    LOG = "log"
    GAP = "gap"
    REDACT = "redact"
    END = "end"
    ERROR = "error"
    RESET = "reset"


TOKEN_EXPIRED: Final = "token expired"
LOG_IS_GONE: Final = "the log is gone from the store: it expired or was deleted"
RESET_FRAME: Final = b'event: reset\ndata: {"reason":"too-old"}\n\n'
LOG_FRAME: Final = b"event: log\ndata: %b\nid: %d\n\n"


def connected_frame(retry_ms: int) -> bytes:
    """The first frame. A disconnected client reconnects after ``retry_ms`` milliseconds."""
    return sse.frame(EventName.CONNECTED, b'{"status":"connected"}', retry_ms=retry_ms)


def job_frame(state: dict[str, Any]) -> bytes:
    return sse.frame(EventName.JOB, orjson.dumps(state))


def gap_frame(first: int, last: int, reason: str) -> bytes:
    """Lines ``first`` to ``last`` are unavailable."""
    return sse.frame(EventName.GAP, orjson.dumps({"from": first, "to": last, "reason": reason}))


def redact_frame(first: int, last: int) -> bytes:
    """Some or all of the lines ``first`` to ``last`` were redacted."""
    return sse.frame(EventName.REDACT, orjson.dumps({"from": first, "to": last}))


def end_frame(number: int) -> bytes:
    """The end of a log with terminal entry ``number``."""
    return sse.frame(EventName.END, b'{"status":"stream_ended"}', id=number)


def error_frame(text: str, number: int | None = None) -> bytes:
    """An error, as a line of plain text. If it has the ``number`` of a terminal entry, clients do not reconnect."""
    return sse.frame(EventName.ERROR, sse.fold(text), id=number)
