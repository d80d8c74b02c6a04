"""The store: where lines are written and read, in Redis Streams. The only package that imports redis.

Each of these uses those below it:

    Store     reads and writes job logs. Its parts: ``workflows`` (the list of workflows), ``listing`` (a workflow's
              jobs), ``catalog`` (all jobs), ``records`` (OpenTelemetry's log records), ``chunks`` (archived chunks,
              redactions and the archive lock, in ``chunk_index``), ``watches``, and ``audit_trail`` (in ``audit``)
    Commands  sends commands and scripts to the server that has a workflow's keys. ``replies`` reads the answers
    Topology  finds that server: the only one (``topology``), one of the masters of a Cluster (``cluster``), or
              the master that Sentinels name (``sentinel``)
    driver    redis-py with our timeouts and errors
    scripts/  Lua scripts for everything atomic. Each can be repeated after a lost reply

``live_reader`` waits for new entries of all jobs that a worker watches, on its own connections, and
``sequential_reader`` has one for replays. ``changes`` reads the changes of a workflow's jobs that the scripts record.
``durability`` asks whether writes are on disk or on a replica, ``keys`` defines the names of keys, ``adaptive_batch``
decides how many lines to read at once, and ``server_checks`` warns about servers that can lose logs.

Foreign runners write the same keys with plain commands (``docs/redis.md``), so nothing read here is trusted to have the
right type or form.
"""

from chronoverse.store.durability import Durability
from chronoverse.store.store import Store

__all__ = ["Durability", "Store"]
