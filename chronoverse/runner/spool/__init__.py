"""Where lines wait until the store has them safely: in memory, and beyond a bound in a file.

spool           one side puts lines in, the other takes them out
segment_buffer  the waiting lines as segments, with a bound
segment         consecutive waiting lines, in memory or in a slot of the file
spool_file      the file: slots that are written, read and freed
records         how lines are spelled in bytes
dropped_range   where lines were dropped, and what the log says there
"""
