"""A store under test, and a plain client's view of what it keeps."""

from collections.abc import Callable
from typing import Any, Final

import redis

from chronoverse.joblog.values import JobRef, Line
from chronoverse.store import Store
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOB: Final = JobRef("wf_1", "job_1")
#: What every store here takes for the present, and how the wire spells it.
NOW_SECONDS: Final = 1_772_532_005.123
NOW: Final = "2026-03-03T10:00:05.123Z"
#: Longer than any test.
LEASE_MS: Final = 31_000
RETENTION_MS: Final = 1_234_000
#: Milliseconds by which a TTL may have run down since it was set.
RUN_DOWN_MS: Final = 15_000


def make_lines(first: int, count: int, text: str = "line") -> list[Line]:
    """Lines ``first``, ``first`` + 1, …, every third of them on stderr."""
    numbers = range(first, first + count)
    return [Line(number, NOW, f"{text} {number}", "stdout" if number % 3 else "stderr") for number in numbers]


class Bench:
    """Stores on one server, and that server asked as any client would. Every store is closed at the end."""

    def __init__(self, server: RedisServer, prefix: str, protocol: int = 3) -> None:
        self.server = server
        self.prefix = prefix
        self.url = f"{server.url}?protocol={protocol}"
        self._client = redis.Redis.from_url(server.url, protocol=2)
        self._client.response_callbacks.clear()
        self._stores: list[Store] = []
        self.store = self.another()

    def another(self, options: str = "", *, lease_seconds: float = LEASE_MS / 1000) -> Store:
        """One more store on the same keys; ``options`` go into its URL."""
        store = Store(
            self.url + options,
            prefix=self.prefix,
            lease_seconds=lease_seconds,
            retention_seconds=RETENTION_MS / 1000,
            clock=lambda: NOW_SECONDS,
        )
        self._stores.append(store)
        return store

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self._client.close()

    def ask(self, *command: Any) -> Any:
        """One plain command; its reply as RESP2 brings it, nothing decoded."""
        return self._client.execute_command(*command)

    def key(self, kind: str, job: JobRef = JOB) -> str:
        """A key as the wire contract spells it."""
        tail = kind if kind in ("jobs", "settings") else f"{job.job_id}:{kind}"
        return f"{self.prefix}:{{{job.workflow_id}}}:{tail}"

    def xadd(self, entry_id: str, *fields: Any, job: JobRef = JOB) -> None:
        """What a foreign runner does."""
        self.ask("XADD", self.key("log", job), entry_id, *fields)

    def log(self, job: JobRef = JOB) -> list[tuple[str, dict[str, str]]]:
        """The stream's entries."""
        entries = self.ask("XRANGE", self.key("log", job), "-", "+")
        return [(entry_id.decode(), _pairs(fields)) for entry_id, fields in entries]

    def ids(self, job: JobRef = JOB) -> list[str]:
        """The stream's ids."""
        return [entry_id for entry_id, _ in self.log(job)]

    def hash(self, job: JobRef = JOB) -> dict[str, str]:
        """The job's hash."""
        return _pairs(self.ask("HGETALL", self.key("job", job)))

    def ttl(self, kind: str, job: JobRef = JOB) -> int:
        """Milliseconds; -1 when it never expires, -2 when there is no such key."""
        milliseconds: int = self.ask("PTTL", self.key(kind, job))
        return milliseconds

    def keys(self) -> set[str]:
        """All keys under the prefix."""
        return {key.decode() for key in self.ask("KEYS", f"{self.prefix}:*")}

    def snapshot(self) -> dict[str, Any]:
        """All that is stored, but for the time it has left: keys without their prefix, hashes as dicts."""
        return {key.removeprefix(f"{self.prefix}:"): self._content(key) for key in sorted(self.keys())}

    def _content(self, key: str) -> Any:
        kind = self.ask("TYPE", key)
        reply = self.ask(*_READING[kind](key))
        return _pairs(reply) if kind == b"hash" else reply

    def end_seen(self, seconds_ago: float, job: JobRef = JOB) -> None:
        """Has the store have seen the job's end so long ago, by its own clock."""
        seconds, microseconds = map(int, self.ask("TIME"))
        self.ask(
            "HSET", self.key("job", job), "end_seen_ms", round((seconds - seconds_ago) * 1000 + microseconds / 1000)
        )

    def lose_lease(self) -> None:
        """What time does to a runner that does not renew; the server being old enough to be judged by."""
        wait_until(lambda: b"uptime_in_seconds:0\r" not in self.ask("INFO", "server"), 5, "the server is a second old")
        self.ask("DEL", self.key("lease"))


_READING: Final[dict[bytes, Callable[[str], tuple[Any, ...]]]] = {
    b"stream": lambda key: ("XRANGE", key, "-", "+"),
    b"hash": lambda key: ("HGETALL", key),
    b"string": lambda key: ("GET", key),
    b"zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    b"list": lambda key: ("LRANGE", key, 0, -1),
}


def _pairs(flat: list[bytes]) -> dict[str, str]:
    text = [value.decode() for value in flat]
    return dict(zip(text[::2], text[1::2], strict=True))
