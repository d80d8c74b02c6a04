"""The guards of a worker: what bounds its work, its memory and its sockets.

A worker serves all requests and streams on one event loop, so one client could delay all others. Each bound is in the
unit of the scarce resource, and each *subject* (the user of a token) has a share of it. A refusal is 503 when the
worker has no room, and 429 when the subject's share is used up. ``docs/operations.md`` has the table of limits.

- ``turns``: how many requests do the same expensive work at a time. Subjects, or client addresses, take turns.
- ``event_loop``: how long a greenlet works before the others run.
- ``memory``: shares of bytes. A subject can have half of what is free.
- ``rates``: bytes or jobs a second.
- ``admission``: bounds event streams and downloads, and drains a worker.
- ``connection``: cuts clients that send or read too slowly, and closes connections to make room.

:mod:`chronoverse.web.http.bodies` reads bodies, :mod:`chronoverse.web.streaming.stream_writer` writes to full sockets,
and :mod:`chronoverse.history.scans` bounds scans.
"""
