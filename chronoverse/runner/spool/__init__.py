"""The spool: where lines wait until the store has them safely, in memory and beyond a bound in an SQLite file.

    put ──> Spool ──> MemoryBatches, and beyond their bound or while the store is away a SpoolFile
    take <─┘

spool       the queue that others use: one thread puts lines in, another takes them out; drops lines without room
batches     a stored batch of lines, and the batches in memory
spool_file  the batches in a file, which can be delivered after its runner was killed
salvage     what is whole in a damaged file

A line's *index* counts the lines that the job printed before it, and never changes. It becomes a sequence number when
the store has said where the log continues.
"""
