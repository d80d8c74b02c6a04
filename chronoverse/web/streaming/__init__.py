"""Writes event streams to their sockets.

Under gunicorn with this project's worker, a ``StreamWriter`` (``stream_writer``) takes over a viewer's socket, and the
request's greenlet ends. From here, a viewer is in one of two states:

caught up   Everything is written. New frames are written immediately: by the feed's ``BroadcastGroup`` (``broadcast``)
            in one pass for all members, or by this viewer's writer if the feed has no group.
behind      The socket is full, or the store must be read. The worker's ``WriteScheduler`` writes when the socket has
            room. A viewer that replays or ends has its own greenlet.
"""
