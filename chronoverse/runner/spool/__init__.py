"""The spool: where lines wait until the store has them safely, in memory and beyond a bound in an SQLite file.

    put ──> Spool ──> MemoryBatches, and beyond their bound or while the store is away a SpoolFile
    take <─┘

spool           the queue that others use: one thread puts lines in, another takes them out; drops lines without room
dropped_range   lines that were dropped, and the marker that stands for them in the log
batches         a stored batch of lines, and the batches in memory
spool_file      the batches in a file, which can be delivered after its runner was killed
salvage         what is whole in a damaged file

A line has three numbers. Its *ordinal* counts the lines that the job printed before it, and never changes. Its *index*
counts the lines before it in the log, from this runner's first line on: dropped lines do not count, drop markers do.
An index becomes a sequence number when the store has said where the log continues.
"""
