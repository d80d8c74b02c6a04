"""The store behind Sentinels. All keys are on one master, and the Sentinels know which server that is.

https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis

from chronoverse.settings.redis_url import Address, RedisUrl
from chronoverse.store.driver import new_client
from chronoverse.store.topology import PoolKind, Result, Topology, Work

#: Seconds between questions whether the master is still the same. One that was cut off from its Sentinels goes on
#: answering without an error, so this is how long we may go on reading there.
CHECK_MASTER_SECONDS: Final = 2.0
#: Seconds without a question after which the next command waits for the answer.
STALE_SECONDS: Final = 2 * CHECK_MASTER_SECONDS
#: Seconds that one Sentinel may take to connect, or to answer.
SENTINEL_SECONDS: Final = 1.0


class MasterConnection(redis.Connection):
    """A connection that asks for the master's address each time it opens, and refuses a server that is no master."""

    def __init__(self, *, find_master: Callable[[], Address], **options: Any) -> None:
        self._find_master = find_master
        super().__init__(redis_connect_func=_require_master, **options)  # type: ignore[no-untyped-call]

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Not connect(): redis-py 8.1 calls this method to open a closed connection when a command is sent.
        if not self.is_connected:
            self.host, self.port = self._find_master()
        super().connect_check_health(check_health, retry_socket_connect)


class SecureMasterConnection(MasterConnection, redis.SSLConnection):
    """The same with TLS."""


def _require_master(connection: redis.Connection) -> None:
    connection.on_connect()
    # For some time after a failover the Sentinels may name a server that is a replica now, or still is one.
    connection.send_command("ROLE", check_health=False)
    role = connection.read_response()[0]
    if role != b"master":
        raise redis.ConnectionError(f"{connection.host}:{connection.port} is not the master")


class SentinelTopology(Topology):
    """The master that the Sentinels of ``url`` name. ``clock`` is monotonic, in seconds."""

    is_fixed = False

    def __init__(self, url: RedisUrl, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = url.service
        self._sentinels = [
            new_client(
                url.sentinel_url(host), retries=1, timeout=SENTINEL_SECONDS, socket_connect_timeout=SENTINEL_SECONDS
            )
            for host in url.hosts
        ]
        self._clock = clock
        self._master: Address | None = None
        self._asked_at = clock()
        self._is_asking = threading.Semaphore()
        server = url.server_url(url.hosts[0])
        connection_class = SecureMasterConnection if server.startswith("rediss:") else MasterConnection
        super().__init__(server, connection_class=connection_class, find_master=self._find_master)

    def _find_master(self) -> Address:
        """The master's address. Raises the driver's ConnectionError."""
        began, failures = self._clock(), ["no time to ask"]
        for sentinel in tuple(self._sentinels):
            # Seconds after which no further Sentinel is asked.
            if self._clock() - began > 3.0:
                break
            try:
                found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except redis.RedisError as error:
                failures.append(str(error))
                continue
            if found:
                # The next question goes to this Sentinel first, since it answers.
                self._sentinels = sorted(self._sentinels, key=lambda each: each is not sentinel)
                before, self._master, self._asked_at = self._master, (found[0].decode(), int(found[1])), self._clock()
                if before not in (None, self._master):
                    self._replace_clients()
                return self._master
            failures.append(f"no master is known as {self._service}")
        raise redis.ConnectionError(f"no Sentinel names a master: {failures[-1]}")

    def _replace_clients(self) -> None:
        """Drops the clients. New connections ask for the master. Commands under way keep theirs."""
        self.version += 1
        before, self._clients = self._clients, {}
        for client in before.values():
            client.connection_pool.disconnect(inuse_connections=False)

    def refresh(self) -> None:
        """Asks the Sentinels, when that is due, whether the master is another one.

        The caller only waits for the answer after :data:`STALE_SECONDS` without a question.
        """
        since = self._clock() - self._asked_at
        if since < CHECK_MASTER_SECONDS or not self._is_asking.acquire(blocking=False):
            return
        self._asked_at = self._clock()
        if since >= STALE_SECONDS:
            self._ask_again()
        else:
            threading.Thread(target=self._ask_again, name="sentinel-watch", daemon=True).start()

    def _ask_again(self) -> None:
        # Without an answer the last one stays.
        with contextlib.suppress(redis.RedisError):
            self._find_master()
        self._is_asking.release()

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        self.refresh()
        try:
            return super().run(workflow_id, work, pool)
        except redis.ReadOnlyError:
            self._replace_clients()
            raise

    def report_error(self, workflow_id: str, error: redis.RedisError) -> None:
        if isinstance(error, redis.ReadOnlyError):
            self._replace_clients()

    def close(self) -> None:
        super().close()
        for sentinel in self._sentinels:
            sentinel.close()
