"""The store behind Sentinels: https://redis.io/docs/latest/develop/reference/sentinel-clients/"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis

from chronoverse.settings.redis_url import Address, RedisUrl
from chronoverse.store.cluster import MAP_SECONDS, SLOTS, ClusterTopology
from chronoverse.store.driver import new_client
from chronoverse.store.topology import CHECK, PoolKind, Result, Topology, Work

#: Seconds between checks for a new master. Needed, because an old master still answers while it is partitioned.
CHECK_MASTER_SECONDS: Final = 2.0


def require_master(connection: redis.Connection) -> None:
    """Called when a connection opens. Raises the driver's ConnectionError if the server is not a master."""
    connection.on_connect()
    # Shortly after a failover, Sentinels can name a server that has become a replica, or is not yet a master.
    connection.send_command("ROLE", check_health=False)
    role = connection.read_response()[0]
    if role != b"master":
        raise redis.ConnectionError(f"{connection.host}:{connection.port} is not the master")


class SentinelTopology(ClusterTopology):
    """Finds the master through the Sentinels of ``url``, and treats it as a Cluster with a single master."""

    is_single = True

    def __init__(self, url: RedisUrl, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(url, clock, redis_connect_func=require_master)

    group_by_node = Topology.group_by_node

    def refresh(self) -> None:
        since = self._clock() - self._asked_at
        if self._is_stale or since >= 2 * CHECK_MASTER_SECONDS:
            self._is_stale = True
            super().refresh()
            # If no Sentinel answers, the old master stays until the next error.
            self._is_stale = self._owners[0] is None
        elif since >= CHECK_MASTER_SECONDS:
            self._asked_at = self._clock()
            # In a thread, so that a silent Sentinel delays no command.
            threading.Thread(target=self._ask_nodes, name="sentinel-watch", daemon=True).start()

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        try:
            return super().run(workflow_id, work, pool)
        except redis.ReadOnlyError as error:
            self.report_error(workflow_id, error)
            raise

    def report_error(self, workflow_id: str, error: redis.RedisError) -> None:
        self._is_stale = self._is_stale or isinstance(error, redis.ReadOnlyError)
        super().report_error(workflow_id, error)

    def server_of(self, workflow_id: str) -> Address:
        # This represents the current master. The live reader reconnects when the version changes.
        return self._nodes.hosts[0]

    def new_connection_to(self, server: Any) -> redis.Connection:
        return super().new_connection_to(self._owner(""))

    def masters(self) -> Sequence[redis.Redis]:
        return [self._node(self._owner(""), PoolKind.COMMANDS)]

    def ping(self) -> None:
        self.run("", lambda client: client.execute_command(*CHECK), PoolKind.HEALTH)

    def _owner(self, workflow_id: str) -> Address:
        self.refresh()
        owner = self._owners[0]
        if owner is None:
            raise redis.ConnectionError(f"no Sentinel names a master: {self._map_failure}")
        return owner

    def _nodes_to_ask(self) -> Sequence[Address]:
        return self._failed_last(self._nodes.hosts)

    def _ask_map(self, address: Address) -> list[Any]:
        url, seconds = self._nodes.sentinel_url(address), MAP_SECONDS
        with contextlib.closing(new_client(url, retries=0, timeout=seconds, socket_connect_timeout=seconds)) as client:
            found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._nodes.service)
        if not found:
            raise redis.ConnectionError(f"no master is known as {self._nodes.service}")
        return [(0, SLOTS - 1, (found[0], int(found[1])))]
