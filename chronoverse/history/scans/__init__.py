"""Goes through many lines of stored logs, in a process that has less priority than the workers.

scan           what a worker asks for: a page of lines that pass a filter, or what a stream with a query replays
comparison     finds the lines of a log that are new, compared with other runs
summary_scan   makes the summary of a job
profile_scan   finds where the time of a job went
past_runs      finds in which runs of a workflow a line was seen before
workflow_scan  searches the jobs of a workflow, one after the other
matches        makes the JSON of matching lines, with their highlights and context
app            answers scans: a WSGI application, because gunicorn serves it
server         the scan server: a gunicorn with processes of low priority that each work on one scan at a time
client         how a worker asks the scan server, over a Unix socket
endpoint       where the server listens, and what it shares with the workers: one scan of a subject at a time

ADR 18 has the reasons.
"""
