"""Checks whether the servers' settings can lose logs, and what they have evicted or refused."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import redis
from redis.exceptions import NoPermissionError

from chronoverse.errors import StoreError, StoreUnavailable

UNKNOWN_POLICY: Final = "cannot check the store's eviction policy: the user lacks ACL +info"


def loss_warnings(client: redis.Redis, prefix: str) -> Iterator[str]:
    """Warnings if the server can evict keys, or if a restart would discard what our scripts have written.

    Raises the driver's errors. A server replays its append-only file with the rights of its user ``default``:
    https://github.com/redis/redis/issues/14541 https://github.com/valkey-io/valkey/issues/3983
    """
    try:
        policy = server_info(client, "memory").get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            yield (f"the store may evict logs: its maxmemory-policy is {policy} and must be noeviction")
    except NoPermissionError:
        yield UNKNOWN_POLICY
    with contextlib.suppress(redis.ResponseError):
        if server_info(client, "persistence").get("aof_enabled") == "1":
            for write in (("XADD", "*", "a", "b"), ("HSET", "a", "b"), ("ZADD", 0, "a"), ("PEXPIREAT", 0), ("DEL",)):
                command = (write[0], f"{prefix}:{{a}}:a", *write[1:])
                if client.execute_command("ACL", "DRYRUN", "default", *command) != b"OK":
                    yield (
                        "the store will drop its logs when it restarts: it replays its append-only file with the "
                        f"rights of the user default, who lacks {write[0]} {prefix}:*. Give that user all rights, and "
                        "disable it: ACL SETUSER default off resetpass ~* &* +@all; the same in the ACL file"
                    )
                    return


def persistence_warnings(client: redis.Redis) -> Iterator[str]:
    """A warning if the server has no append-only file. Raises the driver's errors."""
    with contextlib.suppress(NoPermissionError):  # loss_warnings() warns of this.
        if server_info(client, "persistence").get("aof_enabled", "1") != "1":
            yield (
                "the store keeps no append-only file (appendonly no): when it stops, it loses everything since its "
                "last snapshot"
            )


def server_info(client: redis.Redis, *sections: str) -> dict[str, str]:
    """Sections of INFO. Raises the driver's errors. https://redis.io/docs/latest/commands/info/"""
    text: bytes = client.execute_command("INFO", *sections)
    return dict(line.split(":", 1) for line in text.decode("utf-8", "replace").splitlines() if ":" in line)


def watch_servers(
    warnings: Callable[[], Sequence[str]],
    infos: Callable[[], Sequence[Mapping[str, str]]],
    warn: Callable[[str], object] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Updates the servers' metrics every 10 s, forever.

    The first successful check calls ``warn`` with each warning. Until then, ``warn`` gets each new reason for a failed
    check.
    """
    # Imported here because runners, which import this module, do not need prometheus_client.
    from chronoverse import metrics

    # ACL denials. Redis 7.0 does not count them.
    denied = ("acl_access_denied_auth", "acl_access_denied_cmd", "acl_access_denied_key")
    reported = ""
    while True:
        try:
            if warn is not None:
                for warning in warnings():
                    warn(warning)
                warn = None
            found = infos()
            metrics.STORE_AWAY.set(0)
            metrics.STORE_MAY_EVICT.set(any(info.get("maxmemory_policy") not in (None, "noeviction") for info in found))
            metrics.STORE_EVICTED.set(sum(int(info.get("evicted_keys", "0")) for info in found))
            metrics.STORE_DENIED.set(sum(int(info.get(name, "0")) for info in found for name in denied))
        except StoreError as error:
            metrics.STORE_AWAY.set(isinstance(error, StoreUnavailable))
            # Later failures are reported elsewhere.
            if warn is not None and str(error) != reported:
                reported = str(error)
                warn(reported)
        # A check is one INFO for each server.
        sleep(10.0)
