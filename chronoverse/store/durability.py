"""Checks whether writes are safe: on the store's disk, or on a replica.

WAITAOF and WAIT cover all writes up to the last write of the connection on which they are sent:
https://redis.io/docs/latest/commands/waitaof/
"""

import contextlib
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import redis

from chronoverse.errors import EmbeddedError, NotDurable, StoreError
from chronoverse.store.driver import to_store_error
from chronoverse.store.replies import accepted
from chronoverse.store.server_checks import server_info

#: Milliseconds that :func:`confirm` waits for the disk or the replica: less than a command's timeout.
WAIT_MS: Final = 2_000


class Durability(StrEnum):
    """When a line counts as safe: acknowledged by the store, on its disk, or also on a replica."""

    ACKED = "acked"
    FSYNCED = "fsynced"
    REPLICATED = "replicated"


def confirm(
    client: redis.Redis, write: tuple[Any, ...], durability: Durability, sync: Callable[[], None] | None
) -> int | None:
    """Sends ``write``, a call of ``confirm.lua``. Returns its reply if all earlier writes are safe, otherwise None.

    ``sync`` forces the server's files to disk. Raises the driver's errors, :class:`Fenced`, :class:`NotDurable`.
    """
    replicated = durability is Durability.REPLICATED
    if sync is not None and not replicated:
        # This fails if a rewrite has replaced a file, or this user cannot open it. The server is then asked below.
        with contextlib.suppress(EmbeddedError):
            next_number: int = accepted(client.execute_command(*write))[0]
            # INFO is a separate command, because a server writes its files only after executing all commands it has
            # read. With ``everysec``, writes can wait in its buffer while the disk is busy.
            info = client.execute_command("INFO", "persistence")
            if b"aof_enabled:1" in info and b"aof_buffer_length:0\r" in info:
                sync()
                return next_number
    # Both commands use one connection, since the second refers to the first.
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*write)
    pipeline.execute_command(*(("WAIT", 1, WAIT_MS) if replicated else ("WAITAOF", 1, 0, WAIT_MS)))
    answer, reply = pipeline.execute(raise_on_error=False)
    if isinstance(answer, redis.RedisError):
        raise answer
    (next_number,) = accepted(answer)
    if isinstance(reply, redis.RedisError):
        # Retried later if the server is gone or no longer the master. Other errors are permanent.
        if type(to_store_error(reply)) is StoreError:
            raise NotDurable(f"the store cannot report what is on its disk: {reply}")
        raise reply
    return next_number if (reply if replicated else reply[0]) >= 1 else None


def is_permanent(client: redis.Redis, *write: Any) -> bool | None:
    """Whether all writes up to the command ``write`` would survive a restart and a failover.

    False if ``write`` changed nothing (reply 0), if the disk or a replica did not confirm it in time, or if a replica
    has disconnected. None if the server cannot tell: it makes only snapshots, or lacks ``WAITAOF`` (Redis before 7.2).
    Raises the driver's errors.
    """
    persistence, replication = server_info(client, "persistence"), server_info(client, "replication")
    connected = [value for name, value in replication.items() if re.fullmatch(r"slave\d+", name)]
    replicas = sum("state=online" in value.split(",") for value in connected)
    if not replicas and replication.get("repl_backlog_active") == "1":
        # A replica, or ``redis-cli --rdb``, was connected within the last hour (repl-backlog-ttl): a replica can return
        # as the master.
        return False
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*write)
    # The two waits, in milliseconds, are together shorter than a command's timeout.
    pipeline.execute_command("WAITAOF", 1, 0, 2_000)
    pipeline.execute_command("WAIT", replicas, 1_500)
    written, on_disk, on_replicas = pipeline.execute(raise_on_error=False)
    for answer in (written, on_replicas):
        if isinstance(answer, redis.RedisError):
            raise answer
    if not written or on_replicas < replicas:
        return False
    if not isinstance(on_disk, redis.RedisError):
        return bool(on_disk[0] >= 1)
    # If no snapshot was loaded or made, and none is in progress, a restart cannot bring back an older state.
    names = ("aof_enabled", "rdb_saves", "rdb_last_load_keys_loaded", "rdb_bgsave_in_progress")
    return all(persistence.get(name) == "0" for name in names) or None
