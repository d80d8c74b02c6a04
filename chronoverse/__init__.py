"""Chronoverse streams job logs. The path of a line, from the job that prints it to its readers:

    runner    runs the command, splits its output into lines, keeps them in a spool until they are safe, appends them
    store     keeps the lines in Redis Streams, one stream for each job
    archive   moves old lines from the store into compressed chunks in an object store
    history   reads store and archive as one log; history.scans searches it in a process of low priority
    live      reads new lines once for all viewers of a worker, and sends each viewer the lines after its cursor
    web       serves logs over HTTP, with Flask and gunicorn
    client    sends requests over HTTP, follows a log, and reconnects
    cli       prints it on a terminal
    collect   publishes the logs of a Kubernetes node's pods

``integrations`` are runners inside other frameworks, such as Celery.

All of these use ``joblog`` (what a line, a job and a gap are), ``auth`` (tokens), ``embedded`` (the server of the
default set-up), ``settings``, ``errors``, ``metrics`` and ``backoff``. A package imports only packages to its left:

    errors, metrics, backoff, files, fair_lock, token_bucket, settings; joblog; auth; store; embedded; archive; history;
    live; client; runner; integrations; web; cli; collect

``api`` is the public API. ``docs/architecture.md`` describes the design, and ``docs/glossary.md`` defines
the terms.
"""

#: The version, by semantic versioning. ``docs/versions.md`` says which versions run beside each other.
__version__ = "0.3.0.dev0"
