"""The store of all peers that have one: the service's embedded server, in memory, on a unix socket."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import redis

from bench.load import Target
from bench.peers.base import Peer
from bench.processes import running
from bench.produce import TIMESTAMP
from chronoverse.embedded.server import find_binary
from chronoverse.joblog.model import Attempt, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.commands import Commands
from chronoverse.store.keys import RUNNER_KEYS, KeyMap
from chronoverse.store.replies import accepted
from chronoverse.store.topology import Topology

WORKFLOW: Final = "bench"
#: Seconds of the lease: longer than any round, so that no job is declared LOST.
LEASE_SECONDS: Final = 3600.0
#: Appends that are sent in one round trip.
DEPTH: Final = 100
#: The client name of the benchmark's own connections.
PRODUCER: Final = "bench-producer"


def job_ref(job: int) -> JobRef:
    return JobRef(WORKFLOW, f"j{job}")


def start_store(directory: Path, stack: contextlib.ExitStack) -> tuple[str, int]:
    """Its URL and process id."""
    path = directory / "store.sock"
    url = f"unix://{path}"

    def answers() -> bool:
        with contextlib.suppress(redis.RedisError, OSError), redis.Redis.from_url(url) as client:
            return bool(client.ping())
        return False

    argv = [str(find_binary()), "--port", "0", "--unixsocket", str(path), "--dir", str(directory), "--save", ""]
    # By default the output buffer of a slow subscriber is limited. A peer must not lose lines because of that.
    argv += ["--maxclients", "15000", "--client-output-buffer-limit", "pubsub", "0", "0", "0"]
    return url, stack.enter_context(running(argv, answers, directory / "store.log"))


def store_version(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        info = client.info("server")
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"


def connections(url: str) -> int:
    """The number of clients of the store, without the producer and the caller."""
    with redis.Redis.from_url(url, client_name=PRODUCER) as client:
        return sum(each["name"] != PRODUCER for each in client.client_list())


class StoreSink:
    """Publishes as a runner does: batches of one job's lines, appended with their numbers compared."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._attempts: dict[int, Attempt] = {}

    def open(self, jobs: range) -> None:
        url = f"{self._url}?client_name={PRODUCER}"
        self._store = Store(url, lease_seconds=LEASE_SECONDS)
        self._commands = Commands(Topology(url), KeyMap("chronoverse"))
        self._attempts = {job: self._store.open(job_ref(job), "bench") for job in jobs}

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        calls = []
        for job, first, texts in batch:
            attempt = self._attempts[job]
            keys = [self._commands.keys.of(attempt.job, kind) for kind in RUNNER_KEYS]
            args = (attempt.token, attempt.attempt, round(1000 * LEASE_SECONDS), first, TIMESTAMP, "stdout", "")
            calls.append((WORKFLOW, keys, (*args, len(texts), *texts)))
        for start in range(0, len(calls), DEPTH):
            for answer in self._commands.scripts("append", calls[start : start + DEPTH]):
                accepted(answer)

    def finish(self, jobs: range, last: int) -> None:
        for job in jobs:
            self._store.finish(self._attempts[job], Status.COMPLETED, 0, 0, last + 1)


class StorePeer(Peer):
    """A peer that reads this store. Its paths are the keys of logs."""

    url: str
    port: int

    def target(self, job: int) -> Target:
        ref = job_ref(job)
        return Target("127.0.0.1", self.port, f"/chronoverse:{{{ref.workflow_id}}}:{ref.job_id}:log")

    def sink(self) -> StoreSink:
        return StoreSink(self.url)

    def store_connections(self) -> int:
        return connections(self.url)
