"""What a service without a shared tail does: one blocking XREAD per viewer, each line encoded for each of them."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import redis

from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Line

_POOL = redis.ConnectionPool.from_url(os.environ["NAIVE_REDIS_URL"], max_connections=20_000, socket_timeout=10)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Streams a job to one viewer, after its ``Last-Event-ID``."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return _frames(environ["PATH_INFO"].removeprefix("/"), int(environ.get("HTTP_LAST_EVENT_ID", 0)))


def _frames(key: str, cursor: int) -> Iterator[bytes]:
    client = redis.Redis(connection_pool=_POOL)
    yield b'event: connected\ndata: {"status":"connected"}\n\n'
    while True:
        reply: Any = client.xread({key: f"{cursor}-0"}, block=5_000, count=500)
        for _, entries in reply or ():
            raw = [(entry_id, [part for pair in fields.items() for part in pair]) for entry_id, fields in entries]
            for entry in read_entries(raw, cursor):
                if isinstance(entry, Line):
                    cursor = entry.sequence_num
                    yield entry.to_frame()
                elif isinstance(entry, End):
                    yield entry.to_frame(30)
                    return
