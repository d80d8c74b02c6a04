"""The command line, made with click. Each command imports what it needs when it is called: ``run`` must start fast.

main     the group of commands, and the exit code of each error
serve    ``serve``: starts gunicorn, and prints a banner when it is ready
run      ``run`` and ``deliver``: publishing
logs     ``logs``, and how lines, gaps and notices are printed
follow   ``logs -f`` without a job, which follows all running jobs of a workflow
listing  ``jobs`` and ``workflows``, and how lists are printed
mcp      ``mcp``: tools for AI agents
notify   ``notify``: delivers the messages of watches
watches  ``watches`` and ``watch``
remove   ``redact`` and ``delete``
admin    ``archive``, ``retention``, ``limits``, ``audit`` and ``token``: for operators
login    ``login`` and ``logout``
names    job arguments: ids, page links, ``@latest``
common   shared arguments, options and messages; access to the client and the store
version  the version, with the commit of a checkout

``search``, ``summary``, ``seen``, ``profile``, ``wait``, ``end``, ``download``, ``open``, ``conformance`` and
``completion`` have a module each, named after them.
"""
