"""The command line, made with click.

main     the group of commands, and the exit code of each error
serve    ``serve``: starts gunicorn, and the text that it prints when it is ready
run      ``run`` and ``deliver``: publishing
logs     ``logs``; ``jobs``, ``workflows``, ``search``, ``summary``, ``wait`` and ``download`` have modules, too
mcp      ``mcp``: reading, for programs that think
remove   ``redact`` and ``delete``
admin    ``archive``, ``retention`` and ``token``: for operators
printer  how lines, gaps and notices are printed
options  options that several commands have
common   what else several commands share

Each command imports what it needs when it is called, so that ``run`` does not wait for a web framework.
"""
