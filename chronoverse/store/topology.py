"""Finds the server that has a workflow's keys, and connects to it. Other modules get their connections here."""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Final, TypeVar

import redis

from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, check_tls_files, new_client, new_connection

Result = TypeVar("Result")
Work = Callable[[redis.Redis], Result]

#: A health check that fails while the server rejects writes, because this script could write. PING would succeed.
CHECK: Final = ("EVAL", "#!lua\nreturn 1", 0)


class PoolKind(Enum):
    """The purpose of a client. Each kind has its own connections, so that it cannot exhaust those of another kind."""

    #: Idempotent commands, for all callers.
    COMMANDS = "commands"
    #: Idempotent commands of the tail reader, for which all viewers wait.
    TAIL = "tail"
    #: Health checks: a busy process must not look dead.
    HEALTH = "health"
    #: Commands of runners. Not retried, because a runner needs the first reply.
    APPENDS = "appends"
    WAITS = "waits"


class Topology:
    """Decides which server has which keys. This class knows one server, at ``url``. Raises the driver's errors.

    ``version`` grows when workflows may have moved. Callers with their own connection pass errors to
    :meth:`report_error`.
    """

    is_single = True
    version = 0

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._clients: dict[tuple[str, PoolKind], redis.Redis] = {}
        # Raises ValueError for a bad URL now, rather than for the first viewer. Opens no connection.
        try:
            new_connection(url, **options)
        except (TypeError, ValueError, redis.RedisError) as error:
            raise ValueError(
                f"invalid option: {str(error).removeprefix('AbstractConnection.__init__() got an ')}"
            ) from None

    def _client(self, url: str, pool: PoolKind) -> redis.Redis:
        found = self._clients.get((url, pool))
        if found is None:
            retries = 0 if pool in (PoolKind.APPENDS, PoolKind.WAITS) else 1
            # Callers of health checks, such as a kubelet, wait only a few seconds.
            timeout = 1.0 if pool is PoolKind.HEALTH else COMMAND_TIMEOUT_SECONDS
            found = self._clients[url, pool] = new_client(url, retries=retries, timeout=timeout, **self._options)
        return found

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        """Calls ``work`` with a client of the workflow's server. Calls it again if the keys have moved."""
        return work(self._client(self._url, pool))

    def report_error(self, workflow_id: str, error: redis.RedisError) -> None:
        """Reports an error on a caller's own connection, because the keys may have moved."""

    def server_of(self, workflow_id: str) -> Hashable:
        """The workflow's server, as far as known. Sends no request."""
        return self._url

    def new_connection_to(self, server: Any) -> redis.Connection:
        """A new connection, owned by the caller, to a server that :meth:`server_of` returned."""
        return new_connection(self._url, **self._options)

    def refresh(self) -> None:
        """Updates the map of servers if due. If no server answers, nothing changes."""

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        return [jobs] if jobs else []

    def masters(self) -> Sequence[redis.Redis]:
        """A client for each server that has keys."""
        self.refresh()
        return [self._client(self._url, PoolKind.COMMANDS)]

    def ping(self) -> None:
        self._client(self._url, PoolKind.HEALTH).execute_command(*CHECK)

    def check_files(self) -> None:
        """Raises ValueError if a file that the URL names for TLS cannot be used. Opens no connection."""
        check_tls_files(new_connection(self._url, **self._options))

    def close(self) -> None:
        """Closes all connections except the callers' own. Clients reopen them on next use."""
        for client in list(self._clients.values()):
            client.close()
