"""The store as a Cluster: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from chronoverse.joblog.model import JobRef
from chronoverse.settings.redis_url import Address, RedisUrl
from chronoverse.store.driver import NO_ANSWER, AskingClient, new_client, new_connection
from chronoverse.store.topology import CHECK, PoolKind, Result, Topology, Work

SLOTS: Final = 16_384
MAP_SECONDS: Final = 1.0


def slot_of(workflow_id: str) -> int:
    slot: int = key_slot(workflow_id.encode())
    return slot


class ClusterTopology(Topology):
    """The masters of the Cluster at the hosts of ``url``. ``clock`` is monotonic, in seconds."""

    is_single = False

    def __init__(self, url: RedisUrl, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        super().__init__(url.server_url(url.hosts[0]), **options)
        self._nodes = url
        self._clock = clock
        self._owners: list[Address | None] = [None] * SLOTS
        self._newest: list[Address] = []
        self._asked_at = float("-inf")
        self._is_stale = True
        self._map_failure = ""
        self._failed_at: dict[Address, float] = {}
        #: When each node can be sent health checks again.
        self._silent_until: dict[Address, float] = {}
        self._map_lock = threading.Lock()

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        server = self._owner(workflow_id)
        client = self._node(server, pool)
        # A move takes one redirect, and a second one if the next move has begun. Five bound a redirect loop.
        for _ in range(5):
            if pool is PoolKind.HEALTH and self._clock() < self._silent_until.get(server, float("-inf")):
                raise redis.ConnectionError("the node did not answer recently")
            try:
                return work(client)
            except MovedError as error:
                server = self._apply_moved(error)
                client = self._node(server, pool)
            except AskError as error:
                if pool is PoolKind.WAITS:
                    raise  # A write and its WAIT must share a connection, which an AskingClient does not provide.
                server = error.node_addr
                client = AskingClient(self._node(server, pool))
            except NO_ANSWER:
                self._mark_failed(server)
                if pool is PoolKind.HEALTH and not self.is_single:
                    self._silent_until[server] = self._clock() + 10.0
                raise
        raise redis.ConnectionError("redirect loop between the servers")

    def report_error(self, workflow_id: str, error: redis.RedisError) -> None:
        if isinstance(error, MovedError):
            self._apply_moved(error)
        elif isinstance(error, NO_ANSWER):
            self._mark_failed(self._owners[slot_of(workflow_id)])

    def server_of(self, workflow_id: str) -> Address:
        # Before the map is known, any node works: it redirects to the right one.
        return self._owners[slot_of(workflow_id)] or self._nodes.hosts[0]

    def new_connection_to(self, server: Any) -> redis.Connection:
        return new_connection(self._nodes.server_url(server), **self._options)

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        groups: dict[Address, list[JobRef]] = {}
        for job in jobs:
            groups.setdefault(self._owner(job.workflow_id), []).append(job)
        return list(groups.values())

    def masters(self) -> Sequence[redis.Redis]:
        self.refresh()
        return [self._node(each, PoolKind.COMMANDS) for each in self._known_masters()]

    def ping(self) -> None:
        """Succeeds if any master answers: a single failed master makes only some jobs unavailable."""
        self.refresh()
        failure: redis.RedisError = redis.ConnectionError("the Cluster has no masters")
        for master in self._failed_last(self._known_masters()):
            try:
                self._node(master, PoolKind.HEALTH).execute_command(*CHECK)
            except redis.RedisError as error:
                self._mark_failed(master)
                failure = error
            else:
                return
        raise failure

    def _node(self, server: Address, pool: PoolKind) -> redis.Redis:
        return self._client(self._nodes.server_url(server), pool)

    def _owner(self, workflow_id: str) -> Address:
        self.refresh()
        owner = self._owners[slot_of(workflow_id)]
        if owner is None:
            self._is_stale = True
            raise redis.ConnectionError(f"no node of the Cluster knows which node has slot {slot_of(workflow_id)}")
        return owner

    def _apply_moved(self, error: Any) -> Address:
        owner: Address = error.node_addr
        self._owners[error.slot_id] = owner
        self.version += 1
        self._newest = [owner]
        self._is_stale = True
        return owner

    def _mark_failed(self, server: Address | None) -> None:
        self._is_stale = True
        if server is not None:
            self._failed_at[server] = self._clock()

    def _known_masters(self) -> list[Address]:
        # In random order, so that processes do not all ask the same master first.
        masters = list({owner for owner in self._owners if owner is not None})
        random.shuffle(masters)
        return masters

    def _failed_last(self, nodes: Iterable[Address]) -> list[Address]:
        # Failed nodes come last: each failed command makes the map stale, and all callers wait for the new map.
        return sorted(dict.fromkeys(nodes), key=lambda node: self._failed_at.get(node, float("-inf")))

    def refresh(self) -> None:
        """Fetches the slot map if it is stale. If no node answers, keeps the old map."""
        if not self._is_stale:
            return
        with self._map_lock:
            # Bounds the requests to one per 0.2 s, however many errors occur.
            if not self._is_stale or self._clock() - self._asked_at < 0.2:
                return
            self._asked_at = self._clock()
            self._ask_nodes()

    def _ask_nodes(self) -> None:
        for address in self._nodes_to_ask()[:5]:
            try:
                ranges = self._ask_map(address)
            except redis.RedisError as error:
                self._map_failure = str(error)
                self._mark_failed(address)
                continue
            self._apply_map(ranges, address)
            self._is_stale = False
            return

    def _nodes_to_ask(self) -> Sequence[Address]:
        return self._failed_last([*self._newest, *self._known_masters(), *self._nodes.hosts])

    def _ask_map(self, address: Address) -> list[Any]:
        url, seconds = self._nodes.server_url(address), MAP_SECONDS
        with contextlib.closing(new_client(url, retries=0, timeout=seconds, socket_connect_timeout=seconds)) as client:
            ranges: list[Any] = client.execute_command("CLUSTER", "SLOTS")
            return ranges

    def _apply_map(self, ranges: list[Any], asked: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        for first, last, owner, *_ in ranges:
            # A node that does not know its own name reports an empty one.
            host = (owner[0] or b"").decode() or asked[0]
            owners[first : last + 1] = [(host, owner[1])] * (last + 1 - first)
        if owners != self._owners:
            self._owners = owners
            self.version += 1
        # Close the connections to former masters.
        urls = {self._nodes.server_url(master) for master in self._known_masters()}
        for key in [key for key in list(self._clients) if key[0] not in urls]:
            self._clients.pop(key).connection_pool.disconnect(inuse_connections=False)
