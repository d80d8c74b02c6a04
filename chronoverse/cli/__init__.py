"""The command line, made with click.

main     the group of commands, and the exit code of each error
serve    ``serve``: starts gunicorn, and prints a banner when it is ready
run      ``run`` and ``deliver``: publishing
logs     ``logs``, and how lines, gaps and notices are printed
follow   ``logs -f`` of all running jobs of a workflow
listing  ``jobs`` and ``workflows``, and how lists are printed
mcp      ``mcp``: tools for AI agents
notify   ``notify``: delivers the messages of watches
watches  ``watches`` and ``watch``
remove   ``redact`` and ``delete``
admin    ``archive``, ``retention``, ``limits``, ``audit`` and ``token``: for operators
login    ``login`` and ``logout``
names    how a command line names a job: ids, the link of a page, ``@latest``
common   what several commands share: arguments, options, messages, the client and the store
version  the version, with the commit of a checkout

``search``, ``summary``, ``seen``, ``profile``, ``wait``, ``end``, ``download``, ``open``, ``conformance`` and
``completion`` have modules of their names. Each command imports what it needs when it is called: ``run`` must not wait
for a web framework.
"""
