"""Whether the servers may lose logs by their own settings, and whether they have evicted keys."""

import time
from collections.abc import Callable
from typing import Final, Protocol

import redis.exceptions

from chronoverse.errors import StoreError
from chronoverse.store.driver import Client

#: The warning where the server's user may not run INFO.
UNKNOWN_POLICY: Final = "nobody can tell whether the store may throw logs away: its user may not ask it (ACL +info)"
#: Seconds between two checks, each of which is one INFO for each server.
CHECK_SECONDS: Final = 10.0


def eviction_warnings(client: Client) -> list[str]:
    """A warning where the server may evict keys to make room. Raises: the driver's errors.

    https://redis.io/docs/latest/develop/reference/eviction/
    """
    try:
        policy = server_info(client, "memory").get("maxmemory_policy", "noeviction")
    except redis.exceptions.NoPermissionError:
        return [UNKNOWN_POLICY]
    if policy == "noeviction":
        return []
    return [f"the store may throw logs away without a word: its maxmemory-policy is {policy} and must be noeviction"]


def persistence_warnings(client: Client) -> list[str]:
    """A warning where the server has no append-only file. Raises: the driver's errors.

    INFO does not tell whether it makes snapshots. https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/
    """
    try:
        enabled = server_info(client, "persistence").get("aof_enabled", "1")
    except redis.exceptions.NoPermissionError:
        return []  # eviction_warnings() warns of this.
    if enabled == "1":
        return []
    return [
        "the store keeps no append-only file (appendonly no): when it stops, it loses what it has taken since its last "
        "snapshot, if it makes any"
    ]


def evicted_keys(client: Client) -> int:
    """Keys that the server has evicted since it started. Raises: the driver's errors."""
    return int(server_info(client, "stats").get("evicted_keys", "0"))


def server_info(client: Client, section: str) -> dict[str, str]:
    """One section of INFO. Raises: the driver's errors. https://redis.io/docs/latest/commands/info/"""
    text: bytes = client.execute_command("INFO", section)
    return dict(line.split(":", 1) for line in text.decode("utf-8", "replace").splitlines() if ":" in line)


class CheckedStore(Protocol):
    """What :func:`watch_evictions` needs of a store; see :class:`chronoverse.store.Store`."""

    def warnings(self) -> list[str]: ...
    def evicted_keys(self) -> int: ...


def watch_evictions(
    store: CheckedStore, warn: Callable[[str], object] | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Updates the metric of evicted keys for ever. Runs in a thread of its own.

    The first check that succeeds also calls ``warn`` with each warning.
    """
    # Runners import this module, and need not wait for prometheus_client.
    from chronoverse import metrics

    while True:
        try:
            if warn is not None:
                for warning in store.warnings():
                    warn(warning)
                warn = None
            metrics.STORE_EVICTED.set(store.evicted_keys())
        except StoreError:
            pass  # Other parts report a store that does not answer.
        sleep(CHECK_SECONDS)
