"""Chronoverse streams job logs. A line's way from runner to reader, one file a hop:

    runner    runs the command, captures its lines, publishes them
    store     where lines rest: Redis Streams, and the only module that knows Redis
    tail      a worker's one live reader, for all the jobs being watched there
    viewer    one reader's cursor: replay, then live, then the end
    web       the viewer's bytes over HTTP, and the history beside it
    client    the other end of that HTTP, which reconnects
    cli       the terminal

`joblog` holds the words they all use, `sse` the frames, `settings` every knob.
"""
