"""Scans read many stored lines to find a few, in low-priority processes (the *scan server*). See ADR 18.

scan           the requests of workers, such as a filtered page or a filtered part of a replay
comparison     finds a log's new lines, compared with other runs
summary_scan   makes a job's summary
profile_scan   finds where a job's time went
past_runs      finds the runs of a workflow that have a line of a given shape
workflow_scan  searches the jobs of one or all workflows, one after the other
matches        makes the JSON of matching lines, with highlights and context
app            answers scans: the scan server's WSGI application
server         the scan server: a gunicorn with low-priority processes, each of which handles one scan at a time
client         sends a worker's scans to the scan server, over a Unix socket
endpoint       the scan server's socket, and locks that limit each subject to one scan at a time
"""
