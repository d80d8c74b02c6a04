"""Which server has a workflow's keys, and connections to it. All other modules of the store get theirs here."""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import (
    COMMAND_TIMEOUT_SECONDS,
    Client,
    Connection,
    DriverError,
    new_client,
    new_connection,
)

Result = TypeVar("Result")
Work = Callable[[Client], Result]


#: Seconds in which a server must answer a health check. Whoever asks, such as a kubelet, waits for some seconds at
#: most, and in a Cluster other servers are asked after the first.
HEALTH_SECONDS: Final = 1.0


class PoolKind(Enum):
    """What a client is for. Each kind has connections of its own, so that no reader uses up what others need."""

    #: Commands that may be repeated blindly, for all callers.
    COMMANDS = "commands"
    #: The same for the process's tail reader, for which all viewers wait.
    TAIL = "tail"
    #: The same for health checks: a busy process must not be taken for a dead one.
    HEALTH = "health"
    #: Commands of runners, which are not repeated: their first answer counts.
    APPENDS = "appends"
    #: Commands that wait for a disk or a replica.
    WAITS = "waits"

    @property
    def retries(self) -> int:
        """How often a command is repeated when the connection turns out to be closed."""
        return 0 if self in (PoolKind.APPENDS, PoolKind.WAITS) else 1

    @property
    def timeout(self) -> float:
        """Seconds that a command may take."""
        return HEALTH_SECONDS if self is PoolKind.HEALTH else COMMAND_TIMEOUT_SECONDS


class Topology(Protocol):
    """Which server has which keys. All of a workflow's keys are always on one server. Raises the driver's errors.

    ``is_single``: all workflows are on one server. ``is_fixed``: that is always the same server. ``version`` grows
    when workflows may be on another server than before.

    A caller may have connections of its own, made by :meth:`new_connection`. It checks them with :meth:`is_current`
    and passes their errors to :meth:`report_error`. The live reader has one connection to each server instead, made by
    :meth:`new_connection_to`. It calls :meth:`refresh`, and compares ``version``.
    """

    is_single: bool
    is_fixed: bool
    version: int

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        """Calls ``work`` with a client of the workflow's server, and again with another's if the keys have moved."""
        ...

    def new_connection(
        self, workflow_id: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, redirect: DriverError | None = None
    ) -> Connection:
        """A connection that belongs to the caller. It leads to the workflow's server.

        When ``redirect`` is a Cluster's ASK answer, it leads to the server which that answer names.
        """
        ...

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        """Whether a caller's connection still leads to the workflow's server."""
        ...

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        """Tells the topology of an error on a caller's connection. The keys may have moved."""
        ...

    def server_of(self, workflow_id: str) -> Hashable:
        """The workflow's server as far as it is known. Asks no server."""
        ...

    def new_connection_to(self, server: Hashable) -> Connection:
        """A connection that belongs to the caller. It leads to a server that :meth:`server_of` has named."""
        ...

    def refresh(self) -> None:
        """Finds out which server has what, if that is due. Asks servers; when none answers, nothing changes."""
        ...

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        """The jobs in groups, one for each server."""
        ...

    def masters(self) -> Sequence[Client]:
        """A client for commands to each server that has keys."""
        ...

    def ping(self) -> None:
        """Raises unless the store answers."""
        ...

    def close(self) -> None:
        """Closes every connection but the callers' own. All can be used again."""
        ...


class SingleServer:
    """All keys are on the server at ``url``. ``options`` are the driver's."""

    is_single = True
    is_fixed = True
    version = 0

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._clients = self._new_clients()

    def _new_clients(self) -> dict[PoolKind, Client]:
        return {
            pool: new_client(self._url, retries=pool.retries, timeout=pool.timeout, **self._options)
            for pool in PoolKind
        }

    def run(self, workflow_id: str, work: Work[Result], pool: PoolKind = PoolKind.COMMANDS) -> Result:
        return work(self._clients[pool])

    def new_connection(
        self, workflow_id: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, redirect: DriverError | None = None
    ) -> Connection:
        return new_connection(self._url, timeout=timeout, **self._options)

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        return True

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        pass

    def server_of(self, workflow_id: str) -> Hashable:
        return self._url

    def new_connection_to(self, server: Hashable) -> Connection:
        return self.new_connection("")

    def refresh(self) -> None:
        pass

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        return [jobs] if jobs else []

    def masters(self) -> Sequence[Client]:
        return [self._clients[PoolKind.COMMANDS]]

    def ping(self) -> None:
        self._clients[PoolKind.HEALTH].execute_command("PING")

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
