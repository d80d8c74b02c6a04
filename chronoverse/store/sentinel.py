"""The store behind Sentinels: one server at a time, and they know which. https://redis.io/docs/latest/develop/reference/sentinel-clients/"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis

from chronoverse.settings.redis_url import Address, RedisUrl
from chronoverse.store.driver import Client, Connection, DriverError, NotMaster, connect
from chronoverse.store.topology import PoolKind, Result, SingleServer, Work

#: Seconds between questions whether the master is still the same. A master that was cut off from its Sentinels goes
#: on answering, and nobody would notice: this is how long we may go on reading there.
WATCH_SECONDS: Final = 2.0
#: Seconds without a question after which the next command waits for the answer.
LATE_SECONDS: Final = 2 * WATCH_SECONDS
#: Seconds that one Sentinel may take to connect, or to answer.
SENTINEL_SECONDS: Final = 1.0
#: Seconds after which no further Sentinel is asked.
ASKING_SECONDS: Final = 3.0


class MasterConnection(redis.Connection):
    """A connection that asks where to go each time it opens, and stays only with a master."""

    def __init__(self, *, leader: Callable[[], Address], **options: Any) -> None:
        self._leader = leader
        super().__init__(redis_connect_func=_greet, **options)  # type: ignore[no-untyped-call]

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Not connect(): redis-py 8.1 opens a closed connection by this when a command is sent.
        if not self.is_connected:
            self.host, self.port = self._leader()
        super().connect_check_health(check_health, retry_socket_connect)


class SecureMasterConnection(MasterConnection, redis.SSLConnection):
    """The same with TLS."""


def _greet(opened: Connection) -> None:
    opened.on_connect()
    # For some time the Sentinels' answer may lead to a server that has been, or has yet to become, a replica.
    opened.send_command("ROLE", check_health=False)
    role = opened.read_response()[0]
    if role != b"master":
        raise redis.ConnectionError(f"{opened.host}:{opened.port} is not the master")


class SentinelTopology(SingleServer):
    """The master that the Sentinels of ``url`` name. ``clock`` is monotonic, in seconds."""

    fixed = False

    def __init__(self, url: RedisUrl, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = url.service
        self._sentinels = [
            connect(
                url.sentinel_url(host), retries=1, timeout=SENTINEL_SECONDS, socket_connect_timeout=SENTINEL_SECONDS
            )
            for host in url.hosts
        ]
        self._clock = clock
        self._master: Address | None = None
        self._asked_at = clock()
        self._watching = threading.Semaphore()
        server = url.server_url(url.hosts[0])
        led = SecureMasterConnection if server.startswith("rediss:") else MasterConnection
        super().__init__(server, connection_class=led, leader=self._leader)

    def _leader(self) -> Address:
        """The master's address. Raises the driver's ConnectionError."""
        began, said = self._clock(), ["no time to ask"]
        for sentinel in tuple(self._sentinels):
            if self._clock() - began > ASKING_SECONDS:
                break
            try:
                found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except DriverError as error:
                said.append(str(error))
                continue
            if found:
                # The next question goes to one that answers.
                self._sentinels = sorted(self._sentinels, key=lambda each: each is not sentinel)
                host, port = found
                return self._follow((host.decode(), int(port)))
            said.append(f"no master is known as {self._service}")
        raise redis.ConnectionError(f"no Sentinel names a master: {said[-1]}")

    def _follow(self, master: Address) -> Address:
        before, self._master, self._asked_at = self._master, master, self._clock()
        if before not in (None, master):
            self._let_go()
        return master

    def _let_go(self) -> None:
        """From now on commands ask for the master; those under way still have their connections."""
        before, self._clients = self._clients, self._fresh()
        for client in before.values():
            client.connection_pool.disconnect(inuse_connections=False)

    def _watch(self) -> None:
        """Has the Sentinels asked, when that is due, whether the master is another one.

        Nobody waits for the answer, but for who comes after a long silence: their connection may lead anywhere.
        """
        since = self._clock() - self._asked_at
        if since < WATCH_SECONDS or not self._watching.acquire(blocking=False):
            return
        self._asked_at = self._clock()
        if since >= LATE_SECONDS:
            self._ask_again()
        else:
            threading.Thread(target=self._ask_again, name="sentinel-watch", daemon=True).start()

    def _ask_again(self) -> None:
        # Without their word the last one stands.
        with contextlib.suppress(DriverError):
            self._leader()
        self._watching.release()

    def run(self, workflow_id: str, work: Work[Result], use: PoolKind = PoolKind.COMMANDS) -> Result:
        self._watch()
        try:
            return super().run(workflow_id, work, use)
        except NotMaster:
            self._let_go()
            raise

    def masters(self) -> Sequence[Client]:
        self._watch()
        return super().masters()

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        self._watch()
        return not connection.is_connected or (connection.host, connection.port) == self._master

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        if isinstance(error, NotMaster):
            self._let_go()

    def close(self) -> None:
        super().close()
        for sentinel in self._sentinels:
            sentinel.close()
