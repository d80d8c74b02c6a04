"""Event streams: who writes to their sockets.

A request is admitted (``web.guards.admission``) and gets a viewer (``web.routes.events``). Under gunicorn with this
project's worker, a ``StreamWriter`` (``stream_writer``) then takes over the socket, and the request's greenlet ends.
From here, a viewer is in one of two states:

caught up   Everything is written. New frames are written as soon as they come: by the ``BroadcastGroup`` of the feed
            (``broadcast``), in one pass for all of its members, or for this viewer alone where there is no group.
behind      There is more to write than the socket takes, or the store must be read. The worker's ``WriteScheduler``
            writes when the socket has room. A replay and an end have their own greenlet.
"""
