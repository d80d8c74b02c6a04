"""The reading end of the HTTP interface.

client    sends requests, follows a job's log and reconnects, reads pages
follower  makes lines, gaps and states of a stream's bytes; no I/O
terminal  makes text of a log that a terminal can show safely
"""
