"""The store: where lines are written and read, in Redis Streams. The only package that imports redis.

Its parts, of which each uses those below it:

    Store             reads and writes job logs. Its parts are the list of workflows (``workflows``), the listing of a
                      workflow's jobs (``listing``), the catalog of all jobs (``catalog``), what appends OpenTelemetry's
                      log records (``records``), the records of archived chunks and redactions (``chunks``, in
                      ``chunk_index``), and the audit trail (``audit``)
    Commands          sends commands and scripts to the server that has a workflow's keys. ``replies`` reads the answers
    Topology          says which server that is: the only one (``topology``), the master that Sentinels name
                      (``sentinel``), or one of the masters of a Cluster (``cluster``)
    driver            redis-py with our timeouts and errors
    scripts/          Lua scripts: whatever must happen in one step. Each may be repeated after a lost reply

These have connections of their own, because they wait or read ahead:

    live_reader  waits for new entries of all jobs that a worker watches: one connection to each server, on which the
                 server reports what has changed
    prefetch     reads a log in sequence, one answer ahead of the caller, some 1 MiB at once
    durability   asks whether writes are on the disk or on a replica

``keys`` spells the key names. ``server_checks`` warns of servers that may lose logs.

``docs/redis.md`` lists the keys. Foreign runners write the same keys with plain commands, so nothing that is read here
is trusted to have the right type or form.
"""

from chronoverse.store.durability import Durability
from chronoverse.store.store import Store

__all__ = ["Durability", "Store"]
