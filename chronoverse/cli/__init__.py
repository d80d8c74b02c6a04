"""The command line.

main     the commands of users: serve, run, deliver, logs, jobs
admin    the commands of operators: archive, retention, token
printer  what ``logs`` and ``jobs`` print
options  values that several commands take
banner   what ``serve`` says when it is ready
"""
