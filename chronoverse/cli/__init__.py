"""The command line, made with click.

main     the group of commands, and the exit code of each error
serve    ``serve``: starts gunicorn, and the text that it prints when it is ready
run      ``run`` and ``deliver``: publishing
logs     ``logs``, ``jobs`` and ``download``: reading
mcp      ``mcp``: reading, for programs that think
remove   ``redact`` and ``delete``
printer  how lines, gaps and jobs are printed
admin    ``archive``, ``retention`` and ``token``: for operators
common   what several commands share

Each command imports what it needs when it is called, so that ``run`` does not wait for a web framework.
"""
