"""One log over both tiers: the archive has its older lines, the store its newer ones.

tiered_log  chooses the tier for each read, and goes through a log upwards or downwards, with its gaps
pages       reads one page of a log, within what it may cost
scans       goes through many lines to find a few, in a process of low priority
"""
