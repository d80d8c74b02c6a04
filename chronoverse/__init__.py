"""Chronoverse streams job logs. This is the way of a line, from the job that prints it to whoever reads it:

    runner     runs the command, cuts its output into lines, keeps them until they are safe, and appends them
    store      keeps the lines in Redis Streams, one stream for each job
    archive    moves old lines out of the store into compressed chunks in an object store
    history    reads store and archive as one log
    live       reads new lines once for all viewers of a worker, and gives each viewer what follows its cursor
    web        serves all of that over HTTP with Flask and gunicorn
    client     follows a log over HTTP, and reconnects
    cli        the terminal

These use ``joblog`` (what a line, a job and a gap are), ``auth`` (tokens), ``embedded`` (the server of the default
set-up), ``settings``, ``errors`` and ``metrics``. A package imports only what stands above it in this list:

    errors, metrics, backoff, settings; joblog; auth; store; embedded; archive; history; live; client; runner; web; cli

``api`` is what other people's programs import.
"""
