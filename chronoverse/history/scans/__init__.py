"""Scans: reading many stored lines to find a few, in low-priority processes beside the workers.

scan           what a worker requests: a filtered page, or a filtered part of a replay
comparison     finds the lines of a log that are new, compared with other runs
summary_scan   makes the summary of a job
profile_scan   finds where the time of a job went
past_runs      finds the runs of a workflow in which a line was seen
workflow_scan  searches the jobs of a workflow, one after the other
matches        makes the JSON of matching lines, with their highlights and context
app            answers scans: a WSGI application, because gunicorn serves it
server         the scan server: a gunicorn with processes of low priority that each work on one scan at a time
client         how a worker asks the scan server, over a Unix socket
endpoint       where the server listens, and the locks that it shares with workers: one scan per subject at a time

ADR 18 has the reasons.
"""
