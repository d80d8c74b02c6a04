"""Which server has a workflow's keys, and connections to it. All other modules of the store ask here."""

from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import COMMAND_TIMEOUT_SECONDS, Client, Connection, DriverError, connect, connection

Result = TypeVar("Result")
Work = Callable[[Client], Result]


#: Seconds in which a server answers a health check. Whoever asks, such as a kubelet, waits for some seconds at most,
#: and in a Cluster other servers are asked after it.
HEALTH_SECONDS: Final = 1.0


class PoolKind(Enum):
    """What a client is for. Each has connections of its own, so that no reader can use up what others need."""

    #: Commands that may be repeated blindly, for whoever asks.
    COMMANDS = "commands"
    #: The same for the process's tail: all its viewers wait for it.
    TAIL = "tail"
    #: The same for health checks: a process that is busy is not to be taken for a dead one.
    HEALTH = "health"
    #: Commands of runners, whose first answer counts.
    APPENDS = "appends"
    #: Questions that wait for a disk or a replica.
    WAITS = "waits"

    @property
    def retries(self) -> int:
        return 0 if self in (PoolKind.APPENDS, PoolKind.WAITS) else 1

    @property
    def timeout(self) -> float:
        """Seconds that a command may take."""
        return HEALTH_SECONDS if self is PoolKind.HEALTH else COMMAND_TIMEOUT_SECONDS


class Topology(Protocol):
    """Where the keys are. Errors are the driver's.

    A workflow's keys are always together; only ``one`` place has those of all workflows on one server, and only a
    ``fixed`` place always on the same.
    """

    one: bool
    fixed: bool

    def run(self, workflow_id: str, work: Work[Result], use: PoolKind = PoolKind.COMMANDS) -> Result:
        """What ``work`` gives with a client of the workflow's server; again with another one's if it has moved."""
        ...

    def connection(
        self, workflow_id: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, asked: DriverError | None = None
    ) -> Connection:
        """A connection of the caller's own to the workflow's server, or to that to which ``asked`` sends us."""
        ...

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        """Whether an own connection still leads to the workflow's server."""
        ...

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        """Learns from what an own connection met."""
        ...

    def client_for(self, connection: Connection) -> Client:
        """A client for the tail's commands to the server at the other end of an own connection."""
        ...

    def server(self, workflow_id: str) -> Hashable:
        """The workflow's server, as far as is known, without asking anybody."""
        ...

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        """The jobs by server."""
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

    one = True
    fixed = True

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._clients = self._fresh()

    def _fresh(self) -> dict[PoolKind, Client]:
        return {use: connect(self._url, retries=use.retries, timeout=use.timeout, **self._options) for use in PoolKind}

    def run(self, workflow_id: str, work: Work[Result], use: PoolKind = PoolKind.COMMANDS) -> Result:
        return work(self._clients[use])

    def connection(
        self, workflow_id: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, asked: DriverError | None = None
    ) -> Connection:
        return connection(self._url, timeout=timeout, **self._options)

    def is_current(self, workflow_id: str, connection: Connection) -> bool:
        return True

    def report_error(self, workflow_id: str, error: DriverError) -> None:
        pass

    def client_for(self, connection: Connection) -> Client:
        return self._clients[PoolKind.TAIL]

    def server(self, workflow_id: str) -> Hashable:
        return self._url

    def group_by_node(self, jobs: Sequence[JobRef]) -> Sequence[Sequence[JobRef]]:
        return [jobs] if jobs else []

    def masters(self) -> Sequence[Client]:
        return [self._clients[PoolKind.COMMANDS]]

    def ping(self) -> None:
        self._clients[PoolKind.HEALTH].execute_command("PING")

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
