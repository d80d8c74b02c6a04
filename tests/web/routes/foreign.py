"""A foreign runner: independent of this project, and only uses XADD."""

from collections.abc import Iterable, Sequence
from typing import Final

import redis
from redis.connection import parse_url

#: The default timestamp of lines.
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"


class Foreign:
    """Writes a job's log to the store at ``url`` with plain Redis commands.

    The contract allows this in any language.
    """

    def __init__(self, url: str, workflow_id: str, job_id: str) -> None:
        self.workflow_id = workflow_id
        self.job_id = job_id
        self.key = f"chronoverse:{{{workflow_id}}}:{job_id}:log"
        self.last = 0
        self.url = url

    @property
    def path(self) -> str:
        return f"/workflows/{self.workflow_id}/jobs/{self.job_id}"

    def add(self, entry_id: str, *fields: str | bytes) -> None:
        """Adds an entry exactly as given."""
        ask_all(self.url, [("XADD", self.key, entry_id, *fields)])

    def line(self, message: str | bytes, stream: str = "stdout", *, timestamp: str = TIMESTAMP) -> int:
        """Adds the next line and returns its number."""
        self.last += 1
        self.add(f"{self.last}-0", "timestamp", timestamp, "message", message, "stream", stream)
        return self.last

    def trim(self, count: int) -> None:
        """Removes the first lines from the store."""
        ask_all(self.url, [("XTRIM", self.key, "MINID", f"{count + 1}-0")])

    def sibling(self, job_id: str) -> "Foreign":
        """Another job of the same workflow."""
        return Foreign(self.url, self.workflow_id, job_id)

    def lines(self, messages: Iterable[str | bytes], streams: Sequence[str] = ("stdout",)) -> "Foreign":
        """Adds many lines in few round trips, alternating between ``streams``."""
        commands = []
        for message in messages:
            stream = streams[self.last % len(streams)]
            self.last += 1
            fields = ("timestamp", TIMESTAMP, "message", message, "stream", stream)
            commands.append(("XADD", self.key, f"{self.last}-0", *fields))
        ask_all(self.url, commands)
        return self

    def end(self, status: str = "COMPLETED", exit_code: int = 0, *more: str) -> "Foreign":
        self.add(f"{self.last + 1}-0", "event", "end", "status", status, "exit_code", str(exit_code), *more)
        return self


def ask_all(url: str, commands: Iterable[Sequence[str | bytes]]) -> None:
    """Pipelines ``commands`` on one connection. With redis-py a single one would take twice the CPU time."""
    options = {**parse_url(url), "protocol": 2, "driver_info": None}
    connection: redis.Connection = options.pop("connection_class", redis.Connection)(**options)
    packed = list(commands)
    try:
        connection.send_packed_command(connection.pack_commands(packed))
        for _ in packed:
            connection.read_response()
    finally:
        connection.disconnect()
