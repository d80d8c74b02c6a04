"""The spool: where lines wait until the store has them safely.

    put ──> Spool ──> MemoryBatches, and beyond their bound or while the store is away a SpoolFile
    take <─┘

spool       the queue: one thread puts lines in, another takes them out; drops lines when there is no room
spool_file  batches in an SQLite file, which survives its runner
salvage     recovers undamaged lines of a damaged file

A line's *index* counts the lines that the job printed before it, and never changes. It becomes a sequence number when
the store has returned where the log continues.
"""
