"""Chronoverse streams job logs. A line takes this path, from the job that prints it to its readers:

    runner    runs the command, splits its output into lines, spools them until they are safe, and appends them
    store     keeps the lines in Redis Streams, one stream per job
    archive   moves old lines from the store into compressed chunks in an object store
    history   reads store and archive as one log; history.scans searches it in a low-priority process
    live      reads new lines once per worker, and sends each viewer the lines after its cursor
    web       serves logs over HTTP, with Flask and gunicorn
    client    sends requests over HTTP, follows a log, and reconnects
    cli       prints logs on a terminal

``integrations`` and ``collect`` are runners for other frameworks and for Kubernetes; ``api`` is the public API. All of
these use ``joblog`` (lines, jobs and gaps), ``auth`` (tokens), ``embedded`` (the default store), ``settings``,
``errors``, ``metrics``, ``backoff``, ``files``, ``fair_lock`` and ``token_bucket``.

``CONTRIBUTING.md`` lists the packages in the order of imports; ``docs/architecture.md`` describes the design.
"""

#: The version, by semantic versioning. ``docs/versions.md`` says which versions can run beside each other.
__version__ = "0.3.0.dev0"
