"""The store: writes and reads lines in Redis Streams. The only package that imports redis.

Each of these layers uses the layers below it:

    Store     reads and writes job logs. Its parts: ``workflows`` (the list of workflows), ``listing`` (a workflow's
              jobs), ``catalog`` (all jobs), ``records`` (OpenTelemetry log records), ``chunks`` (archived chunks,
              redactions and the archive lock, in ``chunk_index``), ``watches``, and ``audit_trail`` (in ``audit``)
    Commands  sends commands and scripts to the server that has a workflow's keys. ``replies`` parses the replies
    Topology  finds the server of a workflow: a single server (``topology``), a master of a Cluster (``cluster``), or
              the master that Sentinels name (``sentinel``)
    driver    redis-py with our timeouts and errors
    scripts/  Lua scripts for all atomic operations. All are idempotent

``live_reader`` waits for new entries of all watched jobs, and ``sequential_reader`` reads logs for replays; both have
their own connections. ``changes`` reads a workflow's changes, ``durability`` checks whether writes are safe, ``keys``
names the keys, ``adaptive_batch`` sizes reads, and ``server_checks`` warns about servers that can lose logs.
"""

from chronoverse.store.durability import Durability
from chronoverse.store.store import Store

__all__ = ["Durability", "Store"]
