"""sse-starlette as its users would serve a log from Redis: one blocking XREAD per viewer."""

import os
from collections.abc import AsyncIterator
from typing import Any

import orjson
import redis.asyncio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

_POOL: Any = redis.asyncio.ConnectionPool.from_url(
    os.environ["STARLETTE_REDIS_URL"], max_connections=20_000, socket_timeout=10
)


async def _frames(key: str, cursor: int) -> AsyncIterator[ServerSentEvent]:
    client: Any = redis.asyncio.Redis(connection_pool=_POOL)
    while True:
        reply = await client.xread({key: f"{cursor}-0"}, block=5_000, count=500)
        for _, entries in reply or ():
            for entry_id, fields in entries:
                if b"event" in fields:
                    yield ServerSentEvent(data='{"status":"stream_ended"}', event="end")
                    return
                cursor = int(entry_id.partition(b"-")[0])
                line = {
                    "timestamp": fields[b"timestamp"].decode(),
                    "message": fields[b"message"].decode(),
                    "sequence_num": cursor,
                    "stream": fields[b"stream"].decode(),
                }
                yield ServerSentEvent(data=orjson.dumps(line).decode(), event="log", id=str(cursor))


async def events(request: Request) -> EventSourceResponse:
    """Streams a job to one viewer, after its ``Last-Event-ID``."""
    key, after = request.path_params["key"], request.headers.get("last-event-id", "0")
    return EventSourceResponse(_frames(key, int(after)))


app = Starlette(routes=[Route("/{key:path}", events)])
