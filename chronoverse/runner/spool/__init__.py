"""The spool: where lines wait until the store has them safely, in memory and beyond a bound in a file.

    put ──> Spool ──> SegmentBuffer ──> Segment ──> memory, or a slot of a SpoolFile
    take <─┘

spool           the queue that others use: one thread puts lines in, another takes them out
segment_buffer  the waiting lines as segments; drops lines from the middle when there is no room
segment         consecutive waiting lines, and reading from them
spool_file      the file, in slots of equal size; and its name, lock and state
records         the bytes of lines, slots and state

Lines are counted by their *index*: 0 for the first line of this runner that is published. An index becomes a sequence
number when the store has said where the log continues.
"""
