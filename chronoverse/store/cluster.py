"""The store as a Cluster: each workflow's keys are in one slot, and each slot on one of the masters.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

import redis
from redis.crc import key_slot

from chronoverse.joblog.values import JobRef
from chronoverse.settings.redis_url import Address, RedisUrl
from chronoverse.store.driver import (
    COMMAND_TIMEOUT_SECONDS,
    Ask,
    AskingClient,
    Away,
    Client,
    Connection,
    DriverError,
    Moved,
    connect,
    connection,
)
from chronoverse.store.topology import PoolKind, Result, Work

SLOTS: Final = 16_384
#: Servers that one call may be sent on to. A move that has settled takes one, and one more during the next.
REDIRECTIONS: Final = 5
#: Seconds that a node may take to connect, or to say who has what.
MAP_SECONDS: Final = 1.0
#: Nodes asked for the map before that counts as failed.
MAP_NODES: Final = 5
#: Seconds between two questions for the map, however much goes wrong.
MAP_PAUSE_SECONDS: Final = 0.2


def slot_of(workflow_id: str) -> int:
    """Where a workflow's keys are: it is their hash tag."""
    slot: int = key_slot(workflow_id.encode())
    return slot


class ClusterTopology:
    """The nodes that those of ``url`` know of. ``clock`` is monotonic, in seconds."""

    one = False
    fixed = False

    def __init__(self, url: RedisUrl, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._owners: list[Address | None] = [None] * SLOTS
        self._clients: dict[tuple[Address, PoolKind], Client] = {}
        #: The last node that we were sent to, if any.
        self._newest: list[Address] = []
        #: The node that answered the last ping, if any.
        self._answered: list[Address] = []
        self._asked_at = -MAP_PAUSE_SECONDS
        self._stale = True
        #: When a node did not answer, the last time.
        self._silent_at: dict[Address, float] = {}
        self._mapping = threading.Lock()
        # A bad option is found out now, and not by the first viewer.
        self._client(url.hosts[0], PoolKind.COMMANDS)

    def run(self, workflow_id: str, work: Work[Result], use: PoolKind = PoolKind.COMMANDS) -> Result:
        server = self._owner(workflow_id)
        client = self._client(server, use)
        for _ in range(REDIRECTIONS):
            try:
                return work(client)
            except Moved as error:
                server = self._learn(error)
                client = self._client(server, use)
            except Ask as error:
                if use is PoolKind.WAITS:
                    raise  # these are two commands on one connection
                server = error.node_addr
                client = AskingClient(self._client(server, use))
            except Away:
                self._fell_silent(server)
                raise
        raise redis.ConnectionError("the servers send us from one to the other")

    def connection(
        self, workflow_id: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, asked: DriverError | None = None
    ) -> Connection:
        server = asked.node_addr if isinstance(asked, Ask) else self._owner(workflow_id)
        return connection(self._url.server_url(server), timeout=timeout)

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        self._renew()
        return (connection.host, connection.port) == self._owners[slot_of(workflow_id)]

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        if isinstance(error, Moved):
            self._learn(error)
        elif isinstance(error, Away):
            self._fell_silent(self._owners[slot_of(workflow_id)])

    def server(self, workflow_id: str) -> Hashable:
        return self._owners[slot_of(workflow_id)]

    def client_for(self, connection: Connection) -> Client:
        return self._client((connection.host, connection.port), PoolKind.TAIL)

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        found: dict[Address, list[JobRef]] = {}
        for job in jobs:
            found.setdefault(self._owner(job.workflow_id), []).append(job)
        return list(found.values())

    def masters(self) -> Sequence[Client]:
        self._renew()
        return [self._client(master, PoolKind.COMMANDS) for master in self._owned()]

    def ping(self) -> None:
        """One master that answers is enough: only the jobs of the others are away."""
        self._renew()
        failure: DriverError = redis.ConnectionError("the Cluster has no masters")
        masters = self._owned()
        # Who has answered the last time is asked first, so that only one question waits for a node that stands still.
        for master in self._silent_last([*(each for each in self._answered if each in masters), *masters]):
            try:
                self._client(master, PoolKind.HEALTH).execute_command("PING")
            except DriverError as error:
                self._fell_silent(master)
                failure = error
            else:
                self._answered = [master]
                return
        raise failure

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    # The map

    def _owner(self, workflow_id: str) -> Address:
        """Raises the driver's ConnectionError when nobody can say."""
        self._renew()
        owner = self._owners[slot_of(workflow_id)]
        if owner is None:
            self._stale = True
            raise redis.ConnectionError(f"no node of the Cluster says who has slot {slot_of(workflow_id)}")
        return owner

    def _learn(self, error: Any) -> Address:
        """From a MOVED. Where one slot went, others may have gone too: that node knows best, the rest hear of it."""
        owner: Address = error.node_addr
        self._owners[error.slot_id] = owner
        self._newest = [owner]
        self._stale = True
        return owner

    def _fell_silent(self, server: Address | None) -> None:
        """The node did not answer. Its slots may be another's by now."""
        self._stale = True
        if server is not None:
            self._silent_at[server] = self._clock()

    def _owned(self) -> list[Address]:
        """In no order, so that no node is asked by all."""
        masters = list({owner for owner in self._owners if owner is not None})
        random.shuffle(masters)
        return masters

    def _silent_last(self, nodes: Iterable[Address]) -> list[Address]:
        """The nodes in the order in which to ask them, each once: as they come, but for those that did not answer.

        While a node stands still, commands to it fail again and again, and each has the map asked for. Everybody waits
        for the answer, so that node must not be asked before the others.
        """
        return sorted(dict.fromkeys(nodes), key=lambda node: self._silent_at.get(node, float("-inf")))

    def _renew(self) -> None:
        """Asks for the map if something said that it is wrong; if nobody answers, the old one stands."""
        if not self._stale:
            return
        with self._mapping:
            if not self._stale or self._clock() - self._asked_at < MAP_PAUSE_SECONDS:
                return
            self._asked_at = self._clock()
            for address in self._silent_last([*self._newest, *self._owned(), *self._url.hosts])[:MAP_NODES]:
                server, seconds = self._url.server_url(address), MAP_SECONDS
                client = connect(server, retries=0, timeout=seconds, socket_connect_timeout=seconds)
                with contextlib.closing(client):
                    try:
                        ranges = client.execute_command("CLUSTER", "SLOTS")
                    except DriverError:
                        self._fell_silent(address)
                        continue
                self._read(ranges, address)
                self._stale = False
                return

    def _read(self, ranges: list[Any], asked: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        for first, last, owner, *_ in ranges:
            # A node that does not know its own name leaves the place empty.
            host = (owner[0] or b"").decode() or asked[0]
            owners[first : last + 1] = [(host, owner[1])] * (last + 1 - first)
        self._owners = owners
        self._forget(set(self._owned()))

    def _forget(self, masters: set[Address]) -> None:
        """Nodes that are masters no more: nodes come and go, and their addresses with them."""
        known = masters | set(self._url.hosts)
        # Of copies, since other threads add to both meanwhile.
        self._silent_at = {node: at for node, at in self._silent_at.copy().items() if node in known}
        for key in [key for key in list(self._clients) if key[0] not in masters]:
            self._clients.pop(key).connection_pool.disconnect(inuse_connections=False)

    def _client(self, server: Address, use: PoolKind) -> Client:
        found = self._clients.get((server, use))
        if found is None:
            url = self._url.server_url(server)
            found = self._clients[server, use] = connect(url, retries=use.retries, timeout=use.timeout)
        return found
