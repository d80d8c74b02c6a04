"""Whether writes are safe: on the store's disk, or on a replica. Two questions, both with WAITAOF and WAIT.

- For runners, :class:`StoreDurabilityProbe` says which lines of one job are safe, so that the spool may forget them.
- For archivers, :func:`is_permanent` says whether anything that was written can still be undone, by a power cut or by
  a failover to a replica that lacks the last writes.

Both commands are about the last write of their own connection, and so about all writes before it.
https://redis.io/docs/latest/commands/waitaof/ https://redis.io/docs/latest/commands/wait/
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

from chronoverse.errors import EmbeddedError, NotDurable, StoreError
from chronoverse.joblog.model import Attempt
from chronoverse.store import replies
from chronoverse.store.driver import Client, DriverError, Script, to_store_error, translate_errors
from chronoverse.store.keys import KeyMap
from chronoverse.store.server_checks import server_info
from chronoverse.store.topology import PoolKind, Topology

#: Milliseconds for which the probe waits for the disk or the replica. Less than a command may take.
WAIT_MS: Final = 2_000
#: Replicas that must have a line before it counts as replicated.
REPLICAS: Final = 1
#: Milliseconds for which :func:`is_permanent` waits for the disk, and for the replicas. Together less than a command
#: may take.
DISK_MS: Final = 2_000
REPLICAS_MS: Final = 1_500


class Durability(StrEnum):
    """When a line is safe: when the store has acknowledged it, has it on its disk, or has it on a replica as well."""

    ACKED = "acked"
    FSYNCED = "fsynced"
    REPLICATED = "replicated"


class StoreDurabilityProbe:
    """Asks which lines of a job are safe. ``sync`` forces what was written to the disk, if that is on this machine."""

    def __init__(
        self,
        topology: Topology,
        durability: Durability,
        lease_ms: int,
        retention_ms: int,
        keys: KeyMap,
        sync: Callable[[], None] | None = None,
    ) -> None:
        self._topology = topology
        self._durability = durability
        self._lease_ms = lease_ms
        self._retention_ms = retention_ms
        self._keys = keys
        self._sync = sync
        self._script = Script("confirm")

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        """The number below which all is safe now, the terminal entry included. None when the time was too short.

        With ``may_sync`` it may force the files to the disk, instead of waiting for the server to do that.
        Raises :class:`Fenced`, :class:`NotDurable`.
        """
        with translate_errors():
            return self._topology.run(
                attempt.job.workflow_id, lambda client: self._confirm(client, attempt, may_sync), PoolKind.WAITS
            )

    def _confirm(self, client: Client, attempt: Attempt, may_sync: bool) -> int | None:
        if self._durability is Durability.REPLICATED:
            return self._wait(client, attempt, "WAIT", REPLICAS, WAIT_MS)
        if may_sync and self._sync is not None:
            # A file may have been replaced (by a rewrite), or this user may not open it. Then the server is asked.
            with contextlib.suppress(EmbeddedError):
                next_number = self._written(client, attempt)
                if next_number is not None:
                    self._sync()
                    return next_number
        return self._wait(client, attempt, "WAITAOF", 1, 0, WAIT_MS)

    def _written(self, client: Client, attempt: Attempt) -> int | None:
        """As :meth:`confirm`, for lines that the server has written to its files, synced or not.

        It takes two round trips: a server writes to its files only after it has executed all commands that it has read
        from its connections.
        """
        next_number = self._next_number(client.execute_command(*self._command(attempt)))
        info = client.execute_command("INFO", "persistence")
        # With ``everysec`` a write may stay in the server's memory while its disk is busy. An empty buffer has no such
        # write.
        return next_number if b"aof_enabled:1" in info and b"aof_buffer_length:0\r" in info else None

    def _wait(self, client: Client, attempt: Attempt, *question: Any) -> int | None:
        # Both commands must be on one connection, since the second is about the first.
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command(*self._command(attempt))
        pipeline.execute_command(*question)
        answer, reply = pipeline.execute(raise_on_error=False)
        if isinstance(answer, DriverError):
            raise answer
        next_number = self._next_number(answer)
        if isinstance(reply, DriverError):
            # A server that is gone, or no longer the master, is asked again later. Any other error is final.
            if type(to_store_error(reply)) is StoreError:
                raise NotDurable(f"the store cannot say what is on its disk: {reply}")
            raise reply
        copies, wanted = (reply[0], 1) if question[0] == "WAITAOF" else (reply, REPLICAS)
        return next_number if copies >= wanted else None

    def _command(self, attempt: Attempt) -> tuple[Any, ...]:
        keys = self._keys.runner(attempt.job)
        args = (attempt.token, self._lease_ms, self._retention_ms, attempt.attempt)
        return ("EVAL", self._script.source, len(keys), *keys, *args)

    @staticmethod
    def _next_number(answer: list[Any]) -> int:
        if answer[0] != b"OK":
            raise replies.refusal_error(answer[0].decode(), answer[1:])
        next_number: int = answer[1]
        return next_number


def is_permanent(client: Client, *write: Any) -> bool | None:
    """Whether nothing that the server has written up to now can be undone.

    ``write`` is a command that writes something. When its reply is 0 it has written nothing, and the result is False.
    The result is also False when the disk or one of the replicas has not confirmed the write in time, and when all
    replicas are away. It is None when the server cannot tell: it makes snapshots and has no append-only file, or it
    does not know ``WAITAOF`` (Redis before 7.2).

    https://redis.io/docs/latest/commands/info/ Raises the driver's errors.
    """
    persistence, replication = server_info(client, "persistence"), server_info(client, "replication")
    connected = [value for name, value in replication.items() if re.fullmatch(r"slave\d+", name)]
    replicas = sum("state=online" in value.split(",") for value in connected)
    if not replicas and replication.get("repl_backlog_active") == "1":
        # There was a replica in the last hour (repl-backlog-ttl), and it may come back as the master.
        return False
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*write)
    pipeline.execute_command("WAITAOF", 1, 0, DISK_MS)
    pipeline.execute_command("WAIT", replicas, REPLICAS_MS)
    written, on_disk, on_replicas = pipeline.execute(raise_on_error=False)
    for answer in (written, on_replicas):
        if isinstance(answer, DriverError):
            raise answer
    if not written or on_replicas < replicas:
        return False
    if isinstance(on_disk, DriverError):
        return True if _would_start_empty(persistence) else None
    return bool(on_disk[0] >= 1)


def _would_start_empty(persistence: Mapping[str, str]) -> bool:
    """Whether the server has nothing to load at a restart: it loaded no snapshot, made none, and is making none.

    Then a restart cannot bring back an older state.
    """
    names = ("aof_enabled", "rdb_saves", "rdb_last_load_keys_loaded", "rdb_bgsave_in_progress")
    return all(persistence.get(name) == "0" for name in names)
