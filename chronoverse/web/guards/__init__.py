"""Limits on a worker's work, memory and sockets.

A worker serves all requests and streams on one event loop, so one client could delay all others. Each limit is in the
unit of the scarce resource. Each *subject* (a token's ``sub``) has a share of each limit. A refused request gets 503 if
the worker is full, or 429 if its subject's share is used up. ``docs/operations.md`` has the table of limits.

- ``turns``: limits concurrent requests for the same expensive work. Subjects, or client addresses, take turns.
- ``event_loop``: limits how long a greenlet runs before it yields.
- ``memory``: limits bytes of request bodies and unread answers. A subject can take half of what is free.
- ``rates``: limits bytes or jobs per second.
- ``admission``: limits event streams and downloads, and drains a worker.
- ``connection``: cuts clients that send or read too slowly, and closes idle connections to make room.

:mod:`chronoverse.web.http.bodies` reads bodies, :mod:`chronoverse.web.streaming.stream_writer` writes to full sockets,
and :mod:`chronoverse.history.scans` bounds scans.
"""
