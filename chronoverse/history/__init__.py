"""Reads store and archive as one log: the archive has older lines, the store newer ones.

tiered_log  reads a log from both, in either order, and finds its gaps
pages       reads one page of a log, within a budget
scans       reads many lines to find a few, in low-priority processes
"""
