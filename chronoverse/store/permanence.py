"""Whether what was written can still be taken back, by a power cut or by a failover to a replica that is behind."""

import re
from collections.abc import Mapping
from typing import Any, Final

from chronoverse.store.driver import Client, DriverError
from chronoverse.store.server_settings import info

#: Milliseconds that one question waits for the disk, and for the replicas. Together less than a command may take.
DISK_MS: Final = 2_000
REPLICAS_MS: Final = 1_500


def is_permanent(client: Client, *write: Any) -> bool | None:
    """Whether all that the server has written up to now stays written.

    ``write`` is a command that writes something. Where it answers 0, it has not, and the answer here is False.
    It is False also when the disk or one of the replicas has not confirmed it in time, and when all replicas are away.
    None when the server cannot say: it keeps snapshots and no append-only file, or does not know ``WAITAOF`` (Redis
    before 7.2).

    ``WAITAOF`` and ``WAIT`` are about the last write of their own connection, and so about all writes before it.
    https://redis.io/docs/latest/commands/waitaof/ https://redis.io/docs/latest/commands/info/
    Raises: the driver's errors.
    """
    persistence, replication = info(client, "persistence"), info(client, "replication")
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
        return True if _has_nothing_older(persistence) else None
    return bool(on_disk[0] >= 1)


def _has_nothing_older(persistence: Mapping[str, str]) -> bool:
    """Whether the server could only start empty: it has read no snapshot, has made none, and is making none."""
    names = ("aof_enabled", "rdb_saves", "rdb_last_load_keys_loaded", "rdb_bgsave_in_progress")
    return all(persistence.get(name) == "0" for name in names)
