"""The requests of a runner that publishes through the service."""

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from tests.web.routes.foreign import TIMESTAMP, Foreign


class Runner:
    def __init__(self, client: httpx.Client, job: Foreign) -> None:
        self.token = secrets.token_hex(16)
        self.attempt = 1
        self._client = client
        self._path = job.path

    def open(self, **more: Any) -> httpx.Response:
        return self.post("attempts", {"token": self.token, **more})

    def append(self, first: int, *messages: str, **more: Any) -> httpx.Response:
        return self.post("logs", self.lines(first, *messages, **more))

    def lines(self, first: int, *messages: str, **more: Any) -> dict[str, Any]:
        lines = [{"timestamp": TIMESTAMP, "message": message, "stream": "stdout"} for message in messages]
        return {"token": self.token, "attempt": self.attempt, "first": first, "lines": lines, **more}

    def end(self, end_number: int, **more: Any) -> httpx.Response:
        body = {"token": self.token, "attempt": self.attempt, "status": "COMPLETED", "exit_code": 0, "dropped": 0}
        return self.post("end", {**body, "next": end_number, **more})

    def post(self, route: str, body: Any) -> httpx.Response:
        return self.post_bytes(route, orjson.dumps(body))

    def post_bytes(self, route: str, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
        named = {"Content-Type": "application/json", **{n.replace("_", "-"): value for n, value in headers.items()}}
        return self._client.post(f"{self._path}/{route}", content=content, headers=named)
