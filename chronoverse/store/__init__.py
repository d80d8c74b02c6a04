"""The store: where lines rest, in Redis Streams. The only package that imports redis.

    store             every read and write of job logs: the class ``Store``
    topology          which server has a workflow's keys: one server, sentinel or cluster
    driver            redis-py, with our timeouts and errors
    scripts/          Lua: whatever must happen in one step
    live_reader       waits for new entries of many jobs: tracking_reader, blocking_reader, node_readers, watchlist
    appends           appends of which the next leaves before the last is answered
    prefetch          reads on while the last read is worked on
    replies           what the server's replies mean
    durability        whether lines are on the disk or on a replica; permanence says it of other writes
    catalog           the jobs of a workflow, their retention, and what an archiver finds to do
    chunk_index       the records of archived chunks; redaction_log has those of redactions
    foreign_jobs      lists jobs whose runners write with plain commands
    server_settings   what a server's settings mean for logs; eviction warns of them

Keys, under a prefix, with the workflow as hash tag so that all of a workflow's keys share a cluster slot:

    {prefix}:{<workflow>}:jobs         zset    job ids by creation time (Unix ms)
                                               never expires; jobs that are gone leave it when a listing meets them,
                                               foreign jobs enter it when somebody looks at them
    {prefix}:{<workflow>}:<job>:log    stream  the lines as <sequence_num>-0, last the terminal entry; one entry,
                                               with the last one's number, for lines that were lost
                                               expires RETENTION after the end
    {prefix}:{<workflow>}:<job>:job    hash    status, attempt, created_at, …
                                               end_seen_ms: when the end was first seen, by the server's clock
                                               expires with the log; PENDING: RETENTION after the registration
    {prefix}:{<workflow>}:<job>:lease  string  the live attempt's token
                                               expires LEASE after its runner was last heard
    {prefix}:{<workflow>}:<job>:archive  zset  the record of each archived chunk, by its last number
                                               goes with the objects; the job's hash stays as long
    {prefix}:{<workflow>}:<job>:audit  list    the newest redactions; goes with the job
    {prefix}:{<workflow>}:<job>:sealer  string  who archives the job
                                               expires when that process was not heard for a while
    {prefix}:{<workflow>}:<job>:garbage  hash  objects that no record names, and since when they are to be deleted
                                               goes with the last of them
    {prefix}:{<workflow>}:<job>:deleted  string  the tombstone of a job that somebody deleted
                                               expires RETENTION after the deletion
    {prefix}:{<workflow>}:settings     hash    retention_seconds: its RETENTION where that is not the common one

Whatever must be atomic is a script in ``scripts/``. All of them may be repeated after a lost reply.
Foreign runners write the same keys with plain commands, so nothing read here is trusted to be in shape.
"""

from chronoverse.store.durability import Durability
from chronoverse.store.store import Store

__all__ = ["Durability", "Store"]
