"""Reads store and archive as one log: the archive has older lines, the store newer ones.

tiered_log  selects the tier for each read, and reads a log in either order, with its gaps
pages       reads one page of a log, within a budget
scans       reads many lines to find a few, in low-priority processes
"""
