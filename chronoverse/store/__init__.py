"""The store: where lines are written and read, in Redis Streams. The only package that imports redis.

Its parts, of which each uses those below it:

    Store             reads and writes job logs. Its parts are the list of workflows (``workflows``), the listing of a
                      workflow's jobs (``listing``), the catalog of all jobs (``catalog``), and the records of archived
                      chunks and redactions (``chunks``, in ``chunk_index``)
    Commands          sends commands and scripts to the server that has a workflow's keys. ``replies`` reads the answers
    Topology          says which server that is: the only one (``topology``), the master that Sentinels name
                      (``sentinel``), or one of the masters of a Cluster (``cluster``)
    driver            redis-py with our timeouts and errors
    scripts/          Lua scripts: whatever must happen in one step. Each may be repeated after a lost reply

These have connections of their own, because they wait or read ahead:

    live_reader        waits for new entries of all jobs that a worker watches: one connection to each server, on which
                       the server reports what has changed
    prefetch           reads a log in sequence, one answer ahead of the caller, some 1 MiB at once
    append_connection  sends an append before the one before it is answered
    durability         asks whether writes are on the disk or on a replica

``keys`` spells the key names. ``server_checks`` warns of servers that may lose logs.

The keys, under a prefix. The workflow id is their hash tag, so that all of a workflow's keys share a Cluster's slot.
The first three keys are of no workflow:

    {prefix}-issuer:<hash of a URL>    string  the public keys that a node last fetched from an issuer. Whoever can
                                               write it can make tokens, so it is the service's alone: no right for
                                               {prefix}:* reaches it
                                               expires when the keys are too old to be used
    {prefix}:workflows                 zset    workflow ids by the creation time of their newest job (Unix ms)
                                               never expires; it is written after a job's own keys, and repaired when
                                               it is read and by archivers
    {prefix}:mark                      zset    the age mark that archivers move on (Unix seconds); never expires
    {prefix}:{<workflow>}:jobs         zset    job ids by creation time (Unix ms)
                                               never expires; a job that is gone is taken out when it is listed, and a
                                               foreign job is added when somebody asks for it
    {prefix}:{<workflow>}:running      set     jobs that have begun and not ended, as far as is known: repaired as above
    {prefix}:{<workflow>}:<job>:log    stream  the lines as <sequence_num>-0, then the terminal entry; a range of lost
                                               lines is one entry with the number of the last of them
                                               expires RETENTION after the end; a foreign one after its end was
                                               first seen, unless its runner sets another time
    {prefix}:{<workflow>}:<job>:job    hash    status, attempt, created_at, …
                                               end_seen_ms: when the end was first seen, by the server's clock
                                               end_id: the terminal entry that was seen then, of a foreign job
                                               expires with the log; PENDING: RETENTION after the registration
    {prefix}:{<workflow>}:<job>:lease  string  the live attempt's token; or `next` while the job waits for its next
                                               attempt; or when the grace period of its runner ends
                                               expires LEASE after its runner last renewed it; `next` after a week
    {prefix}:{<workflow>}:<job>:archive  zset  the record of each archived chunk, by its last number
                                               is deleted with the objects; the job's hash stays as long
    {prefix}:{<workflow>}:<job>:audit  list    the newest redactions; is deleted with the job
    {prefix}:{<workflow>}:<job>:sealer  string  the archive lock: the token of the archiver that works on the job
                                               expires unless that archiver extends it
    {prefix}:{<workflow>}:<job>:garbage  hash  objects without a record: who writes them, or since when they are to be
                                               deleted; is deleted with the last of them
    {prefix}:{<workflow>}:<job>:deleted  string  the tombstone of a deleted job
                                               expires RETENTION after the deletion
    {prefix}:{<workflow>}:settings     hash    retention_seconds: the workflow's own RETENTION, if it has one

Foreign runners write the same keys with plain commands, so nothing that is read here is trusted to have the right type
or form.
"""

from chronoverse.store.durability import Durability
from chronoverse.store.store import Store

__all__ = ["Durability", "Store"]
