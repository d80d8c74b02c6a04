"""Stores under test, and a plain client that shows what they have written."""

import time
from collections.abc import Callable
from typing import Any, Final

import redis

from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from chronoverse.store import Store
from chronoverse.store.keys import WORKFLOW_KEYS
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOB: Final = JobRef("wf_1", "job_1")
#: The time in all of these stores: in Unix seconds, and in the store's format.
NOW_SECONDS: Final = 1_772_532_005.123
NOW: Final = "2026-03-03T10:00:05.123Z"
#: The stores' settings. The lease outlasts any test.
LEASE_MS: Final = 31_000
RETENTION_MS: Final = 1_234_000
#: Maximum milliseconds by which a TTL can already have decreased.
TTL_TOLERANCE_MS: Final = 15_000


def make_lines(first: int, count: int, text: str = "line") -> list[Line]:
    """Lines ``first``, ``first`` + 1, …, every third of them on stderr."""
    numbers = range(first, first + count)
    return [Line(number, NOW, f"{text} {number}", "stdout" if number % 3 else "stderr") for number in numbers]


def write_ended(
    store: Store,
    job: JobRef = JOB,
    count: int = 10,
    *,
    status: Status = Status.COMPLETED,
    exit_code: int | None = 0,
    dropped: int = 0,
    text: str = "line",
    labels: Labels = (),
) -> Attempt:
    """Writes a job with ``count`` lines that ends. Returns its attempt."""
    attempt = store.open(job, "token", labels=labels)
    if count:
        store.append(attempt, make_lines(1, count, text))
    store.finish(attempt, status, exit_code, dropped, count + 1)
    return attempt


def ticking() -> Callable[[], float]:
    """A clock that advances at least 2 ms per call, so that jobs are listed in the order in which they were created."""
    last = 0.0

    def clock() -> float:
        nonlocal last
        last = max(time.time(), last + 0.002)
        return last

    return clock


class Bench:
    """Stores on one server, and a plain client of it. :meth:`close` closes all of them."""

    def __init__(self, server: RedisServer, prefix: str, protocol: int = 3) -> None:
        self.server = server
        self.prefix = prefix
        self.url = f"{server.url}?protocol={protocol}"
        self._client = redis.Redis.from_url(server.url, protocol=2)
        self._client.response_callbacks.clear()
        self._stores: list[Store] = []
        self.store = self.new_store()

    def new_store(
        self,
        options: str = "",
        *,
        lease_seconds: float = LEASE_MS / 1000,
        clock: Callable[[], float] = lambda: NOW_SECONDS,
    ) -> Store:
        """Another store with the same keys. ``options`` is the query string of its URL."""
        store = Store(
            self.url + options,
            prefix=self.prefix,
            lease_seconds=lease_seconds,
            retention_seconds=RETENTION_MS / 1000,
            clock=clock,
        )
        self._stores.append(store)
        return store

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self._client.close()

    def ask(self, *command: Any) -> Any:
        """Runs one command. Returns the undecoded RESP2 reply."""
        return self._client.execute_command(*command)

    def key(self, kind: str, job: JobRef = JOB) -> str:
        """A key name, as specified in ``docs/redis.md``."""
        end = kind if kind in WORKFLOW_KEYS else f"{job.job_id}:{kind}"
        return f"{self.prefix}:{{{job.workflow_id}}}:{end}"

    def xadd(self, entry_id: str, *fields: Any, job: JobRef = JOB) -> None:
        """Adds an entry to the log, as a foreign runner does."""
        self.ask("XADD", self.key("log", job), entry_id, *fields)

    def log(self, job: JobRef = JOB) -> list[tuple[str, dict[str, str]]]:
        """The entries of the log's stream."""
        entries = self.ask("XRANGE", self.key("log", job), "-", "+")
        return [(entry_id.decode(), _pairs(fields)) for entry_id, fields in entries]

    def ids(self, job: JobRef = JOB) -> list[str]:
        """The entry ids of the log's stream."""
        return [entry_id for entry_id, _ in self.log(job)]

    def hash(self, job: JobRef = JOB) -> dict[str, str]:
        """The job's hash."""
        return _pairs(self.ask("HGETALL", self.key("job", job)))

    def ttl(self, kind: str, job: JobRef = JOB) -> int:
        """A key's TTL in milliseconds; -1 without one, -2 if the key does not exist."""
        milliseconds: int = self.ask("PTTL", self.key(kind, job))
        return milliseconds

    def keys(self) -> set[str]:
        """All keys under the prefix, except the mark that an archiver leaves in each store."""
        return {key.decode() for key in self.ask("KEYS", f"{self.prefix}:*")} - {f"{self.prefix}:mark"}

    def snapshot(self) -> dict[str, Any]:
        """All stored data, except TTLs. Keys have no prefix, and hashes are dicts."""
        return {key.removeprefix(f"{self.prefix}:"): self._content(key) for key in sorted(self.keys())}

    def _content(self, key: str) -> Any:
        kind = self.ask("TYPE", key)
        reply = self.ask(*_READING[kind](key))
        return _pairs(reply) if kind == b"hash" else reply

    def keys_with(self, text: bytes) -> list[str]:
        """Keys with ``text`` in the server's memory. Trimmed entries can remain there, and in snapshots."""
        self.ask("CONFIG", "SET", "rdbcompression", "no")
        return sorted(key for key in self.keys() if text in (self.ask("DUMP", key) or b""))

    def set_end_seen(self, seconds_ago: float, job: JobRef = JOB) -> None:
        """Sets the time when the job's end was first seen to ``seconds_ago`` by the server's clock."""
        seconds, microseconds = map(int, self.ask("TIME"))
        self.ask(
            "HSET", self.key("job", job), "end_seen_ms", round((seconds - seconds_ago) * 1000 + microseconds / 1000)
        )

    def expire_lease(self, job: JobRef = JOB) -> None:
        """Deletes the lease, as if it had expired. First waits until the server has been up for a second.

        A server that has been up for less than a lease declares no job LOST.
        """
        wait_until(lambda: b"uptime_in_seconds:0\r" not in self.ask("INFO", "server"), 5, "the server is a second old")
        self.ask("DEL", self.key("lease", job))


_READING: Final[dict[bytes, Callable[[str], tuple[Any, ...]]]] = {
    b"stream": lambda key: ("XRANGE", key, "-", "+"),
    b"hash": lambda key: ("HGETALL", key),
    b"string": lambda key: ("GET", key),
    b"set": lambda key: ("SMEMBERS", key),
    b"zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    b"list": lambda key: ("LRANGE", key, 0, -1),
}


def _pairs(flat: list[bytes]) -> dict[str, str]:
    text = [value.decode() for value in flat]
    return dict(zip(text[::2], text[1::2], strict=True))
