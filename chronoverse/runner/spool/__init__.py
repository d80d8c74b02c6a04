"""The spool: holds lines until they are safe in the store.

    put ──> Spool ──> MemoryBatches; when these are full, or while the store is down, a SpoolFile
    take <─┘

spool       the queue: one thread puts lines in, another takes them out; drops lines when it is full
spool_file  batches in an SQLite file, which survives its runner
salvage     recovers undamaged lines of a damaged file

A line's *index* is the number of lines that the job printed before it.
"""
