"""One log over both tiers: the archive has its older lines, the store its newer ones.

tiered_log  chooses the tier for each read, and reads a log upwards or downwards, with its gaps
pages       reads one page of a log, within its budget
scans       reads many lines to find a few, in low-priority processes
"""
